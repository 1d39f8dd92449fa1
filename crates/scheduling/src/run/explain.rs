//! Why a task instance waits: the planner's own pieces, asked one after the other.

use super::{Planner, RunSnapshot, counts_for_task, is_active};
use model::dag::Task;
use model::task_instance::StateName;
use model::trigger_rule::{TriggerRule, Verdict};
use model::{MapIndex, PoolName, TaskId, TaskInstanceId, Timestamp};
use std::fmt;

/// One thing that keeps a task instance from being scheduled.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Blocker {
    /// Its DAG is paused.
    Paused,
    /// Its trigger rule is not met yet.
    Upstream {
        /// The rule.
        rule: TriggerRule,
        /// Instances before it that have not ended, or are not as the rule wants them.
        open: Vec<(TaskId, MapIndex, StateName)>,
    },
    /// It waits for its next try, its next poke or its trigger.
    Until {
        /// What it waits for.
        what: StateName,
        /// When it goes on.
        at: Timestamp,
    },
    /// It waits for a trigger of which nobody knows when it fires.
    Trigger,
    /// The same task of the run before has not succeeded.
    Past,
    /// Python is being asked how it is to run.
    Mutation,
    /// `max_active_tasks`
    RunFull {
        /// The limit.
        limit: u32,
        /// Those that count.
        holders: Vec<TaskId>,
    },
    /// As many of the run as `max_active_tasks` lets through wait for its pool or hold slots of it.
    PoolQueue {
        /// The pool.
        pool: PoolName,
        /// Those before it.
        before: Vec<TaskId>,
    },
    /// `max_active_tis_per_dag` or `max_active_tis_per_dagrun`
    TaskFull {
        /// The limit.
        limit: u32,
        /// Whether it counts over all runs.
        over_runs: bool,
    },
}

impl Blocker {
    /// The name of Airflow's dependency for it (`airflow.ti_deps.deps`).
    pub const fn name(&self) -> &'static str {
        match self {
            Self::Paused => "Dag Not Paused",
            Self::Upstream { .. } => "Trigger Rule",
            Self::Until {
                what: StateName::UpForRetry,
                ..
            } => "Not In Retry Period",
            Self::Until { .. } | Self::Trigger => "Ready To Reschedule",
            Self::Past => "Previous Dagrun State",
            Self::Mutation => "Task Instance State",
            Self::RunFull { .. } => "Task Instance Slots Available",
            Self::PoolQueue { .. } => "Pool Slots Available",
            Self::TaskFull { .. } => "Task Concurrency",
        }
    }
}

/// Names shown at most.
const SHOWN: usize = 3;

/// The first names, and how many more there are.
pub fn some(names: &[String]) -> String {
    match names.len().checked_sub(SHOWN) {
        None | Some(0) => names.join(", "),
        Some(more) => format!("{} and {more} more", names[..SHOWN].join(", ")),
    }
}

impl fmt::Display for Blocker {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Paused => write!(f, "the DAG is paused; it goes on when the DAG is unpaused"),
            Self::Upstream { rule, open } => {
                let word = |(task, index, state): &(TaskId, MapIndex, StateName)| {
                    let state = state.rest_word().unwrap_or("not started");
                    match index.0 {
                        ..0 => format!("{task} ({state})"),
                        index => format!("{task}[{index}] ({state})"),
                    }
                };
                let names: Vec<String> = open.iter().map(word).collect();
                write!(f, "its trigger rule {} waits for {}", rule.as_str(), some(&names))
            }
            Self::Until { what, at } => {
                let what = match what {
                    StateName::UpForRetry => "its next try is due",
                    StateName::UpForReschedule => "its next poke is due",
                    _ => "its trigger fires",
                };
                write!(f, "{what} at {}", model::time::rest_format(*at))
            }
            Self::Trigger => write!(f, "its trigger has not fired yet"),
            Self::Past => write!(
                f,
                "depends_on_past: the same task of the run before, or with wait_for_downstream one right after it, has \
                 not succeeded yet"
            ),
            Self::Mutation => write!(
                f,
                "a DAG processor is asking its weight rule and task_instance_mutation_hook how it is to run"
            ),
            Self::RunFull { limit, holders } => {
                let names: Vec<String> = holders.iter().map(ToString::to_string).collect();
                write!(
                    f,
                    "max_active_tasks: {limit} of {limit} are taken by {}; it goes on when one of them ends",
                    some(&names)
                )
            }
            Self::PoolQueue { pool, before } => {
                let names: Vec<String> = before.iter().map(ToString::to_string).collect();
                write!(
                    f,
                    "{} of its run are before it in pool {pool}: {}",
                    before.len(),
                    some(&names)
                )
            }
            Self::TaskFull {
                limit,
                over_runs: true,
            } => {
                write!(
                    f,
                    "max_active_tis_per_dag: {limit} instances of the task are active over all runs"
                )
            }
            Self::TaskFull { limit, .. } => {
                write!(
                    f,
                    "max_active_tis_per_dagrun: {limit} instances of the task are active in this run"
                )
            }
        }
    }
}

/// Everything that keeps a task instance from being scheduled in a running run, the most decisive first. Empty for one
/// that is past that, and for one that the next plan will move.
pub fn blockers(snapshot: &RunSnapshot<'_>, id: TaskInstanceId) -> Vec<Blocker> {
    let mut planner = Planner::new(snapshot);
    // What the plan does first counts: a place that it gives to another is taken.
    planner.decide_all();
    if planner.plan.moves.iter().any(|planned| planned.id == id) {
        return Vec::new();
    }
    let Some(at) = snapshot.tasks.iter().position(|ti| ti.id == id) else {
        return Vec::new();
    };
    let ti = &snapshot.tasks[at];
    let waits = ti.state.is_schedulable() || ti.state == StateName::Deferred;
    let Some(task) = snapshot.dag.task(&ti.task_id).filter(|_| waits) else {
        return Vec::new();
    };
    let mut found = Vec::new();
    if ti.state != StateName::Deferred
        && planner.judge(task, ti.map_index, &planner.before(task)) == Verdict::Wait
    {
        found.push(planner.upstream_of(task, ti.map_index));
    }
    if let Some(at) = ti.not_before.filter(|at| *at > snapshot.now) {
        found.push(Blocker::Until { what: ti.state, at });
    }
    if ti.state == StateName::Deferred && ti.not_before.is_none() {
        found.push(Blocker::Trigger);
    }
    if snapshot.held_by_past.contains(&task.task_id) {
        found.push(Blocker::Past);
    }
    if snapshot.paused {
        found.push(Blocker::Paused);
    }
    if snapshot.awaiting_mutation.contains(&id) {
        found.push(Blocker::Mutation);
    }
    if found.is_empty() {
        found.extend(planner.limits_of(task, ti.state, &ti.pool));
    }
    found
}

impl Planner<'_> {
    fn upstream_of(&self, task: &Task, map_index: MapIndex) -> Blocker {
        let sources: Vec<usize> = match &task.expansion {
            // An unexpanded instance of a mapped group waits for what the group expands over.
            Some(expansion) if task.is_in_mapped_group() && map_index.0 < 0 => expansion
                .sources()
                .into_iter()
                .filter_map(|source| self.snapshot.dag.position(source))
                .collect(),
            _ => [&task.upstream[..], &task.waits_for].concat(),
        };
        let instances = sources.iter().flat_map(|before| match map_index.0 {
            0.. => self.relevant_instances(task, map_index, *before),
            _ => &self.instances[*before],
        });
        let seen = instances.map(|at| {
            let ti = &self.snapshot.tasks[*at];
            (ti.task_id.clone(), ti.map_index, self.states[*at])
        });
        let (mut open, ended): (Vec<_>, Vec<_>) = seen.partition(|(_, _, state)| !state.is_finished());
        if open.is_empty() {
            open = ended;
        }
        Blocker::Upstream {
            rule: task.trigger_rule,
            open,
        }
    }

    fn limits_of(&self, task: &Task, state: StateName, pool: &PoolName) -> Option<Blocker> {
        // A deferred one counts among its task's instances already.
        let own = (state != StateName::Deferred)
            .then(|| self.task_full(task))
            .flatten();
        own.or_else(|| self.run_full(pool))
    }

    fn task_full(&self, task: &Task) -> Option<Blocker> {
        let own = self
            .snapshot
            .dag
            .position(&task.task_id)
            .map_or(&[][..], |at| &self.instances[at]);
        let counts = |at: &&usize| counts_for_task(self.states[**at]);
        let in_run = own.iter().filter(counts).count();
        let over_runs = self
            .snapshot
            .active_over_runs
            .get(&task.task_id)
            .copied()
            .unwrap_or(0);
        if let Some(limit) = task.max_active_tis_per_dag.filter(|limit| over_runs >= *limit) {
            return Some(Blocker::TaskFull {
                limit,
                over_runs: true,
            });
        }
        let limit = task
            .max_active_tis_per_dagrun
            .filter(|limit| reached(*limit, in_run))?;
        Some(Blocker::TaskFull {
            limit,
            over_runs: false,
        })
    }

    fn run_full(&self, pool: &PoolName) -> Option<Blocker> {
        let holders = |counts: &dyn Fn(usize) -> bool| {
            let mut holders: Vec<TaskId> = (0..self.states.len())
                .filter(|at| counts(*at))
                .map(|at| self.snapshot.tasks[at].task_id.clone())
                .collect();
            holders.sort();
            holders
        };
        let limit = self.snapshot.dag.max_active_tasks;
        let executing = holders(&|at| self.states[at].occupies_slot());
        if reached(limit, executing.len()) {
            let holders = executing;
            return Some(Blocker::RunFull { limit, holders });
        }
        let in_pool = |at: usize| is_active(self.states[at]) && self.snapshot.tasks[at].pool == *pool;
        let before = holders(&in_pool);
        reached(limit, before.len()).then(|| Blocker::PoolQueue {
            pool: pool.clone(),
            before,
        })
    }
}

fn reached(limit: u32, count: usize) -> bool {
    u32::try_from(count).unwrap_or(u32::MAX) >= limit
}
