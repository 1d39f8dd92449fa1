//! Which files there are.

use ignore::WalkBuilder;
use python::Bundle;
use sha2::{Digest, Sha256};
use std::cmp::Reverse;
use std::path::{Path, PathBuf};
use store::repo::FileKey;

/// A file that may hold DAGs.
#[derive(Debug, Clone)]
pub(crate) struct DagFile {
    pub(crate) bundle: Bundle,
    pub(crate) path: PathBuf,
    /// Path within the bundle.
    pub(crate) relative: String,
}

impl DagFile {
    /// What it is stored under.
    pub(crate) fn key(&self) -> FileKey {
        FileKey::new(&self.bundle.name, &self.relative)
    }
}

/// All Python files and zip files of the bundles, but those that `.airflowignore` files name; what changed last comes first,
/// as with Airflow's default `[dag_processor] file_parsing_sort_mode`.
/// The second list is of the folders that were looked through.
pub(crate) fn find(bundles: &[Bundle]) -> (Vec<DagFile>, Vec<PathBuf>) {
    let (mut found, mut folders) = (Vec::new(), Vec::new());
    for bundle in bundles {
        let walk = WalkBuilder::new(&bundle.path)
            .standard_filters(false)
            .add_custom_ignore_filename(".airflowignore")
            .follow_links(true)
            .filter_entry(|entry| {
                let name = entry.file_name().to_string_lossy();
                entry.depth() == 0 || !(name == "__pycache__" || name.starts_with('.'))
            })
            .build();
        // An entry that cannot be read (a link in a circle, a folder without permission) is as good as absent.
        for entry in walk.flatten() {
            let path = entry.path();
            if entry.file_type().is_some_and(|kind| kind.is_dir()) {
                folders.push(path.to_owned());
                continue;
            }
            let is_source = path.extension().is_some_and(|end| end == "py" || end == "zip");
            let relative = path.strip_prefix(&bundle.path).ok().and_then(Path::to_str);
            if let (true, true, Some(relative)) = (is_source, path.is_file(), relative) {
                let relative = relative.to_owned();
                found.push(DagFile {
                    bundle: bundle.clone(),
                    path: path.to_owned(),
                    relative,
                });
            }
        }
    }
    let changed = |file: &DagFile| {
        std::fs::metadata(&file.path)
            .and_then(|facts| facts.modified())
            .ok()
    };
    found.sort_by_cached_key(|file| (Reverse(changed(file)), file.key()));
    (found, folders)
}

/// 32 hexadecimal digits.
pub(crate) fn hash(bytes: &[u8]) -> String {
    Sha256::digest(bytes)[..16]
        .iter()
        .map(|byte| format!("{byte:02x}"))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::SystemTime;

    fn bundle(files: &[(&str, &str)]) -> (tempfile::TempDir, Bundle) {
        let folder = tempfile::tempdir().unwrap();
        for (name, text) in files {
            let path = folder.path().join(name);
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            std::fs::write(path, text).unwrap();
        }
        let bundle = Bundle::local("b", folder.path());
        (folder, bundle)
    }

    fn names(bundle: &Bundle) -> Vec<String> {
        let (found, _) = find(std::slice::from_ref(bundle));
        found.into_iter().map(|file| file.relative).collect()
    }

    #[test]
    fn airflowignore_files_count_in_their_folders() {
        let (_folder, bundle) = bundle(&[
            ("a.py", ""),
            ("notes.txt", ""),
            ("old/b.py", ""),
            ("team/c.py", ""),
            ("team/skip_me.py", ""),
            ("__pycache__/a.py", ""),
            (".airflowignore", "old/\n# comment\n"),
            ("team/.airflowignore", "skip_*.py\n"),
        ]);
        let mut names = names(&bundle);
        names.sort();
        assert_eq!(names, ["a.py", "team/c.py"]);
    }

    #[test]
    fn what_changed_last_comes_first() {
        let (_folder, bundle) = bundle(&[("a.py", ""), ("b.py", ""), ("c.py", "")]);
        let times = [("a.py", 5), ("b.py", 9), ("c.py", 5)];
        for (name, seconds) in times {
            let file = std::fs::File::options()
                .append(true)
                .open(bundle.path.join(name))
                .unwrap();
            file.set_modified(SystemTime::UNIX_EPOCH + std::time::Duration::from_secs(seconds))
                .unwrap();
        }
        assert_eq!(names(&bundle), ["b.py", "a.py", "c.py"]);
    }
}
