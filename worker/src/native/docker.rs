//! DockerOperator, with the semantics and the log lines of `airflow.providers.docker.operators.docker`.

mod container;
mod outcome;
mod start;
mod words;

use super::Settings;
use super::connection;
use super::narrate;
use super::registry;
use super::template::Renderer;
use crate::Shared;
use crate::containers::{self, Engine};
use crate::log::TryLog;
use crate::run::{End, Facts};
use container::Run;
use outcome::{Exit, Problem};
use serde::Deserialize;
use serde_json::{Value, json};
use std::pin::Pin;
use std::sync::Mutex;
use std::time::Duration;
use tokio_util::sync::CancellationToken;

/// How long the container's last lines are waited for once it was stopped.
const LAST_LINES: Duration = Duration::from_secs(5);

/// The side document, as the shim writes it.
#[derive(Deserialize)]
struct Document {
    fields: Value,
    /// What the engine is asked to create, but for what is rendered.
    config: Value,
    docker_url: Option<Addresses>,
    tls: Option<[String; 3]>,
    timeout: u64,
    force_pull: bool,
    mount_tmp_dir: bool,
    tmp_dir: String,
    host_tmp_dir: Option<String>,
    auto_remove: AutoRemove,
    xcom_all: bool,
    skip_on_exit_code: Vec<i64>,
    sealed: Option<String>,
    do_xcom_push: bool,
}

#[derive(Deserialize)]
#[serde(untagged)]
enum Addresses {
    One(String),
    Several(Vec<String>),
}

/// When the container is removed.
#[derive(Deserialize, Clone, Copy, PartialEq, Eq)]
#[serde(rename_all = "lowercase")]
enum AutoRemove {
    Never,
    Success,
    Force,
}

/// A DockerOperator with its templates rendered.
pub(crate) struct DockerTask {
    document: Document,
    image: String,
    name: Option<String>,
    command: Option<Vec<String>>,
    environment: Vec<(String, Value)>,
    private: Vec<(String, Value)>,
    mounts: Vec<Value>,
    conn_id: Option<String>,
    engines: Vec<Engine>,
    rendered: String,
}

impl DockerTask {
    /// What the templates came to, as JSON.
    pub(crate) fn rendered(&self) -> &str {
        &self.rendered
    }
}

/// Renders the fields of a DockerOperator.
///
/// # Errors
/// When something of it needs Python.
pub(super) fn prepare(settings: &Settings, facts: &Facts, document: &Value) -> Result<DockerTask, String> {
    let renderer = Renderer::new(settings, facts, document);
    let document: Document = Deserialize::deserialize(document).map_err(|error| error.to_string())?;
    let fields = renderer.render_all(&document.fields)?;
    let text = |key: &str| fields.get(key).and_then(Value::as_str).map(str::to_owned);
    let conn_id = text("docker_conn_id").filter(|id| !id.is_empty());
    if let Some(id) = &conn_id
        && connection::is_elsewhere(settings, id)
    {
        return Err("its connection comes from outside of the metadata database".to_owned());
    }
    if registry::client_configuration().get("proxies").is_some() {
        return Err("proxies for containers are configured on this machine".to_owned());
    }
    let private = document.sealed.as_deref().map(serde_json::from_str::<Value>);
    let private = private.transpose().map_err(|error| error.to_string())?;
    let variables = |value: Option<&Value>| {
        let fields = value.and_then(Value::as_object).into_iter().flatten();
        fields
            .map(|(name, value)| (name.clone(), value.clone()))
            .collect::<Vec<_>>()
    };
    let mut shown = serde_json::Map::new();
    for name in [
        "image",
        "command",
        "environment",
        "env_file",
        "container_name",
        "mounts",
        "docker_conn_id",
    ] {
        let value = fields.get(name).unwrap_or(&Value::Null);
        shown.insert(name.to_owned(), narrate::shown(settings, value, name));
    }
    Ok(DockerTask {
        image: text("image").ok_or("it has no image")?,
        name: text("container_name"),
        command: command(fields.get("command").unwrap_or(&Value::Null))?,
        environment: variables(fields.get("environment")),
        private: variables(private.as_ref().and_then(|sealed| sealed.get("environment"))),
        mounts: fields
            .get("mounts")
            .and_then(Value::as_array)
            .cloned()
            .unwrap_or_default(),
        conn_id,
        engines: engines(&document)?,
        rendered: Value::from(shown).to_string(),
        document,
    })
}

fn engines(document: &Document) -> Result<Vec<Engine>, String> {
    let urls = match &document.docker_url {
        Some(Addresses::One(url)) if !url.is_empty() => vec![url.clone()],
        Some(Addresses::Several(urls)) if !urls.is_empty() => urls.clone(),
        Some(Addresses::One(_) | Addresses::Several(_)) | None => vec![Engine::of_the_environment()],
    };
    urls.iter()
        .map(|url| Engine::at(url, document.tls.clone()))
        .collect()
}

/// A command as the engine wants it: a text is split as a shell would.
fn command(value: &Value) -> Result<Option<Vec<String>>, String> {
    match value {
        Value::Null => Ok(None),
        Value::String(text) if text.trim_start().starts_with('[') => {
            Err("its command is a Python literal".to_owned())
        }
        Value::String(text) if text.is_empty() => Ok(None),
        Value::String(text) => words::split(text)
            .map(Some)
            .ok_or_else(|| "its command has an open quotation".to_owned()),
        Value::Array(words) => words
            .iter()
            .map(|word| word.as_str().map(str::to_owned))
            .collect::<Option<Vec<_>>>()
            .map(Some)
            .ok_or_else(|| "its command has words that are no text".to_owned()),
        Value::Bool(_) | Value::Number(_) | Value::Object(_) => Err("its command is no text".to_owned()),
    }
}

/// Runs a DockerOperator.
pub(super) async fn run(
    shared: &Shared,
    facts: &Facts,
    task: DockerTask,
    log: &TryLog,
    stop: &CancellationToken,
) -> End {
    narrate::begins(log).await;
    let run = Run {
        shared,
        facts,
        task: &task,
        log,
        stop,
        container: Mutex::new(None),
    };
    let work = run.to_the_end();
    tokio::pin!(work);
    let limit = match facts.start.execution_timeout {
        limit if limit > 0.0 => Duration::from_secs_f64(limit),
        _ => Duration::from_secs(u64::from(u32::MAX)),
    };
    let end = tokio::select! {
        outcome = work.as_mut() => judge(facts, &task, log, outcome).await,
        () = tokio::time::sleep(limit) => {
            narrate::times_out(log).await;
            halt(&run, work).await;
            narrate::timed_out(facts, log).await
        }
        () = stop.cancelled() => {
            halt(&run, work).await;
            narrate::stopped(facts)
        }
    };
    narrate::ended(log).await;
    End {
        rendered_fields: Some(task.rendered.clone()),
        ..end
    }
}

/// Stops the container and waits for its last lines. Without one nothing goes on that could still start it.
async fn halt(run: &Run<'_>, work: Pin<&mut impl Future<Output = Result<Exit, Problem>>>) {
    let had_container = run.stop().await;
    if had_container && tokio::time::timeout(LAST_LINES, work).await.is_ok() {
        return;
    }
    containers::kill_try(&run.shared.engines, run.facts).await;
}

async fn judge(facts: &Facts, task: &DockerTask, log: &TryLog, outcome: Result<Exit, Problem>) -> End {
    let exit = match outcome {
        Ok(exit) => exit,
        Err(problem) => {
            let fault = problem.fault;
            return fault.end(facts, log, problem.kind, &problem.text, "").await;
        }
    };
    let codes = &task.document.skip_on_exit_code;
    if codes.contains(&exit.code) {
        let reason = format!("Docker container returned exit code {}. Skipping.", json!(codes));
        return narrate::skipped(log, &reason.replace(',', ", ")).await;
    }
    if exit.code != 0 {
        let kind = "DockerContainerFailedException";
        return narrate::failed(facts, log, kind, &exit.failure(), &exit.cause()).await;
    }
    let value = if task.document.xcom_all {
        (!exit.lines.is_empty()).then(|| exit.lines.into())
    } else {
        exit.lines.into_iter().next_back().map(Value::from)
    };
    narrate::succeeded(log, value, task.document.do_xcom_push).await
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn commands_are_split_as_a_shell_would_or_left_to_python() {
        let words = |text: &str| command(&text.into()).unwrap();
        assert_eq!(
            words("sh -c 'echo \"a b\"'"),
            Some(vec!["sh".to_owned(), "-c".to_owned(), "echo \"a b\"".to_owned()])
        );
        assert_eq!(words(""), None);
        assert_eq!(command(&json!(["a", "b c"])).unwrap().unwrap().len(), 2);
        assert!(command(&json!("['a', 'b']")).is_err());
        assert!(command(&json!("echo 'a")).is_err());
        assert!(command(&json!(["a", 1])).is_err());
    }
}
