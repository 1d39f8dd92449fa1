//! Why a try was lost, and which task instance takes its workers down with it.

use std::fmt;

/// Why nobody will report how a try ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum LossCause {
    /// The worker's process died; its watchdog, or its pod, said so.
    WorkerDied,
    /// The worker was not heard of for its lease.
    WorkerLost,
    /// The worker came back without having left before.
    WorkerRestarted,
    /// The worker left in good order and stopped the try.
    WorkerShutdown,
    /// The worker is gone; how is not known any more.
    WorkerGone,
    /// The worker lives, but it says that the try ended without a report.
    Unreported(String),
}

impl LossCause {
    /// One word for it, as callbacks and metrics have it.
    pub const fn word(&self) -> &'static str {
        match self {
            Self::WorkerDied => "worker_died",
            Self::WorkerLost => "worker_lost",
            Self::WorkerRestarted => "worker_restarted",
            Self::WorkerShutdown => "worker_shutdown",
            Self::WorkerGone => "worker_gone",
            Self::Unreported(_) => "task_lost",
        }
    }

    /// Returns `true` if the worker itself met its end while the try ran, so that the try may be the reason.
    pub const fn killed_the_worker(&self) -> bool {
        match self {
            Self::WorkerDied | Self::WorkerLost | Self::WorkerRestarted => true,
            Self::WorkerShutdown | Self::WorkerGone | Self::Unreported(_) => false,
        }
    }
}

impl fmt::Display for LossCause {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Unreported(text) => f.write_str(text),
            Self::WorkerDied
            | Self::WorkerLost
            | Self::WorkerRestarted
            | Self::WorkerShutdown
            | Self::WorkerGone => f.write_str(self.word()),
        }
    }
}

/// The place, among the tries that one worker held when it met its end, of the one that is taken to be the reason.
///
/// `earlier` counts for each how many workers in a row its task instance has lost before. The reason is the only one that
/// has now lost `limit` workers in a row. Where several have, they may just have run beside each other each time, and
/// nobody is accused. A `limit` of 0 accuses nobody.
pub fn the_poison(earlier: &[u32], limit: u32) -> Option<usize> {
    if limit == 0 {
        return None;
    }
    let mut suspects = earlier
        .iter()
        .enumerate()
        .filter(|(_, losses)| losses.saturating_add(1) >= limit)
        .map(|(place, _)| place);
    let first = suspects.next()?;
    suspects.next().is_none().then_some(first)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_one_that_was_there_each_time_is_accused() {
        assert_eq!(the_poison(&[0, 1, 0], 2), Some(1));
        assert_eq!(
            the_poison(&[0, 0], 2),
            None,
            "the first worker that each has lost"
        );
        assert_eq!(the_poison(&[1, 1], 2), None, "both were there");
        assert_eq!(the_poison(&[5], 0), None, "turned off");
        assert_eq!(the_poison(&[0], 1), Some(0));
        assert_eq!(the_poison(&[], 2), None);
    }
}
