//! The words for the states of a task instance.

use crate::dag_run::UnknownWord;
use std::fmt;
use std::str::FromStr;

/// The bare name of a task instance's state. Spelled as in Airflow's `TaskInstanceState`; Airflow's `None` is
/// [`StateName::NoStatus`] here, so that no code can forget it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum StateName {
    /// Created, not decided upon yet.
    NoStatus,
    /// May run; waits for a slot in its pool.
    Scheduled,
    /// Handed to the broker.
    Queued,
    /// Claimed by a worker.
    Running,
    /// Cleared while it ran; the old process is being stopped.
    Restarting,
    /// Ended well.
    Success,
    /// Ended badly, with no retries left.
    Failed,
    /// Ended badly; another try follows.
    UpForRetry,
    /// A sensor that asked to be run again later.
    UpForReschedule,
    /// Will not run because something before it failed.
    UpstreamFailed,
    /// Will not run because something before it decided so, or skipped itself.
    Skipped,
    /// Waits for a trigger.
    Deferred,
    /// Waits for a person.
    AwaitingInput,
    /// Its task is gone from the DAG.
    Removed,
}

impl StateName {
    /// All states.
    pub const ALL: [Self; 14] = [
        Self::NoStatus,
        Self::Scheduled,
        Self::Queued,
        Self::Running,
        Self::Restarting,
        Self::Success,
        Self::Failed,
        Self::UpForRetry,
        Self::UpForReschedule,
        Self::UpstreamFailed,
        Self::Skipped,
        Self::Deferred,
        Self::AwaitingInput,
        Self::Removed,
    ];

    /// The word in the database; [`StateName::NoStatus`] has one there too, so that indexes need no NULLs.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::NoStatus => "none",
            Self::Scheduled => "scheduled",
            Self::Queued => "queued",
            Self::Running => "running",
            Self::Restarting => "restarting",
            Self::Success => "success",
            Self::Failed => "failed",
            Self::UpForRetry => "up_for_retry",
            Self::UpForReschedule => "up_for_reschedule",
            Self::UpstreamFailed => "upstream_failed",
            Self::Skipped => "skipped",
            Self::Deferred => "deferred",
            Self::AwaitingInput => "awaiting_input",
            Self::Removed => "removed",
        }
    }

    /// The word in the REST API, where a task instance without status has `null`.
    pub const fn rest_word(self) -> Option<&'static str> {
        match self {
            Self::NoStatus => None,
            Self::Scheduled
            | Self::Queued
            | Self::Running
            | Self::Restarting
            | Self::Success
            | Self::Failed
            | Self::UpForRetry
            | Self::UpForReschedule
            | Self::UpstreamFailed
            | Self::Skipped
            | Self::Deferred
            | Self::AwaitingInput
            | Self::Removed => Some(self.as_str()),
        }
    }

    /// Whether nothing more will happen to the task instance by itself (Airflow's `State.finished`).
    pub const fn is_finished(self) -> bool {
        match self {
            Self::Success | Self::Failed | Self::Skipped | Self::UpstreamFailed | Self::Removed => true,
            Self::NoStatus
            | Self::Scheduled
            | Self::Queued
            | Self::Running
            | Self::Restarting
            | Self::UpForRetry
            | Self::UpForReschedule
            | Self::Deferred
            | Self::AwaitingInput => false,
        }
    }

    /// Whether the scheduler may schedule it (Airflow's `SCHEDULEABLE_STATES`).
    pub const fn is_schedulable(self) -> bool {
        match self {
            Self::NoStatus | Self::UpForRetry | Self::UpForReschedule => true,
            Self::Scheduled
            | Self::Queued
            | Self::Running
            | Self::Restarting
            | Self::Success
            | Self::Failed
            | Self::UpstreamFailed
            | Self::Skipped
            | Self::Deferred
            | Self::AwaitingInput
            | Self::Removed => false,
        }
    }

    /// Whether a decision not to run it can still be taken.
    pub const fn is_undecided(self) -> bool {
        match self {
            Self::NoStatus | Self::Scheduled | Self::UpForRetry | Self::UpForReschedule => true,
            Self::Queued
            | Self::Running
            | Self::Restarting
            | Self::Success
            | Self::Failed
            | Self::UpstreamFailed
            | Self::Skipped
            | Self::Deferred
            | Self::AwaitingInput
            | Self::Removed => false,
        }
    }

    /// Whether it holds a slot of its pool (Airflow's `EXECUTION_STATES`).
    pub const fn occupies_slot(self) -> bool {
        match self {
            Self::Queued | Self::Running => true,
            Self::NoStatus
            | Self::Scheduled
            | Self::Restarting
            | Self::Success
            | Self::Failed
            | Self::UpForRetry
            | Self::UpForReschedule
            | Self::UpstreamFailed
            | Self::Skipped
            | Self::Deferred
            | Self::AwaitingInput
            | Self::Removed => false,
        }
    }
}

impl fmt::Display for StateName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

impl FromStr for StateName {
    type Err = UnknownWord;
    fn from_str(s: &str) -> Result<Self, Self::Err> {
        Self::ALL
            .into_iter()
            .find(|state| state.as_str() == s)
            .ok_or_else(|| UnknownWord {
                what: "task instance state",
                word: s.to_owned(),
            })
    }
}
