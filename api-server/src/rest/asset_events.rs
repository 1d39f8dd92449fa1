//! Updates of assets, and those that wait for a run.

use super::access::Caller;
use super::assets::{asset_id, extra};
use super::body::Body;
use super::dags::when;
use super::error::{ApiError, ApiResult};
use super::query::{Query, listing};
use super::reply::Json;
use super::runs::{self, References};
use crate::App;
use axum::body::Bytes;
use axum::extract::{Path, State};
use axum::http::{HeaderMap, StatusCode};
use broker::Hint;
use chrono::Utc;
use identity::Role;
use model::time::rest_format;
use model::{AssetId, DagId, RunId};
use serde_json::{Map, Value, json};
use store::Tx;
use store::repo::{AssetEventRecord, AssetEventSource, Condition, NewAssetEvent, QueuedAssetEvent};

/// `AssetEventResponse`
async fn response(app: &App, db: &mut Tx, event: &AssetEventRecord) -> ApiResult<Value> {
    let asset = db.asset_of_event(event).await?;
    let mut created = Vec::new();
    for (run, is_triggering) in db.runs_of_asset_event(event.id).await? {
        created.push(json!({
            "run_id": run.run_id, "dag_id": run.dag_id, "logical_date": when(run.logical_date),
            "start_date": when(run.start_date), "end_date": when(run.end_date), "state": run.state.as_str(),
            "data_interval_start": when(run.data_interval_start), "data_interval_end": when(run.data_interval_end),
            "partition_key": run.partition_key, "triggering": is_triggering,
        }));
    }
    Ok(json!({
        "id": event.id, "asset_id": event.asset_id, "uri": asset.key.uri, "name": asset.key.name, "group": asset.group,
        "extra": extra(app, &event.extra), "source_task_id": event.source_task_id, "source_dag_id": event.source_dag_id,
        "source_run_id": event.source_run_id, "source_map_index": event.source_map_index.0, "created_dagruns": created,
        "timestamp": rest_format(event.created_at), "partition_key": event.partition_key,
    }))
}

async fn responses(app: &App, db: &mut Tx, events: &[AssetEventRecord]) -> ApiResult<Vec<Value>> {
    let mut out = Vec::with_capacity(events.len());
    for event in events {
        out.push(response(app, db, event).await?);
    }
    Ok(out)
}

pub(crate) async fn list(State(app): State<App>, caller: Caller, mut query: Query) -> ApiResult {
    caller.must_be(Role::Viewer)?;
    let page = query.page(&app)?;
    let mut conditions = Vec::new();
    query.range("timestamp", "created_at", &mut conditions);
    query.checked()?;
    for (key, column) in [("asset_id", "asset_id"), ("source_map_index", "source_map_index")] {
        if query.text(key).is_some() {
            let number = query.number(key, 0, i64::MIN)?;
            conditions.push(Condition::Is(column, number.into()));
        }
    }
    for column in ["source_dag_id", "source_task_id", "source_run_id"] {
        if let Some(text) = query.text(column) {
            conditions.push(Condition::Is(column, text.into()));
        }
    }
    let mut named = Vec::new();
    query.pattern("name", "name", &mut named);
    let through = "SELECT id FROM asset WHERE";
    conditions.extend(
        named
            .into_iter()
            .map(|inner| Condition::Through("asset_id", through, Box::new(inner))),
    );
    let known = |name: &str| match name {
        "source_task_id" => Some("source_task_id"),
        "source_dag_id" => Some("source_dag_id"),
        "source_run_id" => Some("source_run_id"),
        "source_map_index" => Some("source_map_index"),
        "timestamp" => Some("created_at"),
        _ => None,
    };
    let order = query.order(&known, "created_at", "id")?;
    let mut db = app.store.lister().await?;
    let (events, total) = db.asset_events(&listing(conditions, order, page)).await?;
    let out = responses(&app, &mut db, &events).await?;
    Ok(Json(json!({"asset_events": out, "total_entries": total})))
}

/// The updates that a run consumed.
pub(crate) async fn of_run(
    State(app): State<App>,
    caller: Caller,
    Path((dag_id, run_id)): Path<(DagId, RunId)>,
) -> ApiResult {
    caller.must_be(Role::Viewer)?;
    let run = runs::find(&app, &dag_id, &run_id).await?;
    let mut db = app.store.reader().await?;
    let events = db.consumed_asset_events(run.key).await?;
    let out = responses(&app, &mut db, &events).await?;
    let total = out.len();
    Ok(Json(json!({"asset_events": out, "total_entries": total})))
}

pub(crate) async fn create(
    State(app): State<App>,
    caller: Caller,
    headers: HeaderMap,
    bytes: Bytes,
) -> ApiResult {
    caller.must_be(Role::Op)?;
    let mut body = Body::read(&headers, &bytes)?;
    let id = body.integer("asset_id", None, true);
    let said = body.object("extra");
    let partition_key = body.text("partition_key", store::limits::PARTITION_KEY.most);
    body.object("access_control");
    if partition_key.as_ref().is_some_and(|key| key.trim().is_empty()) {
        body.refuse_value(
            "partition_key",
            "String should match pattern '\\S'",
            partition_key.as_deref().unwrap_or_default(),
        );
    }
    body.finish()?;
    let id = AssetId(id.unwrap_or_default());
    let mut said: Map<String, Value> = said.as_object().cloned().unwrap_or_default();
    said.insert("from_rest_api".to_owned(), true.into());
    let now = Utc::now();
    let made = store::transact!(app.store, "asset event", |tx| {
        if tx.asset_by_id(id).await?.is_none() {
            return Ok(None);
        }
        let event = NewAssetEvent {
            asset: id,
            source: AssetEventSource::Outside,
            extra: &said,
            aliases: &[],
            partition_key: partition_key.as_deref(),
            partition_date: None,
        };
        tx.add_asset_event(&event, now).await.map(Some)
    })?;
    let made = made.ok_or_else(|| ApiError::not_found(format!("Asset with ID: `{id}` was not found")))?;
    app.broker.hint(Hint::Timetables);
    let mut db = app.store.reader().await?;
    let wanted = listing(vec![Condition::Is("id", made.into())], Vec::new(), (1, 0));
    let event = db.asset_events(&wanted).await?.0.pop();
    let event = event.ok_or_else(|| ApiError::not_found(format!("Asset with ID: `{id}` was not found")))?;
    response(&app, &mut db, &event).await.map(Json)
}

async fn queued(app: &App, events: Vec<QueuedAssetEvent>) -> ApiResult<Vec<Value>> {
    let mut references = References::default();
    let mut out = Vec::with_capacity(events.len());
    for event in events {
        out.push(json!({
            "dag_id": event.dag_id, "asset_id": event.asset_id, "created_at": rest_format(event.created_at),
            "dag_display_name": references.display_name(app, &event.dag_id).await?,
        }));
    }
    Ok(out)
}

async fn queued_page(
    app: &App,
    query: &mut Query,
    dag_id: Option<&DagId>,
    asset: Option<AssetId>,
) -> ApiResult {
    let before = query.instant("before");
    query.checked()?;
    let events = app
        .store
        .reader()
        .await?
        .queued_asset_events(dag_id, asset, before)
        .await?;
    let out = queued(app, events).await?;
    let total = out.len();
    Ok(Json(json!({"queued_events": out, "total_entries": total})))
}

pub(crate) async fn queued_of_asset(
    State(app): State<App>,
    caller: Caller,
    Path(id): Path<String>,
    mut query: Query,
) -> ApiResult {
    caller.must_be(Role::Viewer)?;
    queued_page(&app, &mut query, None, Some(asset_id(&id)?)).await
}

pub(crate) async fn queued_of_dag(
    State(app): State<App>,
    caller: Caller,
    Path(dag_id): Path<DagId>,
    mut query: Query,
) -> ApiResult {
    caller.must_be(Role::Viewer)?;
    queued_page(&app, &mut query, Some(&dag_id), None).await
}

pub(crate) async fn queued_one(
    State(app): State<App>,
    caller: Caller,
    Path((dag_id, id)): Path<(DagId, String)>,
    mut query: Query,
) -> ApiResult {
    caller.must_be(Role::Viewer)?;
    let id = asset_id(&id)?;
    let before = query.instant("before");
    query.checked()?;
    let events = app
        .store
        .reader()
        .await?
        .queued_asset_events(Some(&dag_id), Some(id), before)
        .await?;
    let found = queued(&app, events).await?.pop();
    found.map(Json).ok_or_else(|| {
        ApiError::not_found(format!(
            "Queued event with dag_id: `{dag_id}` and asset_id: `{id}` was not found"
        ))
    })
}

async fn drop_queued(
    app: &App,
    query: &mut Query,
    dag_id: Option<&DagId>,
    asset: Option<AssetId>,
    missing: String,
) -> ApiResult<StatusCode> {
    let before = query.instant("before");
    query.checked()?;
    let dropped = store::transact!(app.store, "drop queued asset events", |tx| tx
        .drop_queued_asset_events(dag_id, asset, before)
        .await)?;
    if dropped == 0 {
        return Err(ApiError::not_found(missing));
    }
    Ok(StatusCode::NO_CONTENT)
}

pub(crate) async fn drop_of_asset(
    State(app): State<App>,
    caller: Caller,
    Path(id): Path<String>,
    mut query: Query,
) -> ApiResult<StatusCode> {
    caller.must_be(Role::Op)?;
    let id = asset_id(&id)?;
    let missing = format!("Queue event with asset_id: `{id}` was not found");
    drop_queued(&app, &mut query, None, Some(id), missing).await
}

pub(crate) async fn drop_of_dag(
    State(app): State<App>,
    caller: Caller,
    Path(dag_id): Path<DagId>,
    mut query: Query,
) -> ApiResult<StatusCode> {
    caller.must_be(Role::Op)?;
    let missing = format!("Queue event with dag_id: `{dag_id}` was not found");
    drop_queued(&app, &mut query, Some(&dag_id), None, missing).await
}

pub(crate) async fn drop_one(
    State(app): State<App>,
    caller: Caller,
    Path((dag_id, id)): Path<(DagId, String)>,
    mut query: Query,
) -> ApiResult<StatusCode> {
    caller.must_be(Role::Op)?;
    let id = asset_id(&id)?;
    let missing = format!("Queued event with dag_id: `{dag_id}` and asset_id: `{id}` was not found");
    drop_queued(&app, &mut query, Some(&dag_id), Some(id), missing).await
}
