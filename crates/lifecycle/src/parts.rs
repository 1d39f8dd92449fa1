//! Handles to parts that were started.

use crate::{Kind, Lifecycle, lifecycle::Ended};
use tokio::task::JoinHandle;

/// A part that was started. Dropping this leaves it alone: its program watches it all the same.
#[derive(Debug)]
pub struct Part {
    handle: JoinHandle<()>,
}

impl Part {
    pub(crate) fn new(handle: JoinHandle<()>) -> Self {
        Self { handle }
    }

    /// Ends it where it stands; that is no failure.
    pub fn abort(&self) {
        self.handle.abort();
    }

    /// Waits until it has ended, however it ended: a failure has been noted by then.
    pub async fn ended(self) {
        // The only error is an abort: panics are caught within the part.
        self.handle.await.ok();
    }
}

/// Several parts of one owner, who waits for all of them before it ends.
#[derive(Debug)]
pub struct Parts {
    lifecycle: Lifecycle,
    started: Vec<Part>,
}

impl Parts {
    pub(crate) fn new(lifecycle: Lifecycle) -> Self {
        Self {
            lifecycle,
            started: Vec::new(),
        }
    }

    /// As [`Lifecycle::spawn`].
    pub fn spawn<F>(&mut self, name: &'static str, kind: Kind, work: F)
    where
        F: Future + Send + 'static,
        F::Output: Ended,
    {
        let part = self.lifecycle.spawn(name, kind, work);
        self.started.push(part);
    }

    /// Waits until all have ended. One that failed has stopped the program, and with it the others.
    pub async fn ended(self) {
        for part in self.started {
            part.ended().await;
        }
    }
}
