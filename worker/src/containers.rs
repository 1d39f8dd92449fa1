//! Docker engines as a worker knows them: where they are, whose the containers are, and the end of those that nobody
//! looks after any more.
//!
//! Every container of a task carries labels (the Python shim sets the same ones on containers that an operator starts in
//! Python), so that it can be found when the worker that started it is dead.

use crate::WorkerName;
use crate::run::Facts;
use crate::watchdog::Watchdog;
use bollard::Docker;
use bollard::errors::Error;
use bollard::models::ContainerSummaryStateEnum;
use bollard::query_parameters::{
    KillContainerOptionsBuilder, ListContainersOptionsBuilder, RemoveContainerOptionsBuilder,
};
use serde::{Deserialize, Serialize};
use std::collections::HashMap;
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

/// The id of the task instance.
const TASK_INSTANCE: &str = "updraft.task_instance";
/// The claim under which it was started: another one for every try.
const CLAIM: &str = "updraft.claim";
/// The life of the worker that started it.
pub(crate) const LIFE: &str = "updraft.life";
/// The name of that worker, the same over its lives.
pub(crate) const WORKER: &str = "updraft.worker";
/// There if the container is to be removed whatever becomes of it.
const REMOVE: &str = "updraft.remove";
/// How long all engines together may take to end what is left.
const CLEAN_UP: Duration = Duration::from_secs(20);
/// Seconds that an engine may take to answer while cleaning up.
const ANSWER: u64 = 10;

/// Where a Docker engine is.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Engine {
    url: String,
    /// Files with the certificate authority, our certificate, and its key.
    tls: Option<[String; 3]>,
}

impl Engine {
    /// The engine at this address, as docker-py writes it.
    ///
    /// # Errors
    /// When it is reached in a way that only Python knows.
    pub(crate) fn at(url: &str, tls: Option<[String; 3]>) -> Result<Self, String> {
        let known = ["unix://", "tcp://", "http://", "https://", "http+unix://"];
        let url = if url.is_empty() {
            "unix:///var/run/docker.sock"
        } else {
            url
        };
        if known.iter().any(|scheme| url.starts_with(scheme)) {
            Ok(Self {
                url: url.replacen("http+unix://", "unix://", 1),
                tls,
            })
        } else {
            Err(format!("docker_url {url} is left to Python"))
        }
    }

    /// The engine that is meant when none is named.
    pub(crate) fn of_the_environment() -> String {
        std::env::var("DOCKER_HOST").unwrap_or_default()
    }

    /// Its socket, if it is reached by one. Two slashes are as good as three, as in docker-py.
    fn socket(&self) -> Option<String> {
        let path = self.url.strip_prefix("unix://")?;
        Some(format!("/{}", path.trim_start_matches('/')))
    }

    /// Connects, and agrees on a version of the API. `timeout` in seconds is for each answer.
    pub(crate) async fn connect(&self, timeout: u64) -> Result<Docker, Error> {
        let version = bollard::API_DEFAULT_VERSION;
        let docker = match (self.socket(), &self.tls) {
            (Some(socket), _) => Docker::connect_with_socket(&socket, timeout, version)?,
            (None, Some([ca, certificate, key])) => Docker::connect_with_ssl(
                &self.url,
                Path::new(key),
                Path::new(certificate),
                Path::new(ca),
                timeout,
                version,
            )?,
            (None, None) => Docker::connect_with_http(&self.url, timeout, version)?,
        };
        docker.negotiate_version().await
    }

    /// Its address, for messages.
    pub(crate) fn url(&self) -> &str {
        &self.url
    }
}

/// The engines that a worker has used; they are asked for leftovers when it is gone.
#[derive(Clone, Default)]
pub(crate) struct Engines {
    used: Arc<Mutex<Vec<Engine>>>,
}

impl Engines {
    /// Remembers an engine. Whether it is new.
    pub(crate) fn add(&self, engine: &Engine) -> bool {
        let mut used = self.used.lock().unwrap_or_else(PoisonError::into_inner);
        let is_new = !used.contains(engine);
        if is_new {
            used.push(engine.clone());
        }
        is_new
    }

    /// All of them, and the one of the environment if it is there: containers started in Python may be on it.
    pub(crate) fn all(&self) -> Vec<Engine> {
        let mut all = self.used.lock().unwrap_or_else(PoisonError::into_inner).clone();
        if let Ok(engine) = Engine::at(&Engine::of_the_environment(), None)
            && !all.contains(&engine)
            && engine.socket().is_none_or(|socket| Path::new(&socket).exists())
        {
            all.push(engine);
        }
        all
    }
}

/// Labels of a container of this try.
pub(crate) fn labels(
    facts: &Facts,
    watchdog: &Watchdog,
    name: &WorkerName,
    remove: bool,
) -> HashMap<String, String> {
    let mut labels: HashMap<String, String> = [
        (TASK_INSTANCE, facts.ti("id").to_owned()),
        (CLAIM, facts.start.epoch.to_string()),
        (LIFE, watchdog.life().to_owned()),
        (WORKER, name.mark().to_owned()),
        ("updraft.dag_id", facts.ti("dag_id").to_owned()),
        ("updraft.task_id", facts.ti("task_id").to_owned()),
        ("updraft.dag_run_id", facts.ti("run_id").to_owned()),
        ("updraft.try_number", facts.try_number().to_string()),
    ]
    .map(|(name, value)| (name.to_owned(), value))
    .into();
    if remove {
        labels.insert(REMOVE.to_owned(), "1".to_owned());
    }
    labels
}

/// Whether a container with these labels is of this task instance.
pub(crate) fn is_of(labels: &HashMap<String, String>, facts: &Facts) -> bool {
    labels.get(TASK_INSTANCE).is_some_and(|id| id == facts.ti("id"))
}

/// Kills what earlier claims of this task instance left running on an engine: a worker that could not be reached may
/// have started it.
pub(crate) async fn kill_earlier_tries(docker: &Docker, facts: &Facts) -> Result<usize, Error> {
    let claim = facts.start.epoch.to_string();
    kill(docker, &[(TASK_INSTANCE, facts.ti("id"))], Some((CLAIM, &claim))).await
}

/// Kills the containers of one try on all engines.
pub(crate) async fn kill_try(engines: &Engines, facts: &Facts) {
    for engine in engines.all() {
        let claim = facts.start.epoch.to_string();
        let own = [(TASK_INSTANCE, facts.ti("id")), (CLAIM, claim.as_str())];
        let work = async {
            let docker = engine.connect(ANSWER).await?;
            kill(&docker, &own, None).await
        };
        report(&engine, tokio::time::timeout(CLEAN_UP, work).await);
    }
}

/// Kills all running containers with a label on these engines, but none with another one.
pub(crate) async fn kill_all(engines: &[Engine], label: (&str, &str), spare: Option<(&str, &str)>) -> usize {
    let mut killed = 0;
    for engine in engines {
        let work = async {
            let docker = engine.connect(ANSWER).await?;
            kill(&docker, &[label], spare).await
        };
        killed += report(engine, tokio::time::timeout(CLEAN_UP, work).await);
    }
    killed
}

fn report(engine: &Engine, outcome: Result<Result<usize, Error>, tokio::time::error::Elapsed>) -> usize {
    match outcome {
        Ok(Ok(killed)) => killed,
        Ok(Err(problem)) => {
            tracing::debug!(engine = engine.url, "cannot look for containers: {problem}");
            0
        }
        Err(_) => {
            tracing::warn!(
                engine = engine.url,
                "the engine does not answer; containers may be left"
            );
            0
        }
    }
}

async fn kill(docker: &Docker, wanted: &[(&str, &str)], spare: Option<(&str, &str)>) -> Result<usize, Error> {
    let wanted = wanted.iter().map(|(label, value)| format!("{label}={value}"));
    let filters = HashMap::from([("label", wanted.collect::<Vec<_>>())]);
    let options = ListContainersOptionsBuilder::default()
        .filters(&filters)
        .all(true)
        .build();
    let mut killed = 0;
    for container in docker.list_containers(Some(options)).await? {
        let labels = container.labels.unwrap_or_default();
        let spared = spare.is_some_and(|(label, value)| labels.get(label).is_some_and(|own| own == value));
        let Some(id) = container.id.filter(|_| !spared) else {
            continue;
        };
        let force = RemoveContainerOptionsBuilder::default().force(true).build();
        match container.state {
            // It never ran, and must not.
            Some(ContainerSummaryStateEnum::CREATED) => {
                docker.remove_container(&id, Some(force)).await.ok();
                continue;
            }
            Some(ContainerSummaryStateEnum::EXITED | ContainerSummaryStateEnum::DEAD) => continue,
            _ => {}
        }
        let options = KillContainerOptionsBuilder::default().signal("SIGKILL").build();
        // One that has ended in the meantime is what we want.
        killed += usize::from(docker.kill_container(&id, Some(options)).await.is_ok());
        if labels.contains_key(REMOVE) {
            docker.remove_container(&id, Some(force)).await.ok();
        }
    }
    Ok(killed)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_are_read_as_docker_py_reads_them() {
        let socket = |url: &str| Engine::at(url, None).unwrap().socket();
        let usual = Some("/var/run/docker.sock".to_owned());
        for url in [
            "",
            "unix://var/run/docker.sock",
            "unix:///var/run/docker.sock",
            "http+unix:///var/run/docker.sock",
        ] {
            assert_eq!(socket(url), usual, "{url}");
        }
        assert_eq!(socket("tcp://engine:2375"), None);
        assert!(Engine::at("ssh://me@engine", None).is_err());
    }
}
