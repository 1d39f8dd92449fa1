//! The one table of legal moves of a task instance.

use super::StateName;
use crate::time::Timestamp;
use crate::{ClaimEpoch, WorkerId};
use thiserror::Error;

/// Who runs a task instance, and under which claim.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Claim {
    /// The worker's present life.
    pub worker: WorkerId,
    /// Number of this claim; reports under an older one are stale.
    pub epoch: ClaimEpoch,
}

/// Where a task instance stands, with what belongs to that state.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum TaskInstanceState {
    /// Created, not decided upon yet.
    NoStatus,
    /// May run; waits for a slot in its pool.
    Scheduled,
    /// Handed to the broker; `sequence` counts the hand-overs.
    Queued {
        /// How often this task instance was handed over.
        sequence: i64,
    },
    /// Claimed by a worker.
    Running(Claim),
    /// Cleared while it ran; the old process is being stopped.
    Restarting(Claim),
    /// Ended badly; may run again from `not_before` on.
    UpForRetry {
        /// Earliest start of the next try.
        not_before: Timestamp,
    },
    /// A sensor that asked to be run again from `not_before` on.
    UpForReschedule {
        /// Earliest start of the next poke.
        not_before: Timestamp,
    },
    /// Waits for a trigger: for one that fires at `fires_at`, or, for one of which nobody knows when it fires, until
    /// then at the latest.
    Deferred {
        /// When the task goes on by itself.
        fires_at: Option<Timestamp>,
    },
    /// Waits for a person.
    AwaitingInput,
    /// Ended well.
    Success,
    /// Ended badly for good.
    Failed,
    /// Not run, by decision of something before it or of its own.
    Skipped,
    /// Not run, because something before it failed.
    UpstreamFailed,
    /// Its task is gone.
    Removed,
}

/// How a try ended, as the worker reports it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Outcome {
    /// Ended well.
    Success,
    /// Ended badly; `retry_at` is set when another try is due.
    Failed {
        /// Earliest start of the next try, if there is one.
        retry_at: Option<Timestamp>,
    },
    /// Skipped itself.
    Skipped,
    /// Asked to be run again at that time, within the same try.
    Reschedule {
        /// Earliest start of the next poke.
        at: Timestamp,
    },
    /// Handed over to a trigger.
    Deferred {
        /// When the task goes on by itself.
        until: Option<Timestamp>,
    },
    /// Handed over to a person.
    AwaitingInput {
        /// When it goes on without an answer.
        until: Option<Timestamp>,
    },
    /// Found its task gone.
    Removed,
}

/// What can happen to a task instance.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum TaskEvent {
    /// Its dependencies are met.
    Schedule,
    /// It got a slot and goes to the broker.
    Queue,
    /// A queued one goes back to wait for a slot (its DAG was paused, its queue is gone).
    Unqueue,
    /// A worker takes it.
    Claim(WorkerId),
    /// The worker holding claim `epoch` says how the try ended.
    Report {
        /// The claim under which the try ran.
        epoch: ClaimEpoch,
        /// How it ended.
        outcome: Outcome,
    },
    /// The worker holding claim `epoch` is gone, and with it the process.
    Lose {
        /// The claim that is lost.
        epoch: ClaimEpoch,
        /// Earliest start of the next try, if there is one.
        retry_at: Option<Timestamp>,
    },
    /// User code never began under claim `epoch`: the same try waits to be started again.
    Return {
        /// The claim that ends.
        epoch: ClaimEpoch,
        /// Earliest start of the next attempt.
        at: Timestamp,
    },
    /// Hand-over `sequence` came to nothing: its executor could not start it.
    Refuse {
        /// The hand-over.
        sequence: i64,
        /// Earliest start of the next try, if there is one.
        retry_at: Option<Timestamp>,
    },
    /// Its trigger fired, and it goes on.
    Resume,
    /// Its trigger fired, and that was all that there was to do.
    EndDeferral,
    /// Its trigger said how it ended.
    Settle(Outcome),
    /// A person answered, or the time for it is over: it goes on like one whose trigger fires at that moment.
    Answer {
        /// Now.
        at: Timestamp,
    },
    /// Something before it failed.
    FailUpstream,
    /// Something before it decided that it shall not run.
    Skip,
    /// It has nothing to execute (an EmptyOperator), and its dependencies are met.
    Complete,
    /// Its task is gone from the DAG.
    Remove,
    /// A person wants it run again.
    Clear,
    /// A person set the outcome.
    Mark {
        /// Success, or failed.
        success: bool,
    },
}

/// A task instance was asked to make a move that its state does not allow.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
#[error("a task instance in state {from} cannot take {event:?}")]
pub struct IllegalTransition {
    /// The state it was in.
    pub from: StateName,
    /// What was to happen.
    pub event: TaskEvent,
}

impl TaskInstanceState {
    /// The bare word for this state.
    pub const fn name(&self) -> StateName {
        match self {
            Self::NoStatus => StateName::NoStatus,
            Self::Scheduled => StateName::Scheduled,
            Self::Queued { .. } => StateName::Queued,
            Self::Running(_) => StateName::Running,
            Self::Restarting(_) => StateName::Restarting,
            Self::UpForRetry { .. } => StateName::UpForRetry,
            Self::UpForReschedule { .. } => StateName::UpForReschedule,
            Self::Deferred { .. } => StateName::Deferred,
            Self::AwaitingInput => StateName::AwaitingInput,
            Self::Success => StateName::Success,
            Self::Failed => StateName::Failed,
            Self::Skipped => StateName::Skipped,
            Self::UpstreamFailed => StateName::UpstreamFailed,
            Self::Removed => StateName::Removed,
        }
    }

    /// Where the task instance goes on `event`. `last` holds the counters that outlive a state: the number of
    /// the last hand-over and of the last claim.
    ///
    /// # Errors
    /// When a task instance in this state cannot take the event; a report under an old claim is one such case.
    pub fn apply(self, event: TaskEvent, last: LastCounters) -> Result<Self, IllegalTransition> {
        let name = self.name();
        let refused = IllegalTransition { from: name, event };
        match event {
            TaskEvent::Schedule if name.is_schedulable() => Ok(Self::Scheduled),
            TaskEvent::Complete if name.is_schedulable() => Ok(Self::Success),
            TaskEvent::Remove if !name.is_finished() && name != StateName::Running => Ok(Self::Removed),
            TaskEvent::Schedule | TaskEvent::Complete | TaskEvent::Remove => Err(refused),
            TaskEvent::Queue if name == StateName::Scheduled => Ok(Self::Queued {
                sequence: last.sequence + 1,
            }),
            TaskEvent::Unqueue if matches!(name, StateName::Scheduled | StateName::Queued) => {
                Ok(Self::NoStatus)
            }
            TaskEvent::Claim(worker) if name == StateName::Queued => Ok(Self::Running(Claim {
                worker,
                epoch: ClaimEpoch(last.epoch.0 + 1),
            })),
            TaskEvent::Report { epoch, outcome } => self.end_of_claim(epoch, outcome).ok_or(refused),
            TaskEvent::Lose { epoch, retry_at } => self
                .end_of_claim(epoch, Outcome::Failed { retry_at })
                .ok_or(refused),
            TaskEvent::Return { epoch, at } => self
                .end_of_claim(epoch, Outcome::Reschedule { at })
                .ok_or(refused),
            TaskEvent::Refuse { sequence, retry_at } if self == (Self::Queued { sequence }) => {
                Ok(Self::after(Outcome::Failed { retry_at }))
            }
            TaskEvent::Resume if name == StateName::Deferred => Ok(Self::Scheduled),
            TaskEvent::EndDeferral if name == StateName::Deferred => Ok(Self::Success),
            TaskEvent::Settle(outcome) if name == StateName::Deferred => Ok(Self::after(outcome)),
            TaskEvent::Answer { at } if name == StateName::AwaitingInput => {
                Ok(Self::Deferred { fires_at: Some(at) })
            }
            TaskEvent::FailUpstream if name.is_undecided() => Ok(Self::UpstreamFailed),
            TaskEvent::Skip if name.is_undecided() => Ok(Self::Skipped),
            TaskEvent::Queue
            | TaskEvent::Unqueue
            | TaskEvent::Claim(_)
            | TaskEvent::Refuse { .. }
            | TaskEvent::Resume
            | TaskEvent::EndDeferral
            | TaskEvent::Settle(_)
            | TaskEvent::Answer { .. }
            | TaskEvent::FailUpstream
            | TaskEvent::Skip => Err(refused),
            TaskEvent::Clear => Ok(self.claim().map_or(Self::NoStatus, Self::Restarting)),
            TaskEvent::Mark { success: true } => Ok(Self::Success),
            TaskEvent::Mark { success: false } => Ok(Self::Failed),
        }
    }

    /// The claim under which a process of this task instance may be alive.
    pub const fn claim(&self) -> Option<Claim> {
        match self {
            Self::Running(claim) | Self::Restarting(claim) => Some(*claim),
            Self::NoStatus
            | Self::Scheduled
            | Self::Queued { .. }
            | Self::UpForRetry { .. }
            | Self::UpForReschedule { .. }
            | Self::Deferred { .. }
            | Self::AwaitingInput
            | Self::Success
            | Self::Failed
            | Self::Skipped
            | Self::UpstreamFailed
            | Self::Removed => None,
        }
    }

    /// Where the end of the claim with that number leads; `None` when no such claim is held. A task instance that
    /// was cleared while it ran starts over, however its old process ended.
    fn end_of_claim(self, epoch: ClaimEpoch, outcome: Outcome) -> Option<Self> {
        let claim = self.claim().filter(|claim| claim.epoch == epoch)?;
        let cleared = self == Self::Restarting(claim);
        Some(if cleared {
            Self::NoStatus
        } else {
            Self::after(outcome)
        })
    }

    const fn after(outcome: Outcome) -> Self {
        match outcome {
            Outcome::Success => Self::Success,
            Outcome::Failed {
                retry_at: Some(not_before),
            } => Self::UpForRetry { not_before },
            Outcome::Failed { retry_at: None } => Self::Failed,
            Outcome::Skipped => Self::Skipped,
            Outcome::Reschedule { at } => Self::UpForReschedule { not_before: at },
            Outcome::Deferred { until } => Self::Deferred { fires_at: until },
            Outcome::AwaitingInput { .. } => Self::AwaitingInput,
            Outcome::Removed => Self::Removed,
        }
    }
}

/// Counters of a task instance that outlive its states.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LastCounters {
    /// Number of the last hand-over to the broker.
    pub sequence: i64,
    /// Number of the last claim.
    pub epoch: ClaimEpoch,
}

#[cfg(test)]
mod tests {
    use super::*;
    use uuid::Uuid;

    const LAST: LastCounters = LastCounters {
        sequence: 3,
        epoch: ClaimEpoch(7),
    };

    fn worker() -> WorkerId {
        WorkerId::new(Uuid::from_u128(1))
    }

    fn running() -> TaskInstanceState {
        TaskInstanceState::Running(Claim {
            worker: worker(),
            epoch: ClaimEpoch(7),
        })
    }

    fn report(epoch: i64, outcome: Outcome) -> TaskEvent {
        TaskEvent::Report {
            epoch: ClaimEpoch(epoch),
            outcome,
        }
    }

    #[test]
    fn the_usual_way_through() {
        let queued = TaskInstanceState::NoStatus
            .apply(TaskEvent::Schedule, LAST)
            .and_then(|s| s.apply(TaskEvent::Queue, LAST))
            .unwrap();
        assert_eq!(queued, TaskInstanceState::Queued { sequence: 4 });
        let running = queued.apply(TaskEvent::Claim(worker()), LAST).unwrap();
        assert_eq!(running.name(), StateName::Running);
        let done = running.apply(report(8, Outcome::Success), LAST).unwrap();
        assert_eq!(done, TaskInstanceState::Success);
    }

    #[test]
    fn a_deferred_one_goes_on_or_ends_when_its_trigger_fires() {
        let until = crate::time::from_micros(9);
        let deferred = running()
            .apply(report(7, Outcome::Deferred { until }), LAST)
            .unwrap();
        assert_eq!(deferred, TaskInstanceState::Deferred { fires_at: until });
        assert_eq!(
            deferred.apply(TaskEvent::Resume, LAST),
            Ok(TaskInstanceState::Scheduled)
        );
        assert_eq!(
            deferred.apply(TaskEvent::EndDeferral, LAST),
            Ok(TaskInstanceState::Success)
        );
        assert!(running().apply(TaskEvent::Resume, LAST).is_err());
        let skipped = TaskEvent::Settle(Outcome::Skipped);
        assert_eq!(deferred.apply(skipped, LAST), Ok(TaskInstanceState::Skipped));
        assert!(running().apply(skipped, LAST).is_err());
    }

    #[test]
    fn only_the_latest_hand_over_can_come_to_nothing() {
        let queued = TaskInstanceState::Queued { sequence: 3 };
        let refuse = |sequence| TaskEvent::Refuse {
            sequence,
            retry_at: None,
        };
        assert_eq!(queued.apply(refuse(3), LAST), Ok(TaskInstanceState::Failed));
        assert!(queued.apply(refuse(2), LAST).is_err());
        assert!(running().apply(refuse(3), LAST).is_err());
    }

    #[test]
    fn only_a_queued_one_can_be_claimed() {
        for state in [
            TaskInstanceState::Scheduled,
            running(),
            TaskInstanceState::Success,
        ] {
            assert!(
                state.apply(TaskEvent::Claim(worker()), LAST).is_err(),
                "{state:?}"
            );
        }
    }

    #[test]
    fn a_report_under_an_old_claim_changes_nothing() {
        assert!(running().apply(report(6, Outcome::Success), LAST).is_err());
        assert!(
            TaskInstanceState::Success
                .apply(report(7, Outcome::Success), LAST)
                .is_err()
        );
    }

    #[test]
    fn a_task_cleared_while_running_starts_over_only_after_its_process_ended() {
        let restarting = running().apply(TaskEvent::Clear, LAST).unwrap();
        assert!(restarting.apply(TaskEvent::Schedule, LAST).is_err());
        assert_eq!(
            restarting.apply(report(7, Outcome::Success), LAST),
            Ok(TaskInstanceState::NoStatus)
        );
    }

    #[test]
    fn a_try_that_never_started_waits_to_be_started_again_under_another_claim() {
        let back = |epoch| TaskEvent::Return {
            epoch: ClaimEpoch(epoch),
            at: Timestamp::UNIX_EPOCH,
        };
        let waits = TaskInstanceState::UpForReschedule {
            not_before: Timestamp::UNIX_EPOCH,
        };
        assert_eq!(running().apply(back(7), LAST), Ok(waits));
        assert!(running().apply(back(6), LAST).is_err(), "an old claim");
        assert!(TaskInstanceState::Success.apply(back(7), LAST).is_err());
        let cleared = running().apply(TaskEvent::Clear, LAST).unwrap();
        assert_eq!(cleared.apply(back(7), LAST), Ok(TaskInstanceState::NoStatus));
    }

    #[test]
    fn a_lost_worker_is_a_failure_never_a_success() {
        let lost = running().apply(
            TaskEvent::Lose {
                epoch: ClaimEpoch(7),
                retry_at: None,
            },
            LAST,
        );
        assert_eq!(lost, Ok(TaskInstanceState::Failed));
    }
}
