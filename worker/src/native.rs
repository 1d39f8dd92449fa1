//! Tasks that need no Python.
//!
//! A task runs here only if that cannot be told apart from running it in Python. The parser has made sure that the
//! operator is exactly the known class without anything of the user's around it; here its templates are rendered, and
//! anything that our renderer does not know exactly sends the whole task to Python.

mod bash;
mod connection;
mod datetime;
mod docker;
mod narrate;
mod pod;
mod registry;
mod scratch;
mod template;

use crate::Shared;
use crate::log::TryLog;
use crate::run::{End, Facts};
use bash::BashTask;
use docker::DockerTask;
use pod::PodTask;
use proto::v1::Ending;
use serde_json::Value;
use tokio_util::sync::CancellationToken;

/// A native task with its templates rendered.
pub(crate) enum NativeTask {
    Empty,
    Bash(BashTask),
    Docker(Box<DockerTask>),
    Pod(Box<PodTask>),
}

/// Renders a task.
///
/// # Errors
/// When it has to run in Python; the text says why.
pub(crate) fn prepare(facts: &Facts, document: &Value) -> Result<NativeTask, String> {
    match document.get("operator").and_then(Value::as_str) {
        Some("empty") => Ok(NativeTask::Empty),
        Some("bash") => bash::prepare(facts, document).map(NativeTask::Bash),
        Some("docker") => docker::prepare(facts, document).map(|task| NativeTask::Docker(Box::new(task))),
        Some("pod") => pod::prepare(facts, document).map(|task| NativeTask::Pod(Box::new(task))),
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
    let rendered = match &task {
        NativeTask::Empty => None,
        NativeTask::Bash(task) => Some(task.rendered()),
        NativeTask::Pod(task) => Some(task.rendered()),
        NativeTask::Docker(task) => Some(task.rendered()),
    };
    if let Some(rendered) = rendered {
        facts.show_rendered(rendered.to_owned());
    }
    // The larger ones live on the heap: most tasks are small.
    match task {
        NativeTask::Empty => End::of(Ending::Success),
        NativeTask::Bash(task) => bash::run(shared, facts, task, log, stop).await,
        NativeTask::Pod(task) => Box::pin(pod::run(shared, facts, *task, log, stop)).await,
        NativeTask::Docker(task) => Box::pin(docker::run(shared, facts, *task, log, stop)).await,
    }
}
