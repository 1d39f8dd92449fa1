//! Native tasks are not to be told from the same tasks in Python, nor from real Airflow's.

use harness::differential::{compare, generated, listed, recorded};

use std::collections::BTreeMap;

/// Any seed does; this one makes every run of the tests the same.
const SEED: u64 = 20_251_130;
/// Generated cases in a test run: about twenty seconds.
const SAMPLE: u64 = 600;

#[test]
fn listed_tasks_end_natively_as_in_python_and_in_real_airflow() {
    let Some(python) = harness::python() else { return };
    let recorded = recorded().unwrap();
    let mut cases = listed().unwrap();
    let numbers = recorded.keys().filter_map(|name| name.parse().ok());
    cases.extend(numbers.map(|number| generated(1, number)));
    let tally = compare(&python, &cases, &recorded, "--seed 1").unwrap();
    assert!(tally.differences.is_empty(), "{}", tally.differences.join("\n"));
    assert!(tally.native > 40, "{tally:?}");
}

#[test]
fn generated_tasks_end_natively_as_in_python() {
    let Some(python) = harness::python() else { return };
    let cases: Vec<_> = (0..SAMPLE).map(|number| generated(SEED, number)).collect();
    let replay = format!("--seed {SEED}");
    let tally = compare(&python, &cases, &BTreeMap::new(), &replay).unwrap();
    assert!(tally.differences.is_empty(), "{}", tally.differences.join("\n"));
    assert!(tally.native > 200, "{tally:?}");
}
