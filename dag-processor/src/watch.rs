//! The watch on the DAG folders.

use notify::event::{AccessKind, AccessMode, EventKind, ModifyKind};
use notify::{RecommendedWatcher, RecursiveMode, Watcher};
use python::Bundle;
use std::sync::Arc;
use tokio::sync::Notify;

/// Tells that something changed.
pub(crate) struct Changes {
    notify: Arc<Notify>,
    /// Watching ends when it is dropped.
    _watcher: Option<RecommendedWatcher>,
}

impl Changes {
    pub(crate) async fn changed(&mut self) {
        self.notify.notified().await;
    }
}

/// Starts to watch. The second value tells whether watching works; a folder on some network file systems cannot be
/// watched, and is looked at more often instead.
pub(crate) fn start(bundles: &[Bundle]) -> (Changes, bool) {
    let notify = Arc::new(Notify::new());
    let sender = Arc::clone(&notify);
    let watcher = notify::recommended_watcher(move |event: notify::Result<notify::Event>| {
        if event.is_ok_and(|event| concerns_us(&event)) {
            sender.notify_one();
        }
    });
    let mut watcher = match watcher {
        Ok(watcher) => watcher,
        Err(error) => {
            tracing::warn!("DAG folders cannot be watched: {error}");
            return (
                Changes {
                    notify,
                    _watcher: None,
                },
                false,
            );
        }
    };
    let mut works = true;
    for bundle in bundles {
        if let Err(error) = watcher.watch(&bundle.path, RecursiveMode::Recursive) {
            tracing::warn!("{} cannot be watched: {error}", bundle.path.display());
            works = false;
        }
    }
    (
        Changes {
            notify,
            _watcher: Some(watcher),
        },
        works,
    )
}

fn concerns_us(event: &notify::Event) -> bool {
    let is_change = match event.kind {
        EventKind::Create(_) | EventKind::Remove(_) => true,
        EventKind::Modify(ModifyKind::Data(_) | ModifyKind::Name(_) | ModifyKind::Any) => true,
        EventKind::Access(AccessKind::Close(AccessMode::Write)) => true,
        EventKind::Any | EventKind::Other | EventKind::Modify(_) | EventKind::Access(_) => {
            event.need_rescan()
        }
    };
    is_change
        && !event
            .paths
            .iter()
            .all(|path| path.components().any(|part| part.as_os_str() == "__pycache__"))
}
