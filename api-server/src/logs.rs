//! Task logs as files, one per try, in Airflow's layout.

use model::{DagId, MapIndex, RunId, TaskId};
use sha2::{Digest, Sha256};
use std::fs::File;
use std::io::{Error, ErrorKind, Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use store::repo::TaskInstanceRecord;
use telemetry::metric;

/// How far back the end of the last line is looked for.
const TAIL: u64 = 256 << 10;
/// Bytes that file systems allow in one name.
const LONGEST_NAME: usize = 255;
/// Bytes of the hash that stands for the end of a name that is too long, in hexadecimal digits.
const HASH: usize = 16;
/// Bytes of a line that are read in one go, whatever was asked for. A longer one comes in pieces.
const LONGEST: usize = 12 << 20;
/// Bytes that are read at a time while the end of a line is looked for.
const STEP: u64 = 64 << 10;

/// Which log.
#[derive(Debug, Clone)]
pub(crate) struct LogName {
    pub(crate) dag_id: DagId,
    pub(crate) run_id: RunId,
    pub(crate) task_id: TaskId,
    pub(crate) map_index: MapIndex,
    pub(crate) try_number: u32,
}

impl LogName {
    /// That of a try of a task.
    pub(crate) fn of(ti: &TaskInstanceRecord, try_number: u32) -> Self {
        Self {
            dag_id: ti.dag_id.clone(),
            run_id: ti.run_id.clone(),
            task_id: ti.task_id.clone(),
            map_index: ti.map_index,
            try_number,
        }
    }
}

/// The folder of logs. Clones share what is known of it.
#[derive(Debug, Clone)]
pub(crate) struct LogFiles {
    root: PathBuf,
    /// Why the last write failed; `None` after one that worked.
    problem: Arc<Mutex<Option<String>>>,
}

/// One component of a path: whatever an id holds, it stays within its folder. A name that is too long for a file system
/// ends with a hash of all of it, so that two long ids with the same beginning stay apart.
fn component(prefix: &str, id: &str) -> String {
    let safe: String = id
        .chars()
        .map(|c| {
            if c == '/' || c == '\\' || c == '\0' {
                '_'
            } else {
                c
            }
        })
        .collect();
    let name = format!("{prefix}={safe}");
    if name.len() <= LONGEST_NAME {
        return name;
    }
    let digest = Sha256::digest(id.as_bytes());
    let hash: String = digest
        .iter()
        .take(HASH / 2)
        .map(|byte| format!("{byte:02x}"))
        .collect();
    let kept = name.floor_char_boundary(LONGEST_NAME - HASH - 1);
    format!("{}~{hash}", &name[..kept])
}

/// Returns `true` if there is no file of that name, and cannot be one.
fn is_absent(error: &Error) -> bool {
    matches!(error.kind(), ErrorKind::NotFound | ErrorKind::NotADirectory)
}

impl LogFiles {
    pub(crate) fn new(root: &Path) -> Self {
        Self {
            root: root.to_owned(),
            problem: Arc::default(),
        }
    }

    /// Why logs cannot be written at present; `None` when they can.
    pub(crate) fn problem(&self) -> Option<String> {
        self.problem
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .clone()
    }

    /// Remembers how a write went. Says so when that is new, not with each of many writes that fail alike.
    fn note(&self, failure: Option<&Error>) {
        if failure.is_some() {
            metrics::counter!(metric::LOG_WRITES_FAILED).increment(1);
        }
        let failure = failure.map(|error| format!("{}: {error}", self.root.display()));
        let mut problem = self.problem.lock().unwrap_or_else(PoisonError::into_inner);
        if *problem == failure {
            return;
        }
        match &failure {
            Some(failure) => tracing::error!(
                "logs of tasks cannot be written; tasks go on, and what cannot be kept is left out: {failure}"
            ),
            None => tracing::info!("logs of tasks can be written again"),
        }
        *problem = failure;
    }

    /// `dag_id=D/run_id=R/task_id=T/[map_index=N/]attempt=K.log`
    pub(crate) fn path(&self, name: &LogName) -> PathBuf {
        let mut path = self.root.join(component("dag_id", name.dag_id.as_str()));
        path.push(component("run_id", name.run_id.as_str()));
        path.push(component("task_id", name.task_id.as_str()));
        if name.map_index != MapIndex::UNMAPPED {
            path.push(format!("map_index={}", name.map_index));
        }
        path.push(format!("attempt={}.log", name.try_number));
        path
    }

    /// Bytes that a log has.
    pub(crate) fn length(&self, name: &LogName) -> u64 {
        std::fs::metadata(self.path(name)).map_or(0, |facts| facts.len())
    }

    /// Where the last whole line ends.
    pub(crate) fn whole_lines(&self, name: &LogName) -> u64 {
        let length = self.length(name);
        let from = length.saturating_sub(TAIL);
        match self.read(name, from, TAIL) {
            // A line without an end in sight is taken as it is.
            Ok((bytes, _)) if bytes.is_empty() => length,
            Ok((_, end)) => end,
            Err(_) => length,
        }
    }

    /// Appends `data`, which begins at `offset`. What is there already is not written again. Returns the new length.
    ///
    /// # Errors
    /// When the file cannot be written; then it is as long as before.
    pub(crate) fn append(&self, name: &LogName, offset: u64, data: &[u8]) -> std::io::Result<u64> {
        let written = self.write(name, offset, data);
        self.note(written.as_ref().err());
        written
    }

    fn write(&self, name: &LogName, offset: u64, data: &[u8]) -> std::io::Result<u64> {
        let path = self.path(name);
        let open = || std::fs::OpenOptions::new().create(true).append(true).open(&path);
        let mut file = match open() {
            Err(error) if error.kind() == ErrorKind::NotFound => {
                std::fs::create_dir_all(path.parent().unwrap_or(&self.root))?;
                open()?
            }
            other => other?,
        };
        let length = file.metadata()?.len();
        let known = usize::try_from(length.saturating_sub(offset))
            .unwrap_or(usize::MAX)
            .min(data.len());
        if let Err(error) = file.write_all(&data[known..]) {
            // Half a line would be in the way of what comes once there is space again.
            file.set_len(length).ok();
            return Err(error);
        }
        Ok(length + (data.len() - known) as u64)
    }

    /// Reads from `offset` on, whole lines, at most `most` bytes, or one line that is longer. Returns them and where the next
    /// page begins.
    pub(crate) fn read(&self, name: &LogName, offset: u64, most: u64) -> std::io::Result<(Vec<u8>, u64)> {
        let mut file = match File::open(self.path(name)) {
            Err(error) if is_absent(&error) => return Ok((Vec::new(), offset)),
            other => other?,
        };
        file.seek(SeekFrom::Start(offset))?;
        let mut bytes = Vec::new();
        (&file).take(most).read_to_end(&mut bytes)?;
        let line_end = |bytes: &[u8]| bytes.iter().rposition(|byte| *byte == b'\n');
        let mut whole = line_end(&bytes).map(|end| end + 1);
        let is_full = most > 0 && bytes.len() as u64 == most;
        while whole.is_none() && is_full && bytes.len() < LONGEST {
            let before = bytes.len();
            if (&file).take(STEP).read_to_end(&mut bytes)? == 0 {
                break;
            }
            let added = bytes[before..].iter().position(|byte| *byte == b'\n');
            whole = added.map(|end| before + end + 1);
        }
        let whole = match whole {
            Some(whole) => whole,
            None if bytes.len() >= LONGEST => bytes.len(),
            None => 0,
        };
        bytes.truncate(whole);
        Ok((bytes, offset + whole as u64))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn name(task: &str) -> LogName {
        LogName {
            dag_id: "d".into(),
            run_id: "r".into(),
            task_id: task.into(),
            map_index: MapIndex(-1),
            try_number: 1,
        }
    }

    #[test]
    fn the_same_bytes_sent_twice_are_written_once() {
        let folder = tempfile::tempdir().unwrap();
        let files = LogFiles::new(folder.path());
        assert_eq!(files.append(&name("t"), 0, b"one\ntw").unwrap(), 6);
        assert_eq!(files.append(&name("t"), 0, b"one\ntwo\n").unwrap(), 8);
        assert_eq!(files.append(&name("t"), 4, b"two\n").unwrap(), 8);
        assert_eq!(
            files.read(&name("t"), 0, 1 << 20).unwrap(),
            (b"one\ntwo\n".to_vec(), 8)
        );
        files.append(&name("t"), 8, b"half").unwrap();
        assert_eq!(files.read(&name("t"), 8, 1 << 20).unwrap(), (Vec::new(), 8));
        assert_eq!(
            files.read(&name("t"), 4, 2).unwrap(),
            (b"two\n".to_vec(), 8),
            "a line that does not fit comes whole"
        );
    }

    #[test]
    fn ids_of_every_legal_length_have_logs_of_their_own() {
        let folder = tempfile::tempdir().unwrap();
        let files = LogFiles::new(folder.path());
        // Limits of ids count characters, those of file names bytes.
        for letter in ["k", "é", "語", "🦀"] {
            for length in [1, 60, 125, 247, 248, 249, 250] {
                let long = letter.repeat(length);
                let name = LogName {
                    dag_id: long.as_str().into(),
                    run_id: long.as_str().into(),
                    task_id: long.as_str().into(),
                    map_index: MapIndex(3),
                    try_number: 1,
                };
                assert_eq!(files.append(&name, 0, b"line\n").unwrap(), 5, "{letter} {length}");
                assert_eq!(
                    files.read(&name, 0, 100).unwrap().0,
                    b"line\n",
                    "{letter} {length}"
                );
                let sibling = LogName {
                    task_id: format!("{}x", letter.repeat(length - 1)).as_str().into(),
                    ..name
                };
                assert_eq!(files.length(&sibling), 0, "another id has another log");
            }
        }
        assert_eq!(component("run_id", &"k".repeat(248)).len(), 255, "as it ever was");
        assert_eq!(
            component("run_id", &"k".repeat(248)),
            format!("run_id={}", "k".repeat(248))
        );
        assert_eq!(component("run_id", &"k".repeat(249)).len(), 255);
    }

    #[test]
    fn a_folder_that_cannot_be_written_is_told_and_forgotten_once_it_can() {
        let folder = tempfile::tempdir().unwrap();
        let root = folder.path().join("logs");
        std::fs::write(&root, "a file in the place of the folder").unwrap();
        let files = LogFiles::new(&root);
        assert!(files.append(&name("t"), 0, b"one\n").is_err());
        assert!(files.problem().is_some());
        assert_eq!(files.read(&name("t"), 0, 100).unwrap(), (Vec::new(), 0));
        std::fs::remove_file(&root).unwrap();
        assert_eq!(files.append(&name("t"), 0, b"one\n").unwrap(), 4);
        assert_eq!(files.problem(), None);
    }

    #[test]
    fn a_long_line_comes_whole_and_an_endless_one_in_pieces() {
        let folder = tempfile::tempdir().unwrap();
        let files = LogFiles::new(folder.path());
        let mut data = vec![b'x'; 1 << 20];
        data.extend_from_slice(b"\nnext\n");
        files.append(&name("long"), 0, &data).unwrap();
        let (bytes, next) = files.read(&name("long"), 0, 1000).unwrap();
        assert_eq!((bytes.len() as u64, next), ((1 << 20) + 1, (1 << 20) + 1));
        assert_eq!(files.read(&name("long"), next, 1000).unwrap().0, b"next\n");
        files
            .append(&name("endless"), 0, &vec![b'x'; LONGEST + (1 << 20)])
            .unwrap();
        let (bytes, next) = files.read(&name("endless"), 0, 1000).unwrap();
        assert_eq!(bytes.len() as u64, next);
        assert!(bytes.len() >= LONGEST);
    }

    #[test]
    fn no_id_leads_out_of_the_folder() {
        let files = LogFiles::new(Path::new("/logs"));
        let path = files.path(&name("../../etc/passwd"));
        assert!(path.starts_with("/logs/dag_id=d/run_id=r"));
        assert!(path.components().all(|part| part.as_os_str() != ".."));
    }
}
