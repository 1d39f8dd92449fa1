//! KubernetesPodOperator, with the semantics and the log lines of `airflow.providers.cncf.kubernetes.operators.pod`.
//!
//! The pod itself is built by the real provider when the DAG file is parsed, with marks in the place of templates.

mod logs;
mod manifest;
mod run;
mod startup;
mod watch;
mod xcom;

use super::Settings;
use super::connection;
use super::fault::Fault;
use super::narrate;
use super::template::Renderer;
use crate::Shared;
use crate::log::TryLog;
use crate::run::{End, Facts};
use kubernetes::cluster::Way;
use proto::v1::XCom;
use run::{Outcome, Run};
use serde::Deserialize;
use serde_json::{Map, Value};
use std::collections::BTreeMap;
use std::sync::OnceLock;
use std::time::Duration;
use tokio_util::sync::CancellationToken;

const OPERATOR: &str =
    "airflow.task.operators.airflow.providers.cncf.kubernetes.operators.pod.KubernetesPodOperator";
const MANAGER: &str = "airflow.providers.cncf.kubernetes.utils.pod_manager.PodManager";
/// The connection that need not exist.
const DEFAULT_CONNECTION: &str = "kubernetes_default";
/// How long cleaning up may take once the task is not to run any more.
const CLEAN_UP: Duration = Duration::from_secs(60);

/// The side document, as the shim writes it.
#[derive(Deserialize)]
struct Document {
    fields: Value,
    templates: BTreeMap<String, String>,
    pod: Value,
    labels: Value,
    name_suffix: bool,
    conn_id: Option<String>,
    in_cluster: Option<bool>,
    context: Option<String>,
    config_file: Option<String>,
    reattach: bool,
    schedule_timeout: u64,
    startup_timeout: u64,
    get_logs: bool,
    base: String,
    logs_of: Containers,
    init_logs_of: Containers,
    prefix: bool,
    events_on_startup: bool,
    events_on_failure: bool,
    spec_on_failure: bool,
    on_finish: OnFinish,
    on_kill: OnKill,
    grace: Option<u32>,
    skip_on_exit_code: Vec<i32>,
    sidecar_image: String,
    sidecar_context: bool,
    do_xcom_push: bool,
}

/// Containers whose logs are wanted.
#[derive(Deserialize)]
#[serde(untagged)]
enum Containers {
    All(bool),
    Named(Vec<String>),
}

/// What becomes of the pod at its end.
#[derive(Deserialize, Clone, Copy, PartialEq, Eq)]
enum OnFinish {
    #[serde(rename = "keep_pod")]
    Keep,
    #[serde(rename = "delete_pod")]
    Delete,
    #[serde(rename = "delete_succeeded_pod")]
    DeleteSucceeded,
    #[serde(rename = "delete_active_pod")]
    DeleteActive,
}

/// What becomes of the pod when the task is killed.
#[derive(Deserialize, Clone, Copy, PartialEq, Eq)]
enum OnKill {
    #[serde(rename = "keep_pod")]
    Keep,
    #[serde(rename = "delete_pod")]
    Delete,
}

/// A KubernetesPodOperator with its templates rendered.
pub(crate) struct PodTask {
    document: Document,
    /// Marks and what stands in their place.
    texts: Vec<(String, String)>,
    conn_id: Option<String>,
    rendered: String,
}

impl PodTask {
    /// What the templates came to, as JSON.
    pub(crate) fn rendered(&self) -> &str {
        &self.rendered
    }

    fn text(&self, text: &str) -> String {
        self.texts
            .iter()
            .fold(text.to_owned(), |text, (mark, with)| text.replace(mark, with))
    }
}

/// Why a pod has no outcome.
struct Problem {
    /// The exception that Airflow would raise.
    kind: &'static str,
    text: String,
    /// What it does not say.
    cause: String,
    fault: Fault,
}

impl Problem {
    fn of(kind: &'static str, text: impl Into<String>) -> Self {
        Self {
            kind,
            text: text.into(),
            cause: String::new(),
            fault: Fault::Task,
        }
    }

    /// The same, but that it is the fault of somebody else.
    fn by(self, fault: Fault) -> Self {
        Self { fault, ..self }
    }

    /// The same, once there is a pod.
    fn after_the_start(self) -> Self {
        let fault = self.fault.after_the_start();
        self.by(fault)
    }

    fn airflow(text: impl Into<String>) -> Self {
        Self::of("AirflowException", text)
    }

    fn unreachable(why: impl Into<String>) -> Self {
        Self::of("ConfigException", why)
    }

    fn because(self, cause: String) -> Self {
        Self { cause, ..self }
    }
}

impl From<kube::Error> for Problem {
    /// What the cluster said before there was a pod.
    fn from(error: kube::Error) -> Self {
        let fault = if is_of_the_cluster(&error) {
            Fault::Platform
        } else {
            Fault::Task
        };
        let problem = match error {
            kube::Error::Api(status) => Self::of(
                "ApiException",
                format!("({}) Reason: {}: {}", status.code, status.reason, status.message),
            ),
            other => Self::of("KubernetesApiException", other.to_string()),
        };
        problem.by(fault)
    }
}

/// Returns `true` if the cluster is away, or cannot do what it was asked now: too many ask it, or the namespace's quota is used
/// up.
fn is_of_the_cluster(error: &kube::Error) -> bool {
    match error {
        kube::Error::Api(status) if status.code == 403 => status.message.contains("exceeded quota"),
        kube::Error::Api(status) => status.code == 429 || status.code >= 500,
        other => kubernetes::cluster::is_transient(other),
    }
}

/// Renders the fields of a KubernetesPodOperator.
///
/// # Errors
/// When something of it needs Python.
pub(super) fn prepare(settings: &Settings, facts: &Facts, document: &Value) -> Result<PodTask, String> {
    let renderer = Renderer::new(settings, facts, document);
    let document: Document = Deserialize::deserialize(document).map_err(|error| error.to_string())?;
    let render = |(mark, template): (&String, &String)| Ok((mark.clone(), renderer.render(template)?));
    let texts = document.templates.iter().map(render);
    let texts = texts.collect::<Result<Vec<_>, String>>()?;
    let given = document
        .fields
        .get("name")
        .map(|name| manifest::substitute(name, &texts));
    if given
        .as_ref()
        .and_then(Value::as_str)
        .is_some_and(|name| !manifest::is_key(name))
    {
        return Err("its name is not one that Airflow takes".to_owned());
    }
    let mut shown = Map::new();
    for (name, value) in document.fields.as_object().into_iter().flatten() {
        let value = manifest::without_secrets(&settings.names, &manifest::substitute(value, &texts));
        shown.insert(name.clone(), narrate::shown(settings, &value, name));
    }
    let mut task = PodTask {
        rendered: Value::from(shown).to_string(),
        conn_id: None,
        texts,
        document,
    };
    task.conn_id = task
        .document
        .conn_id
        .as_deref()
        .map(|id| task.text(id))
        .filter(|id| !id.is_empty());
    if task
        .conn_id
        .as_deref()
        .is_some_and(|id| connection::is_elsewhere(settings, id))
    {
        return Err("its connection comes from outside of the metadata database".to_owned());
    }
    let file = task.document.config_file.as_deref().map(|file| task.text(file));
    if file.is_some_and(|file| file.contains(['~', ':'])) {
        return Err("its config_file is to be expanded".to_owned());
    }
    Ok(task)
}

/// How to reach the cluster.
async fn way(shared: &Shared, facts: &Facts, task: &PodTask, log: &TryLog) -> Result<Way, Problem> {
    let mut extra = Value::Null;
    if let Some(id) = &task.conn_id {
        let found = connection::read(shared, facts, log, id)
            .await
            .map_err(|why| Problem::airflow(why.0).by(Fault::Platform))?;
        match found {
            Some(found) => {
                let text = found.get("extra").and_then(Value::as_str).unwrap_or_default();
                extra = serde_json::from_str(text).unwrap_or_default();
            }
            None if id == DEFAULT_CONNECTION => {}
            None => {
                let text = format!("The conn_id `{id}` isn't defined");
                return Err(Problem::of("AirflowNotFoundException", text));
            }
        }
    }
    Ok(Way {
        in_cluster: task.document.in_cluster,
        context: task.document.context.as_deref().map(|text| task.text(text)),
        config_file: task.document.config_file.as_deref().map(|text| task.text(text)),
        extra,
    })
}

/// Runs a KubernetesPodOperator.
pub(super) async fn run(
    shared: &Shared,
    facts: &Facts,
    task: PodTask,
    log: &TryLog,
    stop: &CancellationToken,
) -> End {
    narrate::begins(log).await;
    let run = Run {
        facts,
        task: &task,
        log,
        stop,
        pod: OnceLock::new(),
    };
    let limit = match facts.start.execution_timeout {
        limit if limit > 0.0 => Duration::from_secs_f64(limit),
        _ => Duration::from_secs(u64::from(u32::MAX)),
    };
    let work = async {
        let way = way(shared, facts, &task, log).await?;
        Box::pin(run.to_the_end(&way)).await
    };
    let mut end = tokio::select! {
        outcome = work => judge(facts, &task, log, outcome).await,
        () = tokio::time::sleep(limit) => {
            narrate::times_out(log).await;
            tokio::time::timeout(CLEAN_UP, run.kill()).await.ok();
            narrate::timed_out(facts, log).await
        }
        () = stop.cancelled() => {
            tokio::time::timeout(CLEAN_UP, run.kill()).await.ok();
            narrate::stopped(facts)
        }
    };
    narrate::ended(log).await;
    if let Some((pods, name)) = run.pod.get() {
        let namespace = pods.namespace();
        for (key, value) in [("pod_name", name.as_str()), ("pod_namespace", namespace)] {
            end.xcoms.push(XCom {
                key: key.to_owned(),
                value: Value::from(value).to_string(),
                mapped_length: None,
            });
        }
    }
    End {
        rendered_fields: Some(task.rendered.clone()),
        ..end
    }
}

async fn judge(facts: &Facts, task: &PodTask, log: &TryLog, outcome: Result<Outcome, Problem>) -> End {
    match outcome {
        Ok(Outcome::Success(value)) => narrate::succeeded(log, value, task.document.do_xcom_push).await,
        Ok(Outcome::Skipped(reason)) => narrate::skipped(log, &reason).await,
        Ok(Outcome::Failure { text, cause, value }) => {
            let mut end = narrate::failed(facts, log, "AirflowException", &text, &cause).await;
            // What the pod left is kept, also if it failed.
            if let Some(value) = value.filter(|_| task.document.do_xcom_push) {
                end.xcoms.push(XCom {
                    key: "return_value".to_owned(),
                    value: value.to_string(),
                    mapped_length: None,
                });
            }
            end
        }
        Err(problem) => {
            let fault = problem.fault;
            fault
                .end(facts, log, problem.kind, &problem.text, &problem.cause)
                .await
        }
    }
}
