//! What is kept with an asset.

use super::access::Caller;
use super::assets::{asset_id, find};
use super::body::Body;
use super::error::{ApiError, ApiResult};
use super::query::{Query, cut};
use super::reply::Json;
use crate::App;
use axum::body::Bytes;
use axum::extract::{Path, State};
use axum::http::{HeaderMap, StatusCode};
use chrono::Utc;
use identity::Role;
use model::time::rest_format;
use serde_json::{Value, json};
use store::repo::AssetStateRecord;

fn read(text: &str) -> Value {
    serde_json::from_str(text).unwrap_or_else(|_| text.into())
}

fn response(state: &AssetStateRecord) -> Value {
    json!({
        "key": state.key, "value": read(&state.value), "updated_at": rest_format(state.updated_at),
        "last_updated_by": state.writer.as_deref().map(read),
    })
}

pub(crate) async fn list(
    State(app): State<App>,
    caller: Caller,
    Path(id): Path<String>,
    mut query: Query,
) -> ApiResult {
    caller.must_be(Role::Viewer)?;
    let page = query.page(&app)?;
    let mut db = app.store.reader().await?;
    let asset = find(&mut db, asset_id(&id)?).await?;
    let states = db.asset_states(asset.id).await?;
    let total = states.len();
    let out: Vec<Value> = cut(states, page).iter().map(response).collect();
    Ok(Json(json!({"asset_state_store": out, "total_entries": total})))
}

pub(crate) async fn show(
    State(app): State<App>,
    caller: Caller,
    Path((id, key)): Path<(String, String)>,
) -> ApiResult {
    caller.must_be(Role::Viewer)?;
    let mut db = app.store.reader().await?;
    let asset = find(&mut db, asset_id(&id)?).await?;
    let found = db.asset_state(asset.id, &key).await?;
    found
        .map(|state| Json(response(&state)))
        .ok_or_else(|| ApiError::not_found(format!("Asset state store key '{key}' not found")))
}

pub(crate) async fn set(
    State(app): State<App>,
    caller: Caller,
    Path((id, key)): Path<(String, String)>,
    headers: HeaderMap,
    bytes: Bytes,
) -> ApiResult<StatusCode> {
    caller.must_be(Role::Op)?;
    let mut body = Body::read(&headers, &bytes)?;
    let value = body.any("value");
    if value.is_null() {
        body.refuse_value("value", "Value error, value cannot be null", "null");
    }
    body.finish()?;
    let asset = find(&mut app.store.reader().await?, asset_id(&id)?).await?;
    let writer = json!({"kind": "api", "dag_id": null, "run_id": null, "task_id": null, "map_index": null});
    let (value, writer) = (value.to_string(), writer.to_string());
    store::transact!(app.store, "keep an asset's state", |tx| {
        tx.set_asset_state(asset.id, &key, &value, &writer, Utc::now())
            .await
    })?;
    Ok(StatusCode::NO_CONTENT)
}

pub(crate) async fn delete(
    State(app): State<App>,
    caller: Caller,
    Path((id, key)): Path<(String, String)>,
) -> ApiResult<StatusCode> {
    caller.must_be(Role::Op)?;
    forget(&app, &id, Some(&key)).await
}

pub(crate) async fn clear(
    State(app): State<App>,
    caller: Caller,
    Path(id): Path<String>,
) -> ApiResult<StatusCode> {
    caller.must_be(Role::Op)?;
    forget(&app, &id, None).await
}

async fn forget(app: &App, id: &str, key: Option<&str>) -> ApiResult<StatusCode> {
    let asset = find(&mut app.store.reader().await?, asset_id(id)?).await?;
    store::transact!(app.store, "forget an asset's state", |tx| tx
        .delete_asset_state(asset.id, key)
        .await)?;
    Ok(StatusCode::NO_CONTENT)
}
