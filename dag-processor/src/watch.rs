//! The watch on the DAG folders, and on what DAG files depend on outside of them.

use crate::dependencies::Dependency;
use crate::lock;
use notify::event::{AccessKind, AccessMode, CreateKind, EventKind, ModifyKind, RemoveKind};
use notify::{RecommendedWatcher, RecursiveMode, Watcher};
use python::Bundle;
use std::collections::{HashMap, HashSet};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};
use tokio::sync::Notify;

/// Folders outside of the DAG folders that are watched at most; what is in others is looked at every few seconds.
const FOLDERS: usize = 256;

/// What is worth a look.
#[derive(Debug, Default)]
struct Interests {
    bundles: Vec<PathBuf>,
    /// Paths that files depend on.
    paths: HashSet<PathBuf>,
    /// Folders whose names files depend on.
    folders: HashSet<PathBuf>,
}

impl Interests {
    fn add(&mut self, dependency: &Dependency) {
        match dependency {
            Dependency::File(path) | Dependency::There(path) => self.paths.insert(path.clone()),
            Dependency::Names(path) => self.folders.insert(path.clone()),
            Dependency::Packages(_)
            | Dependency::Environment(_)
            | Dependency::Variable(_)
            | Dependency::Connection(_) => return,
        };
    }

    /// Returns `true` if a change of this kind at this path may be one of DAGs.
    fn have(&self, kind: EventKind, path: &Path) -> bool {
        if path.components().any(|part| part.as_os_str() == "__pycache__") {
            return false;
        }
        let comes_or_goes = matches!(
            kind,
            EventKind::Create(_) | EventKind::Remove(_) | EventKind::Modify(ModifyKind::Name(_))
        );
        let is_listed = || path.parent().is_some_and(|folder| self.folders.contains(folder));
        if self.paths.contains(path) || comes_or_goes && is_listed() {
            return true;
        }
        if !self.bundles.iter().any(|bundle| path.starts_with(bundle)) {
            // A folder on the way to what is wanted.
            return comes_or_goes && self.paths.iter().any(|wanted| wanted.starts_with(path));
        }
        let may_be_folder = matches!(
            kind,
            EventKind::Create(CreateKind::Folder | CreateKind::Any)
                | EventKind::Remove(RemoveKind::Folder | RemoveKind::Any)
                | EventKind::Modify(ModifyKind::Name(_))
        );
        may_be_folder
            || path.extension().is_some_and(|end| end == "py" || end == "zip")
            || path.file_name().is_some_and(|name| name == ".airflowignore")
    }
}

/// Tells that something changed.
pub(crate) struct Changes {
    notify: Arc<Notify>,
    interests: Arc<Mutex<Interests>>,
    /// Watching ends when it is dropped.
    watcher: Option<RecommendedWatcher>,
    /// What is watched, with the device and inode that it had: behind a link there may be another folder later.
    watched: HashMap<PathBuf, (u64, u64)>,
    is_full: bool,
}

/// The folder whose watch tells of a dependency.
fn folder_of(dependency: &Dependency) -> Option<&Path> {
    match dependency {
        Dependency::File(path) | Dependency::There(path) => path.parent(),
        Dependency::Names(path) => Some(path.as_path()),
        Dependency::Packages(_)
        | Dependency::Environment(_)
        | Dependency::Variable(_)
        | Dependency::Connection(_) => None,
    }
}

/// Device and inode of a folder.
fn place(folder: &Path) -> Option<(u64, u64)> {
    let found = std::fs::metadata(folder).ok().filter(std::fs::Metadata::is_dir)?;
    Some((found.dev(), found.ino()))
}

impl Changes {
    pub(crate) async fn changed(&self) {
        self.notify.notified().await;
    }

    /// Watches what a file depends on, too.
    pub(crate) fn follow<'a>(&mut self, dependencies: impl Iterator<Item = &'a Dependency>) {
        for dependency in dependencies {
            lock(&self.interests).add(dependency);
            if let Some(folder) = folder_of(dependency) {
                self.watch_outside(folder);
            }
        }
    }

    /// Watches a folder outside of the bundles, or the nearest above it that is there.
    fn watch_outside(&mut self, folder: &Path) {
        let is_within = |bundle: &PathBuf| folder.starts_with(bundle);
        if self.watched.contains_key(folder) || lock(&self.interests).bundles.iter().any(is_within) {
            return;
        }
        let Some(folder) = folder.ancestors().find(|folder| folder.is_dir()) else {
            return;
        };
        if self.watched.contains_key(folder) || folder.parent().is_none() {
            return;
        }
        if self.watched.len() >= FOLDERS + lock(&self.interests).bundles.len() {
            if !std::mem::replace(&mut self.is_full, true) {
                tracing::info!(
                    "DAG files depend on more than {FOLDERS} folders outside of the DAG folder; changes in others are seen within seconds"
                );
            }
            return;
        }
        self.watch(folder, RecursiveMode::NonRecursive);
    }

    fn watch(&mut self, folder: &Path, mode: RecursiveMode) -> bool {
        let (Some(watcher), Some(place)) = (&mut self.watcher, place(folder)) else {
            return false;
        };
        match watcher.watch(folder, mode) {
            Ok(()) => {
                self.watched.insert(folder.to_owned(), place);
                true
            }
            Err(error) => {
                tracing::warn!("{} cannot be watched: {error}", folder.display());
                false
            }
        }
    }

    /// Begins anew with these bundles and dependencies, and watches again what was replaced as a whole.
    pub(crate) fn refresh<'a>(
        &mut self,
        bundles: &[Bundle],
        dependencies: impl Iterator<Item = &'a Dependency> + Clone,
    ) {
        let bundles: Vec<PathBuf> = bundles.iter().map(|bundle| bundle.path.clone()).collect();
        let mut fresh = Interests {
            bundles: bundles.clone(),
            ..Interests::default()
        };
        dependencies.clone().for_each(|dependency| fresh.add(dependency));
        *lock(&self.interests) = fresh;
        self.rewatch(&bundles);
        for folder in dependencies.filter_map(folder_of) {
            self.watch_outside(folder);
        }
    }

    fn rewatch(&mut self, bundles: &[PathBuf]) {
        let moved: Vec<PathBuf> = self
            .watched
            .iter()
            .filter(|(folder, known)| place(folder) != Some(**known))
            .map(|(folder, _)| folder.clone())
            .collect();
        for folder in moved {
            if let Some(watcher) = &mut self.watcher {
                // The system may have ended it with the folder.
                watcher.unwatch(&folder).ok();
            }
            self.watched.remove(&folder);
        }
        for bundle in bundles.iter().filter(|bundle| bundle.is_dir()) {
            if !self.watched.contains_key(bundle) {
                self.watch(bundle, RecursiveMode::Recursive);
            }
        }
    }
}

/// Starts to watch. The second value tells whether watching works; a folder on some network file systems cannot be
/// watched, and is looked at more often instead.
pub(crate) fn start(bundles: &[Bundle]) -> (Changes, bool) {
    let notify = Arc::new(Notify::new());
    let interests = Arc::new(Mutex::new(Interests {
        bundles: bundles.iter().map(|bundle| bundle.path.clone()).collect(),
        ..Interests::default()
    }));
    let (sender, shared) = (Arc::clone(&notify), Arc::clone(&interests));
    let watcher = notify::recommended_watcher(move |event: notify::Result<notify::Event>| {
        if event.is_ok_and(|event| concerns_us(&event, &shared)) {
            sender.notify_one();
        }
    });
    let watcher = watcher
        .inspect_err(|error| tracing::warn!("DAG folders cannot be watched: {error}"))
        .ok();
    let mut changes = Changes {
        notify,
        interests,
        watcher,
        watched: HashMap::new(),
        is_full: false,
    };
    let mut works = true;
    for bundle in bundles {
        works &= changes.watch(&bundle.path, RecursiveMode::Recursive);
    }
    (changes, works)
}

fn concerns_us(event: &notify::Event, interests: &Mutex<Interests>) -> bool {
    if event.need_rescan() {
        return true;
    }
    let is_change = match event.kind {
        EventKind::Create(_) | EventKind::Remove(_) | EventKind::Modify(_) => true,
        EventKind::Access(AccessKind::Close(AccessMode::Write)) => true,
        EventKind::Any | EventKind::Other | EventKind::Access(_) => false,
    };
    is_change && {
        let interests = lock(interests);
        event.paths.iter().any(|path| interests.have(event.kind, path))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use notify::event::{DataChange, MetadataKind};

    #[test]
    fn only_what_may_change_a_dag_is_worth_a_look() {
        let mut interests = Interests {
            bundles: vec!["/dags".into()],
            ..Interests::default()
        };
        interests.add(&Dependency::File("/etc/team/a.json".into()));
        interests.add(&Dependency::Names("/dags/configs".into()));
        let written = EventKind::Modify(ModifyKind::Data(DataChange::Any));
        let touched = EventKind::Modify(ModifyKind::Metadata(MetadataKind::Any));
        let made = EventKind::Create(CreateKind::File);
        for (kind, path) in [
            (written, "/dags/a.py"),
            (touched, "/dags/a.py"),
            (made, "/dags/x/.airflowignore"),
            (EventKind::Create(CreateKind::Folder), "/dags/team"),
            (made, "/dags/configs/b.yaml"),
            (written, "/etc/team/a.json"),
            (made, "/etc/team"),
        ] {
            assert!(interests.have(kind, Path::new(path)), "{kind:?} {path}");
        }
        for (kind, path) in [
            (written, "/dags/task.log"),
            (made, "/dags/notes.txt"),
            (written, "/dags/configs/b.yaml"),
            (made, "/dags/__pycache__/a.cpython-311.pyc"),
            (written, "/etc/team/b.json"),
            (made, "/etc/other"),
        ] {
            assert!(!interests.have(kind, Path::new(path)), "{kind:?} {path}");
        }
    }
}
