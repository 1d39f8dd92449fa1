//! Backfills.

use super::access::Caller;
use super::body::Body;
use super::error::{ApiError, ApiResult, problem};
use super::query::{Query, listing, path_number};
use super::reply::Json;
use super::runs::References;
use crate::App;
use crate::backfill::{BackfillError, BackfillRequest, Reprocess, create_backfill, dry_run};
use axum::body::Bytes;
use axum::extract::{Path, State};
use axum::http::HeaderMap;
use broker::Hint;
use chrono::Utc;
use identity::Role;
use model::time::rest_format;
use model::{BackfillId, DagId};
use serde_json::{Value, json};
use store::repo::{BackfillRecord, Condition};

/// `BackfillResponse`
async fn response(app: &App, backfill: &BackfillRecord) -> ApiResult<Value> {
    let conf: Value = backfill
        .conf
        .as_deref()
        .and_then(|text| serde_json::from_str(text).ok())
        .unwrap_or_default();
    let name = References::default().display_name(app, &backfill.dag_id).await?;
    Ok(json!({
        "id": backfill.id, "dag_id": backfill.dag_id, "from_date": rest_format(backfill.from_date),
        "to_date": rest_format(backfill.to_date), "dag_run_conf": conf, "is_paused": backfill.is_paused,
        "reprocess_behavior": backfill.reprocess, "max_active_runs": backfill.max_active_runs,
        "created_at": rest_format(backfill.created_at), "completed_at": backfill.completed_at.map(rest_format),
        "updated_at": rest_format(backfill.updated_at), "dag_display_name": name,
    }))
}

async fn find(app: &App, id: &str) -> ApiResult<BackfillRecord> {
    let id = BackfillId(path_number("backfill_id", id, 0)?);
    let found = app.store.reader().await?.backfill(id).await?;
    found.ok_or_else(|| ApiError::not_found("Backfill not found"))
}

pub(crate) async fn list(State(app): State<App>, caller: Caller, mut query: Query) -> ApiResult {
    caller.must_be(Role::Viewer)?;
    let page = query.page(&app)?;
    let Some(dag_id) = query.text("dag_id").map(DagId::new) else {
        let location = [json!("query"), json!("dag_id")];
        let missing = problem("missing", &location, "Field required", Value::Null);
        return Err(ApiError::invalid(vec![missing]));
    };
    let known = |name: &str| (name == "id").then_some("id");
    let order = query.order(&known, "id", "id")?;
    let conditions = vec![Condition::Is("dag_id", (&dag_id).into())];
    let mut db = app.store.lister().await?;
    let (backfills, total) = db.backfills(&listing(conditions, order, page)).await?;
    drop(db);
    let mut out = Vec::with_capacity(backfills.len());
    for backfill in &backfills {
        out.push(response(&app, backfill).await?);
    }
    Ok(Json(json!({"backfills": out, "total_entries": total})))
}

pub(crate) async fn show(State(app): State<App>, caller: Caller, Path(id): Path<String>) -> ApiResult {
    caller.must_be(Role::Viewer)?;
    let backfill = find(&app, &id).await?;
    response(&app, &backfill).await.map(Json)
}

fn read(headers: &HeaderMap, bytes: &Bytes, user: String) -> ApiResult<BackfillRequest> {
    let mut body = Body::read(headers, bytes)?;
    let dag_id = DagId::new(body.required_text("dag_id"));
    let from = body.required_instant("from_date");
    let to = body.required_instant("to_date");
    let reverse = body.boolean("run_backwards", Some(false));
    let conf = body.has("dag_run_conf").then(|| body.any("dag_run_conf"));
    let reprocess = body.text("reprocess_behavior", 50);
    let max_active_runs = body.integer("max_active_runs", None, false).unwrap_or(10);
    super::clear::take_version_wish(&mut body);
    let reprocess = match reprocess.as_deref().map(str::parse::<Reprocess>) {
        None => Reprocess::None,
        Some(Ok(reprocess)) => reprocess,
        Some(Err(_)) => {
            let word = reprocess.as_deref().unwrap_or_default();
            body.refuse_word("reprocess_behavior", "'failed', 'completed' or 'none'", word);
            Reprocess::None
        }
    };
    body.finish()?;
    Ok(BackfillRequest {
        dag_id,
        from: from.unwrap_or_default(),
        to: to.unwrap_or_default(),
        reverse,
        conf: conf.filter(Value::is_object),
        reprocess,
        max_active_runs: u32::try_from(max_active_runs).unwrap_or(0),
        user: Some(user),
    })
}

fn refused(error: BackfillError) -> ApiError {
    let text = error.to_string();
    match error {
        BackfillError::UnknownDag(_) => ApiError::not_found(text),
        BackfillError::AlreadyRunning(_) => ApiError::conflict(text),
        BackfillError::NotAllowed(_) => ApiError::bad_request(text),
        BackfillError::Invalid(_) => ApiError::invalid_text(text),
        BackfillError::Store(error) => error.into(),
    }
}

pub(crate) async fn create(
    State(app): State<App>,
    caller: Caller,
    headers: HeaderMap,
    bytes: Bytes,
) -> ApiResult {
    caller.must_be(Role::User)?;
    let request = read(&headers, &bytes, caller.name)?;
    let made = create_backfill(&app.store, &app.graphs, &*app.broker, &request)
        .await
        .map_err(refused)?;
    response(&app, &made).await.map(Json)
}

pub(crate) async fn try_out(
    State(app): State<App>,
    caller: Caller,
    headers: HeaderMap,
    bytes: Bytes,
) -> ApiResult {
    caller.must_be(Role::User)?;
    let request = read(&headers, &bytes, caller.name)?;
    let dates = dry_run(&app.store, &app.graphs, &request)
        .await
        .map_err(refused)?;
    let out: Vec<Value> = dates
        .iter()
        .map(|date| {
            let partition = date.partition.as_ref();
            json!({
                "logical_date": date.logical_date().map(rest_format),
                "partition_key": partition.map(|partition| &partition.key),
                "partition_date": partition.and_then(|partition| partition.date).map(rest_format),
            })
        })
        .collect();
    Ok(Json(json!({"backfills": out, "total_entries": dates.len()})))
}

fn completed() -> ApiError {
    ApiError::conflict("Backfill is already completed.")
}

async fn set_paused(app: &App, caller: &Caller, id: &str, paused: bool) -> ApiResult {
    caller.must_be(Role::User)?;
    let backfill = find(app, id).await?;
    let now = Utc::now();
    let open = store::transact!(app.store, "pause backfill", |tx| tx
        .set_backfill_paused(backfill.id, paused, now)
        .await)?;
    if !open {
        return Err(completed());
    }
    app.broker.hint(Hint::Dag(backfill.dag_id));
    let backfill = find(app, id).await?;
    response(app, &backfill).await.map(Json)
}

pub(crate) async fn pause(State(app): State<App>, caller: Caller, Path(id): Path<String>) -> ApiResult {
    set_paused(&app, &caller, &id, true).await
}

pub(crate) async fn unpause(State(app): State<App>, caller: Caller, Path(id): Path<String>) -> ApiResult {
    set_paused(&app, &caller, &id, false).await
}

pub(crate) async fn cancel(State(app): State<App>, caller: Caller, Path(id): Path<String>) -> ApiResult {
    caller.must_be(Role::User)?;
    let backfill = find(&app, &id).await?;
    let now = Utc::now();
    let open = store::transact!(app.store, "cancel backfill", |tx| tx
        .cancel_backfill(backfill.id, now)
        .await)?;
    if !open {
        return Err(completed());
    }
    let backfill = find(&app, &id).await?;
    response(&app, &backfill).await.map(Json)
}
