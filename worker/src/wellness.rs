//! Whether this worker can start tasks. One that cannot takes none, says why, and looks again until it can.

use crate::Shared;
use backoff::Backoff;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;
use tokio::sync::watch;

/// Pauses between two looks at what is not well.
const FIRST_LOOK: Duration = Duration::from_secs(2);
const LAST_LOOK: Duration = Duration::from_secs(30);
/// Tries in a row that could not be started after which the worker takes no more for a while, though its check passes.
const FAILED_STARTS: u32 = 5;
/// How long that is.
const REST: Duration = Duration::from_secs(30);

/// What is known of a worker's state. Clones share it.
#[derive(Debug, Clone)]
pub(crate) struct Wellness {
    unwell: watch::Sender<Option<String>>,
    starts: Arc<Mutex<Starts>>,
    doubt: Arc<tokio::sync::Notify>,
}

#[derive(Debug, Default)]
struct Starts {
    failed_in_a_row: u32,
    last_cause: String,
}

impl Default for Wellness {
    fn default() -> Self {
        Self {
            unwell: watch::Sender::new(None),
            starts: Arc::default(),
            doubt: Arc::default(),
        }
    }
}

impl Wellness {
    fn starts(&self) -> MutexGuard<'_, Starts> {
        self.starts.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Why the worker takes no tasks; `None` when it is well.
    pub(crate) fn problem(&self) -> Option<String> {
        self.unwell.borrow().clone()
    }

    /// Waits until the worker is well.
    pub(crate) async fn well(&self) {
        // The sender is ours, so this ends only when it is well.
        self.unwell.subscribe().wait_for(Option::is_none).await.ok();
    }

    fn set(&self, problem: Option<String>) {
        self.unwell.send_if_modified(|current| {
            if *current == problem {
                return false;
            }
            match &problem {
                Some(problem) => {
                    tracing::error!("this worker takes no tasks until this is mended: {problem}");
                }
                None => tracing::info!("this worker takes tasks again"),
            }
            *current = problem;
            true
        });
    }

    /// A try could not be started: the worker looks at itself anew.
    pub(crate) fn failed_to_start(&self, cause: &str) {
        let mut starts = self.starts();
        starts.failed_in_a_row += 1;
        cause.clone_into(&mut starts.last_cause);
        drop(starts);
        self.doubt.notify_one();
    }

    /// A try was started.
    pub(crate) fn started(&self) {
        self.starts().failed_in_a_row = 0;
    }

    /// The cause, if too many tries in a row could not be started.
    fn tired(&self) -> Option<String> {
        let mut starts = self.starts();
        if starts.failed_in_a_row < FAILED_STARTS {
            return None;
        }
        starts.failed_in_a_row = 0;
        Some(format!(
            "the last {FAILED_STARTS} tries could not be started: {}",
            starts.last_cause
        ))
    }
}

/// Checks at the start, and again whenever a try could not be started, whether the worker can start tasks. Never ends.
pub(crate) async fn watch(shared: Arc<Shared>) {
    loop {
        let mut backoff = Backoff::new(FIRST_LOOK, LAST_LOOK);
        while let Err(problem) = check(&shared).await {
            // Told at once; that it is well again comes with the next heartbeat that is heard.
            shared.health.unwell(problem.clone());
            shared.wellness.set(Some(problem));
            backoff.pause().await;
        }
        if let Some(problem) = shared.wellness.tired() {
            shared.health.unwell(problem.clone());
            shared.wellness.set(Some(problem));
            tokio::time::sleep(REST).await;
            continue;
        }
        shared.wellness.set(None);
        shared.wellness.doubt.notified().await;
    }
}

/// Starts what tasks are started with, if it is not running.
async fn check(shared: &Shared) -> Result<(), String> {
    match &shared.python {
        Some(python) => python
            .start()
            .await
            .map_err(|error| format!("tasks that need Python cannot run: {error}")),
        None => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_worker_is_unwell_until_what_is_wrong_is_mended() {
        let wellness = Wellness::default();
        wellness.well().await;
        wellness.set(Some("no interpreter".to_owned()));
        assert_eq!(wellness.problem().as_deref(), Some("no interpreter"));
        let waits = wellness.clone();
        #[expect(clippy::disallowed_methods, reason = "the test itself notices its end")]
        let waiting = tokio::spawn(async move { waits.well().await });
        tokio::task::yield_now().await;
        assert!(!waiting.is_finished());
        wellness.set(None);
        waiting.await.unwrap();
    }

    #[test]
    fn only_failures_in_a_row_tire_a_worker() {
        let wellness = Wellness::default();
        for _ in 1..FAILED_STARTS {
            wellness.failed_to_start("no fork");
        }
        wellness.started();
        wellness.failed_to_start("no fork");
        assert_eq!(wellness.tired(), None);
        for _ in 1..FAILED_STARTS {
            wellness.failed_to_start("no fork");
        }
        assert!(wellness.tired().is_some_and(|cause| cause.contains("no fork")));
        assert_eq!(wellness.tired(), None, "it begins to count anew");
    }
}
