use super::*;

const RULES: Rules = Rules {
    in_parts: &["waits"],
    order: &[("first", "second")],
    pooled: ("pooled", 1),
};

fn id(task: &str, number: u32) -> TryId {
    TryId {
        run: "r".to_owned(),
        task: task.to_owned(),
        map_index: -1,
        number,
    }
}

fn witness(tries: &[(&str, u32, &str)]) -> Witness {
    let mut witness = Witness::default();
    for (task, number, text) in tries {
        witness.add(id(task, *number), text);
    }
    assert!(witness.unreadable.is_empty(), "{:?}", witness.unreadable);
    witness
}

/// The invariants that are broken.
fn found(tries: &[(&str, u32, &str)]) -> Vec<&'static str> {
    let broken = of_witness(&witness(tries), &RULES, &|_| false);
    broken.iter().map(|broken| broken.invariant).collect()
}

#[test]
fn what_is_as_it_should_be_breaks_nothing() {
    let fine = [
        ("first", 1, "start 1.00 1 1 w\nalive 1.25 1 1 w\nend 1.50 1 1 w\n"),
        // Killed, and tried again.
        ("second", 1, "start 1.50 2 1 w\nalive 2.00 2 1 w\n"),
        ("second", 2, "start 3.00 3 2 v\nend 3.10 3 2 v\n"),
        // Fails as it was written to.
        ("third", 1, "start 1.00 1 1 w\nfails 1.25 1 1 w\n"),
        ("third", 2, "start 2.00 1 2 w\nend 2.25 1 2 w\n"),
        // Two parts of one try, and a part that was lost.
        (
            "waits",
            1,
            "start 1.00 4 1 w\nend 1.10 4 1 w\nstart 5.00 5 2 w\nalive 5.10 5 2 w\n",
        ),
        (
            "waits",
            2,
            "start 6.00 4 3 w\nend 6.10 4 3 w\nstart 7.00 5 4 w\nend 7.10 5 4 w\n",
        ),
        ("pooled", 1, "start 1.00 1 1 w\nend 2.00 1 1 w\n"),
        ("pooled", 2, ""),
    ];
    assert!(found(&fine).is_empty(), "{:?}", found(&fine));
}

#[test]
fn a_try_that_started_twice_is_found() {
    let twice = "start 1.00 1 1 w\nend 1.50 1 1 w\nstart 2.00 2 2 v\nend 2.50 2 2 v\n";
    assert_eq!(found(&[("first", 1, twice)]), [STARTED_TWICE]);
    // Also where tries have parts, if two parts have one claim.
    let same = "start 1.00 1 1 w\nend 1.50 1 1 w\nstart 2.00 2 1 v\nend 2.50 2 1 v\n";
    assert_eq!(found(&[("waits", 1, same)]), [STARTED_TWICE]);
    assert!(found(&[("waits", 1, twice)]).is_empty());
}

#[test]
fn tries_that_overlap_are_found() {
    let tries = [
        ("first", 1, "start 1.00 1 1 w\nalive 3.00 1 1 w\n"),
        ("first", 2, "start 2.00 2 2 v\nend 2.50 2 2 v\n"),
    ];
    assert_eq!(found(&tries), [OVERLAP]);
    let parts = "start 1.00 1 1 w\nstart 1.50 2 2 v\nend 2.00 2 2 v\n";
    assert!(found(&[("waits", 1, parts)]).is_empty());
    let overlapping = "start 1.00 1 1 w\nstart 1.50 2 2 v\nalive 1.80 1 1 w\nend 2.00 2 2 v\n";
    assert_eq!(found(&[("waits", 1, overlapping)]), [OVERLAP]);
}

#[test]
fn a_try_that_starts_after_a_later_one_is_found() {
    let tries = [
        ("first", 1, "start 3.00 1 1 w\n"),
        ("first", 2, "start 2.00 2 2 v\nend 2.50 2 2 v\n"),
    ];
    assert!(found(&tries).contains(&LATE));
    let parts = "start 1.00 1 2 w\nend 1.10 1 2 w\nstart 2.00 2 1 w\nend 2.10 2 1 w\n";
    assert_eq!(found(&[("waits", 1, parts)]), [LATE]);
}

#[test]
fn a_finished_try_that_is_run_again_is_found_unless_its_machine_was_lost() {
    let tries = [
        ("first", 1, "start 1.00 1 1 w\nend 1.50 1 1 w\n"),
        ("first", 2, "start 2.00 2 2 v\nend 2.50 2 2 v\n"),
    ];
    assert_eq!(found(&tries), [RUN_AGAIN]);
    let lost = |end: &Record| end.worker == "w";
    assert!(of_witness(&witness(&tries), &RULES, &lost).is_empty());
}

#[test]
fn a_task_that_starts_too_early_is_found() {
    let early = [
        ("first", 1, "start 1.00 1 1 w\nend 2.00 1 1 w\n"),
        ("second", 1, "start 1.50 2 1 w\nend 3.00 2 1 w\n"),
    ];
    assert_eq!(found(&early), [ORDER]);
    assert_eq!(found(&[("second", 1, "start 1.50 2 1 w\n")]), [ORDER]);
}

#[test]
fn a_pool_that_is_exceeded_is_found() {
    let mut two = witness(&[("pooled", 1, "start 1.00 1 1 w\nend 2.00 1 1 w\n")]);
    let other = TryId {
        run: "s".to_owned(),
        ..id("pooled", 1)
    };
    two.add(other, "start 1.50 2 1 v\nend 2.50 2 1 v\n");
    let broken = of_witness(&two, &RULES, &|_| false);
    assert_eq!(broken[0].invariant, LIMIT);
}

/// A run `r` that ended well.
fn ended() -> (Ending, Witness) {
    let task = |name: &str, state: &str| ("r".to_owned(), name.to_owned(), -1, state.to_owned(), 1);
    let ending = Ending {
        runs: BTreeMap::from([("r".to_owned(), "success".to_owned())]),
        tasks: vec![task("first", "success"), task("nothing", "success")],
        acknowledged: BTreeSet::from(["r".to_owned()]),
        counts: vec![("rows of the outbox".to_owned(), 0)],
        without_xcom: Vec::new(),
        dates: (vec![30, 10, 20], 10),
        silent: vec!["nothing"],
    };
    (
        ending,
        witness(&[("first", 1, "start 1.00 1 1 w\nend 1.50 1 1 w\n")]),
    )
}

#[test]
fn a_success_whose_last_part_did_not_end_is_found() {
    let (mut ending, mut witness) = ended();
    ending.tasks[0].1 = "waits".to_owned();
    witness.add(
        id("waits", 1),
        "start 1.00 1 1 w\nend 1.10 1 1 w\nstart 2.00 1 2 w\n",
    );
    assert_eq!(of_ending(&ending, &witness)[0].invariant, NEVER_RAN);
    witness.add(id("waits", 1), "end 2.10 1 2 w\n");
    assert!(of_ending(&ending, &witness).is_empty());
}

fn found_in(change: impl FnOnce(&mut Ending)) -> Vec<&'static str> {
    let (mut ending, witness) = ended();
    change(&mut ending);
    of_ending(&ending, &witness)
        .iter()
        .map(|broken| broken.invariant)
        .collect()
}

#[test]
fn what_is_lost_failed_left_or_unfinished_in_the_end_is_found() {
    assert!(found_in(|_| {}).is_empty());
    let none: Vec<&str> = Vec::new();
    assert_eq!(found_in(|ending| ending.runs.clear()), [LOST]);
    let set = |state: &'static str| move |ending: &mut Ending| ending.tasks[0].3 = state.to_owned();
    assert_eq!(found_in(set("running")), [UNFINISHED]);
    assert_eq!(found_in(set("queued")), [UNFINISHED]);
    assert_eq!(found_in(set("failed")), [FAILED]);
    assert_eq!(found_in(set("upstream_failed")), [FAILED]);
    // A success of a try that has no end in the witness.
    assert_eq!(found_in(|ending| ending.tasks[0].4 = 2), [NEVER_RAN]);
    let state = |state: &str| BTreeMap::from([("r".to_owned(), state.to_owned())]);
    assert_eq!(found_in(|ending| ending.runs = state("running")), [UNFINISHED]);
    assert_eq!(found_in(|ending| ending.runs = state("failed")), [FAILED]);
    assert_eq!(found_in(|ending| ending.counts[0].1 = 3), [LEFT_OVER]);
    assert_eq!(
        found_in(|ending| ending.without_xcom.push("r".to_owned())),
        [XCOMS]
    );
    assert_eq!(found_in(|ending| ending.dates.0 = vec![10, 20, 20, 30]), [DATES]);
    assert_eq!(found_in(|ending| ending.dates.0 = vec![10, 30]), [DATES]);
    assert_eq!(found_in(|ending| ending.dates.0.clear()), none);
}

#[test]
fn what_a_component_says_of_its_own_faults_is_found() {
    let text = "INFO all is well\nthread 'main' panicked at lib.rs:1\nERROR the metadata store refused a statement: 1292\n";
    let broken = of_lines("scheduler", text);
    assert_eq!(broken.len(), 2);
    assert!(broken.iter().all(|broken| broken.invariant == SAID));
    let asked_for = "thread 'scheduler' (7) panicked at crates/lifecycle/src/lifecycle.rs:224:31:";
    assert!(of_lines("scheduler", asked_for).is_empty());
}
