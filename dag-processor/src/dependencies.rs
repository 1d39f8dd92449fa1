//! What a file's last parse depended on, and whether any of it is another by now.

use crate::files::{DagFile, hash};
use crate::looks::Looks;
use python::ForkServerConfig;
use std::collections::{BTreeSet, HashMap};
use std::fmt::Write;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::time::SystemTime;
use store::repo::SecretVersions;

/// Stands in the list of a file that depends on more than is kept.
const MORE: &str = "more:";

/// One thing that a file depends on.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Dependency {
    /// The bytes of a file, and its time.
    File(PathBuf),
    /// The names in a folder.
    Names(PathBuf),
    /// Whether there is something.
    There(PathBuf),
    /// The packages installed in a folder.
    Packages(PathBuf),
    /// A variable of the environment.
    Environment(String),
    /// A Variable of Airflow.
    Variable(String),
    /// A connection.
    Connection(String),
}

impl Dependency {
    /// `None` for what a later version may note.
    fn read(entry: &str, bundle: &Path) -> Option<Self> {
        let (kind, name) = entry.split_once(':')?;
        // An absolute path replaces that of the bundle.
        let path = || {
            if name == "." {
                bundle.to_owned()
            } else {
                bundle.join(name)
            }
        };
        Some(match kind {
            "file" => Self::File(path()),
            "names" => Self::Names(path()),
            "there" => Self::There(path()),
            "packages" => Self::Packages(path()),
            "env" => Self::Environment(name.to_owned()),
            "variable" => Self::Variable(name.to_owned()),
            "connection" => Self::Connection(name.to_owned()),
            _ => return None,
        })
    }

    /// The path that it is about.
    pub(crate) fn path(&self) -> Option<&Path> {
        match self {
            Self::File(path) | Self::Names(path) | Self::There(path) | Self::Packages(path) => Some(path),
            Self::Environment(_) | Self::Variable(_) | Self::Connection(_) => None,
        }
    }
}

/// The Variables and connections that a file asked for while it was parsed.
#[derive(Debug, Default)]
pub(crate) struct Asked {
    entries: BTreeSet<String>,
    versions: SecretVersions,
}

impl Asked {
    /// Notes what is asked for, with the settings that there are before the answer. What was asked for first counts.
    pub(crate) fn note(&mut self, variables: Vec<String>, connections: Vec<String>, found: SecretVersions) {
        let mut merge = |kind: &str, keys: Vec<String>, found: &mut HashMap<String, String>| {
            let mut first = HashMap::new();
            for key in keys {
                if self.entries.insert(format!("{kind}:{key}"))
                    && let Some(version) = found.remove(&key)
                {
                    first.insert(key, version);
                }
            }
            first
        };
        let mut found = found;
        let variables = merge("variable", variables, &mut found.variables);
        let connections = merge("connection", connections, &mut found.connections);
        self.versions.variables.extend(variables);
        self.versions.connections.extend(connections);
    }

    /// What was asked for, and the settings.
    pub(crate) fn into_parts(self) -> (Vec<String>, SecretVersions) {
        (self.entries.into_iter().collect(), self.versions)
    }
}

/// All that a file depends on beside itself.
#[derive(Debug, Clone, Default)]
pub(crate) struct Dependencies {
    entries: Vec<(String, Dependency)>,
    /// `true` if there was more than is kept.
    pub(crate) are_incomplete: bool,
}

impl Dependencies {
    /// What Python noted, and what was asked of us meanwhile.
    pub(crate) fn new(noted: Vec<String>, asked: Vec<String>, too_many: bool, bundle: &Path) -> Self {
        let all: BTreeSet<String> = noted.into_iter().chain(asked).collect();
        let read = |entry: String| Dependency::read(&entry, bundle).map(|read| (entry, read));
        Self {
            entries: all.into_iter().filter_map(read).collect(),
            are_incomplete: too_many,
        }
    }

    /// As they are stored; `None` when nothing is known of them.
    pub(crate) fn from_json(json: &str, bundle: &Path) -> Option<Self> {
        let noted: Vec<String> = serde_json::from_str(json).ok()?;
        let too_many = noted.iter().any(|entry| entry == MORE);
        Some(Self::new(noted, Vec::new(), too_many, bundle))
    }

    /// To be stored.
    pub(crate) fn to_json(&self) -> String {
        let more = self.are_incomplete.then_some(MORE);
        let entries = self.entries.iter().map(|(entry, _)| entry.as_str());
        serde_json::Value::from(entries.chain(more).collect::<Vec<_>>()).to_string()
    }

    /// Each of them.
    pub(crate) fn iter(&self) -> impl Iterator<Item = &Dependency> + Clone {
        self.entries.iter().map(|(_, dependency)| dependency)
    }
}

/// All that there is to compare with.
pub(crate) struct Present<'a> {
    pub(crate) looks: &'a mut Looks,
    pub(crate) versions: &'a SecretVersions,
    pub(crate) python: &'a ForkServerConfig,
    /// The options that DAGs are made with.
    pub(crate) options: &'a str,
}

impl Present<'_> {
    /// What a file and all that it depends on come to now.
    pub(crate) fn fingerprint(&mut self, file: &DagFile, dependencies: &Dependencies) -> String {
        let mut text = self.looks.print(&file.path);
        text.push_str(self.options);
        for (entry, dependency) in &dependencies.entries {
            let state = self.state(dependency);
            // Writing to a String cannot fail.
            write!(text, "\n{entry}={state}").ok();
        }
        hash(text.as_bytes())
    }

    fn state(&mut self, dependency: &Dependency) -> String {
        match dependency {
            Dependency::File(path) | Dependency::Names(path) => self.looks.print(path),
            Dependency::There(path) => self.looks.there(path).to_owned(),
            Dependency::Packages(path) => self.looks.packages(path),
            Dependency::Environment(name) => self.environment(name),
            Dependency::Variable(key) => version(self.versions.variables.get(key)),
            Dependency::Connection(id) => version(self.versions.connections.get(id)),
        }
    }

    /// A variable as children of the fork server have it, as a hash: it may be a secret.
    fn environment(&self, name: &str) -> String {
        if self.python.hidden_env.iter().any(|hidden| hidden == name) {
            return "hidden".to_owned();
        }
        let own = self.python.env.iter().find(|(key, _)| key == name);
        if let Some((_, value)) = own {
            return hash(value.as_bytes());
        }
        std::env::var_os(name).map_or_else(|| "unset".to_owned(), |value| hash(value.as_bytes()))
    }

    /// Makes all paths known that a parse found to depend on; what changed after it began counts as changed.
    pub(crate) fn see(&mut self, dependencies: &Dependencies, since: SystemTime) {
        for path in dependencies.iter().filter_map(Dependency::path) {
            self.looks.see(path, Some(since));
        }
    }

    /// The look that saw the file itself change last.
    pub(crate) fn touched(&mut self, file: &DagFile) -> u64 {
        self.looks.touched(&file.path)
    }

    /// The look that saw anything change last that the file depends on.
    pub(crate) fn moved(&mut self, dependencies: &Dependencies) -> u64 {
        let moved = |dependency: &Dependency| match dependency {
            Dependency::File(path) | Dependency::Names(path) => self.looks.touched(path),
            Dependency::There(path) => self.looks.appeared(path),
            Dependency::Packages(_)
            | Dependency::Environment(_)
            | Dependency::Variable(_)
            | Dependency::Connection(_) => 0,
        };
        dependencies.iter().map(moved).max().unwrap_or(0)
    }
}

fn version(found: Option<&String>) -> String {
    found.map_or_else(|| "absent".to_owned(), |version| format!("version {version}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn entries_survive_being_stored() {
        let noted = [
            "file:a.json",
            "names:.",
            "there:/etc/x",
            "env:HOME",
            "packages:/p",
            "odd:1",
        ];
        let noted = noted.iter().map(|entry| (*entry).to_owned()).collect();
        let made = Dependencies::new(noted, vec!["variable:k:1".to_owned()], true, Path::new("/dags"));
        let read = Dependencies::from_json(&made.to_json(), Path::new("/dags")).unwrap();
        let all: Vec<&Dependency> = read.iter().collect();
        assert_eq!(
            all,
            [
                &Dependency::Environment("HOME".to_owned()),
                &Dependency::File("/dags/a.json".into()),
                &Dependency::Names("/dags".into()),
                &Dependency::Packages("/p".into()),
                &Dependency::There("/etc/x".into()),
                &Dependency::Variable("k:1".to_owned()),
            ]
        );
        assert!(read.are_incomplete);
        assert!(Dependencies::from_json("", Path::new("/dags")).is_none());
    }
}
