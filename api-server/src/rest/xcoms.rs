//! XComs.

use super::access::Caller;
use super::body::python_repr;
use super::dags::when;
use super::error::{ApiError, ApiResult};
use super::query::{Query, listing};
use super::runs::References;
use super::tasks::TaskPath;
use crate::App;
use axum::Json;
use axum::extract::{Path, State};
use identity::Role;
use model::time::rest_format;
use model::{DagId, MapIndex, RunId, TaskId};
use serde_json::{Map, Value, json};
use store::repo::{Condition, XComRecord};

async fn response(app: &App, xcom: &XComRecord) -> ApiResult<Map<String, Value>> {
    let dates = app.store.reader().await?.run_dates(&[xcom.run_key]).await?;
    let (logical_date, run_after) = dates
        .first()
        .map_or((None, None), |(_, date, after)| (*date, Some(*after)));
    let name = References::default().display_name(app, &xcom.dag_id).await?;
    let out = json!({
        "key": xcom.key, "timestamp": rest_format(xcom.created_at), "logical_date": when(logical_date),
        "map_index": xcom.map_index, "task_id": xcom.task_id, "dag_id": xcom.dag_id, "run_id": xcom.run_id,
        "dag_display_name": name, "task_display_name": xcom.task_id, "run_after": when(run_after),
    });
    Ok(out.as_object().cloned().unwrap_or_default())
}

pub(crate) async fn list(
    State(app): State<App>,
    caller: Caller,
    Path(path): Path<TaskPath>,
    mut query: Query,
) -> ApiResult {
    caller.must_be(Role::Viewer)?;
    let page = query.page(&app)?;
    let map_index = query
        .text("map_index")
        .is_some()
        .then(|| query.number("map_index", -1, -1))
        .transpose()?;
    let (dag_id, run_id, task_id) = &path;
    let mut conditions = Vec::new();
    for (column, value) in [
        ("dag_id", dag_id.as_str()),
        ("run_id", run_id.as_str()),
        ("task_id", task_id.as_str()),
    ] {
        if value != "~" {
            conditions.push(Condition::Is(column, value.into()));
        }
    }
    if let Some(index) = map_index {
        conditions.push(Condition::Is("map_index", index.into()));
    }
    if let Some(key) = query.text("xcom_key") {
        conditions.push(Condition::Is("xcom_key", key.into()));
    }
    query.pattern("xcom_key", "xcom_key", &mut conditions);
    query.pattern("run_id", "run_id", &mut conditions);
    query.pattern("task_id", "task_id", &mut conditions);
    let known = |name: &str| match name {
        "key" => Some("xcom_key"),
        "dag_id" => Some("dag_id"),
        "run_id" => Some("run_id"),
        "task_id" => Some("task_id"),
        "map_index" => Some("map_index"),
        "timestamp" => Some("created_at"),
        "run_after" => Some("run_key"),
        _ => None,
    };
    let mut order = query.order(&known, "dag_id", "task_id")?;
    let descending = order[0].descending;
    order.extend(["run_id", "map_index", "xcom_key"].map(|column| store::repo::Order { column, descending }));
    let (xcoms, total) = app
        .store
        .reader()
        .await?
        .xcoms(&listing(conditions, order, page))
        .await?;
    let mut out = Vec::with_capacity(xcoms.len());
    for xcom in &xcoms {
        out.push(response(&app, xcom).await?);
    }
    Ok(Json(json!({"xcom_entries": out, "total_entries": total})))
}

pub(crate) async fn show(
    State(app): State<App>,
    caller: Caller,
    Path((dag_id, run_id, task_id, key)): Path<(DagId, RunId, TaskId, String)>,
    mut query: Query,
) -> ApiResult {
    caller.must_be(Role::Viewer)?;
    let index = query.number("map_index", -1, -1)?;
    let stringify = query.boolean("stringify").unwrap_or(false);
    query.checked()?;
    let missing = || ApiError::not_found(format!("XCom entry with key: `{key}` not found"));
    let mut db = app.store.reader().await?;
    let run = db.run(&dag_id, &run_id).await?.ok_or_else(missing)?;
    let map_index = MapIndex(i32::try_from(index).unwrap_or(i32::MAX));
    let xcom = db
        .xcom(run.key, &task_id, map_index, &key)
        .await?
        .ok_or_else(missing)?;
    drop(db);
    let value: Value = serde_json::from_str(&xcom.value).unwrap_or_else(|_| xcom.value.clone().into());
    let value = match (stringify, value) {
        (true, Value::String(text)) => Value::String(text),
        (true, Value::Null) => Value::Null,
        (true, other) => python_repr(&other).0.into(),
        (false, value) => value,
    };
    let mut out = response(&app, &xcom).await?;
    out.insert("value".to_owned(), value);
    Ok(Json(Value::Object(out)))
}
