//! Where DAG files come from: folders of this machine, and what only a Python class can fetch.

use crate::timetables::Unanswered;
use crate::{Shared, lock};
use lifecycle::Stop;
use python::Bundle;
use serde_json::{Value, json};
use std::collections::HashMap;
use std::path::PathBuf;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};
use store::repo::FileKey;
use tokio::sync::Notify;

/// How long fetching a bundle may take.
const FETCH: Duration = Duration::from_secs(600);
/// Wait before a bundle that could not be fetched is tried again.
const AGAIN: Duration = Duration::from_secs(15);
/// Shortest time between two refreshes of a bundle.
const SHORTEST: Duration = Duration::from_secs(1);

/// All bundles of the installation, in the order in which they are configured.
pub(crate) struct Bundles {
    all: Mutex<Vec<Bundle>>,
    changed: Notify,
}

impl Bundles {
    pub(crate) fn new(configured: Vec<Bundle>) -> Self {
        Self {
            all: Mutex::new(configured),
            changed: Notify::new(),
        }
    }

    /// Those whose folder is known.
    pub(crate) fn known(&self) -> Vec<Bundle> {
        let all = lock(&self.all);
        all.iter()
            .filter(|bundle| !bundle.path.as_os_str().is_empty())
            .cloned()
            .collect()
    }

    /// The bundle of that name, if its folder is known.
    pub(crate) fn find(&self, name: &str) -> Option<Bundle> {
        self.known().into_iter().find(|bundle| bundle.name == name)
    }

    /// Any bundle, for questions that need none.
    pub(crate) fn any(&self) -> Bundle {
        let first = self.known().into_iter().next();
        first.unwrap_or_else(|| Bundle::local("none", "/"))
    }

    /// The place of a file among all: of several with the same DAG, it is that of the first. `None` when its bundle is not
    /// configured.
    pub(crate) fn place<'a>(&self, bundle: &str, path: &'a str) -> Option<(usize, &'a str)> {
        let at = lock(&self.all).iter().position(|known| known.name == bundle);
        at.map(|at| (at, path))
    }

    /// Returns `true` if nothing is known of a file that is not found: its bundle has not been fetched yet.
    pub(crate) fn may_have(&self, file: &FileKey) -> bool {
        self.is_awaited(&file.bundle)
    }

    /// Returns `true` if a bundle of that name is configured and has not been fetched yet.
    pub(crate) fn is_awaited(&self, name: &str) -> bool {
        let all = lock(&self.all);
        all.iter()
            .any(|bundle| bundle.name == name && bundle.path.as_os_str().is_empty())
    }

    /// Waits until a folder is known, or another.
    pub(crate) async fn changed(&self) {
        self.changed.notified().await;
    }

    /// Notes where the files of a bundle are and in which version. Whether the version is another.
    fn learn(&self, name: &str, path: PathBuf, version: Option<String>) -> bool {
        let mut all = lock(&self.all);
        let Some(bundle) = all.iter_mut().find(|bundle| bundle.name == name) else {
            return false;
        };
        let has_other_version = bundle.version != version;
        if bundle.path != path || has_other_version {
            bundle.path = path;
            bundle.version = version;
            self.changed.notify_one();
        }
        has_other_version
    }
}

/// Refreshes the bundles that are no folders of this machine, until told to stop.
pub(crate) async fn refresh(shared: Arc<Shared>, stop: Stop) {
    let usual = shared.config.dag_processor.refresh_interval;
    let configured = &shared.config.dag_processor.bundles;
    let intervals: HashMap<&str, Duration> = configured
        .iter()
        .filter(|bundle| bundle.folder.is_none())
        .map(|bundle| {
            let interval = bundle.refresh_interval.unwrap_or(usual);
            (bundle.name.as_str(), interval.max(SHORTEST))
        })
        .collect();
    let mut due: HashMap<&str, Instant> = intervals.keys().map(|name| (*name, Instant::now())).collect();
    while let Some(at) = due.values().min().copied() {
        tokio::select! {
            () = stop.draining().cancelled() => return,
            () = tokio::time::sleep_until(at.into()) => {}
        }
        let ready: Vec<&str> = due
            .iter()
            .filter(|(_, at)| **at <= Instant::now())
            .map(|(name, _)| *name)
            .collect();
        for name in ready {
            let fetched = tokio::select! {
                () = stop.draining().cancelled() => return,
                fetched = shared.fetch(name) => fetched,
            };
            let interval = intervals.get(name).copied().unwrap_or(usual);
            let pause = match fetched {
                Ok(()) => interval,
                Err(why) => {
                    tracing::error!(bundle = name, "the bundle cannot be fetched, trying again: {why}");
                    interval.min(AGAIN)
                }
            };
            due.insert(name, Instant::now() + pause);
        }
    }
    // There are only folders.
    stop.draining().cancelled().await;
}

impl Shared {
    /// Has the class of a bundle fetch what is new.
    async fn fetch(&self, name: &str) -> Result<(), String> {
        let question = json!({"kind": "bundle", "name": name});
        let answer = self.ask_for(question, FETCH).await.map_err(|why| match why {
            Unanswered::Later(why) | Unanswered::Never(why) => why,
        })?;
        let text = |key: &str| answer.get(key).and_then(Value::as_str).map(str::to_owned);
        let path = text("path").ok_or("its class names no path")?;
        let version = text("version");
        if self.bundles.learn(name, path.into(), version.clone()) {
            tracing::info!(bundle = name, version, "the bundle has another version");
            store::transact!(self.store, "note version of bundle", |tx| tx
                .set_bundle_version(name, version.as_deref())
                .await)
            .map_err(|error| error.to_string())?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn fetched(name: &str) -> Bundle {
        Bundle {
            path: PathBuf::new(),
            is_local: false,
            ..Bundle::local(name, "/")
        }
    }

    #[test]
    fn what_is_not_fetched_yet_is_not_gone() {
        let bundles = Bundles::new(vec![Bundle::local("a", "/a"), fetched("g")]);
        let names = |all: Vec<Bundle>| all.into_iter().map(|bundle| bundle.name).collect::<Vec<_>>();
        assert_eq!(names(bundles.known()), ["a"]);
        assert!(bundles.may_have(&FileKey::new("g", "x.py")));
        assert!(!bundles.may_have(&FileKey::new("a", "x.py")));
        assert!(!bundles.may_have(&FileKey::new("left", "x.py")));
        assert!(bundles.learn("g", "/g".into(), Some("1".to_owned())));
        assert!(!bundles.learn("g", "/g".into(), Some("1".to_owned())));
        assert!(!bundles.may_have(&FileKey::new("g", "x.py")));
        assert_eq!(names(bundles.known()), ["a", "g"]);
    }

    #[test]
    fn of_several_files_the_first_is_that_of_the_first_bundle() {
        let bundles = Bundles::new(vec![Bundle::local("z", "/z"), Bundle::local("a", "/a")]);
        assert!(bundles.place("z", "z.py") < bundles.place("a", "a.py"));
        assert!(bundles.place("z", "a.py") < bundles.place("z", "b.py"));
        assert_eq!(bundles.place("left", "a.py"), None);
    }
}
