//! Task instances of runs as they stood after their last plan here, so that the next plan reads only what changed.
//!
//! What is kept is trusted only where nothing can be missing: no other scheduler has planned the run since
//! ([`RunRecord::plan_number`]), every change since is told by an event that names its task instance, and it is young.
//! Everything else is read anew. Each move of a plan is guarded by the state that it saw, whatever it saw it in.

use model::task_instance::StateName;
use model::{DagRunKey, TaskInstanceId};
use scheduling::{Decision, Move, TaskSnapshot};
use std::collections::HashMap;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};
use store::repo::RunRecord;

/// How long a snapshot is gone on with, whatever the events say.
const FRESH: Duration = Duration::from_secs(10);
/// Task instances kept in all; about 150 bytes each.
const MOST: usize = 200_000;
/// Runs of fewer task instances are read as quickly as they are kept.
const FEWEST: usize = 100;

/// The task instances of a run after a plan.
#[derive(Debug)]
pub(crate) struct Snapshot {
    plan_number: i64,
    read_at: Instant,
    tasks: Vec<TaskSnapshot>,
    index: HashMap<TaskInstanceId, usize>,
}

impl Snapshot {
    /// What has just been read.
    pub(crate) fn read(run: &RunRecord, tasks: Vec<TaskSnapshot>) -> Self {
        let index = tasks.iter().enumerate().map(|(at, ti)| (ti.id, at)).collect();
        Self {
            plan_number: run.plan_number,
            read_at: Instant::now(),
            tasks,
            index,
        }
    }

    /// Whether nobody else has planned the run since, and it is young.
    pub(crate) fn is_current(&self, run: &RunRecord) -> bool {
        self.plan_number == run.plan_number && self.read_at.elapsed() < FRESH
    }

    pub(crate) fn tasks(&self) -> &[TaskSnapshot] {
        &self.tasks
    }

    /// Takes over how some of them stand now. Whether all of them were known.
    pub(crate) fn update(&mut self, changed: Vec<TaskSnapshot>) -> bool {
        changed.into_iter().all(|ti| match self.index.get(&ti.id) {
            Some(at) => {
                self.tasks[*at] = ti;
                true
            }
            None => false,
        })
    }

    /// How the run stands after these moves; `None` when that must be read.
    pub(crate) fn after(mut self, moves: &[Move]) -> Option<Self> {
        for planned in moves {
            let state = match &planned.decision {
                Decision::Schedule | Decision::Resume => StateName::Scheduled,
                Decision::Complete | Decision::EndDeferral => StateName::Success,
                Decision::FailUpstream => StateName::UpstreamFailed,
                Decision::Skip => StateName::Skipped,
                Decision::Remove => StateName::Removed,
                // New instances come with it, or a time to wait for, or processes are stopped.
                Decision::Defer
                | Decision::Grow(_)
                | Decision::Expand(_)
                | Decision::Refuse(_)
                | Decision::Stop(_) => {
                    return None;
                }
            };
            let ti = &mut self.tasks[*self.index.get(&planned.id)?];
            ti.state = state;
            ti.not_before = None;
        }
        self.plan_number += 1;
        Some(self)
    }
}

/// The snapshots that a scheduler keeps.
#[derive(Debug, Default)]
pub(crate) struct Snapshots {
    kept: Mutex<HashMap<DagRunKey, Snapshot>>,
}

impl Snapshots {
    fn lock(&self) -> MutexGuard<'_, HashMap<DagRunKey, Snapshot>> {
        self.kept.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes out what is kept of a run: a plan that does not come to its end leaves nothing behind.
    pub(crate) fn take(&self, key: DagRunKey) -> Option<Snapshot> {
        self.lock().remove(&key)
    }

    /// Keeps a snapshot for the next plan.
    pub(crate) fn keep(&self, key: DagRunKey, snapshot: Snapshot) {
        if snapshot.tasks.len() < FEWEST {
            return;
        }
        let mut kept = self.lock();
        kept.retain(|_, other| other.read_at.elapsed() < FRESH);
        let total: usize = kept.values().map(|other| other.tasks.len()).sum();
        if total + snapshot.tasks.len() <= MOST {
            kept.insert(key, snapshot);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use chrono::Utc;
    use model::MapIndex;
    use model::dag_run::{DagRunState, DagRunType};

    fn run(plan_number: i64) -> RunRecord {
        RunRecord {
            key: DagRunKey(1),
            dag_id: "d".into(),
            run_id: "r".into(),
            logical_date: None,
            run_type: DagRunType::Manual,
            state: DagRunState::Running,
            conf: "{}".to_owned(),
            data_interval_start: None,
            data_interval_end: None,
            run_after: Utc::now(),
            queued_at: None,
            start_date: None,
            end_date: None,
            version_id: model::DagVersionId::new(uuid::Uuid::nil()),
            triggered_by: None,
            triggering_user: None,
            note: None,
            clear_number: 0,
            last_decision_at: None,
            trace_context: None,
            partition_key: None,
            partition_date: None,
            plan_number,
        }
    }

    fn tasks(count: u128) -> Vec<TaskSnapshot> {
        let task = |n: u128| TaskSnapshot {
            id: TaskInstanceId::new(uuid::Uuid::from_u128(n)),
            task_id: format!("t{n}").into(),
            map_index: MapIndex::UNMAPPED,
            state: StateName::NoStatus,
            not_before: None,
            goes_on: false,
            weight: 1,
            pool: "default_pool".into(),
        };
        (0..count).map(task).collect()
    }

    fn moved(of: &TaskSnapshot, decision: Decision) -> Move {
        Move {
            id: of.id,
            from: of.state,
            decision,
        }
    }

    #[test]
    fn a_plan_of_somebody_else_makes_what_is_kept_worthless() {
        let all = tasks(200);
        let kept = Snapshot::read(&run(4), all.clone())
            .after(&[moved(&all[3], Decision::Schedule)])
            .expect("a snapshot");
        assert!(kept.is_current(&run(5)), "our own plan was the fifth");
        assert!(!kept.is_current(&run(6)));
        assert_eq!(kept.tasks()[3].state, StateName::Scheduled);
    }

    #[test]
    fn what_changed_is_taken_over_and_what_is_unknown_is_told() {
        let mut kept = Snapshot::read(&run(0), tasks(200));
        let mut changed = tasks(8).split_off(7);
        changed[0].state = StateName::Success;
        assert!(kept.update(changed));
        assert_eq!(kept.tasks()[7].state, StateName::Success);
        assert!(!kept.update(tasks(201).split_off(200)));
    }

    #[test]
    fn new_instances_must_be_read() {
        let all = tasks(200);
        let snapshot = Snapshot::read(&run(0), all.clone());
        assert!(snapshot.after(&[moved(&all[0], Decision::Expand(3))]).is_none());
    }

    #[test]
    fn small_runs_are_not_kept_and_a_snapshot_is_used_once() {
        let snapshots = Snapshots::default();
        snapshots.keep(DagRunKey(1), Snapshot::read(&run(0), tasks(3)));
        assert!(snapshots.take(DagRunKey(1)).is_none());
        snapshots.keep(DagRunKey(1), Snapshot::read(&run(0), tasks(200)));
        assert!(snapshots.take(DagRunKey(1)).is_some());
        assert!(snapshots.take(DagRunKey(1)).is_none());
    }
}
