//! The two stages of stopping.

use tokio_util::sync::CancellationToken;

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
