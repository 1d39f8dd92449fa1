//! Tasks that need no Python.
//!
//! A task runs here only if that cannot be told apart from running it in Python. The parser has made sure that the
//! operator is exactly the known class without anything of the user's around it; here its templates are rendered, and
//! anything that our renderer does not know exactly sends the whole task to Python.

mod bash;
mod connection;
mod datetime;
mod docker;
mod fault;
mod narrate;
mod pod;
mod registry;
mod scratch;
mod settings;
mod template;

use crate::Shared;
use crate::log::TryLog;
use crate::run::{End, Facts};
use bash::BashTask;
use docker::DockerTask;
use pod::PodTask;
use proto::v1::Ending;
use serde_json::Value;
pub(crate) use settings::Settings;
use std::time::Duration;
use tokio_util::sync::CancellationToken;

/// What a command needs of the worker that starts it.
pub(crate) struct Surroundings<'a> {
    /// Variables by which the watchdog finds it.
    pub(crate) marks: Vec<(String, String)>,
    /// Time between SIGTERM and SIGKILL when it is stopped.
    pub(crate) patience: Box<dyn Fn() -> Duration + Send + Sync + 'a>,
}

/// A native task with its templates rendered.
pub(crate) enum NativeTask {
    Empty,
    Bash(BashTask),
    Docker(Box<DockerTask>),
    Pod(Box<PodTask>),
}

impl NativeTask {
    /// What its templates came to, as JSON.
    pub(crate) fn rendered(&self) -> Option<&str> {
        match self {
            Self::Empty => None,
            Self::Bash(task) => Some(task.rendered()),
            Self::Pod(task) => Some(task.rendered()),
            Self::Docker(task) => Some(task.rendered()),
        }
    }
}

/// Renders a task.
///
/// # Errors
/// When it has to run in Python; the text says why.
pub(crate) fn prepare(settings: &Settings, facts: &Facts, document: &Value) -> Result<NativeTask, String> {
    settings.allow_native()?;
    match document.get("operator").and_then(Value::as_str) {
        Some("empty") => Ok(NativeTask::Empty),
        Some("bash") => bash::prepare(settings, facts, document).map(NativeTask::Bash),
        Some("docker") => {
            docker::prepare(settings, facts, document).map(|task| NativeTask::Docker(Box::new(task)))
        }
        Some("pod") => pod::prepare(settings, facts, document).map(|task| NativeTask::Pod(Box::new(task))),
        other => Err(format!("operator {other:?} is not known here")),
    }
}

/// Runs a native task.
pub(crate) async fn run(
    shared: &Shared,
    facts: &Facts,
    task: NativeTask,
    log: &TryLog,
    stop: &CancellationToken,
) -> End {
    if let Some(rendered) = task.rendered() {
        facts.show_rendered(rendered.to_owned());
    }
    // The larger ones live on the heap: most tasks are small.
    match task {
        NativeTask::Empty => End::of(Ending::Success),
        NativeTask::Bash(task) => bash::run(&shared.surroundings(), facts, task, log, stop).await,
        NativeTask::Pod(task) => Box::pin(pod::run(shared, facts, *task, log, stop)).await,
        NativeTask::Docker(task) => Box::pin(docker::run(shared, facts, *task, log, stop)).await,
    }
}

/// Runs a native task that needs nothing of a worker but what surrounds its command; none for any other.
pub(crate) async fn run_alone(
    surroundings: &Surroundings<'_>,
    facts: &Facts,
    task: NativeTask,
    log: &TryLog,
    stop: &CancellationToken,
) -> Option<End> {
    match task {
        NativeTask::Empty => Some(End::of(Ending::Success)),
        NativeTask::Bash(task) => Some(bash::run(surroundings, facts, task, log, stop).await),
        NativeTask::Docker(_) | NativeTask::Pod(_) => None,
    }
}
