//! What a worker gets with a claim.

use crate::App;
use crate::logs::LogName;
use identity::ClaimToken;
use model::WorkerId;
use model::time::rest_format;
use proto::v1::StartTask;
use python::Startup;
use serde_json::Value;
use std::collections::BTreeMap;
use store::Graph;
use store::repo::{RunRecord, TaskInstanceRecord};
use tonic::Status;

/// What is read for a claim beside the task instance and its run.
pub(super) struct RunFacts {
    /// The run as the SDK knows it.
    pub(super) dag_run: Value,
    pub(super) xcom_keys_to_clear: Vec<String>,
    /// Which version of the bundle's files the task runs in.
    pub(super) bundle_version: Option<String>,
}

pub(super) fn start_task(
    app: &App,
    ti: &TaskInstanceRecord,
    run: &RunRecord,
    facts: RunFacts,
    graph: &Graph,
    worker: WorkerId,
) -> Result<StartTask, Status> {
    let span =
        tracing::info_span!("task.claim", dag.id = %ti.dag_id, run.id = %ti.run_id, task.id = %ti.task_id);
    telemetry::set_parent(&span, run.trace_context.as_deref());
    let trace_context = telemetry::context_of(&span);
    let start_date = rest_format(ti.start_date.unwrap_or_else(chrono::Utc::now));
    let startup = Startup {
        ti_id: ti.id.to_string(),
        task_id: ti.task_id.to_string(),
        dag_id: ti.dag_id.to_string(),
        run_id: ti.run_id.to_string(),
        try_number: ti.try_number.0,
        dag_version_id: ti.version_id.to_string(),
        map_index: ti.map_index.0,
        queue: ti.queue.to_string(),
        dag_rel_path: graph.relative_fileloc.clone(),
        bundle_name: graph.bundle_name.clone(),
        bundle_version: facts.bundle_version,
        start_date,
        max_tries: ti.max_tries,
        should_retry: ti.should_retry(),
        task_reschedule_count: ti.reschedules,
        first_start: ti.first_start.map(rest_format),
        next_method: ti.next_method.clone(),
        next_kwargs: ti
            .next_kwargs
            .as_deref()
            .and_then(|text| serde_json::from_str(text).ok()),
        trace_context: trace_context
            .clone()
            .map(|context| BTreeMap::from([("traceparent".to_owned(), context)])),
        dag_run: facts.dag_run,
        xcom_keys_to_clear: facts.xcom_keys_to_clear,
    };
    let claim = ClaimToken {
        task_instance: ti.id,
        epoch: ti.claim_epoch,
        try_number: ti.try_number.0,
        worker,
    };
    let token = app
        .tokens
        .for_claim(&claim)
        .map_err(|error| Status::internal(error.to_string()))?;
    let task = graph.dag.task(&ti.task_id);
    let name = LogName::of(ti, ti.try_number.0);
    // Files are not parsed anew when only the configuration changes.
    let in_python = app.config.core.has_xcom_backend;
    let native = graph
        .native
        .get(ti.task_id.as_str())
        .filter(|_| !in_python)
        .map(|task| store::side_document::open(task, &app.cipher));
    // Without its secrets it runs in Python, which reads the file anew.
    let native = native.and_then(|opened| match opened {
        Ok(native) => Some(native),
        Err(error) => {
            tracing::warn!(dag = %ti.dag_id, task = %ti.task_id, "runs in Python: {error}");
            None
        }
    });
    Ok(StartTask {
        epoch: ti.claim_epoch.0,
        token,
        startup: startup.message().to_string().into(),
        native: native.unwrap_or_default().into(),
        execution_timeout: task
            .and_then(|task| task.execution_timeout)
            .map_or(0.0, |limit| limit.as_seconds_f64()),
        log_limit: app.config.updraft.max_task_log_bytes,
        trace_context: trace_context.unwrap_or_default(),
        log_offset: app.logs.length(&name),
        task_instance_id: ti.id.to_string(),
    })
}
