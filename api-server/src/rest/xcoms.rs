//! XComs.

use super::access::Caller;
use super::body::Body;
use super::dags::when;
use super::error::{ApiError, ApiResult};
use super::query::{Query, listing};
use super::reply::Json;
use super::runs::References;
use super::tasks::{TaskPath, map_index};
use crate::App;
use axum::body::Bytes;
use axum::extract::{Path, State};
use axum::http::{HeaderMap, StatusCode};
use chrono::Utc;
use identity::Role;
use model::python_text::repr as python_repr;
use model::time::rest_format;
use model::{DagId, RunId, TaskId};
use serde_json::{Map, Value, json};
use store::repo::{Condition, NewXCom, TaskInstanceRecord, XComRecord};
use store::{StoreError, limits};

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
    if query.text("map_index_filter").is_some() {
        let index = query.number("map_index_filter", -1, i64::MIN)?;
        conditions.push(Condition::Is("map_index", index.into()));
    }
    for column in ["logical_date", "run_after"] {
        query.range_of_run(column, &mut conditions);
    }
    query.checked()?;
    query.pattern("dag_display_name", "dag_id", &mut conditions);
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
        "run_after" => Some(store::repo::RUN_AFTER),
        _ => None,
    };
    let mut order = query.order(&known, "dag_id", "task_id")?;
    let descending = order[0].descending;
    order.extend(["run_id", "map_index", "xcom_key"].map(|column| store::repo::Order { column, descending }));
    let (xcoms, total) = app
        .store
        .lister()
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
    let map_index = map_index(index);
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

/// The value with all that is said about it.
async fn whole(app: &App, xcom: &XComRecord) -> ApiResult<Json<Value>> {
    let mut out = response(app, xcom).await?;
    let value = serde_json::from_str(&xcom.value).unwrap_or_else(|_| xcom.value.clone().into());
    out.insert("value".to_owned(), value);
    Ok(Json(Value::Object(out)))
}

/// A value as a task would have left it.
fn new_value(key: &str, value: &Value) -> ApiResult<NewXCom> {
    let length = match value {
        Value::Array(items) => Some(items.len()),
        Value::Object(fields) => Some(fields.len()),
        Value::Null | Value::Bool(_) | Value::Number(_) | Value::String(_) => None,
    };
    let value = value.to_string();
    limits::check_value("xcom.value", &value)?;
    Ok(NewXCom {
        key: key.to_owned(),
        value,
        mapped_length: length.and_then(|length| i64::try_from(length).ok()),
    })
}

/// A value that has been left, with all that is said about it.
async fn left(app: &App, ti: &TaskInstanceRecord, key: &str) -> ApiResult<Json<Value>> {
    let mut db = app.store.reader().await?;
    let stored = db.xcom(ti.run_key, &ti.task_id, ti.map_index, key).await?;
    drop(db);
    let stored = stored.ok_or_else(|| absent(key))?;
    whole(app, &stored).await
}

fn absent(key: &str) -> ApiError {
    ApiError::not_found(format!(
        "The XCom with key: `{key}` with mentioned task instance doesn't exist."
    ))
}

/// `POST xcomEntries`
pub(crate) async fn create(
    State(app): State<App>,
    caller: Caller,
    Path((dag_id, run_id, task_id)): Path<TaskPath>,
    headers: HeaderMap,
    bytes: Bytes,
) -> ApiResult<(StatusCode, Json<Value>)> {
    caller.must_be(Role::User)?;
    let mut body = Body::read(&headers, &bytes)?;
    let key = body.required_text_within("key", limits::XCOM_KEY.most);
    let value = body.any("value");
    let index = map_index(body.integer("map_index", None, false).unwrap_or(-1));
    body.finish()?;
    let dag = super::dags::find(&app, &dag_id).await?;
    let graph = super::dags::graph(&app, &dag).await?;
    if graph.dag.task(&task_id).is_none() {
        return Err(ApiError::not_found(format!(
            "Task with ID: `{task_id}` not found in dag: `{dag_id}`"
        )));
    }
    let mut db = app.store.reader().await?;
    if db.run(&dag_id, &run_id).await?.is_none() {
        return Err(ApiError::not_found(format!(
            "Dag Run with ID: `{run_id}` not found for dag: `{dag_id}`"
        )));
    }
    let ti = db.task_instance(&dag_id, &run_id, &task_id, index).await?;
    let ti = ti.ok_or_else(|| {
        ApiError::not_found(format!(
            "Task instance with ID: `{task_id}` and map_index: `{index}` not found in run: `{run_id}`"
        ))
    })?;
    drop(db);
    let (xcom, now) = (new_value(&key, &value)?, Utc::now());
    let made = store::transact!(app.store, "create xcom", |tx| tx
        .create_xcom(&ti, &xcom, now)
        .await);
    made.map_err(|error| match error {
        StoreError::Duplicate { .. } => ApiError::conflict(format!(
            "The XCom with key: `{key}` with mentioned task instance already exists."
        )),
        error => error.into(),
    })?;
    Ok((StatusCode::CREATED, left(&app, &ti, &key).await?))
}

/// `PATCH xcomEntries/{key}`
pub(crate) async fn patch(
    State(app): State<App>,
    caller: Caller,
    Path((dag_id, run_id, task_id, key)): Path<(DagId, RunId, TaskId, String)>,
    headers: HeaderMap,
    bytes: Bytes,
) -> ApiResult {
    caller.must_be(Role::User)?;
    let mut body = Body::read(&headers, &bytes)?;
    let value = body.any("value");
    let index = map_index(body.integer("map_index", None, false).unwrap_or(-1));
    body.finish()?;
    let mut db = app.store.reader().await?;
    let ti = db.task_instance(&dag_id, &run_id, &task_id, index).await?;
    let ti = ti.ok_or_else(|| absent(&key))?;
    drop(db);
    let (xcom, now) = (new_value(&key, &value)?, Utc::now());
    let found = store::transact!(app.store, "change xcom", |tx| tx
        .change_xcom(&ti, &xcom, now)
        .await)?;
    if !found {
        return Err(absent(&key));
    }
    left(&app, &ti, &key).await
}

/// `DELETE xcomEntries/{key}`
pub(crate) async fn delete(
    State(app): State<App>,
    caller: Caller,
    Path((dag_id, run_id, task_id, key)): Path<(DagId, RunId, TaskId, String)>,
    mut query: Query,
) -> ApiResult<StatusCode> {
    caller.must_be(Role::User)?;
    let index = map_index(query.number("map_index", -1, -1)?);
    let run = app.store.reader().await?.run(&dag_id, &run_id).await?;
    let run = run.ok_or_else(|| absent(&key))?;
    let deleted = store::transact!(app.store, "delete xcom", |tx| tx
        .delete_xcom(run.key, &task_id, index, &key)
        .await)?;
    if deleted {
        Ok(StatusCode::NO_CONTENT)
    } else {
        Err(absent(&key))
    }
}
