//! Tasks that are named, tracked and stopped; signals that start the stopping.

use std::time::Duration;
use tokio::signal::unix::{SignalKind, signal};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tracing::Instrument;

/// The two stages of stopping. Clones share them.
#[derive(Debug, Clone, Default)]
pub struct Stop {
    drain: CancellationToken,
    now: CancellationToken,
}

impl Stop {
    /// Set when no new work is to be begun.
    pub fn draining(&self) -> &CancellationToken {
        &self.drain
    }

    /// Set when everything is to end.
    pub fn now(&self) -> &CancellationToken {
        &self.now
    }

    /// Begins to drain.
    pub fn drain(&self) {
        self.drain.cancel();
    }

    /// Ends everything.
    pub fn end(&self) {
        self.drain.cancel();
        self.now.cancel();
    }
}

/// Owner of a process's tasks.
#[derive(Debug, Clone, Default)]
pub struct Lifecycle {
    stop: Stop,
    tracker: TaskTracker,
}

impl Lifecycle {
    /// The stages of stopping.
    pub fn stop(&self) -> &Stop {
        &self.stop
    }

    /// Starts a task that the process waits for at its end. One that fails, or ends before it was asked to, stops the
    /// process: half a component is worse than none, since whoever restarts it sees nothing.
    pub fn spawn<F>(&self, name: &'static str, work: F)
    where
        F: Future<Output = anyhow::Result<()>> + Send + 'static,
    {
        let stop = self.stop.clone();
        let span = tracing::error_span!("task", name);
        let work = async move {
            match work.await {
                Ok(()) if stop.draining().is_cancelled() => {}
                Ok(()) => {
                    tracing::error!("{name} ended unexpectedly; stopping");
                    stop.end();
                }
                Err(error) => {
                    tracing::error!("{name} failed: {error:#}");
                    stop.end();
                }
            }
        };
        self.tracker.spawn(work.instrument(span));
    }

    /// Starts a task that may end whenever it likes.
    pub fn spawn_detached<F>(&self, work: F)
    where
        F: Future<Output = ()> + Send + 'static,
    {
        self.tracker.spawn(work);
    }

    /// Waits for SIGTERM or SIGINT (or for a task to fail), drains, and then ends everything: when all tasks have ended,
    /// when `grace` is over, or at the second signal, whichever comes first.
    ///
    /// # Errors
    /// When signals cannot be listened to.
    pub async fn run_to_end(&self, grace: Duration) -> anyhow::Result<()> {
        let mut terminate = signal(SignalKind::terminate())?;
        let mut interrupt = signal(SignalKind::interrupt())?;
        tokio::select! {
            _ = terminate.recv() => tracing::info!("SIGTERM: draining"),
            _ = interrupt.recv() => tracing::info!("SIGINT: draining"),
            () = self.stop.draining().cancelled() => {}
        }
        self.stop.drain();
        self.tracker.close();
        tokio::select! {
            () = self.tracker.wait() => {}
            () = tokio::time::sleep(grace) => tracing::warn!("not everything ended within {} s", grace.as_secs()),
            _ = terminate.recv() => tracing::warn!("second SIGTERM: ending now"),
            _ = interrupt.recv() => tracing::warn!("second SIGINT: ending now"),
            () = self.stop.now().cancelled() => {}
        }
        self.stop.end();
        if tokio::time::timeout(Duration::from_secs(10), self.tracker.wait())
            .await
            .is_err()
        {
            tracing::warn!("some tasks did not end; leaving them");
        }
        Ok(())
    }
}
