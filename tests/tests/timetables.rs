//! Timetables against Airflow's own classes: a sample of what `cargo xtask timetables` compares by the million.

use harness::timetables::{Portion, compare};

#[test]
fn timetables_answer_as_those_of_airflow() {
    let Some(python) = harness::python() else { return };
    let portion = Portion {
        seed: 7,
        count: 3_000,
        part: 0,
        parts: 2,
    };
    let tally = compare(&python, portion).expect("a comparison");
    assert!(tally.instants > 2_000, "{tally:?}");
    assert_eq!(tally.different, 0, "{}", tally.differences.join("\n"));
}
