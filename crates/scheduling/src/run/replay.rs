//! Whenever plans are made, lost or made again: a run comes to the same end.

use super::tests::{dag_of, instances, plan};
use super::*;
use proptest::prelude::*;
use serde_json::json;

/// Rules whose verdict does not depend on which upstream task ended first.
const RULES: [&str; 6] = [
    "all_success",
    "all_done",
    "none_failed",
    "one_success",
    "none_failed_min_one_success",
    "always",
];
/// More than any run of this size needs.
const MOST_STEPS: usize = 500;

/// What happens between two looks at a run.
#[derive(Debug, Clone)]
struct Step {
    /// The planner dies before its transaction commits.
    is_lost: bool,
    /// So many running tasks end before the next plan.
    ended: usize,
    /// Which of them is first.
    first: usize,
}

fn step() -> impl Strategy<Value = Step> {
    (any::<bool>(), 0usize..4, 0usize..8).prop_map(|(is_lost, ended, first)| Step {
        is_lost,
        ended,
        first,
    })
}

fn after(decision: &Decision) -> StateName {
    match decision {
        Decision::Schedule | Decision::Resume => StateName::Scheduled,
        Decision::Defer => StateName::Deferred,
        Decision::Complete | Decision::EndDeferral => StateName::Success,
        Decision::FailUpstream => StateName::UpstreamFailed,
        Decision::Skip => StateName::Skipped,
        Decision::Remove => StateName::Removed,
        Decision::Refuse(_) | Decision::Stop(_) => StateName::Failed,
        Decision::Grow(_) | Decision::Expand(_) => unreachable!("nothing is mapped here"),
    }
}

/// Drives a run to its end; tasks end as `succeeds` says.
fn drive(dag: &Dag, succeeds: &[bool], steps: &[Step]) -> Option<(RunEnd, Vec<StateName>)> {
    let mut tasks = instances(dag, &vec![StateName::NoStatus; dag.tasks.len()]);
    let mut steps = steps.iter().cycle();
    for number in 0..MOST_STEPS {
        let step = steps.next()?;
        let planned = plan(dag, &tasks);
        // One that dies each time would never get anywhere.
        if !step.is_lost || number % 2 == 0 {
            for planned in &planned.moves {
                let at = tasks.iter().position(|ti| ti.id == planned.id)?;
                tasks[at].state = after(&planned.decision);
            }
            if let Some(end) = planned.end {
                return Some((end, tasks.into_iter().map(|ti| ti.state).collect()));
            }
        }
        let mut active: Vec<usize> = (0..tasks.len())
            .filter(|at| tasks[*at].state == StateName::Scheduled)
            .collect();
        let turned = step.first % active.len().max(1);
        active.rotate_left(turned);
        let ended = if number % 4 == 3 {
            step.ended.max(1)
        } else {
            step.ended
        };
        for at in active.into_iter().take(ended) {
            tasks[at].state = if succeeds[at] {
                StateName::Success
            } else {
                StateName::Failed
            };
        }
    }
    None
}

proptest! {
    #[test]
    fn a_run_comes_to_the_same_end_however_often_planners_die(
        rules in prop::collection::vec(0usize..RULES.len(), 8),
        edges in prop::collection::vec(any::<bool>(), 28),
        succeeds in prop::collection::vec(prop::bool::weighted(0.7), 8),
        limit in 1u32..5,
        steps in prop::collection::vec(step(), 1..20),
    ) {
        let mut edges = edges.into_iter();
        let tasks = (0..8).map(|from| {
            let next: Vec<String> = (from + 1..8).filter(|_| edges.next() == Some(true)).map(|to| format!("t{to}")).collect();
            json!({"task_id": format!("t{from}"), "task_type": "X", "trigger_rule": RULES[rules[from]], "downstream_task_ids": next})
        });
        let dag = dag_of(tasks.collect(), limit);
        let calm = drive(&dag, &succeeds, &[Step { is_lost: false, ended: 1, first: 0 }]);
        prop_assert!(calm.is_some(), "the run never ends");
        prop_assert_eq!(drive(&dag, &succeeds, &steps), calm);
    }
}
