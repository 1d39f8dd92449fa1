//! What becomes of the tasks of one run.
//!
//! One pass in topological order decides everything that the snapshot allows: a chain of skips or upstream failures
//! goes through at once, however long it is.

use judging::Before;
use model::dag::{Dag, Task};
use model::task_instance::StateName;
use model::trigger_rule::{Ending, Verdict};
use model::{MapIndex, PoolName, TaskId, TaskInstanceId, Timestamp};
use std::collections::{HashMap, HashSet};

/// A task instance as the planner sees it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TaskSnapshot {
    /// The task instance.
    pub id: TaskInstanceId,
    /// Its task.
    pub task_id: TaskId,
    /// Its place among its mapped siblings.
    pub map_index: MapIndex,
    /// Where it stands.
    pub state: StateName,
    /// Earliest start, for one that waits to be retried or poked again, or for a trigger.
    pub not_before: Option<Timestamp>,
    /// Whether a deferred one goes on once its trigger has fired; else that is its end.
    pub goes_on: bool,
    /// The heavier, the earlier.
    pub weight: i64,
    /// Pool that it takes slots from.
    pub pool: PoolName,
}

/// Task instances that a task before them said to skip when it ran (`NotPreviouslySkippedDep`).
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct PreviouslySkipped {
    /// All instances of these tasks.
    pub whole: HashSet<TaskId>,
    /// Single ones.
    pub single: HashSet<(TaskId, MapIndex)>,
}

impl PreviouslySkipped {
    fn has(&self, ti: &TaskSnapshot) -> bool {
        self.whole.contains(&ti.task_id)
            || (!self.single.is_empty() && self.single.contains(&(ti.task_id.clone(), ti.map_index)))
    }
}

/// A running DagRun and all that its plan depends on.
#[derive(Debug)]
pub struct RunSnapshot<'a> {
    /// Structure of the DAG, in the version of the run.
    pub dag: &'a Dag,
    /// When the run started.
    pub start_date: Option<Timestamp>,
    /// Whether the DAG is paused: nothing new is scheduled then, but the run may end.
    pub paused: bool,
    /// All its task instances.
    pub tasks: &'a [TaskSnapshot],
    /// Active instances of tasks with `max_active_tis_per_dag`, over all runs.
    pub active_over_runs: &'a HashMap<TaskId, u32>,
    /// Tasks with `depends_on_past` whose instance in the run before has not succeeded.
    pub held_by_past: &'a HashSet<TaskId>,
    /// What a branch or a short circuit before it has decided to skip.
    pub previously_skipped: &'a PreviouslySkipped,
    /// Task instances that Python has not said its word about.
    pub awaiting_mutation: &'a HashSet<TaskInstanceId>,
    /// Lengths of the values that tasks returned, for those that a mapped task expands over.
    pub lengths: &'a HashMap<TaskId, usize>,
    /// The time now.
    pub now: Timestamp,
}

/// Decides what becomes of a run. The same snapshot always gives the same plan.
pub fn plan_run(snapshot: &RunSnapshot<'_>) -> Plan {
    let mut planner = Planner::new(snapshot);
    if planner.is_too_late() {
        return planner.give_up();
    }
    planner.decide_all();
    planner.finish()
}

/// Whether a task instance in this state counts against the limits of its run.
const fn is_active(state: StateName) -> bool {
    matches!(state, StateName::Scheduled) || state.occupies_slot()
}

/// Returns `true` if a task instance in this state counts against the limits of its task.
const fn counts_for_task(state: StateName) -> bool {
    is_active(state) || matches!(state, StateName::Deferred | StateName::AwaitingInput)
}

struct Planner<'a> {
    snapshot: &'a RunSnapshot<'a>,
    /// Places in `snapshot.tasks`, by place of the task in the DAG, in the order of their map index.
    instances: Vec<Vec<usize>>,
    /// Place of the task in the DAG, by place in `snapshot.tasks`; none for one that the DAG no longer has.
    places: Vec<Option<usize>>,
    /// States with the decisions of this pass applied.
    states: Vec<StateName>,
    ready: Vec<usize>,
    held_back: bool,
    plan: Plan,
}

impl<'a> Planner<'a> {
    fn new(snapshot: &'a RunSnapshot<'a>) -> Self {
        let mut instances = vec![Vec::new(); snapshot.dag.tasks.len()];
        // Instances of one task mostly stand together, and looking a task up for each would cost more than all else.
        let mut places: Vec<Option<usize>> = Vec::with_capacity(snapshot.tasks.len());
        for (at, ti) in snapshot.tasks.iter().enumerate() {
            let last = at
                .checked_sub(1)
                .filter(|last| snapshot.tasks[*last].task_id == ti.task_id);
            let place = match last {
                Some(last) => places[last],
                None => snapshot.dag.position(&ti.task_id),
            };
            places.push(place);
            if let Some(task) = place {
                instances[task].push(at);
            }
        }
        for own in &mut instances {
            own.sort_by_key(|at| snapshot.tasks[*at].map_index);
        }
        let states = snapshot.tasks.iter().map(|ti| ti.state).collect();
        Self {
            snapshot,
            instances,
            places,
            states,
            ready: Vec::new(),
            held_back: false,
            plan: Plan::default(),
        }
    }

    fn decide(&mut self, at: usize, decision: Decision) {
        let ti = &self.snapshot.tasks[at];
        self.states[at] = match &decision {
            Decision::Schedule | Decision::Resume | Decision::Expand(_) => StateName::Scheduled,
            Decision::Defer => StateName::Deferred,
            Decision::Complete | Decision::EndDeferral => StateName::Success,
            Decision::FailUpstream => StateName::UpstreamFailed,
            Decision::Skip => StateName::Skipped,
            Decision::Remove => StateName::Removed,
            Decision::Grow(_) => self.states[at],
            Decision::Refuse(_) | Decision::Stop(_) => StateName::Failed,
        };
        self.plan.moves.push(Move {
            id: ti.id,
            from: ti.state,
            decision,
        });
    }

    fn decide_all(&mut self) {
        self.remove_orphans();
        self.fail_fast();
        self.fire_triggers();
        for &at in self.snapshot.dag.topological() {
            self.decide_task(at);
        }
        self.admit();
    }

    fn remove_orphans(&mut self) {
        for (at, ti) in self.snapshot.tasks.iter().enumerate() {
            let may_go =
                !ti.state.is_finished() && !matches!(ti.state, StateName::Running | StateName::Restarting);
            if may_go && self.places[at].is_none() {
                self.decide(at, Decision::Remove);
            }
        }
    }

    /// Whether the run has had all the time it may take; else it is looked at again when it has.
    fn is_too_late(&mut self) -> bool {
        let timeout = self.snapshot.start_date.zip(self.snapshot.dag.dagrun_timeout);
        let Some(deadline) = timeout.and_then(|(start, timeout)| start.checked_add_signed(timeout)) else {
            return false;
        };
        self.wake_at(deadline);
        deadline < self.snapshot.now && !self.snapshot.paused
    }

    /// A run that took too long fails, and whatever is not finished is skipped, also what runs
    /// (`SchedulerJobRunner._schedule_dag_run`).
    fn give_up(mut self) -> Plan {
        for at in 0..self.states.len() {
            if !self.states[at].is_finished() {
                self.decide(at, Decision::Skip);
            }
        }
        self.plan.end = Some(RunEnd::TimedOut);
        self.plan.wake_at = None;
        self.plan
    }

    /// After the first failure nothing but teardowns goes on: what runs fails, the rest is skipped (`_stop_remaining_tasks`).
    fn fail_fast(&mut self) {
        if !self.snapshot.dag.fail_fast {
            return;
        }
        let tasks = self.snapshot.tasks;
        let failed: HashSet<&TaskId> = tasks
            .iter()
            .filter(|ti| ti.state == StateName::Failed)
            .map(|ti| &ti.task_id)
            .collect();
        if failed.is_empty() {
            return;
        }
        for (at, ti) in tasks.iter().enumerate() {
            let goes_on = self
                .snapshot
                .dag
                .task(&ti.task_id)
                .is_none_or(|task| task.is_teardown)
                || (failed.len() == 1 && failed.contains(&ti.task_id));
            if goes_on || self.states[at].is_finished() {
                continue;
            }
            let decision = match ti.state {
                StateName::Running | StateName::Restarting => {
                    Decision::Stop("Forcing task to fail due to dag's `fail_fast` setting.")
                }
                StateName::NoStatus
                | StateName::Scheduled
                | StateName::Queued
                | StateName::UpForRetry
                | StateName::UpForReschedule
                | StateName::Deferred
                | StateName::AwaitingInput
                | StateName::Success
                | StateName::Failed
                | StateName::UpstreamFailed
                | StateName::Skipped
                | StateName::Removed => Decision::Skip,
            };
            self.decide(at, decision);
        }
    }

    /// Deferred task instances whose time has come.
    fn fire_triggers(&mut self) {
        for (at, ti) in self.snapshot.tasks.iter().enumerate() {
            let Some(fires_at) = ti.not_before.filter(|_| self.states[at] == StateName::Deferred) else {
                continue;
            };
            if fires_at > self.snapshot.now {
                self.wake_at(fires_at);
            } else if !ti.goes_on {
                self.decide(at, Decision::EndDeferral);
            } else if self.snapshot.paused {
                self.held_back = true;
            } else {
                self.ready.push(at);
            }
        }
    }

    fn wake_at(&mut self, at: Timestamp) {
        self.plan.wake_at = Some(self.plan.wake_at.map_or(at, |wake| wake.min(at)));
    }

    fn decide_task(&mut self, task_at: usize) {
        let task = &self.snapshot.dag.tasks[task_at];
        let waiting: Vec<usize> = self.instances[task_at]
            .iter()
            .copied()
            .filter(|at| self.states[*at].is_schedulable())
            .collect();
        if waiting.is_empty() {
            return;
        }
        // Instances of one task have the same fate, but for those of a mapped task group, which follow their own index.
        let before = self.before(task);
        let common = (!task.is_in_mapped_group()).then(|| self.judge(task, MapIndex::UNMAPPED, &before));
        let mut length = None;
        for at in waiting {
            if self.snapshot.previously_skipped.has(&self.snapshot.tasks[at]) {
                self.decide(at, Decision::Skip);
                continue;
            }
            let verdict =
                common.unwrap_or_else(|| self.judge(task, self.snapshot.tasks[at].map_index, &before));
            match verdict {
                Verdict::Wait => {}
                // Also of one that waits to be tried or poked again: what is before it was cleared, and came out otherwise.
                Verdict::End(ending) => self.decide(
                    at,
                    match ending {
                        Ending::UpstreamFailed => Decision::FailUpstream,
                        Ending::Skipped => Decision::Skip,
                    },
                ),
                Verdict::Met => {
                    let index = self.snapshot.tasks[at].map_index;
                    if task.is_mapped && index != MapIndex::UNMAPPED {
                        let length = *length.get_or_insert_with(|| self.revise(task_at, at));
                        if length
                            .is_some_and(|length| usize::try_from(index.0).is_ok_and(|index| index >= length))
                        {
                            continue;
                        }
                    }
                    self.consider(at, task, &before);
                }
            }
        }
    }

    /// A task instance whose trigger rule is met.
    fn consider(&mut self, at: usize, task: &Task, before: &Before) {
        let ti = &self.snapshot.tasks[at];
        if let Some(not_before) = ti.not_before.filter(|not_before| *not_before > self.snapshot.now) {
            self.wake_at(not_before);
            return;
        }
        if self.snapshot.paused || self.snapshot.held_by_past.contains(&task.task_id) {
            self.held_back = true;
            return;
        }
        if task.is_mapped && ti.map_index == MapIndex::UNMAPPED {
            let decision = self.expand(task, before);
            self.decide(at, decision);
        } else if task.completes_by_itself {
            self.decide(at, Decision::Complete);
        } else if self.snapshot.awaiting_mutation.contains(&ti.id) {
            self.held_back = true;
        } else {
            self.ready.push(at);
        }
    }

    /// Lets ready task instances through in the order of their weight, as far as the run's limits allow.
    fn admit(&mut self) {
        let dag = self.snapshot.dag;
        let places = std::mem::take(&mut self.places);
        let task_of = |at: usize| places[at].map(|place| &dag.tasks[place]);
        let mut ready = std::mem::take(&mut self.ready);
        ready.sort_by_key(|at| {
            let ti = &self.snapshot.tasks[*at];
            (-ti.weight, ti.map_index)
        });
        // Per pool, so that those which wait for one do not keep others from theirs; the run's limit over all pools is held
        // where slots are given.
        let mut in_pools = self.active_by_pool();
        // Counted where a limit asks for it: most tasks have none.
        let counts = |at: &&usize| counts_for_task(self.states[**at]);
        let mut of_task: HashMap<&TaskId, u32> = HashMap::new();
        for &at in &ready {
            let task_id = &self.snapshot.tasks[at].task_id;
            if let Some(place) = places[at]
                && dag.tasks[place].max_active_tis_per_dagrun.is_some()
                && !of_task.contains_key(task_id)
            {
                let active = self.instances[place].iter().filter(counts).count();
                of_task.insert(task_id, u32::try_from(active).unwrap_or(u32::MAX));
            }
        }
        let mut over_runs = self.snapshot.active_over_runs.clone();
        for at in ready {
            let ti = &self.snapshot.tasks[at];
            if self.states[at] != ti.state {
                // It is removed: its task maps over less than it did.
                continue;
            }
            let Some(task) = task_of(at) else {
                continue;
            };
            let in_pool = in_pools.entry(&ti.pool).or_default();
            if *in_pool >= dag.max_active_tasks {
                self.held_back = true;
                continue;
            }
            let in_task = of_task.entry(&ti.task_id).or_default();
            let everywhere = over_runs.entry(ti.task_id.clone()).or_default();
            // A deferred one counts among its task's instances already.
            let goes_on = ti.state == StateName::Deferred;
            let task_full = task
                .max_active_tis_per_dagrun
                .is_some_and(|limit| *in_task >= limit)
                || task
                    .max_active_tis_per_dag
                    .is_some_and(|limit| *everywhere >= limit);
            if task_full && !goes_on {
                self.held_back = true;
                continue;
            }
            *in_pool += 1;
            if !goes_on {
                *in_task += 1;
                *everywhere += 1;
            }
            self.decide(
                at,
                if goes_on {
                    Decision::Resume
                } else if task.start_trigger.is_some() && !ti.goes_on {
                    Decision::Defer
                } else {
                    Decision::Schedule
                },
            );
        }
    }

    /// How many instances count against `max_active_tasks`, by pool.
    fn active_by_pool(&self) -> HashMap<&'a PoolName, u32> {
        let mut counts = HashMap::new();
        for (ti, state) in self.snapshot.tasks.iter().zip(&self.states) {
            if is_active(*state) {
                *counts.entry(&ti.pool).or_default() += 1;
            }
        }
        counts
    }

    fn finish(mut self) -> Plan {
        self.plan.end = self.end();
        self.plan
    }

    fn end(&self) -> Option<RunEnd> {
        if self.states.iter().all(|state| state.is_finished()) {
            let leaves = self.snapshot.dag.deciding_leaves();
            let failed = leaves
                .iter()
                .flat_map(|leaf| &self.instances[*leaf])
                .any(|at| matches!(self.states[*at], StateName::Failed | StateName::UpstreamFailed));
            return Some(if failed {
                RunEnd::TaskFailure
            } else {
                RunEnd::Success
            });
        }
        let unfinished = || self.states.iter().filter(|state| !state.is_finished());
        let idle = unfinished().all(|state| *state == StateName::NoStatus);
        (idle && self.plan.moves.is_empty() && !self.held_back).then_some(RunEnd::Deadlock)
    }
}

mod explain;
mod judging;
mod mapping;
mod plan;
#[cfg(test)]
mod replay;
#[cfg(test)]
mod tests;

pub use explain::{Blocker, blockers, some};
pub use mapping::MOST_INSTANCES;
pub use plan::{Decision, Move, Plan, RunEnd};
