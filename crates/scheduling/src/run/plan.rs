//! What is to be done about a run.

use model::task_instance::StateName;
use model::{MapIndex, TaskInstanceId, Timestamp};

/// What is to happen to one task instance.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Decision {
    /// Its dependencies are met and the run's limits leave room: it waits for a slot from now on.
    Schedule,
    /// The same, but it begins with a trigger, not on a worker.
    Defer,
    /// Its trigger has fired: it goes on, within the same try.
    Resume,
    /// Its trigger has fired, and nothing is left to do: it succeeds.
    EndDeferral,
    /// There is nothing to execute: it succeeds right away.
    Complete,
    /// It will not run because something before it failed.
    FailUpstream,
    /// It will not run because something before it was skipped.
    Skip,
    /// Its task is gone from the DAG.
    Remove,
    /// It becomes the first of so many mapped instances (at least one).
    Expand(usize),
    /// It stays as it is; instances of these indexes come beside it: its task maps over more than it did.
    Grow(Vec<MapIndex>),
    /// It uses something that cannot be run; fails with this text.
    Refuse(String),
    /// It is stopped where it runs, and fails with this text.
    Stop(&'static str),
}

/// A decision about a task instance.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Move {
    /// The task instance.
    pub id: TaskInstanceId,
    /// State in which the decision found it; the change is guarded by it.
    pub from: StateName,
    /// The decision.
    pub decision: Decision,
}

/// How a run ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RunEnd {
    /// Every deciding leaf succeeded or was skipped.
    Success,
    /// A deciding leaf failed.
    TaskFailure,
    /// Nothing can go on.
    Deadlock,
    /// It took longer than `dagrun_timeout`.
    TimedOut,
}

impl RunEnd {
    /// The reason that Airflow gives to callbacks.
    pub const fn reason(self) -> &'static str {
        match self {
            Self::Success => "success",
            Self::TaskFailure => "task_failure",
            Self::Deadlock => "all_tasks_deadlocked",
            Self::TimedOut => "timed_out",
        }
    }

    /// Whether the run failed.
    pub const fn is_failure(self) -> bool {
        match self {
            Self::Success => false,
            Self::TaskFailure | Self::Deadlock | Self::TimedOut => true,
        }
    }
}

/// What to do with a run.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Plan {
    /// Changes of task instances, those to schedule in the order of their weight.
    pub moves: Vec<Move>,
    /// How the run ends, if it does.
    pub end: Option<RunEnd>,
    /// When to look again because a waiting time is over.
    pub wake_at: Option<Timestamp>,
}
