//! The structure of a DAG as the scheduler needs it, read from Airflow's serialized DAG (`__version` 3).

mod groups;
mod parse;
mod setups;

pub use groups::tasks_of_group;
pub use parse::SerializedDagError;

use crate::asset::{AssetCondition, AssetLike};
use crate::dag_run::DagRunType;
use crate::deadline::DeadlineAlert;
use crate::timetable::Timetable;
use crate::trigger::StartTrigger;
use crate::trigger_rule::TriggerRule;
use crate::{DagId, ExecutorName, GroupId, PoolName, QueueName, TaskId, Timestamp};
use chrono::Duration;
use serde_json::Value;
use std::collections::HashMap;

/// A DAG.
#[derive(Debug, Clone)]
pub struct Dag {
    /// Its name.
    pub dag_id: DagId,
    /// Absolute path of its file, as the parser saw it.
    pub fileloc: String,
    /// Path of its file within the bundle.
    pub relative_fileloc: String,
    /// When it runs by itself.
    pub timetable: Timetable,
    /// Which updates of assets start a run.
    pub asset_condition: Option<AssetCondition>,
    /// Whether runs missed in the past are made up for.
    pub catchup: bool,
    /// Earliest logical date.
    pub start_date: Option<Timestamp>,
    /// Latest logical date.
    pub end_date: Option<Timestamp>,
    /// Runs that may be running at the same time.
    pub max_active_runs: u32,
    /// Task instances of one run that may be queued or running at the same time.
    pub max_active_tasks: u32,
    /// Seconds after which a run is failed.
    pub dagrun_timeout: Option<Duration>,
    /// Whether the run stops at the first failure.
    pub fail_fast: bool,
    /// Whether callbacks of the DAG itself must run when a run succeeds or fails.
    pub has_callbacks: RunCallbacks,
    /// The deadlines of its runs.
    pub deadlines: Vec<DeadlineAlert>,
    /// The types of runs that it allows; `None` for all.
    pub allowed_run_types: Option<Vec<DagRunType>>,
    /// What the file says about being paused at first sight.
    pub paused_upon_creation: Option<bool>,
    /// Its tasks; edges refer to places in this list.
    pub tasks: Vec<Task>,
    index: HashMap<TaskId, usize>,
    order: Vec<usize>,
}

/// Which callbacks a DAG declares for its runs.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct RunCallbacks {
    /// `on_success_callback`.
    pub on_success: bool,
    /// `on_failure_callback`.
    pub on_failure: bool,
}

/// Which callbacks a task declares for tries that end without it.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct TaskCallbacks {
    /// `on_failure_callback`.
    pub on_failure: bool,
    /// `on_retry_callback`.
    pub on_retry: bool,
    /// Whether somebody is sent an e-mail when it fails.
    pub mail_on_failure: bool,
    /// Whether somebody is sent an e-mail when it is tried again.
    pub mail_on_retry: bool,
}

/// A task of a DAG.
#[derive(Debug, Clone)]
pub struct Task {
    /// Its name, task group prefixes included.
    pub task_id: TaskId,
    /// Class of its operator.
    pub task_type: String,
    /// Name that the operator shows (such as `@task`).
    pub operator_name: String,
    /// Places of the tasks right before it.
    pub upstream: Vec<usize>,
    /// Places of the tasks right after it.
    pub downstream: Vec<usize>,
    /// What its upstream tasks must have done.
    pub trigger_rule: TriggerRule,
    /// Further tries after the first.
    pub retries: u32,
    /// How long to wait between tries.
    pub retry: RetryPolicy,
    /// Pool that it takes slots from.
    pub pool: PoolName,
    /// How many slots it takes.
    pub pool_slots: u32,
    /// Queue of the workers that may run it.
    pub queue: QueueName,
    /// Executor that it asks for; `None` for the installation's first one.
    pub executor: Option<ExecutorName>,
    /// What `executor_config["pod_override"]` makes of its pod (`V1Pod` as JSON).
    pub pod_override: Option<Value>,
    /// Weight with those of the other tasks that its weight rule adds.
    pub priority_weight: i64,
    /// Which other tasks' weights it adds.
    pub weight_rule: WeightRule,
    /// Its instances that may be active at the same time over all runs.
    pub max_active_tis_per_dag: Option<u32>,
    /// Its instances that may be active at the same time in one run.
    pub max_active_tis_per_dagrun: Option<u32>,
    /// Whether the same task of the run before must have succeeded.
    pub depends_on_past: bool,
    /// With `depends_on_past`: whether the tasks right after that one must have succeeded, too.
    pub wait_for_downstream: bool,
    /// With `depends_on_past`: whether a task that no earlier run had needs nothing of the run before.
    pub ignore_first_depends_on_past: bool,
    /// Earliest logical date of a run that it takes part in.
    pub start_date: Option<Timestamp>,
    /// Latest logical date of a run that it takes part in.
    pub end_date: Option<Timestamp>,
    /// Seconds after which a try is failed.
    pub execution_timeout: Option<Duration>,
    /// Whether there is nothing to execute, so that the scheduler itself completes it.
    pub completes_by_itself: bool,
    /// The trigger that it begins with, where it does not begin on a worker.
    pub start_trigger: Option<StartTrigger>,
    /// Its callbacks that others must call where its process cannot.
    pub has_callbacks: TaskCallbacks,
    /// Whether it prepares something that a teardown clears away.
    pub is_setup: bool,
    /// Whether it clears away what a setup prepared.
    pub is_teardown: bool,
    /// Whether a failing teardown fails the run.
    pub on_failure_fail_dagrun: bool,
    /// Whether its instances are made at run time (`expand`), alone or by its task group.
    pub is_mapped: bool,
    /// What a mapped task expands over: its own definition or its task group's says so.
    pub expansion: Option<Expansion>,
    /// The assets that it reads.
    pub inlets: Vec<AssetLike>,
    /// The assets that it updates by succeeding.
    pub outlets: Vec<AssetLike>,
    /// Whether it may decide that tasks after it are skipped: a branch or a short circuit.
    pub can_skip_downstream: bool,
    /// What it waits for beside its direct upstreams: the setups that it needs, all of which must succeed; for a teardown
    /// what stands between its setups and it, all of which must have ended.
    pub waits_for: Vec<usize>,
    /// The mapped task groups that it belongs to, the outermost first. Its instances are counted row by row: the index
    /// within the innermost changes fastest.
    pub mapped_groups: Vec<MappedGroup>,
}

/// A mapped task group.
#[derive(Debug, Clone, PartialEq)]
pub struct MappedGroup {
    /// Its id.
    pub id: GroupId,
    /// What it expands over by itself.
    pub expansion: Expansion,
}

impl Task {
    /// Whether it is in a mapped task group.
    pub fn is_in_mapped_group(&self) -> bool {
        !self.mapped_groups.is_empty()
    }

    /// How many mapped task groups hold both, from the outermost on.
    pub fn common_groups(&self, other: &Self) -> usize {
        let pairs = self.mapped_groups.iter().zip(&other.mapped_groups);
        pairs.take_while(|(own, other)| own.id == other.id).count()
    }

    /// Whether both are in the same mapped task groups, so that instances with the same index belong together.
    pub fn is_sibling_of(&self, other: &Self) -> bool {
        let common = self.common_groups(other);
        common > 0 && common == self.mapped_groups.len() && common == other.mapped_groups.len()
    }
}

/// What a mapped task expands over.
#[derive(Debug, Clone, PartialEq)]
pub enum Expansion {
    /// As many instances as the product of these lengths.
    Product(Vec<MappedLength>),
    /// Something that this version cannot expand; told to the user by name.
    Unsupported(String),
}

impl Expansion {
    /// How many instances that is, once every value that it depends on is there.
    pub fn count(&self, known: &dyn Fn(&TaskId) -> Option<usize>) -> Option<usize> {
        let Self::Product(lengths) = self else { return None };
        lengths.iter().try_fold(1_usize, |count, length| {
            Some(count.saturating_mul(length.length(known)?))
        })
    }

    /// What expands over this within what expands over `outer`.
    fn within(self, outer: &Self) -> Self {
        match (outer, self) {
            (Self::Product(outer), Self::Product(own)) => Self::Product([&outer[..], &own].concat()),
            (Self::Unsupported(what), _) => Self::Unsupported(what.clone()),
            (Self::Product(_), own @ Self::Unsupported(_)) => own,
        }
    }

    /// The tasks whose returned values it depends on.
    pub fn sources(&self) -> Vec<&TaskId> {
        match self {
            Self::Product(lengths) => lengths.iter().flat_map(MappedLength::sources).collect(),
            Self::Unsupported(_) => Vec::new(),
        }
    }
}

/// Where the length of one mapped argument comes from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum MappedLength {
    /// A list or dict in the DAG file.
    Literal(usize),
    /// The value that a task returned.
    XCom(TaskId),
    /// Several, side by side: as long as the shortest, or as the longest where a value fills the gaps.
    Zip {
        /// What is put side by side.
        parts: Vec<MappedLength>,
        /// Whether the longest counts.
        is_filled: bool,
    },
    /// Several, one after the other.
    Concat(Vec<MappedLength>),
}

impl Dag {
    /// Whether runs of that type may be made.
    pub fn allows(&self, run_type: DagRunType) -> bool {
        self.allowed_run_types
            .as_ref()
            .is_none_or(|allowed| allowed.contains(&run_type))
    }
}

impl MappedLength {
    /// The length, once every value that it depends on is there. `known` tells the length of what a task returned.
    pub fn length(&self, known: &dyn Fn(&TaskId) -> Option<usize>) -> Option<usize> {
        let lengths =
            |parts: &[Self]| -> Option<Vec<usize>> { parts.iter().map(|part| part.length(known)).collect() };
        match self {
            Self::Literal(length) => Some(*length),
            Self::XCom(task) => known(task),
            Self::Zip {
                parts,
                is_filled: true,
            } => lengths(parts)?.into_iter().max(),
            Self::Zip {
                parts,
                is_filled: false,
            } => lengths(parts)?.into_iter().min(),
            Self::Concat(parts) => Some(lengths(parts)?.into_iter().sum()),
        }
    }

    /// The tasks whose returned values it depends on.
    pub fn sources(&self) -> Vec<&TaskId> {
        match self {
            Self::Literal(_) => Vec::new(),
            Self::XCom(task) => vec![task],
            Self::Zip { parts, .. } | Self::Concat(parts) => parts.iter().flat_map(Self::sources).collect(),
        }
    }
}

/// Which other tasks' weights a task adds to its own.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum WeightRule {
    /// None.
    Absolute,
    /// Those of all after it.
    Downstream,
    /// Those of all before it.
    Upstream,
    /// As a plugin says, which Python is asked for; until then as [`WeightRule::Downstream`].
    Own,
}

/// How long to wait between tries.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct RetryPolicy {
    /// The delay, or its first value where it grows.
    pub delay: Duration,
    /// By what the delay grows from try to try; 0 or 1 for not at all.
    pub backoff_multiplier: f64,
    /// Where growth stops.
    pub max_delay: Option<Duration>,
}

impl Dag {
    /// Reads a serialized DAG: the object under `dag`, or the whole document.
    ///
    /// # Errors
    /// When it is not of version 3, or a part that scheduling depends on is missing or malformed.
    pub fn from_serialized(document: &serde_json::Value) -> Result<Self, SerializedDagError> {
        parse::dag(document)
    }

    pub(crate) fn build(mut self) -> Result<Self, SerializedDagError> {
        self.index = self
            .tasks
            .iter()
            .enumerate()
            .map(|(at, task)| (task.task_id.clone(), at))
            .collect();
        for at in 0..self.tasks.len() {
            for down in self.tasks[at].downstream.clone() {
                self.tasks[down].upstream.push(at);
            }
        }
        self.order = self
            .topological_order()
            .ok_or_else(|| SerializedDagError::Cycle(self.dag_id.clone()))?;
        self.weigh();
        self.link_setups();
        Ok(self)
    }

    /// Adds the weights of other tasks as each task's weight rule says (`priority_weight_total`).
    fn weigh(&mut self) {
        let own: Vec<i64> = self.tasks.iter().map(|task| task.priority_weight).collect();
        for at in 0..self.tasks.len() {
            let upstream = match self.tasks[at].weight_rule {
                WeightRule::Absolute => continue,
                WeightRule::Upstream => true,
                WeightRule::Downstream | WeightRule::Own => false,
            };
            let others = self.relatives(at, upstream);
            let sum = own[at] + others.into_iter().map(|other| own[other]).sum::<i64>();
            self.tasks[at].priority_weight = sum.clamp(i64::from(i32::MIN), i64::from(i32::MAX));
        }
    }

    /// Places of everything before or after a task.
    fn relatives(&self, of: usize, upstream: bool) -> Vec<usize> {
        let (mut seen, mut found, mut open) = (vec![false; self.tasks.len()], Vec::new(), vec![of]);
        while let Some(at) = open.pop() {
            let task = &self.tasks[at];
            let edges = if upstream {
                &task.upstream
            } else {
                &task.downstream
            };
            for &edge in edges {
                if !std::mem::replace(&mut seen[edge], true) {
                    found.push(edge);
                    open.push(edge);
                }
            }
        }
        found
    }

    fn topological_order(&self) -> Option<Vec<usize>> {
        let mut missing: Vec<usize> = self.tasks.iter().map(|task| task.upstream.len()).collect();
        let mut order: Vec<usize> = (0..self.tasks.len()).filter(|at| missing[*at] == 0).collect();
        let mut next = 0;
        while let Some(&at) = order.get(next) {
            next += 1;
            for &down in &self.tasks[at].downstream {
                missing[down] -= 1;
                if missing[down] == 0 {
                    order.push(down);
                }
            }
        }
        (order.len() == self.tasks.len()).then_some(order)
    }

    /// The task of that name.
    pub fn task(&self, task_id: &TaskId) -> Option<&Task> {
        self.index.get(task_id).map(|at| &self.tasks[*at])
    }

    /// The place of the task of that name.
    pub fn position(&self, task_id: &TaskId) -> Option<usize> {
        self.index.get(task_id).copied()
    }

    /// Places of all tasks, each after those before it.
    pub fn topological(&self) -> &[usize] {
        &self.order
    }

    /// Places of the tasks whose states decide how the run ends (`DagRun._tis_for_dagrun_state`): leaves, looking
    /// through teardowns that may fail.
    pub fn deciding_leaves(&self) -> Vec<usize> {
        let counts = |task: &Task| !task.is_teardown || task.on_failure_fail_dagrun;
        let leaves: Vec<usize> = (0..self.tasks.len())
            .filter(|at| {
                counts(&self.tasks[*at])
                    && !self.tasks[*at].downstream.iter().any(|d| counts(&self.tasks[*d]))
            })
            .collect();
        if leaves.is_empty() {
            return (0..self.tasks.len())
                .filter(|at| self.tasks[*at].downstream.is_empty())
                .collect();
        }
        leaves
    }

    /// Whether an instance of `task` belongs to a run with that logical date.
    pub fn takes_part(task: &Task, run_type: DagRunType, logical_date: Option<Timestamp>) -> bool {
        if run_type == DagRunType::Backfill {
            return true;
        }
        let Some(date) = logical_date else { return true };
        task.start_date.is_none_or(|start| start <= date) && task.end_date.is_none_or(|end| date <= end)
    }

    /// What limits the dates of scheduled runs (`SerializedDAG._time_restriction`).
    pub fn time_restriction(&self) -> crate::timetable::Restriction {
        let starts = self
            .tasks
            .iter()
            .filter_map(|task| task.start_date)
            .chain(self.start_date);
        let task_ends: Vec<Timestamp> = self.tasks.iter().filter_map(|task| task.end_date).collect();
        let latest = if !self.tasks.is_empty() && task_ends.len() == self.tasks.len() {
            task_ends.into_iter().chain(self.end_date).max()
        } else {
            self.end_date
        };
        crate::timetable::Restriction {
            earliest: starts.min(),
            latest,
            catchup: self.catchup,
        }
    }

    /// Whether what happens in one run can let tasks of another run start.
    pub fn links_runs(&self) -> bool {
        self.has_limits_over_runs() || self.tasks.iter().any(|task| task.depends_on_past)
    }

    /// Tasks whose returned values these tasks expand over.
    pub fn mapped_over<'a>(&self, tasks: impl IntoIterator<Item = &'a TaskId>) -> Vec<TaskId> {
        let expansions = tasks
            .into_iter()
            .filter_map(|task_id| self.task(task_id)?.expansion.as_ref());
        let mut sources: Vec<TaskId> = expansions.flat_map(Expansion::sources).cloned().collect();
        sources.sort();
        sources.dedup();
        sources
    }

    /// Whether its tasks take slots of more than one pool.
    pub fn has_several_pools(&self) -> bool {
        self.tasks.windows(2).any(|pair| pair[0].pool != pair[1].pool)
    }

    /// Whether any task limits its instances over all runs.
    pub fn has_limits_over_runs(&self) -> bool {
        self.tasks
            .iter()
            .any(|task| task.max_active_tis_per_dag.is_some())
    }
}
