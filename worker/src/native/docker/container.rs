//! One container, from its image to its exit code.

use super::outcome::{Exit, Problem, message};
use super::{AutoRemove, DockerTask, Document};
use crate::Shared;
use crate::containers;
use crate::log::{Lines, TryLog};
use crate::native::fault::Fault;
use crate::native::registry;
use crate::native::scratch::Scratch;
use crate::permission;
use crate::run::Facts;
use bollard::Docker;
use bollard::container::{AttachContainerResults, LogOutput};
use bollard::errors::Error;
use bollard::models::ContainerCreateBody;
use bollard::query_parameters::{
    AttachContainerOptionsBuilder, CreateContainerOptionsBuilder, CreateImageOptionsBuilder,
    ListImagesOptionsBuilder, RemoveContainerOptionsBuilder, StopContainerOptionsBuilder,
    WaitContainerOptions,
};
use futures_util::StreamExt;
use serde_json::{Value, json};
use std::collections::HashMap;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};
use tokio_util::sync::CancellationToken;

const OPERATOR: &str = "airflow.task.operators.airflow.providers.docker.operators.docker.DockerOperator";
const HOOK: &str = "airflow.task.hooks.airflow.providers.docker.hooks.docker.DockerHook";
/// Seconds between SIGTERM and SIGKILL when a container is stopped: docker's own.
const GRACE: i32 = 10;
/// How long an engine that is away is waited for before its container counts as lost.
pub(super) const AWAY: Duration = Duration::from_secs(60);
/// Between two questions to an engine that is away, or busy with a container.
pub(super) const LOOK: Duration = Duration::from_millis(500);
/// Bytes of output that may be kept for `xcom_all`.
const KEPT: usize = 16 << 20;
/// How long after a container's end the engine may learn that memory was the reason, and the exit code that it has then.
const VERDICT: Duration = Duration::from_secs(10);
const SIGKILLED: i64 = 137;

/// A running DockerOperator.
pub(super) struct Run<'a> {
    pub(super) shared: &'a Shared,
    pub(super) facts: &'a Facts,
    pub(super) task: &'a DockerTask,
    pub(super) log: &'a TryLog,
    pub(super) stop: &'a CancellationToken,
    /// The container and its engine, once there is one.
    pub(super) container: Mutex<Option<(Docker, String)>>,
}

impl Run<'_> {
    async fn say(&self, level: &str, text: &str) {
        self.log.record(level, OPERATOR, text).await;
    }

    /// The last look at the claim before the engine is asked to create a container.
    async fn permitted(&self) -> Result<(), Problem> {
        processes::pause::point("docker");
        let granted = permission::granted(self.facts, self.stop).await;
        granted.map_err(|why| Problem::airflow(why.cause).by(Fault::Worker))
    }

    /// Everything that the operator does in `execute`.
    pub(super) async fn to_the_end(&self) -> Result<Exit, Problem> {
        let docker = self.connect().await?;
        let login = match &self.task.conn_id {
            Some(id) => {
                let login = registry::login(self.shared, self.facts, self.log, id).await;
                let login = login?;
                let text = format!("Login into Docker Registry: {}", login.registry);
                self.log.record("info", HOOK, &text).await;
                Some(login)
            }
            None => None,
        };
        if self.task.document.force_pull || !has_image(&docker, &self.task.image).await? {
            self.pull(&docker, login).await?;
        }
        let text = format!("Starting docker container from image {}", self.task.image);
        self.say("info", &text).await;
        containers::kill_earlier_tries(&docker, self.facts).await?;
        let scratch = self.scratch()?;
        let folder = scratch
            .as_ref()
            .map(|scratch| scratch.path().display().to_string());
        match self.attempt(&docker, folder.as_deref()).await {
            Err(problem)
                if folder
                    .as_ref()
                    .is_some_and(|folder| problem.text.contains(folder)) =>
            {
                let text = "Using remote engine or docker-in-docker and mounting temporary volume from host is not \
                            supported. Falling back to `mount_tmp_dir=False` mode. You can set `mount_tmp_dir` \
                            parameter to False to disable mounting and remove the warning";
                self.say("warning", text).await;
                self.attempt(&docker, None).await
            }
            other => other,
        }
    }

    /// Creates a container and follows it; without the scratch folder where the engine does not see it.
    async fn attempt(&self, docker: &Docker, scratch: Option<&str>) -> Result<Exit, Problem> {
        self.permitted().await?;
        let id = self.create(docker, scratch).await?;
        *self.container.lock().unwrap_or_else(PoisonError::into_inner) = Some((docker.clone(), id.clone()));
        let exit = self.follow(docker, &id).await;
        self.remove(docker, &id).await;
        exit
    }

    async fn connect(&self) -> Result<Docker, Problem> {
        for engine in &self.task.engines {
            match engine.connect(self.task.document.timeout).await {
                Ok(docker) => {
                    if self.shared.engines.add(engine) {
                        self.shared.watchdog.know(self.shared.engines.all());
                    }
                    return Ok(docker);
                }
                Err(error) => {
                    let text = format!(
                        "Failed to establish connection to Docker host {}: {}",
                        engine.url(),
                        message(&error)
                    );
                    self.log.record("error", HOOK, &text).await;
                }
            }
        }
        let text = "Failed to establish connection to any given Docker hosts.";
        Err(Problem::airflow(text).by(Fault::Platform))
    }

    /// Pulls the image. What goes wrong on the way is told; whether there is an image shows when the container is made.
    async fn pull(&self, docker: &Docker, login: Option<registry::Login>) -> Result<(), Problem> {
        let image = &self.task.image;
        let text = format!("::group::Pulling docker image {image}");
        self.say("info", &text).await;
        let credentials = registry::credentials(login, image).await;
        let (name, tag) = split_tag(image);
        let options = CreateImageOptionsBuilder::default()
            .from_image(name)
            .tag(tag)
            .build();
        let mut progress = std::pin::pin!(docker.create_image(Some(options), None, credentials));
        let mut latest: HashMap<String, String> = HashMap::new();
        let mut failure = None;
        while let Some(step) = progress.next().await {
            match step {
                Ok(info) => {
                    let Some(status) = info.status else { continue };
                    match info.id {
                        None => self.say("info", &status).await,
                        Some(id) if latest.get(&id) == Some(&status) => {}
                        Some(id) => {
                            self.say("info", &format!("{id}: {status}")).await;
                            latest.insert(id, status);
                        }
                    }
                }
                Err(error @ Error::DockerResponseServerError { .. }) => return Err(error.into()),
                Err(error) => {
                    self.say("error", &message(&error)).await;
                    failure = Some(Problem::from(error));
                }
            }
        }
        self.say("info", "::endgroup::").await;
        match failure {
            // There may be an image for all that, of an earlier pull; for Airflow it is as good.
            Some(problem) if problem.fault != Fault::Task && !has_image(docker, image).await? => Err(problem),
            Some(_) | None => Ok(()),
        }
    }

    fn scratch(&self) -> Result<Option<Scratch>, Problem> {
        let document = &self.task.document;
        if !document.mount_tmp_dir {
            return Ok(None);
        }
        let scratch = Scratch::new(document.host_tmp_dir.as_deref());
        let scratch = scratch.map_err(|error| {
            // A folder that the task names is the task's matter.
            let fault = match document.host_tmp_dir {
                Some(_) => Fault::Task,
                None => Fault::Worker,
            };
            Problem::airflow(format!("cannot make a scratch folder: {error}")).by(fault)
        })?;
        Ok(Some(scratch))
    }

    /// Creates the container.
    async fn create(&self, docker: &Docker, scratch: Option<&str>) -> Result<String, Error> {
        let options = || {
            let name = self.task.name.as_deref();
            name.map(|name| CreateContainerOptionsBuilder::default().name(name).build())
        };
        let body = self.body(scratch)?;
        match (
            docker.create_container(options(), body.clone()).await,
            &self.task.name,
        ) {
            // A container of an earlier try has the name: that try is over.
            (Err(Error::DockerResponseServerError { status_code: 409, .. }), Some(name))
                if self.is_of_an_earlier_try(docker, name).await =>
            {
                let force = RemoveContainerOptionsBuilder::default().force(true).build();
                docker.remove_container(name, Some(force)).await?;
                Ok(docker.create_container(options(), body).await?.id)
            }
            (created, _) => Ok(created?.id),
        }
    }

    async fn is_of_an_earlier_try(&self, docker: &Docker, name: &str) -> bool {
        let found = docker.inspect_container(name, None).await.ok();
        let labels = found
            .and_then(|container| container.config)
            .and_then(|config| config.labels);
        labels.is_some_and(|labels| containers::is_of(&labels, self.facts))
    }

    /// What the engine is asked to create.
    fn body(&self, scratch: Option<&str>) -> Result<ContainerCreateBody, Error> {
        let (task, document) = (self.task, &self.task.document);
        let mut config = document.config.clone();
        let mut mounts = task.mounts.clone();
        let mut variables: Vec<(&str, &Value)> =
            task.environment.iter().map(|(k, v)| (k.as_str(), v)).collect();
        variables.retain(|(name, _)| *name != "AIRFLOW_TMP_DIR");
        let tmp_dir = Value::from(document.tmp_dir.as_str());
        if let Some(folder) = scratch {
            let mount =
                json!({"Target": document.tmp_dir, "Source": folder, "Type": "bind", "ReadOnly": false});
            mounts.push(mount);
            variables.push(("AIRFLOW_TMP_DIR", &tmp_dir));
        }
        for (name, value) in &task.private {
            variables.retain(|(known, _)| known != name);
            variables.push((name, value));
        }
        config["Image"] = task.image.as_str().into();
        config["Cmd"] = json!(task.command);
        config["Env"] = variables
            .into_iter()
            .map(|(name, value)| variable(name, value))
            .collect();
        config["HostConfig"]["Mounts"] = mounts.into();
        let mut body: ContainerCreateBody = serde_json::from_value(config)?;
        let remove = document.auto_remove != AutoRemove::Never;
        let own = containers::labels(self.facts, &self.shared.watchdog, &self.shared.name, remove);
        body.labels.get_or_insert_default().extend(own);
        Ok(body)
    }

    /// Starts the container, writes down what it says, and waits for its end.
    async fn follow(&self, docker: &Docker, id: &str) -> Result<Exit, Problem> {
        let options = AttachContainerOptionsBuilder::default()
            .stdout(true)
            .stderr(true)
            .stream(true)
            .build();
        let attached = docker.attach_container(id, Some(options)).await?;
        self.start(docker, id).await?;
        if !self.facts.permit.holds() {
            // We were stopped while the engine was asked.
            containers::kill_try(&self.shared.engines, self.facts).await;
        }
        let kept = self.read(attached).await;
        let code = self
            .exit_code(docker, id)
            .await
            .map_err(Problem::after_the_start)?;
        let lines = kept.finish()?;
        let (memory_limit, out_of_memory) = match code {
            0 => (0, false),
            _ => memory_of(docker, id, code).await,
        };
        Ok(Exit {
            code,
            out_of_memory,
            memory_limit,
            old_answer: docker.client_version().minor_version < 42,
            lines,
        })
    }

    /// Writes the output to the log, and keeps what the task wants of it. A line of one stream is never mixed with one of
    /// the other.
    async fn read(&self, attached: AttachContainerResults) -> Kept {
        let mut output = attached.output;
        let (mut out, mut err) = (Lines::default(), Lines::default());
        let mut kept = Kept::new(&self.task.document);
        loop {
            // The stream may end because the engine was restarted; what became of the container is asked next.
            let piece = output.next().await.and_then(Result::ok);
            let ended = piece.is_none();
            let complete = match piece {
                Some(LogOutput::StdErr { message }) => err.push(&message),
                Some(piece) => out.push(&piece.into_bytes()),
                None => err.finish().into_iter().chain(out.finish()).collect(),
            };
            for line in complete {
                let line = line.into_text();
                let line = line.trim_end();
                self.say("info", line).await;
                kept.push(line);
            }
            if ended {
                return kept;
            }
        }
    }

    /// Waits for the container's end, also over a restart of the engine.
    async fn exit_code(&self, docker: &Docker, id: &str) -> Result<i64, Problem> {
        let mut away_since: Option<Instant> = None;
        loop {
            let mut waiting = std::pin::pin!(docker.wait_container(id, None::<WaitContainerOptions>));
            match waiting.next().await {
                Some(Ok(answer)) => return Ok(answer.status_code),
                Some(Err(Error::DockerContainerWaitError { code, .. })) => return Ok(code),
                Some(Err(
                    error @ Error::DockerResponseServerError {
                        status_code: ..500, ..
                    },
                )) => {
                    return Err(error.into());
                }
                Some(Err(error)) => {
                    if away_since.get_or_insert_with(Instant::now).elapsed() > AWAY {
                        return Err(error.into());
                    }
                }
                None => away_since = away_since.or_else(|| Some(Instant::now())),
            }
            tokio::time::sleep(LOOK).await;
        }
    }

    async fn remove(&self, docker: &Docker, id: &str) {
        let force = match self.task.document.auto_remove {
            AutoRemove::Never => return,
            AutoRemove::Success => false,
            AutoRemove::Force => true,
        };
        let options = RemoveContainerOptionsBuilder::default().force(force).build();
        if let Err(error) = docker.remove_container(id, Some(options)).await {
            let text = format!("Failed to remove docker container {id}: {}", message(&error));
            self.say("warning", &text).await;
        }
    }

    /// Stops the container: what the operator does in `on_kill`. Removing it is left to [`Run::to_the_end`], which goes on.
    /// Whether there was one.
    pub(super) async fn stop(&self) -> bool {
        let container = self
            .container
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .clone();
        let Some((docker, id)) = container else {
            self.say("info", "Not attempting to kill container as it was not created")
                .await;
            return false;
        };
        self.say("info", "Stopping docker container").await;
        let options = StopContainerOptionsBuilder::default().t(GRACE).build();
        if let Err(error) = docker.stop_container(&id, Some(options)).await {
            let text = format!("The container could not be stopped: {}", message(&error));
            self.say("warning", &text).await;
            containers::kill_try(&self.shared.engines, self.facts).await;
        }
        true
    }
}

/// The lines that may become an XCom.
struct Kept {
    wanted: bool,
    all: bool,
    lines: Vec<String>,
    bytes: usize,
}

impl Kept {
    fn new(document: &Document) -> Self {
        Self {
            wanted: document.do_xcom_push,
            all: document.xcom_all,
            lines: Vec::new(),
            bytes: 0,
        }
    }

    fn push(&mut self, line: &str) {
        if !self.wanted {
            return;
        }
        if !self.all || self.bytes > KEPT {
            self.lines.clear();
        }
        if self.all {
            // An empty line takes room, too.
            self.bytes += line.len() + size_of::<String>();
        }
        self.lines.push(line.to_owned());
    }

    fn finish(self) -> Result<Vec<String>, Problem> {
        if self.bytes > KEPT {
            let limit = KEPT >> 20;
            return Err(Problem::airflow(format!(
                "the container wrote more than {limit} MiB, too much for xcom_all"
            )));
        }
        Ok(self.lines)
    }
}

/// The memory limit of a container that failed, and whether it ran out of memory. The engine learns of the kernel's
/// verdict by another way than of the end, so a container that was killed is looked at until that can have come.
async fn memory_of(docker: &Docker, id: &str, code: i64) -> (i64, bool) {
    let deadline = Instant::now() + VERDICT;
    loop {
        let Ok(found) = docker.inspect_container(id, None).await else {
            return (0, false);
        };
        let limit = found.host_config.and_then(|host| host.memory).unwrap_or(0);
        let out_of_memory = found.state.and_then(|state| state.oom_killed).unwrap_or(false);
        let may_still_come = code == SIGKILLED && limit > 0 && Instant::now() < deadline;
        if out_of_memory || !may_still_come {
            return (limit, out_of_memory);
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

async fn has_image(docker: &Docker, image: &str) -> Result<bool, Error> {
    let filters = HashMap::from([("reference", vec![image])]);
    let options = ListImagesOptionsBuilder::default().filters(&filters).build();
    Ok(!docker.list_images(Some(options)).await?.is_empty())
}

/// Name and tag (or digest) of an image; `latest` if it has none.
fn split_tag(image: &str) -> (&str, &str) {
    if let Some((name, digest)) = image.split_once('@') {
        return (name, digest);
    }
    match image.rsplit_once(':') {
        Some((name, tag)) if !tag.contains('/') => (name, tag),
        _ => (image, "latest"),
    }
}

/// One variable of the environment, as docker-py writes it.
fn variable(name: &str, value: &Value) -> String {
    match value {
        Value::Null => name.to_owned(),
        Value::String(text) => format!("{name}={text}"),
        other => format!("{name}={other}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tags_are_told_from_ports() {
        assert_eq!(split_tag("busybox"), ("busybox", "latest"));
        assert_eq!(split_tag("r.example:5000/a"), ("r.example:5000/a", "latest"));
        assert_eq!(split_tag("r.example:5000/a:1"), ("r.example:5000/a", "1"));
        assert_eq!(split_tag("a@sha256:0"), ("a", "sha256:0"));
    }

    #[test]
    fn variables_are_written_as_docker_py_writes_them() {
        assert_eq!(variable("A", &json!("b")), "A=b");
        assert_eq!(variable("A", &json!(1)), "A=1");
        assert_eq!(variable("A", &Value::Null), "A");
    }
}
