use super::*;
use chrono::{DateTime, Duration};
use proptest::prelude::*;
use serde_json::{Value, json};
use uuid::Uuid;

mod mapping;

pub(super) fn dag_of(tasks: Vec<Value>, max_active_tasks: u32) -> Dag {
    let tasks: Vec<Value> = tasks
        .into_iter()
        .map(|task| json!({"__type": "operator", "__var": task}))
        .collect();
    Dag::from_serialized(&json!({"__version": 3, "dag": {
        "dag_id": "d", "max_active_tasks": max_active_tasks, "max_active_runs": 1, "tasks": tasks,
        "timetable": {"__type": "airflow.timetables.simple.NullTimetable", "__var": {}},
    }}))
    .unwrap()
}

fn chain(rules: &[&str]) -> Dag {
    let tasks = rules
        .iter()
        .enumerate()
        .map(|(n, rule)| {
            let next: Vec<String> = (n + 1 < rules.len()).then(|| format!("t{}", n + 1)).into_iter().collect();
            json!({"task_id": format!("t{n}"), "task_type": "X", "trigger_rule": rule, "downstream_task_ids": next})
        })
        .collect();
    dag_of(tasks, 16)
}

pub(super) fn instances(dag: &Dag, states: &[StateName]) -> Vec<TaskSnapshot> {
    dag.tasks
        .iter()
        .zip(states)
        .enumerate()
        .map(|(n, (task, state))| TaskSnapshot {
            id: TaskInstanceId::new(Uuid::from_u128(n as u128)),
            task_id: task.task_id.clone(),
            map_index: MapIndex::UNMAPPED,
            state: *state,
            not_before: None,
            goes_on: true,
            weight: task.priority_weight,
            pool: task.pool.clone(),
        })
        .collect()
}

struct World {
    start_date: Option<Timestamp>,
    active_over_runs: HashMap<TaskId, u32>,
    held_by_past: HashSet<TaskId>,
    previously_skipped: PreviouslySkipped,
    awaiting_mutation: HashSet<TaskInstanceId>,
    lengths: HashMap<TaskId, usize>,
}

impl World {
    fn snapshot<'a>(&'a self, dag: &'a Dag, tasks: &'a [TaskSnapshot], paused: bool) -> RunSnapshot<'a> {
        RunSnapshot {
            dag,
            start_date: self.start_date,
            paused,
            tasks,
            active_over_runs: &self.active_over_runs,
            held_by_past: &self.held_by_past,
            previously_skipped: &self.previously_skipped,
            awaiting_mutation: &self.awaiting_mutation,
            lengths: &self.lengths,
            now: DateTime::UNIX_EPOCH,
        }
    }
}

fn plan_in(world: &World, dag: &Dag, tasks: &[TaskSnapshot], paused: bool) -> Plan {
    plan_run(&world.snapshot(dag, tasks, paused))
}

fn world() -> World {
    World {
        start_date: None,
        active_over_runs: HashMap::new(),
        held_by_past: HashSet::new(),
        previously_skipped: PreviouslySkipped::default(),
        awaiting_mutation: HashSet::new(),
        lengths: HashMap::new(),
    }
}

pub(super) fn plan(dag: &Dag, tasks: &[TaskSnapshot]) -> Plan {
    plan_in(&world(), dag, tasks, false)
}

fn decisions(plan: &Plan) -> Vec<Decision> {
    plan.moves.iter().map(|m| m.decision.clone()).collect()
}

use StateName::{Failed, NoStatus, Running, Success, UpForRetry};

#[test]
fn a_task_is_scheduled_when_the_one_before_it_succeeded() {
    let dag = chain(&["all_success"; 3]);
    let plan = plan(&dag, &instances(&dag, &[Success, NoStatus, NoStatus]));
    assert_eq!(plan.moves.len(), 1);
    assert_eq!(plan.moves[0].id, TaskInstanceId::new(Uuid::from_u128(1)));
    assert_eq!(plan.moves[0].decision, Decision::Schedule);
    assert_eq!(plan.end, None);
}

#[test]
fn a_failure_goes_through_the_whole_chain_at_once_and_fails_the_run() {
    let dag = chain(&["all_success"; 4]);
    let plan = plan(&dag, &instances(&dag, &[Failed, NoStatus, NoStatus, NoStatus]));
    assert_eq!(decisions(&plan), vec![Decision::FailUpstream; 3]);
    assert_eq!(plan.end, Some(RunEnd::TaskFailure));
}

#[test]
fn a_leaf_that_runs_after_all_makes_the_run_succeed() {
    let dag = chain(&["all_success", "all_done"]);
    assert_eq!(
        plan(&dag, &instances(&dag, &[Failed, Success])).end,
        Some(RunEnd::Success)
    );
}

/// A task instance in that state, with its DAG, which is due now; before, the plan says when to look.
fn due_in_time(state: StateName) -> (Dag, Vec<TaskSnapshot>) {
    let dag = chain(&["all_success"]);
    let mut tasks = instances(&dag, &[state]);
    let due = DateTime::UNIX_EPOCH + Duration::seconds(5);
    tasks[0].not_before = Some(due);
    let early = plan(&dag, &tasks);
    assert_eq!(
        (early.moves.len(), early.wake_at, early.end),
        (0, Some(due), None)
    );
    tasks[0].not_before = Some(DateTime::UNIX_EPOCH);
    (dag, tasks)
}

#[test]
fn a_retry_waits_for_its_time_and_says_when() {
    let (dag, tasks) = due_in_time(UpForRetry);
    assert_eq!(decisions(&plan(&dag, &tasks)), [Decision::Schedule]);
}

#[test]
fn what_waits_to_be_tried_again_ends_with_what_is_before_it() {
    let dag = chain(&["all_success"; 2]);
    for waits in [StateName::UpForRetry, StateName::UpForReschedule] {
        for (before, fate) in [
            (Failed, Decision::FailUpstream),
            (StateName::Skipped, Decision::Skip),
        ] {
            let next = plan(&dag, &instances(&dag, &[before, waits]));
            assert_eq!(decisions(&next), [fate]);
            assert!(next.end.is_some(), "and the run with it");
        }
    }
}

#[test]
fn what_a_branch_skipped_is_skipped_again_whatever_its_own_rule_says() {
    let dag = chain(&["all_success", "none_failed_min_one_success", "all_success"]);
    let mut decided = world();
    decided.previously_skipped.whole.insert("t1".into());
    let next = plan_in(
        &decided,
        &dag,
        &instances(&dag, &[Success, NoStatus, NoStatus]),
        false,
    );
    assert_eq!(decisions(&next), vec![Decision::Skip; 2]);
}

/// `s >> w1 >> w2 >> t`, `s >> t`; `s` is a setup, `t` its teardown, and `w2` runs whatever `w1` does.
fn set_up() -> Dag {
    dag_of(
        vec![
            json!({"task_id": "s", "task_type": "X", "is_setup": true, "downstream_task_ids": ["w1", "t"]}),
            json!({"task_id": "w1", "task_type": "X", "downstream_task_ids": ["w2"]}),
            json!({"task_id": "w2", "task_type": "X", "trigger_rule": "all_done", "downstream_task_ids": ["t"]}),
            json!({"task_id": "t", "task_type": "X", "is_teardown": true, "trigger_rule": "all_done_setup_success"}),
        ],
        16,
    )
}

#[test]
fn a_setup_that_failed_keeps_all_that_needs_it_from_running() {
    let dag = set_up();
    let next = plan(&dag, &instances(&dag, &[Failed, NoStatus, NoStatus, NoStatus]));
    assert_eq!(decisions(&next), vec![Decision::FailUpstream; 3]);
    let next = plan(
        &dag,
        &instances(&dag, &[StateName::Skipped, NoStatus, NoStatus, NoStatus]),
    );
    assert_eq!(decisions(&next), vec![Decision::Skip; 3]);
}

#[test]
fn a_teardown_waits_for_all_between_its_setup_and_itself() {
    let dag = set_up();
    let states = |w1: StateName| instances(&dag, &[Success, w1, Success, NoStatus]);
    assert!(
        plan(&dag, &states(Running)).moves.is_empty(),
        "`w1` is cleared and runs again"
    );
    assert_eq!(decisions(&plan(&dag, &states(Success))), [Decision::Schedule]);
}

#[test]
fn a_paused_dag_schedules_nothing_but_lets_the_run_end() {
    let dag = chain(&["all_success"; 2]);
    let half = plan_in(&world(), &dag, &instances(&dag, &[Success, NoStatus]), true);
    assert_eq!((half.moves.len(), half.end), (0, None));
    assert_eq!(
        plan_in(&world(), &dag, &instances(&dag, &[Success, Success]), true).end,
        Some(RunEnd::Success)
    );
}

#[test]
fn empty_operators_complete_without_a_worker_and_what_follows_is_decided_too() {
    let empty = |id: &str, next: &[&str]| json!({"task_id": id, "task_type": "EmptyOperator", "_is_empty": true, "downstream_task_ids": next});
    let dag = dag_of(vec![empty("a", &["b"]), empty("b", &[])], 16);
    let plan = plan(&dag, &instances(&dag, &[NoStatus, NoStatus]));
    assert_eq!(decisions(&plan), [Decision::Complete, Decision::Complete]);
    assert_eq!(plan.end, Some(RunEnd::Success));
}

#[test]
fn max_active_tasks_lets_the_heaviest_through() {
    let task = |id: &str, weight: i64| json!({"task_id": id, "task_type": "X", "priority_weight": weight});
    let dag = dag_of(vec![task("light", 1), task("heavy", 9), task("busy", 1)], 2);
    let plan = plan(&dag, &instances(&dag, &[NoStatus, NoStatus, Running]));
    assert_eq!(plan.moves.len(), 1);
    assert_eq!(plan.moves[0].id, TaskInstanceId::new(Uuid::from_u128(1)));
    assert_eq!(plan.end, None);
}

#[test]
fn nothing_runs_before_python_has_said_how() {
    let task = |id: &str| json!({"task_id": id, "task_type": "X"});
    let dag = dag_of(vec![task("a"), task("b")], 16);
    let tasks = instances(&dag, &[NoStatus, NoStatus]);
    let mut asked = world();
    asked.awaiting_mutation.insert(tasks[0].id);
    let plan = plan_in(&asked, &dag, &tasks, false);
    assert_eq!((plan.moves.len(), plan.end), (1, None));
    assert_eq!(plan.moves[0].id, tasks[1].id);
    let told = blockers(&asked.snapshot(&dag, &tasks, false), tasks[0].id);
    assert_eq!(told, [Blocker::Mutation]);
}

#[test]
fn what_waits_for_one_pool_keeps_nothing_from_another() {
    let task = |id: &str, pool: &str| json!({"task_id": id, "task_type": "X", "pool": pool});
    let tasks = vec![
        task("a", "slow"),
        task("b", "slow"),
        task("c", "slow"),
        task("d", "other"),
    ];
    let dag = dag_of(tasks, 2);
    let states = [StateName::Scheduled, StateName::Scheduled, NoStatus, NoStatus];
    let tasks = instances(&dag, &states);
    let plan = plan(&dag, &tasks);
    assert_eq!(plan.moves.len(), 1);
    assert_eq!(plan.moves[0].id, tasks[3].id);
    let world = world();
    let told = blockers(&world.snapshot(&dag, &tasks, false), tasks[2].id);
    assert_eq!(
        told[0].to_string(),
        "2 of its run are before it in pool slow: a, b"
    );
}

#[test]
fn a_limit_over_all_runs_counts_the_other_runs() {
    let dag = dag_of(
        vec![json!({"task_id": "a", "task_type": "X", "max_active_tis_per_dag": 1})],
        16,
    );
    let mut busy = world();
    busy.active_over_runs.insert("a".into(), 1);
    let plan = plan_in(&busy, &dag, &instances(&dag, &[NoStatus]), false);
    assert_eq!((plan.moves.len(), plan.end), (0, None));
}

#[test]
fn a_deferred_task_goes_on_when_its_trigger_fires_as_far_as_limits_allow() {
    let (dag, mut tasks) = due_in_time(StateName::Deferred);
    assert_eq!(decisions(&plan(&dag, &tasks)), [Decision::Resume]);
    let paused = plan_in(&world(), &dag, &tasks, true);
    assert_eq!((paused.moves.len(), paused.end), (0, None));
    tasks[0].goes_on = false;
    let ended = plan(&dag, &tasks);
    assert_eq!(
        (decisions(&ended), ended.end),
        (vec![Decision::EndDeferral], Some(RunEnd::Success))
    );
}

#[test]
fn a_run_that_takes_too_long_fails_and_says_before_when_to_look() {
    let mut dag = chain(&["all_success"; 3]);
    dag.dagrun_timeout = Some(Duration::seconds(9));
    let tasks = instances(&dag, &[Success, Running, NoStatus]);
    let mut began = world();
    began.start_date = Some(DateTime::UNIX_EPOCH - Duration::seconds(5));
    let early = plan_in(&began, &dag, &tasks, false);
    assert_eq!(
        (early.wake_at, early.end),
        (Some(DateTime::UNIX_EPOCH + Duration::seconds(4)), None)
    );
    began.start_date = Some(DateTime::UNIX_EPOCH - Duration::seconds(10));
    let late = plan_in(&began, &dag, &tasks, false);
    assert_eq!(decisions(&late), [Decision::Skip, Decision::Skip]);
    assert_eq!(late.end, Some(RunEnd::TimedOut));
}

#[test]
fn the_first_failure_stops_a_dag_that_fails_fast_but_not_its_teardowns() {
    let task = |id: &str, teardown: bool| json!({"task_id": id, "task_type": "X", "is_teardown": teardown});
    let mut dag = dag_of(
        vec![
            task("bad", false),
            task("runs", false),
            task("waits", false),
            task("clears", true),
        ],
        16,
    );
    dag.fail_fast = true;
    let tasks = instances(&dag, &[Failed, Running, UpForRetry, Running]);
    let plan = plan(&dag, &tasks);
    assert!(matches!(plan.moves[0].decision, Decision::Stop(_)));
    assert_eq!(plan.moves[1].decision, Decision::Skip);
    assert_eq!((plan.moves.len(), plan.end), (2, None));
}

#[test]
fn a_task_that_left_the_dag_is_removed() {
    let dag = chain(&["all_success"]);
    let mut tasks = instances(&dag, &[Success]);
    tasks.push(TaskSnapshot {
        id: TaskInstanceId::new(Uuid::from_u128(9)),
        task_id: "gone".into(),
        map_index: MapIndex::UNMAPPED,
        state: NoStatus,
        not_before: None,
        goes_on: true,
        weight: 1,
        pool: "default_pool".into(),
    });
    let plan = plan(&dag, &tasks);
    assert_eq!(
        (decisions(&plan), plan.end),
        (vec![Decision::Remove], Some(RunEnd::Success))
    );
}

#[test]
fn a_wait_is_told_with_what_it_is_for() {
    let dag = chain(&["all_success"; 3]);
    let tasks = instances(&dag, &[Running, NoStatus, NoStatus]);
    let said = |world: &World, tasks: &[TaskSnapshot], at: usize, paused: bool| -> Vec<String> {
        blockers(&world.snapshot(&dag, tasks, paused), tasks[at].id)
            .iter()
            .map(ToString::to_string)
            .collect()
    };
    assert_eq!(
        said(&world(), &tasks, 1, false),
        ["its trigger rule all_success waits for t0 (running)"]
    );
    assert_eq!(
        said(&world(), &tasks, 2, false),
        ["its trigger rule all_success waits for t1 (not started)"]
    );
    assert_eq!(said(&world(), &tasks, 0, false), Vec::<String>::new());
    let mut late = instances(&dag, &[UpForRetry, NoStatus, NoStatus]);
    late[0].not_before = Some(DateTime::UNIX_EPOCH + Duration::seconds(61));
    assert_eq!(
        said(&world(), &late, 0, true),
        [
            "its next try is due at 1970-01-01T00:01:01Z",
            "the DAG is paused; it goes on when the DAG is unpaused"
        ]
    );
}

proptest! {
    /// Whatever the states: a task instance that waits and is not moved by the plan has an explanation.
    #[test]
    fn every_wait_has_an_explanation(states in prop::collection::vec(0usize..14, 6), limit in 1u32..5, paused in any::<bool>()) {
        let edges = [("t0", vec!["t2", "t3"]), ("t1", vec!["t3"]), ("t2", vec!["t4"]), ("t3", vec!["t4", "t5"]), ("t4", vec![]), ("t5", vec![])];
        let rules = ["all_success", "all_done", "one_success", "none_failed", "one_failed", "all_success"];
        let tasks = edges.iter().zip(rules).map(|((id, next), rule)| json!({"task_id": id, "task_type": "X", "trigger_rule": rule, "downstream_task_ids": next}));
        let dag = dag_of(tasks.collect(), limit);
        let states: Vec<StateName> = states.into_iter().map(|n| StateName::ALL[n]).collect();
        let tasks = instances(&dag, &states);
        let plan = plan_in(&world(), &dag, &tasks, paused);
        let world = world();
        let snapshot = RunSnapshot { dag: &dag, start_date: None, paused, tasks: &tasks, active_over_runs: &world.active_over_runs,
            held_by_past: &world.held_by_past, previously_skipped: &world.previously_skipped, lengths: &world.lengths, awaiting_mutation: &world.awaiting_mutation, now: DateTime::UNIX_EPOCH };
        for ti in tasks.iter().filter(|ti| ti.state.is_schedulable()) {
            let moved = plan.moves.iter().any(|planned| planned.id == ti.id);
            let ends = plan.end.is_some();
            // What is decided only for task instances without status is no wait for others.
            let stuck = ti.state != NoStatus && blockers(&snapshot, ti.id).is_empty();
            prop_assert!(moved || ends || stuck || !blockers(&snapshot, ti.id).is_empty(), "{:?} {:?}", ti, plan);
        }
    }

    /// Whatever the states: nothing is scheduled before its upstream succeeded (all_success), limits hold, and the
    /// same snapshot gives the same plan.
    #[test]
    fn plans_are_sound(states in prop::collection::vec(0usize..14, 6), limit in 1u32..5) {
        let edges = [("t0", vec!["t2", "t3"]), ("t1", vec!["t3"]), ("t2", vec!["t4"]), ("t3", vec!["t4", "t5"]), ("t4", vec![]), ("t5", vec![])];
        let dag = dag_of(edges.iter().map(|(id, next)| json!({"task_id": id, "task_type": "X", "downstream_task_ids": next})).collect(), limit);
        let states: Vec<StateName> = states.into_iter().map(|n| StateName::ALL[n]).collect();
        let tasks = instances(&dag, &states);
        let first = plan(&dag, &tasks);
        prop_assert_eq!(&first, &plan(&dag, &tasks));
        let active = states.iter().filter(|s| **s == StateName::Scheduled || s.occupies_slot()).count() as u32;
        let scheduled: Vec<_> = first.moves.iter().filter(|m| m.decision == Decision::Schedule).collect();
        prop_assert!(scheduled.is_empty() || active + scheduled.len() as u32 <= limit);
        for chosen in scheduled {
            let at = tasks.iter().position(|ti| ti.id == chosen.id).unwrap();
            for up in &dag.tasks[at].upstream {
                prop_assert!(matches!(states[*up], StateName::Success | StateName::Removed));
            }
        }
    }
}
