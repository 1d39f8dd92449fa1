//! The tasks of a DAG, as its latest version has them.

use super::access::Caller;
use super::dags::{find, graph, when};
use super::error::{ApiError, ApiResult};
use super::query::Query;
use super::reply::Json;
use crate::App;
use axum::extract::{Path, State};
use identity::Role;
use model::DagId;
use model::serialized::unmarked;
use serde_json::{Value, json};
use std::collections::BTreeSet;
use store::Graph;

fn time_delta(seconds: Option<f64>) -> Value {
    let Some(seconds) = seconds else {
        return Value::Null;
    };
    let micros = (seconds * 1e6).round() as i64;
    json!({"__type": "TimeDelta", "days": micros.div_euclid(86_400_000_000),
           "seconds": micros.rem_euclid(86_400_000_000) / 1_000_000, "microseconds": micros.rem_euclid(1_000_000)})
}

/// `TaskResponse`
fn task_response(graph: &Graph, body: &Value) -> Value {
    let own = unmarked(body);
    let partial = own.get("partial_kwargs").map(unmarked);
    // What the configuration of the DAG processor says of every task, left out of each.
    let defaults = graph.document.pointer("/client_defaults/tasks");
    let field = |key: &str| {
        own.get(key)
            .or_else(|| partial.and_then(|partial| partial.get(key)))
            .or_else(|| defaults.and_then(|defaults| defaults.get(key)))
            .map(unmarked)
    };
    let text = |key: &str, default: &str| field(key).and_then(Value::as_str).unwrap_or(default).to_owned();
    let number = |key: &str, default: f64| field(key).and_then(Value::as_f64).unwrap_or(default);
    let yes = |key: &str| field(key).and_then(Value::as_bool).unwrap_or(false);
    let task_id = text("task_id", "");
    let task = graph.dag.task(&task_id.as_str().into());
    let backoff = task.map_or(0.0, |task| task.retry.backoff_multiplier);
    let downstream: BTreeSet<&str> = field("downstream_task_ids")
        .and_then(Value::as_array)
        .into_iter()
        .flatten()
        .filter_map(Value::as_str)
        .collect();
    json!({
        "task_id": task_id,
        "task_display_name": text("_task_display_name", &task_id),
        "owner": text("owner", "airflow"),
        "start_date": when(task.and_then(|task| task.start_date)),
        "end_date": when(task.and_then(|task| task.end_date)),
        "trigger_rule": text("trigger_rule", "all_success"),
        "depends_on_past": yes("depends_on_past"),
        "wait_for_downstream": yes("wait_for_downstream"),
        "retries": number("retries", 0.0),
        "queue": text("queue", "default"),
        "pool": text("pool", "default_pool"),
        "pool_slots": number("pool_slots", 1.0),
        "execution_timeout": time_delta(field("execution_timeout").and_then(Value::as_f64)),
        "retry_delay": time_delta(Some(number("retry_delay", 300.0))),
        "retry_exponential_backoff": backoff,
        "priority_weight": number("priority_weight", 1.0),
        "weight_rule": text("weight_rule", "downstream"),
        "ui_color": text("ui_color", "#fff"),
        "ui_fgcolor": text("ui_fgcolor", "#000"),
        "template_fields": field("template_fields").cloned().unwrap_or_else(|| json!([])),
        "downstream_task_ids": downstream,
        "doc_md": field("doc_md").cloned().unwrap_or(Value::Null),
        "operator_name": task.map_or("", |task| task.operator_name.as_str()),
        "params": crate::params::shown(field("params"), &json!("dag")),
        "class_ref": {"module_path": text("_task_module", ""), "class_name": text("task_type", "")},
        "is_mapped": yes("_is_mapped"),
        "extra_links": [],
    })
}

fn task_bodies(graph: &Graph) -> Vec<Value> {
    let items = graph.document.pointer("/dag/tasks").and_then(Value::as_array);
    items
        .into_iter()
        .flatten()
        .map(|body| task_response(graph, body))
        .collect()
}

/// Lists the tasks of a DAG.
pub(crate) async fn list(
    State(app): State<App>,
    caller: Caller,
    Path(dag_id): Path<DagId>,
    query: Query,
) -> ApiResult {
    caller.must_be(Role::Viewer)?;
    let dag = find(&app, &dag_id).await?;
    let mut tasks = task_bodies(&*graph(&app, &dag).await?);
    let order = query
        .text("order_by")
        .filter(|name| !name.is_empty())
        .unwrap_or("task_id");
    let key = order.trim_start_matches('-').to_owned();
    const KEYS: [&str; 20] = [
        "task_id",
        "task_display_name",
        "owner",
        "start_date",
        "end_date",
        "trigger_rule",
        "depends_on_past",
        "wait_for_downstream",
        "retries",
        "queue",
        "pool",
        "pool_slots",
        "execution_timeout",
        "retry_delay",
        "retry_exponential_backoff",
        "priority_weight",
        "weight_rule",
        "ui_color",
        "ui_fgcolor",
        "operator_name",
    ];
    if !KEYS.contains(&key.as_str()) {
        let text =
            format!("Ordering with '{key}' is disallowed or the attribute does not exist on the model");
        return Err(ApiError::bad_request(text));
    }
    let sort_key = |task: &Value| {
        let value = &task[&key];
        (
            value.is_null(),
            value.as_f64().map(|n| (n * 1e6) as i64),
            value.to_string(),
        )
    };
    tasks.sort_by_cached_key(sort_key);
    if order.starts_with('-') {
        tasks.reverse();
    }
    Ok(Json(json!({"tasks": tasks, "total_entries": tasks.len()})))
}

/// Shows a task of a DAG.
pub(crate) async fn show(
    State(app): State<App>,
    caller: Caller,
    Path((dag_id, task_id)): Path<(DagId, String)>,
) -> ApiResult {
    caller.must_be(Role::Viewer)?;
    let dag = find(&app, &dag_id).await?;
    let tasks = task_bodies(&*graph(&app, &dag).await?);
    let found = tasks.into_iter().find(|task| task["task_id"] == json!(task_id));
    found
        .map(Json)
        .ok_or_else(|| ApiError::not_found(format!("Task with id {task_id} was not found")))
}
