//! A worker's name: the same after a restart, and nobody else's at the same time.
//!
//! What an earlier life of a worker left running is found by its name and killed, so two living workers must never share
//! one. A lock on a file of the installation sees to that.

use anyhow::Context;
use config::Config;
use std::fs::{File, TryLockError};
use std::sync::Arc;

/// Workers that one machine may run for one installation without naming them.
const MOST: usize = 256;

/// A name that is ours as long as this exists.
#[derive(Debug, Clone)]
pub struct WorkerName {
    name: String,
    mark: String,
    machine: String,
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
            _lock: None,
        }
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
}
