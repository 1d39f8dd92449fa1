//! What is on the disk: looked at often, read only when it changed.

use crate::files::hash;
use std::collections::HashMap;
use std::fs::Metadata;
use std::io::{Read, Seek, SeekFrom};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

/// Files up to this size are told apart by all of their bytes, larger ones by their size and both ends.
const WHOLE: u64 = 1 << 20;
/// Length of an end of a larger file that is read, in bytes.
const END: usize = 64 << 10;
/// Folders with more entries are told apart by their time.
const NAMES: usize = 10_000;
/// How much a file system may round its times down.
const GRAIN: Duration = Duration::from_millis(10);
/// What a folder of packages holds for each package that is installed.
const PACKAGES: [&str; 4] = [".dist-info", ".egg-info", ".egg-link", ".pth"];

/// What the system says about a path.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Facts {
    modified: (i64, i64),
    changed: (i64, i64),
    size: u64,
    inode: u64,
    is_folder: bool,
}

impl Facts {
    fn of(path: &Path) -> Option<Self> {
        std::fs::metadata(path).ok().as_ref().map(Self::from)
    }

    /// Returns `true` if the change is one that Airflow would see, too: a new time, size or file.
    fn is_touched(&self, before: &Self) -> bool {
        (self.modified, self.size, self.inode) != (before.modified, before.size, before.inode)
    }

    /// Returns `true` if anything about it changed since then.
    fn is_younger(&self, time: SystemTime) -> bool {
        let (seconds, nanos) = self.changed.max(self.modified);
        let since = time.checked_sub(GRAIN).unwrap_or(time);
        let at = u64::try_from(seconds)
            .ok()
            .zip(u32::try_from(nanos).ok())
            .and_then(|(seconds, nanos)| SystemTime::UNIX_EPOCH.checked_add(Duration::new(seconds, nanos)));
        at.is_some_and(|at| at >= since)
    }
}

impl From<&Metadata> for Facts {
    fn from(found: &Metadata) -> Self {
        Self {
            modified: (found.mtime(), found.mtime_nsec()),
            changed: (found.ctime(), found.ctime_nsec()),
            size: found.size(),
            inode: found.ino(),
            is_folder: found.is_dir(),
        }
    }
}

/// A path as it was seen last.
#[derive(Debug, Default)]
struct Seen {
    facts: Option<Facts>,
    /// What its bytes, or the names in it, come to; read when it is first asked for.
    print: Option<String>,
    packages: Option<String>,
    /// The look that saw it change last.
    touched: u64,
    /// The look that saw it come or go last.
    appeared: u64,
    looked: u64,
}

/// All paths that anything depends on.
#[derive(Debug, Default)]
pub(crate) struct Looks {
    seen: HashMap<PathBuf, Seen>,
    number: u64,
}

impl Looks {
    /// Begins another look: each path is asked for once more, when it is first needed. Its number.
    pub(crate) fn begin(&mut self) -> u64 {
        self.number += 1;
        self.number
    }

    /// The number of the last look.
    pub(crate) fn number(&self) -> u64 {
        self.number
    }

    /// Forgets paths that were not needed since a look began.
    pub(crate) fn forget_before(&mut self, number: u64) {
        self.seen.retain(|_, seen| seen.looked >= number);
    }

    /// Returns `true` if any path is not as it was seen last. Reads nothing.
    pub(crate) fn is_outdated(&self) -> bool {
        self.seen.iter().any(|(path, seen)| Facts::of(path) != seen.facts)
    }

    /// Sees to it that a path is known as it is now. A path that is new here counts as changed by this look if it changed
    /// after `since`: whoever read it meanwhile may have read something else.
    pub(crate) fn see(&mut self, path: &Path, since: Option<SystemTime>) {
        let number = self.number;
        let Some(seen) = self.seen.get_mut(path) else {
            let facts = Facts::of(path);
            let is_young = facts
                .zip(since)
                .is_some_and(|(facts, since)| facts.is_younger(since));
            let changed = if is_young { number } else { 0 };
            let seen = Seen {
                facts,
                touched: changed,
                appeared: changed,
                looked: number,
                ..Seen::default()
            };
            self.seen.insert(path.to_owned(), seen);
            return;
        };
        if seen.looked == number {
            return;
        }
        seen.looked = number;
        let facts = Facts::of(path);
        if facts == seen.facts {
            return;
        }
        let (before, names) = (std::mem::replace(&mut seen.facts, facts), seen.print.take());
        seen.packages = None;
        let is_folder = |facts: Option<Facts>| facts.map(|facts| facts.is_folder);
        if is_folder(before) != is_folder(facts) {
            (seen.appeared, seen.touched) = (number, number);
            return;
        }
        match (before, facts) {
            (Some(before), Some(facts)) if facts.is_folder => {
                // A folder's time changes with every draft in it; only its names count.
                if names.is_none() && facts.is_touched(&before) {
                    seen.touched = number;
                } else if let Some(names) = names {
                    let now = names_of(path, facts);
                    if now != names {
                        seen.touched = number;
                    }
                    seen.print = Some(now);
                }
            }
            (Some(before), Some(facts)) if facts.is_touched(&before) => seen.touched = number,
            _ => {}
        }
    }

    /// The look that saw it change last.
    pub(crate) fn touched(&mut self, path: &Path) -> u64 {
        self.see(path, None);
        self.seen.get(path).map_or(0, |seen| seen.touched)
    }

    /// The look that saw it come or go last.
    pub(crate) fn appeared(&mut self, path: &Path) -> u64 {
        self.see(path, None);
        self.seen.get(path).map_or(0, |seen| seen.appeared)
    }

    /// What there is: `file`, `folder` or `nothing`.
    pub(crate) fn there(&mut self, path: &Path) -> &'static str {
        self.see(path, None);
        match self.seen.get(path).and_then(|seen| seen.facts) {
            None => "nothing",
            Some(facts) if facts.is_folder => "folder",
            Some(_) => "file",
        }
    }

    /// What the bytes of a file, or the names in a folder, come to.
    pub(crate) fn print(&mut self, path: &Path) -> String {
        self.see(path, None);
        let Some(seen) = self.seen.get_mut(path) else {
            return String::new();
        };
        let Some(facts) = seen.facts else {
            return "nothing".to_owned();
        };
        seen.print
            .get_or_insert_with(|| {
                if facts.is_folder {
                    names_of(path, facts)
                } else {
                    bytes_of(path, facts.size).unwrap_or_else(|_| "unreadable".to_owned())
                }
            })
            .clone()
    }

    /// What the packages installed in a folder come to.
    pub(crate) fn packages(&mut self, path: &Path) -> String {
        self.see(path, None);
        let Some(seen) = self.seen.get_mut(path) else {
            return String::new();
        };
        seen.packages
            .get_or_insert_with(|| {
                let is_package = |name: &String| PACKAGES.iter().any(|end| name.ends_with(end));
                hash(
                    names(path)
                        .into_iter()
                        .filter(is_package)
                        .collect::<Vec<_>>()
                        .join("\n")
                        .as_bytes(),
                )
            })
            .clone()
    }
}

fn names(path: &Path) -> Vec<String> {
    let entries = std::fs::read_dir(path).into_iter().flatten().flatten();
    let mut names: Vec<String> = entries
        .map(|entry| entry.file_name().to_string_lossy().into_owned())
        .filter(|name| name != "__pycache__")
        .collect();
    names.sort();
    names
}

fn names_of(path: &Path, facts: Facts) -> String {
    let names = names(path);
    if names.len() > NAMES {
        return format!("{:?}", facts.modified);
    }
    hash(names.join("\n").as_bytes())
}

fn bytes_of(path: &Path, size: u64) -> std::io::Result<String> {
    if size <= WHOLE {
        return Ok(hash(&std::fs::read(path)?));
    }
    let mut file = std::fs::File::open(path)?;
    let mut ends = vec![0; 2 * END];
    file.read_exact(&mut ends[..END])?;
    file.seek(SeekFrom::End(-(END as i64)))?;
    file.read_exact(&mut ends[END..])?;
    Ok(format!("{} of {size}", hash(&ends)))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn file_with(text: &str) -> (tempfile::TempDir, PathBuf) {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a.json");
        std::fs::write(&path, text).unwrap();
        (folder, path)
    }

    #[test]
    fn a_touch_is_a_change_and_leaves_the_bytes_as_they_are() {
        let (_folder, path) = file_with("1");
        let mut looks = Looks::default();
        looks.begin();
        let before = looks.print(&path);
        assert_eq!(looks.touched(&path), 0);
        let file = std::fs::File::options().append(true).open(&path).unwrap();
        file.set_modified(SystemTime::UNIX_EPOCH).unwrap();
        assert!(looks.is_outdated());
        let number = looks.begin();
        assert_eq!(looks.touched(&path), number);
        assert_eq!(looks.print(&path), before);
        assert!(!looks.is_outdated());
    }

    #[test]
    fn a_folder_changes_with_its_names() {
        let (folder, path) = file_with("1");
        let mut looks = Looks::default();
        looks.begin();
        let before = looks.print(folder.path());
        std::fs::write(&path, "2").unwrap();
        std::fs::create_dir(folder.path().join("__pycache__")).unwrap();
        looks.begin();
        assert_eq!(
            (looks.touched(folder.path()), looks.print(folder.path())),
            (0, before)
        );
        std::fs::write(folder.path().join("b.json"), "").unwrap();
        let number = looks.begin();
        assert_eq!(looks.touched(folder.path()), number);
    }

    #[test]
    fn what_was_written_after_a_parse_began_counts_as_changed_when_it_is_first_seen() {
        let began = SystemTime::now();
        let (_folder, path) = file_with("1");
        let mut looks = Looks::default();
        let number = looks.begin();
        looks.see(&path, Some(began));
        assert_eq!(looks.touched(&path), number);
        let mut later = Looks::default();
        later.begin();
        later.see(&path, Some(SystemTime::now() + Duration::from_secs(60)));
        assert_eq!(later.touched(&path), 0);
    }

    #[test]
    fn what_is_absent_is_seen_to_come() {
        let (folder, _) = file_with("1");
        let path = folder.path().join("later.json");
        let mut looks = Looks::default();
        looks.begin();
        assert_eq!((looks.there(&path), looks.appeared(&path)), ("nothing", 0));
        std::fs::write(&path, "").unwrap();
        let number = looks.begin();
        assert_eq!((looks.there(&path), looks.appeared(&path)), ("file", number));
    }
}
