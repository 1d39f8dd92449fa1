//! What tasks themselves write down, in files that no component touches: for each try of a task instance a file, with a line
//! when it starts, several while it lives, and one when it ends.

use std::collections::BTreeMap;
use std::path::Path;

/// Which try of which task instance.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(super) struct TryId {
    /// The run.
    pub(super) run: String,
    /// The task.
    pub(super) task: String,
    /// Its index, -1 if it is not mapped.
    pub(super) map_index: i64,
    /// The try, from 1.
    pub(super) number: u32,
}

impl std::fmt::Display for TryId {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self {
            run,
            task,
            map_index,
            number,
        } = self;
        match map_index {
            -1 => write!(f, "{run} {task}, try {number}"),
            _ => write!(f, "{run} {task}[{map_index}], try {number}"),
        }
    }
}

/// What a task said.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Word {
    /// Its code has begun.
    Start,
    /// It lives.
    Alive,
    /// It is done.
    End,
    /// It is about to fail because it was written to.
    Fails,
}

/// One line.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Record {
    /// What.
    pub(super) word: Word,
    /// When, in milliseconds of CLOCK_BOOTTIME.
    pub(super) at: u64,
    /// The process.
    pub(super) pid: i32,
    /// The number of the claim.
    pub(super) epoch: i64,
    /// The worker.
    pub(super) worker: String,
}

impl Record {
    /// Reads a line.
    pub(super) fn read(line: &str) -> Option<Self> {
        let mut parts = line.split(' ');
        let word = match parts.next()? {
            "start" => Word::Start,
            "alive" => Word::Alive,
            "end" => Word::End,
            "fails" => Word::Fails,
            _ => return None,
        };
        let at: f64 = parts.next()?.parse().ok()?;
        let record = Self {
            word,
            at: (at * 1000.0) as u64,
            pid: parts.next()?.parse().ok()?,
            epoch: parts.next()?.parse().ok()?,
            worker: parts.next()?.to_owned(),
        };
        parts.next().is_none().then_some(record)
    }
}

/// All that was written down.
#[derive(Debug, Clone, Default)]
pub(super) struct Witness {
    /// By try, in the order in which it was written.
    pub(super) tries: BTreeMap<TryId, Vec<Record>>,
    /// Lines that nobody can read.
    pub(super) unreadable: Vec<String>,
}

impl Witness {
    /// Reads a folder that has a folder for each run.
    ///
    /// # Errors
    /// When it cannot be read.
    pub(super) fn read(folder: &Path) -> std::io::Result<Self> {
        let mut witness = Self::default();
        for run in std::fs::read_dir(folder)? {
            let run = run?;
            for file in std::fs::read_dir(run.path())? {
                let file = file?;
                let name = file.file_name().to_string_lossy().into_owned();
                let run = run.file_name().to_string_lossy().into_owned();
                if let Some(id) = id_of(run, &name) {
                    witness.add(id, &std::fs::read_to_string(file.path())?);
                }
            }
        }
        Ok(witness)
    }

    /// Adds the text of a file.
    pub(super) fn add(&mut self, id: TryId, text: &str) {
        let records = self.tries.entry(id.clone()).or_default();
        for line in text.lines() {
            match Record::read(line) {
                Some(record) => records.push(record),
                None => self.unreadable.push(format!("{id}: {line:?}")),
            }
        }
    }
}

/// Reads `TASK.MAP_INDEX.TRY`; `None` for files that are something else.
fn id_of(run: String, name: &str) -> Option<TryId> {
    let mut parts = name.rsplitn(3, '.');
    let number = parts.next()?.parse().ok()?;
    let map_index = parts.next()?.parse().ok()?;
    let task = parts.next()?.to_owned();
    Some(TryId {
        run,
        task,
        map_index,
        number,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn files_and_lines_are_read_and_what_is_torn_is_told() {
        let folder = tempfile::tempdir().unwrap();
        let run = folder.path().join("r1");
        std::fs::create_dir(&run).unwrap();
        std::fs::write(run.join("a.-1.2"), "start 12.50 7 3 one\nalive 12.75 7 3 one\nen").unwrap();
        std::fs::write(run.join("flaky.failed"), "").unwrap();
        let witness = Witness::read(folder.path()).unwrap();
        assert_eq!(witness.unreadable, [r#"r1 a, try 2: "en""#]);
        let (id, records) = witness.tries.first_key_value().unwrap();
        assert_eq!((id.to_string().as_str(), witness.tries.len()), ("r1 a, try 2", 1));
        let start = Record {
            word: Word::Start,
            at: 12_500,
            pid: 7,
            epoch: 3,
            worker: "one".to_owned(),
        };
        assert_eq!(records[0], start);
        assert_eq!(records[1].word, Word::Alive);
        assert!(Record::read("start 12.50 7 3 one more").is_none());
    }
}
