//! The last look at a claim before something of a task is started.

use crate::run::{Facts, NeverStarted};
use std::time::Duration;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

/// How long a lease that has run out is waited for: one late heartbeat may still prolong it.
const PATIENCE: Duration = Duration::from_secs(60);
const PAUSE: Duration = Duration::from_millis(100);

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
