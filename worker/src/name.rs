//! A worker's name: the same after a restart, and nobody else's at the same time.
//!
//! What an earlier life of a worker left running is found by its name and killed, so two living workers must never share
//! one. A lock on a file of the installation sees to that.

use anyhow::Context;
use config::Config;
use std::fs::{File, TryLockError};
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// Workers that one machine may run for one installation without naming them.
const MOST: usize = 256;
/// Bytes of a seed.
const SEED: usize = 32;

/// A name that is ours as long as this exists.
#[derive(Debug, Clone)]
pub struct WorkerName {
    name: String,
    mark: String,
    machine: String,
    /// Where the seed of its key is kept; `None` for a worker that lives once.
    seed: Option<PathBuf>,
    _lock: Option<Arc<File>>,
}

impl WorkerName {
    /// Takes the configured name, or the first free one of `HOST:QUEUES`, `HOST:QUEUES#2`, ...
    ///
    /// # Errors
    /// When the configured name is taken, or the lock files cannot be written.
    pub fn take(config: &Config) -> anyhow::Result<Self> {
        let folder = config.home.join(".updraft/workers");
        std::fs::create_dir_all(&folder).with_context(|| format!("cannot make {}", folder.display()))?;
        let base = format!("{}:{}", bootstrap::hostname(), config.updraft.queues.join("+"));
        let names: Vec<String> = match &config.updraft.worker_name {
            Some(name) => vec![name.clone()],
            None => (1..=MOST)
                .map(|n| {
                    if n == 1 {
                        base.clone()
                    } else {
                        format!("{base}#{n}")
                    }
                })
                .collect(),
        };
        for name in names {
            let file: String = name
                .chars()
                .map(|c| if c.is_alphanumeric() { c } else { '_' })
                .collect();
            let path = folder.join(format!("{file}.lock"));
            let lock = File::create(&path).with_context(|| format!("cannot write {}", path.display()))?;
            match lock.try_lock() {
                Ok(()) => {
                    let mark = format!("{}@{name}", config.home.display());
                    return Ok(Self {
                        name,
                        mark,
                        machine: bootstrap::hostname(),
                        seed: Some(path.with_extension("seed")),
                        _lock: Some(Arc::new(lock)),
                    });
                }
                Err(TryLockError::WouldBlock) => {}
                Err(TryLockError::Error(error)) => {
                    return Err(error).with_context(|| format!("cannot lock {}", path.display()));
                }
            }
        }
        anyhow::bail!(
            "another worker of this name runs on this machine; give this one another [updraft] worker_name"
        )
    }

    /// A name for a worker that lives for one task: nobody had it before, and nobody will have it again. The configured one
    /// is that of its pod, which is its machine; a pod on its node's network does not know it otherwise.
    pub fn for_one_task(config: &Config) -> Self {
        let machine = config
            .updraft
            .worker_name
            .clone()
            .unwrap_or_else(bootstrap::hostname);
        let name = format!("{machine}:{}", uuid::Uuid::new_v4());
        Self {
            machine,
            mark: format!("{}@{name}", config.home.display()),
            name,
            seed: None,
            _lock: None,
        }
    }

    /// What the worker's key is made from, together with its join token: the same after a restart, so that it has its name
    /// back at once, and kept in a file that only its user can read.
    ///
    /// # Errors
    /// When the file cannot be read or written.
    pub(crate) fn seed(&self) -> anyhow::Result<Vec<u8>> {
        let Some(path) = &self.seed else {
            return Ok(uuid::Uuid::new_v4().into_bytes().to_vec());
        };
        match std::fs::read(path) {
            Ok(seed) if seed.len() == SEED => return Ok(seed),
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                return Err(error).with_context(|| format!("cannot read {}", path.display()));
            }
            Ok(_) | Err(_) => {}
        }
        new_seed(path).with_context(|| format!("cannot write {}", path.display()))
    }

    /// The name.
    pub fn as_str(&self) -> &str {
        &self.name
    }

    /// The name of the machine that it runs on, as users see it.
    pub fn machine(&self) -> &str {
        &self.machine
    }

    /// The name with the installation that it belongs to, which marks everything that the worker starts.
    pub fn mark(&self) -> &str {
        &self.mark
    }
}

/// Makes a seed and keeps it, whole or not at all. Nobody else does so at the same time: the name is ours.
fn new_seed(path: &Path) -> std::io::Result<Vec<u8>> {
    use std::io::Write;
    use std::os::unix::fs::OpenOptionsExt;
    let half = || uuid::Uuid::new_v4().into_bytes();
    let seed = [half(), half()].concat();
    let draft = path.with_extension("draft");
    std::fs::remove_file(&draft).ok();
    let mut options = std::fs::OpenOptions::new();
    let mut file = options.write(true).create_new(true).mode(0o600).open(&draft)?;
    file.write_all(&seed)?;
    std::fs::rename(&draft, path)?;
    Ok(seed)
}

#[cfg(test)]
mod tests {
    use super::*;
    use config::RawConfig;
    use std::collections::BTreeMap;

    #[test]
    fn two_living_workers_never_share_a_name_and_a_restarted_one_keeps_its_own() {
        let home = tempfile::tempdir().unwrap();
        let path = home.path().to_str().unwrap().to_owned();
        let raw = RawConfig::load_from(BTreeMap::from([("AIRFLOW_HOME".to_owned(), path)])).unwrap();
        let config = Config::from_raw(&raw).unwrap();
        let (one, two) = (
            WorkerName::take(&config).unwrap(),
            WorkerName::take(&config).unwrap(),
        );
        assert_ne!(one.as_str(), two.as_str());
        let first = one.as_str().to_owned();
        drop(one);
        assert_eq!(WorkerName::take(&config).unwrap().as_str(), first);
    }

    #[test]
    fn the_seed_of_a_workers_key_outlives_it_and_is_for_its_user_alone() {
        use std::os::unix::fs::PermissionsExt;
        let home = tempfile::tempdir().unwrap();
        let path = home.path().to_str().unwrap().to_owned();
        let raw = RawConfig::load_from(BTreeMap::from([("AIRFLOW_HOME".to_owned(), path)])).unwrap();
        let config = Config::from_raw(&raw).unwrap();
        let one = WorkerName::take(&config).unwrap();
        let seed = one.seed().unwrap();
        assert_eq!(seed.len(), SEED);
        assert_ne!(seed, WorkerName::take(&config).unwrap().seed().unwrap());
        let file = one.seed.clone().unwrap();
        assert_eq!(
            std::fs::metadata(&file).unwrap().permissions().mode() & 0o777,
            0o600
        );
        drop(one);
        assert_eq!(WorkerName::take(&config).unwrap().seed().unwrap(), seed);
        // One that is broken is made anew; a worker that lives once has another each time.
        std::fs::write(&file, "half").unwrap();
        assert_ne!(WorkerName::take(&config).unwrap().seed().unwrap(), seed);
        let once = WorkerName::for_one_task(&config);
        assert_ne!(once.seed().unwrap(), once.seed().unwrap());
    }
}
