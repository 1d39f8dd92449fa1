//! Waking those who watch runs.

use broker::Hint;
use tokio::sync::broadcast;

/// Everyone who watches a run.
pub(crate) struct Watchers {
    sender: broadcast::Sender<Hint>,
}

impl Default for Watchers {
    fn default() -> Self {
        Self {
            sender: broadcast::channel(1024).0,
        }
    }
}

impl Watchers {
    pub(crate) fn tell(&self, hint: &Hint) {
        // Nobody watching is no error.
        self.sender.send(hint.clone()).ok();
    }

    pub(crate) fn subscribe(&self) -> broadcast::Receiver<Hint> {
        self.sender.subscribe()
    }
}
