//! Why task instances wait.

use super::access::Caller;
use super::error::{ApiError, ApiResult};
use super::query::path_number;
use super::reply::Json;
use super::tasks::{TaskPath, instances, map_index};
use crate::App;
use axum::extract::{Path, State};
use chrono::Utc;
use identity::Role;
use model::{DagId, ExecutorName, MapIndex, RunId, TaskId};
use serde_json::json;

pub(crate) async fn of_task(State(app): State<App>, caller: Caller, Path(path): Path<TaskPath>) -> ApiResult {
    dependencies(&app, &caller, path, MapIndex::UNMAPPED).await
}

pub(crate) async fn of_instance(
    State(app): State<App>,
    caller: Caller,
    Path((dag_id, run_id, task_id, index)): Path<(DagId, RunId, TaskId, String)>,
) -> ApiResult {
    let index = map_index(path_number("map_index", &index, -1)?);
    dependencies(&app, &caller, (dag_id, run_id, task_id), index).await
}

/// `TaskDependencyCollectionResponse`, for every state in which a task instance waits, and in one sentence beside it.
async fn dependencies(app: &App, caller: &Caller, path: TaskPath, index: MapIndex) -> ApiResult {
    caller.must_be(Role::Viewer)?;
    let mut db = app.store.reader().await?;
    let found = instances(&mut db, &path, Some(index)).await?;
    let (dag_id, run_id, task_id) = &path;
    let Some(ti) = found.first() else {
        return Err(ApiError::not_found(format!(
            "The Task Instance with dag_id: `{dag_id}`, run_id: `{run_id}`, task_id: `{task_id}` and map_index: `{}` was not found",
            index.0
        )));
    };
    let wish = ti.executor.as_ref().map(ExecutorName::as_str);
    let in_pod = app.config.core.executors.is_pod(wish);
    let mut waits = db.waits_for(&app.graphs, ti, in_pod, Utc::now()).await?;
    let reasons: Vec<&str> = waits.iter().map(|wait| wait.reason.as_str()).collect();
    let explanation = reasons.join("; ");
    let mut body = json!({});
    if !waits.is_empty() {
        body["explanation"] = explanation.into();
    }
    waits.sort_by_key(|wait| wait.name);
    let list = waits
        .iter()
        .map(|wait| json!({"name": wait.name, "reason": wait.reason}));
    body["dependencies"] = list.collect();
    Ok(Json(body))
}
