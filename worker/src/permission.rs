//! The last look at a claim before something of a task is started, and who is told that it begins.

use crate::run::{Facts, NeverStarted};
use crate::running::Held;
use crate::watchdog::Watchdog;
use std::time::Duration;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

/// How long a lease that has run out is waited for: one late heartbeat may still prolong it.
const PATIENCE: Duration = Duration::from_secs(60);
const PAUSE: Duration = Duration::from_millis(100);

/// Who is told, before user code begins, that it may have begun: the watchdog. When the worker dies, what it held and what had
/// not begun goes back to the queue as the same try.
#[derive(Default)]
pub(crate) struct Witness(Option<(Watchdog, Held)>);

impl Witness {
    /// The watchdog, about this claim.
    pub(crate) fn of(watchdog: &Watchdog, claim: Held) -> Self {
        Self(Some((watchdog.clone(), claim)))
    }

    /// User code may begin from now on.
    pub(crate) fn begins(&self) {
        if let Some((watchdog, claim)) = &self.0 {
            watchdog.begins(*claim);
        }
    }

    /// User code did not begin after all, or what it did is reported.
    pub(crate) fn is_over(&self) {
        if let Some((watchdog, claim)) = &self.0 {
            watchdog.is_over(*claim);
        }
    }
}

/// Waits until the worker holds its lease, and tells that user code may begin. Whoever calls this starts it without another
/// await.
///
/// # Errors
/// As [`granted`].
pub(crate) async fn begins(facts: &Facts, stop: &CancellationToken) -> Result<(), NeverStarted> {
    granted(facts, stop).await?;
    facts.witness.begins();
    Ok(())
}

/// Waits until the worker holds its lease. Whoever calls this starts the task without another await, so that nothing can
/// come in between but a stop of the whole machine.
///
/// # Errors
/// When the claim is void, or the task is not to run any more.
pub(crate) async fn granted(facts: &Facts, stop: &CancellationToken) -> Result<(), NeverStarted> {
    let begin = Instant::now();
    while !facts.permit.holds() {
        let is_over = stop.is_cancelled() || facts.permit.is_over();
        if is_over || begin.elapsed() > PATIENCE {
            return Err(NeverStarted {
                cause: "this worker does not hold its lease; the task was not started".to_owned(),
            });
        }
        tokio::time::sleep(PAUSE).await;
    }
    if stop.is_cancelled() {
        return Err(NeverStarted {
            cause: "stopped before it began".to_owned(),
        });
    }
    Ok(())
}
