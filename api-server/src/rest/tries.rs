//! Tries of task instances.

use super::access::Caller;
use super::dags::when;
use super::error::{ApiError, ApiResult};
use super::query::{Query, path_number};
use super::reply::Json;
use super::runs::References;
use super::tasks::{TaskPath, map_index, seconds};
use crate::App;
use axum::extract::{Path, State};
use identity::Role;
use model::{DagId, MapIndex, RunId, TaskId};
use serde_json::{Value, json};
use store::StoreError;
use store::repo::{HistoryRecord, Placement, TaskInstanceRecord};

/// `TaskInstanceHistoryResponse` of a try.
async fn try_response(
    app: &App,
    ti: &TaskInstanceRecord,
    past: Option<&HistoryRecord>,
) -> Result<Value, StoreError> {
    let mut references = References::default();
    let current = HistoryRecord {
        exit_cause: None,
        ..HistoryRecord::of(ti)
    };
    let one = past.unwrap_or(&current);
    let placement = one.placement.clone().unwrap_or_else(|| Placement::of(ti));
    let duration = one
        .start_date
        .zip(one.end_date)
        .map(|(start, end)| (end - start).as_seconds_f64());
    Ok(json!({
        "task_id": ti.task_id,
        "dag_id": ti.dag_id,
        "dag_run_id": ti.run_id,
        "map_index": ti.map_index,
        "start_date": when(one.start_date),
        "end_date": when(one.end_date),
        "duration": seconds(duration),
        "state": Some(&one.state).filter(|state| *state != "none"),
        "try_number": one.try_number,
        "max_tries": one.max_tries,
        "task_display_name": ti.task_id,
        "dag_display_name": references.display_name(app, &ti.dag_id).await?,
        "hostname": one.hostname.as_deref().unwrap_or(""),
        "unixname": one.unixname,
        "pool": placement.pool,
        "pool_slots": placement.pool_slots,
        "queue": placement.queue,
        "priority_weight": placement.priority_weight,
        "operator": placement.operator,
        "operator_name": placement.operator_name,
        "queued_when": when(one.queued_at),
        "scheduled_when": when(one.scheduled_at),
        "pid": one.pid,
        "executor": placement.executor,
        "executor_config": "{}",
        "dag_version": references.version(app, &ti.dag_id, placement.version_id).await?,
    }))
}

async fn tries_of(
    app: &App,
    path: &TaskPath,
    map_index: MapIndex,
) -> ApiResult<(TaskInstanceRecord, Vec<HistoryRecord>)> {
    let (dag_id, run_id, task_id) = path;
    let mut db = app.store.reader().await?;
    let ti = db.task_instance(dag_id, run_id, task_id, map_index).await?;
    let missing = || {
        ApiError::not_found(format!(
            "The Task Instance with dag_id: `{dag_id}`, run_id: `{run_id}`, task_id: `{task_id}` and map_index: `{map_index}` was not found"
        ))
    };
    let ti = ti.ok_or_else(missing)?;
    let history = db.history(ti.id).await?;
    Ok((ti, history))
}

async fn tries_page(app: &App, path: &TaskPath, map_index: MapIndex) -> ApiResult {
    let (ti, history) = tries_of(app, path, map_index).await?;
    let mut out = Vec::new();
    for past in &history {
        out.push(try_response(app, &ti, Some(past)).await?);
    }
    if history.iter().all(|past| past.try_number != ti.try_number.0) {
        out.push(try_response(app, &ti, None).await?);
    }
    Ok(Json(json!({"task_instances": out, "total_entries": out.len()})))
}

/// `GET tries`
pub(crate) async fn all(
    State(app): State<App>,
    caller: Caller,
    Path(path): Path<TaskPath>,
    mut query: Query,
) -> ApiResult {
    caller.must_be(Role::Viewer)?;
    let index = query.number("map_index", -1, -1)?;
    tries_page(&app, &path, map_index(index)).await
}

/// `GET {map_index}/tries`
pub(crate) async fn all_of_mapped(
    State(app): State<App>,
    caller: Caller,
    Path((dag_id, run_id, task_id, index)): Path<(DagId, RunId, TaskId, String)>,
) -> ApiResult {
    caller.must_be(Role::Viewer)?;
    let index = path_number("map_index", &index, i64::MIN)?;
    tries_page(&app, &(dag_id, run_id, task_id), map_index(index)).await
}

/// `GET tries/{number}`
pub(crate) async fn one(
    State(app): State<App>,
    caller: Caller,
    Path((dag_id, run_id, task_id, number)): Path<(DagId, RunId, TaskId, String)>,
    mut query: Query,
) -> ApiResult {
    caller.must_be(Role::Viewer)?;
    let number = path_number("task_try_number", &number, i64::MIN)?;
    let index = query.number("map_index", -1, -1)?;
    let map_index = map_index(index);
    let missing = || {
        ApiError::not_found(format!(
            "The Task Instance with dag_id: `{dag_id}`, run_id: `{run_id}`, task_id: `{task_id}`, try_number: `{number}` and map_index: `{index}` was not found"
        ))
    };
    let path = (dag_id.clone(), run_id.clone(), task_id.clone());
    let (ti, history) = tries_of(&app, &path, map_index).await.map_err(|_| missing())?;
    if let Some(past) = history.iter().find(|past| i64::from(past.try_number) == number) {
        return Ok(Json(try_response(&app, &ti, Some(past)).await?));
    }
    if i64::from(ti.try_number.0) == number {
        return Ok(Json(try_response(&app, &ti, None).await?));
    }
    Err(missing())
}
