//! Which files there are, and whether they changed.

use ignore::WalkBuilder;
use python::Bundle;
use sha2::{Digest, Sha256};
use std::cmp::Reverse;
use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::time::SystemTime;

/// A file that may hold DAGs.
#[derive(Debug, Clone)]
pub(crate) struct DagFile {
    pub(crate) bundle: Bundle,
    pub(crate) path: PathBuf,
    /// Path within the bundle; the file's name everywhere.
    pub(crate) relative: String,
}

/// All Python files and zip files of the bundles, but those that `.airflowignore` files name; what changed last comes first,
/// as with Airflow's default `[dag_processor] file_parsing_sort_mode`.
pub(crate) fn find(bundles: &[Bundle]) -> Vec<DagFile> {
    let mut found = Vec::new();
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
    found.sort_by_cached_key(|file| (Reverse(changed(file)), file.relative.clone()));
    found
}

/// The stored list of imported modules.
pub(crate) fn imports_of(json: &str) -> Vec<String> {
    serde_json::from_str(json).unwrap_or_default()
}

/// Fingerprints of files, computed only when time or size of a file changed.
#[derive(Default)]
pub(crate) struct Fingerprints {
    seen: HashMap<PathBuf, (SystemTime, u64, String)>,
}

impl Fingerprints {
    /// The fingerprint of a file with the modules that it imports from its bundle.
    pub(crate) fn of(&mut self, file: &DagFile, imports: &[String]) -> String {
        let mut text = self.content(&file.path);
        for import in imports {
            text.push_str(&self.content(&file.bundle.path.join(import)));
        }
        hash(text.as_bytes())
    }

    fn content(&mut self, path: &Path) -> String {
        let Ok(facts) = std::fs::metadata(path) else {
            return "gone".to_owned();
        };
        let time = facts.modified().unwrap_or(SystemTime::UNIX_EPOCH);
        if let Some((seen, size, print)) = self.seen.get(path)
            && *seen == time
            && *size == facts.len()
        {
            return print.clone();
        }
        let print = std::fs::read(path).map_or_else(|_| "gone".to_owned(), |bytes| hash(&bytes));
        self.seen
            .insert(path.to_owned(), (time, facts.len(), print.clone()));
        print
    }
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

    fn bundle(files: &[(&str, &str)]) -> (tempfile::TempDir, Bundle) {
        let folder = tempfile::tempdir().unwrap();
        for (name, text) in files {
            let path = folder.path().join(name);
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            std::fs::write(path, text).unwrap();
        }
        let bundle = Bundle {
            name: "b".to_owned(),
            path: folder.path().to_owned(),
        };
        (folder, bundle)
    }

    fn names(bundle: &Bundle) -> Vec<String> {
        let found = find(std::slice::from_ref(bundle));
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

    #[test]
    fn a_changed_import_changes_the_fingerprint_and_a_touch_does_not() {
        let (_folder, bundle) = bundle(&[("a.py", "import helper"), ("helper.py", "1")]);
        let mut found = find(std::slice::from_ref(&bundle));
        found.retain(|file| file.relative == "a.py");
        let file = found.remove(0);
        let imports = ["helper.py".to_owned()];
        let before = Fingerprints::default().of(&file, &imports);
        std::fs::write(&file.path, "import helper").unwrap();
        assert_eq!(Fingerprints::default().of(&file, &imports), before);
        std::fs::write(bundle.path.join("helper.py"), "2").unwrap();
        assert_ne!(Fingerprints::default().of(&file, &imports), before);
    }
}
