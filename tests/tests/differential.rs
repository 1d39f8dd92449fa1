//! Native tasks are not to be told from the same tasks in Python, nor from real Airflow's.

use harness::differential::{AllMeant, Recorded, compare, generated, listed, recorded};
use std::collections::{BTreeMap, BTreeSet};

/// Any seed does; this one makes every run of the tests the same.
const SEED: u64 = 20_251_130;
/// Generated cases in a test run: about twenty seconds.
const SAMPLE: u64 = 600;

#[test]
fn listed_tasks_end_natively_as_in_python_and_in_real_airflow_but_for_what_is_meant() {
    let Some(python) = harness::python() else { return };
    let recorded: Vec<Recorded> = recorded().unwrap();
    let answers: BTreeMap<_, _> = recorded
        .iter()
        .map(|known| (known.case.name.clone(), known.answer.clone()))
        .collect();
    let names: BTreeSet<&String> = answers.keys().collect();
    let unanswered = listed()
        .unwrap()
        .into_iter()
        .filter(|case| !names.contains(&case.name));
    let unanswered: Vec<_> = unanswered.collect();
    let cases: Vec<_> = recorded
        .into_iter()
        .map(|known| known.case)
        .chain(unanswered)
        .collect();
    let mut tally = compare(&python, &cases, &answers, "--seed 1").unwrap();
    let mut meant = AllMeant::load().unwrap();
    meant.take(&mut tally.differences);
    assert!(tally.differences.is_empty(), "{}", tally.texts().join("\n"));
    assert_eq!(meant.unseen(), [""; 0], "these are no differences any more");
    assert!(tally.native > 30, "{tally:?}");
}

#[test]
fn generated_tasks_end_natively_as_in_python() {
    let Some(python) = harness::python() else { return };
    let cases: Vec<_> = (0..SAMPLE).map(|number| generated(SEED, number)).collect();
    let replay = format!("--seed {SEED}");
    let mut tally = compare(&python, &cases, &BTreeMap::new(), &replay).unwrap();
    AllMeant::load().unwrap().take(&mut tally.differences);
    assert!(tally.differences.is_empty(), "{}", tally.texts().join("\n"));
    assert!(tally.native > 200, "{tally:?}");
}
