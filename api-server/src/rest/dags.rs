//! DAGs.

use super::access::Caller;
use super::body::Body;
use super::error::{ApiError, ApiResult};
use super::query::{Query, cut};
use crate::App;
use axum::Json;
use axum::body::Bytes;
use axum::extract::{Path, State};
use axum::http::{HeaderMap, StatusCode};
use broker::Hint;
use chrono::Utc;
use identity::Role;
use model::asset::AssetKey;
use model::serialized::decode;
use model::time::rest_format;
use model::{DagId, Timestamp};
use serde_json::{Map, Value, json};
use std::collections::BTreeSet;
use std::sync::Arc;
use store::Graph;
use store::repo::DagRecord;

pub(crate) fn when(at: Option<Timestamp>) -> Value {
    at.map_or(Value::Null, |at| rest_format(at).into())
}

/// `{"name": "a", ...}` of a tag.
fn tags(dag: &DagRecord) -> Value {
    let name = dag.display_name.as_deref().unwrap_or(dag.dag_id.as_str());
    let tag = |tag: &String| json!({"name": tag, "dag_id": dag.dag_id, "dag_display_name": name});
    dag.tags.iter().map(tag).collect()
}

fn file_token(dag: &DagRecord) -> String {
    use base64::Engine;
    let text = json!({"bundle_name": dag.bundle_name, "relative_fileloc": dag.relative_fileloc}).to_string();
    base64::engine::general_purpose::URL_SAFE_NO_PAD.encode(text)
}

/// `DAGResponse`
pub(crate) fn response(dag: &DagRecord) -> Value {
    let owners: Vec<&str> = dag.owners.iter().map(String::as_str).collect();
    let dated = |at: Option<Timestamp>| when(at.filter(|_| !dag.is_partitioned()));
    json!({
        "dag_id": dag.dag_id,
        "dag_display_name": dag.display_name.as_deref().unwrap_or(dag.dag_id.as_str()),
        "is_paused": dag.is_paused,
        "is_stale": dag.is_stale,
        "last_parsed_time": rest_format(dag.last_parsed_at),
        "last_parse_duration": dag.last_parse_duration,
        "last_expired": null,
        "bundle_name": dag.bundle_name,
        "bundle_version": dag.bundle_version,
        "relative_fileloc": dag.relative_fileloc,
        "fileloc": dag.fileloc,
        "description": dag.description,
        "timetable_summary": dag.timetable_summary,
        "timetable_description": dag.timetable_description,
        "timetable_partitioned": dag.is_partitioned(),
        "timetable_periodic": is_periodic(dag),
        "tags": tags(dag),
        "max_active_tasks": dag.max_active_tasks,
        "max_active_runs": dag.max_active_runs,
        "max_consecutive_failed_dag_runs": dag.max_consecutive_failed,
        "has_task_concurrency_limits": dag.has_task_limits,
        "has_import_errors": dag.has_import_errors,
        "next_dagrun_logical_date": dated(dag.next_logical_date),
        "next_dagrun_data_interval_start": dated(dag.next_interval_start),
        "next_dagrun_data_interval_end": dated(dag.next_interval_end),
        "next_dagrun_run_after": when(dag.next_run_after),
        "allowed_run_types": dag.allowed_run_types,
        "owners": if owners.is_empty() { vec!["airflow"] } else { owners },
        "is_backfillable": is_periodic(dag) && allows_backfills(dag),
        "file_token": file_token(dag),
    })
}

fn allows_backfills(dag: &DagRecord) -> bool {
    let allowed = dag.allowed_run_types.as_ref();
    allowed.is_none_or(|allowed| allowed.iter().any(|kind| kind == "backfill"))
}

fn is_periodic(dag: &DagRecord) -> bool {
    !matches!(
        dag.timetable_type.as_str(),
        "NullTimetable"
            | "OnceTimetable"
            | "ContinuousTimetable"
            | "AssetTriggeredTimetable"
            | "PartitionedAssetTimetable"
            | "PartitionedAtRuntime"
    )
}

/// DAGs that a query asks for, before paging.
async fn select(app: &App, query: &mut Query) -> ApiResult<Vec<DagRecord>> {
    let exclude_stale = query.boolean("exclude_stale").unwrap_or(true);
    let (paused, broken) = (query.boolean("paused"), query.boolean("has_import_errors"));
    query.checked()?;
    let tags: BTreeSet<&str> = query.all("tags").into_iter().collect();
    let owners = query.all("owners");
    let all_tags = query.text("tags_match_mode") == Some("all");
    let mut dags = app.store.reader().await?.dags().await?;
    query.retain("dag_id", &mut dags, |dag| dag.dag_id.as_str());
    query.retain("dag_display_name", &mut dags, |dag| {
        dag.display_name.as_deref().unwrap_or(dag.dag_id.as_str())
    });
    let fits = |dag: &DagRecord| {
        let has = |tag: &&str| dag.tags.iter().any(|own| own == tag);
        (!exclude_stale || !dag.is_stale)
            && paused.is_none_or(|paused| dag.is_paused == paused)
            && broken.is_none_or(|broken| dag.has_import_errors == broken)
            && (tags.is_empty()
                || if all_tags {
                    tags.iter().all(&has)
                } else {
                    tags.iter().any(has)
                })
            && (owners.is_empty()
                || owners
                    .iter()
                    .any(|owner| dag.owners.iter().any(|own| own.contains(owner))))
            && query
                .text("bundle_name")
                .is_none_or(|bundle| dag.bundle_name == bundle)
    };
    Ok(dags.into_iter().filter(fits).collect())
}

pub(crate) async fn list(State(app): State<App>, caller: Caller, mut query: Query) -> ApiResult {
    caller.must_be(Role::Viewer)?;
    let page = query.page(&app)?;
    let known = |name: &str| match name {
        "dag_id" | "dag_display_name" | "next_dagrun" => Some("dag_id"),
        "last_run_state" | "state" | "last_run_start_date" | "start_date" => Some("dag_id"),
        _ => None,
    };
    let order = query.order(&known, "dag_id", "dag_id")?;
    let mut dags = select(&app, &mut query).await?;
    match query
        .all("order_by")
        .first()
        .map(|name| name.trim_start_matches('-'))
    {
        Some("next_dagrun") => dags.sort_by_key(|dag| (dag.next_logical_date, dag.dag_id.clone())),
        Some(last @ ("last_run_state" | "state" | "last_run_start_date" | "start_date")) => {
            let latest = app.store.lister().await?.latest_runs().await?;
            let by_state = last.ends_with("state");
            dags.sort_by_cached_key(|dag| {
                let run = latest.get(&dag.dag_id);
                let state = run.map(|(state, _)| state.clone()).filter(|_| by_state);
                let start = run.and_then(|(_, start)| *start).filter(|_| !by_state);
                (state, start, dag.dag_id.clone())
            });
        }
        Some("dag_display_name") => dags.sort_by_key(|dag| (dag.display_name.clone(), dag.dag_id.clone())),
        _ => {}
    }
    if order[0].descending {
        dags.reverse();
    }
    let total = dags.len();
    let dags: Vec<Value> = cut(dags, page).iter().map(response).collect();
    Ok(Json(json!({"dags": dags, "total_entries": total})))
}

/// The DAG of that name.
pub(crate) async fn find(app: &App, dag_id: &DagId) -> ApiResult<DagRecord> {
    let found = app.store.reader().await?.dag(dag_id).await?;
    found.ok_or_else(|| ApiError::not_found(format!("The Dag with ID: `{dag_id}` was not found")))
}

pub(crate) async fn graph(app: &App, dag: &DagRecord) -> ApiResult<Arc<Graph>> {
    let mut db = app.store.reader().await?;
    Ok(app.graphs.get(&mut db, dag.version_id).await?)
}

pub(crate) async fn show(State(app): State<App>, caller: Caller, Path(dag_id): Path<DagId>) -> ApiResult {
    caller.must_be(Role::Viewer)?;
    Ok(Json(response(&find(&app, &dag_id).await?)))
}

/// Adds the numbers of assets to an expression over them.
async fn numbered(app: &App, mut expression: Value) -> ApiResult<Value> {
    fn assets(expression: &mut Value) -> Vec<&mut Map<String, Value>> {
        match expression {
            Value::Object(fields) => fields
                .iter_mut()
                .flat_map(|(key, inner)| match (key.as_str(), inner) {
                    ("asset", Value::Object(asset)) => vec![asset],
                    (_, inner) => assets(inner),
                })
                .collect(),
            Value::Array(items) => items.iter_mut().flat_map(assets).collect(),
            Value::Null | Value::Bool(_) | Value::Number(_) | Value::String(_) => Vec::new(),
        }
    }
    let mut db = app.store.reader().await?;
    for asset in assets(&mut expression) {
        let text = |key: &str| {
            asset
                .get(key)
                .and_then(Value::as_str)
                .unwrap_or_default()
                .to_owned()
        };
        let key = AssetKey {
            name: text("name"),
            uri: text("uri"),
        };
        if let Some(found) = db.asset(&key).await? {
            asset.insert("id".to_owned(), json!(found.id));
        }
    }
    Ok(expression)
}

pub(crate) async fn details(State(app): State<App>, caller: Caller, Path(dag_id): Path<DagId>) -> ApiResult {
    caller.must_be(Role::Viewer)?;
    let dag = find(&app, &dag_id).await?;
    let graph = graph(&app, &dag).await?;
    let mut db = app.store.reader().await?;
    let running = db
        .count_active_runs(&dag_id, &[model::dag_run::DagRunState::Running])
        .await?;
    let version = db.dag_version(dag.version_id).await?;
    let body = graph.document.get("dag").unwrap_or(&Value::Null);
    let field = |key: &str| body.get(key).map_or(Value::Null, decode);
    let mut out = response(&dag);
    let Some(fields) = out.as_object_mut() else {
        return Ok(Json(out));
    };
    let (backfillable, token) = (
        fields.shift_remove("is_backfillable"),
        fields.shift_remove("file_token"),
    );
    let default_args = body.get("default_args").map_or_else(|| json!({}), decode);
    drop(db);
    let expression = graph.dag.asset_condition.as_ref();
    let expression = match expression.map(model::asset::AssetCondition::expression) {
        Some(expression) => numbered(&app, expression).await?,
        None => Value::Null,
    };
    let more = json!({
        "catchup": graph.dag.catchup,
        "dag_run_timeout": graph.dag.dagrun_timeout.map(|timeout| format!("PT{}S", timeout.num_seconds())),
        "asset_expression": expression,
        "doc_md": field("doc_md"),
        "start_date": when(graph.dag.start_date),
        "end_date": when(graph.dag.end_date),
        "is_paused_upon_creation": graph.dag.paused_upon_creation,
        "params": crate::params::shown(body.get("params"), &Value::Null),
        "render_template_as_native_obj": field("render_template_as_native_obj") == json!(true),
        "template_search_path": null,
        "timezone": field("timezone"),
        "last_parsed": rest_format(dag.last_parsed_at),
        "default_args": default_args,
        "rerun_with_latest_version": field("rerun_with_latest_version"),
        "owner_links": body.get("owner_links").map_or_else(|| json!({}), decode),
        "is_favorite": false,
        "active_runs_count": running,
        "is_backfillable": backfillable,
        "file_token": token,
        "concurrency": dag.max_active_tasks,
        "latest_dag_version": version.map(|version| super::meta::version_response(&version, &dag)),
    });
    fields.extend(more.as_object().cloned().unwrap_or_default());
    Ok(Json(out))
}

fn check_mask(query: &Query) -> ApiResult<()> {
    let mask = query.all("update_mask");
    if mask.is_empty() || mask == ["is_paused"] {
        return Ok(());
    }
    Err(ApiError::bad_request(
        "Only `is_paused` field can be updated through the REST API",
    ))
}

fn read_pause(headers: &HeaderMap, bytes: &Bytes) -> ApiResult<bool> {
    let mut body = Body::read(headers, bytes)?;
    let paused = body.boolean("is_paused", None);
    body.finish().map(|()| paused)
}

async fn set_paused(app: &App, dag_id: &DagId, paused: bool) -> ApiResult<()> {
    let now = Utc::now();
    store::transact!(app.store, "pause dag", |tx| tx
        .set_paused(dag_id, paused, now)
        .await)?;
    app.broker.hint(Hint::Dag(dag_id.clone()));
    Ok(())
}

pub(crate) async fn patch(
    State(app): State<App>,
    caller: Caller,
    Path(dag_id): Path<DagId>,
    query: Query,
    headers: HeaderMap,
    bytes: Bytes,
) -> ApiResult {
    caller.must_be(Role::User)?;
    let paused = read_pause(&headers, &bytes)?;
    let known = app.store.reader().await?.dag(&dag_id).await?;
    known.ok_or_else(|| ApiError::not_found(format!("Dag with id: {dag_id} was not found")))?;
    check_mask(&query)?;
    set_paused(&app, &dag_id, paused).await?;
    Ok(Json(response(&find(&app, &dag_id).await?)))
}

pub(crate) async fn patch_many(
    State(app): State<App>,
    caller: Caller,
    mut query: Query,
    headers: HeaderMap,
    bytes: Bytes,
) -> ApiResult {
    caller.must_be(Role::User)?;
    let page = query.page(&app)?;
    let paused = read_pause(&headers, &bytes)?;
    check_mask(&query)?;
    // Without a pattern nothing matches: the real server's way, which keeps a slip from pausing everything.
    let dags = if query.text("dag_id_pattern").is_some() {
        select(&app, &mut query).await?
    } else {
        Vec::new()
    };
    let mut changed = Vec::new();
    for dag in &dags {
        set_paused(&app, &dag.dag_id, paused).await?;
        changed.push(find(&app, &dag.dag_id).await?);
    }
    let total = changed.len();
    let dags: Vec<Value> = cut(changed, page).iter().map(response).collect();
    Ok(Json(json!({"dags": dags, "total_entries": total})))
}

pub(crate) async fn delete(
    State(app): State<App>,
    caller: Caller,
    Path(dag_id): Path<DagId>,
) -> ApiResult<StatusCode> {
    caller.must_be(Role::User)?;
    let mut db = app.store.reader().await?;
    let running = db
        .count_active_runs(&dag_id, &[model::dag_run::DagRunState::Running])
        .await?;
    drop(db);
    if running > 0 {
        return Err(ApiError::conflict(format!(
            "Task instances of dag with id: '{dag_id}' are still running"
        )));
    }
    let deleted = store::transact!(app.store, "delete dag", |tx| tx.delete_dag(&dag_id).await)?;
    if deleted {
        return Ok(StatusCode::NO_CONTENT);
    }
    Err(ApiError::not_found(format!(
        "Dag with id: {dag_id} was not found"
    )))
}
