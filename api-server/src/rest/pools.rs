//! Pools.

use super::access::Caller;
use super::body::Body;
use super::bulk::Collection;
use super::error::{ApiError, ApiResult};
use super::query::{Query, cut};
use super::reply::Json;
use crate::App;
use axum::body::Bytes;
use axum::extract::{Path, State};
use axum::http::{HeaderMap, StatusCode};
use identity::Role;
use model::PoolName;
use serde_json::{Value, json};
use std::collections::HashSet;
use store::repo::{PoolRecord, PoolSlots};
use store::{StoreError, limits};

const DEFAULT: &str = "default_pool";

fn response(pool: &PoolRecord, used: PoolSlots) -> Value {
    let occupied = used.running + used.queued + if pool.include_deferred { used.deferred } else { 0 };
    json!({
        "name": pool.name, "slots": pool.slots, "description": pool.description, "include_deferred": pool.include_deferred,
        "occupied_slots": occupied, "running_slots": used.running, "queued_slots": used.queued,
        "scheduled_slots": used.scheduled, "open_slots": if pool.slots == -1 { -1 } else { pool.slots - occupied },
        "deferred_slots": used.deferred, "team_name": null,
    })
}

fn missing(name: &PoolName) -> ApiError {
    ApiError::not_found(format!("The Pool with name: `{name}` was not found"))
}

async fn find(app: &App, name: &PoolName) -> ApiResult<(PoolRecord, Value)> {
    let mut db = app.store.reader().await?;
    let pool = db
        .pools()
        .await?
        .into_iter()
        .find(|pool| pool.name == *name)
        .ok_or_else(|| missing(name))?;
    let used = db.pool_slots().await?.get(name).copied().unwrap_or_default();
    let shown = response(&pool, used);
    Ok((pool, shown))
}

pub(crate) async fn list(State(app): State<App>, caller: Caller, mut query: Query) -> ApiResult {
    caller.must_be(Role::Viewer)?;
    let page = query.page(&app)?;
    let known = |name: &str| matches!(name, "id" | "pool" | "name").then_some("id");
    let order = query.order(&known, "id", "id")?;
    let mut db = app.store.reader().await?;
    let mut pools = db.pools().await?;
    let used = db.pool_slots().await?;
    query.retain("pool_name", &mut pools, |pool| pool.name.as_str());
    if order[0].descending {
        pools.reverse();
    }
    let total = pools.len();
    let pools: Vec<Value> = cut(pools, page)
        .iter()
        .map(|pool| response(pool, used.get(&pool.name).copied().unwrap_or_default()))
        .collect();
    Ok(Json(json!({"pools": pools, "total_entries": total})))
}

pub(crate) async fn show(State(app): State<App>, caller: Caller, Path(name): Path<PoolName>) -> ApiResult {
    caller.must_be(Role::Viewer)?;
    find(&app, &name).await.map(|(_, shown)| Json(shown))
}

/// A pool as a request gives it.
pub(crate) struct PoolEntity {
    name: PoolName,
    slots: i64,
    description: Option<String>,
    include_deferred: bool,
}

impl PoolEntity {
    fn read(mut body: Body) -> ApiResult<Self> {
        let key = if body.has("pool") { "pool" } else { "name" };
        let name = body.required_text_within(key, limits::POOL.most);
        let slots = body.integer("slots", Some(-1), true).unwrap_or_default();
        let description = body.text("description", limits::PROSE);
        let include_deferred = body.boolean("include_deferred", Some(false));
        body.text("team_name", 50);
        body.finish()?;
        Ok(Self {
            name: PoolName::new(name),
            slots,
            description,
            include_deferred,
        })
    }

    async fn create(&self, app: &App) -> Result<(), StoreError> {
        store::transact!(app.store, "create pool", |tx| tx
            .create_pool(
                &self.name,
                self.slots,
                self.description.as_deref(),
                self.include_deferred,
            )
            .await)
    }
}

pub(crate) async fn create(
    State(app): State<App>,
    caller: Caller,
    headers: HeaderMap,
    bytes: Bytes,
) -> ApiResult<(StatusCode, Json<Value>)> {
    caller.must_be(Role::Op)?;
    let entity = PoolEntity::read(Body::read(&headers, &bytes)?)?;
    entity.create(&app).await?;
    Ok((StatusCode::CREATED, Json(find(&app, &entity.name).await?.1)))
}

/// Pools in bulk.
struct Pools;

impl Collection for Pools {
    const NAMES: &'static str = "pools with these pool names";
    type Entity = PoolEntity;

    fn read(body: Body) -> ApiResult<PoolEntity> {
        PoolEntity::read(body)
    }

    fn key(entity: &PoolEntity) -> &str {
        entity.name.as_str()
    }

    async fn existing(app: &App) -> ApiResult<HashSet<String>> {
        let pools = app.store.reader().await?.pools().await?;
        Ok(pools.into_iter().map(|pool| pool.name.to_string()).collect())
    }

    async fn create(app: &App, entity: &PoolEntity) -> Result<(), StoreError> {
        entity.create(app).await
    }

    async fn put(app: &App, entity: PoolEntity, mask: &[&str]) -> ApiResult<()> {
        let masked = |key: &str| mask.is_empty() || mask.contains(&key);
        store::transact!(app.store, "put pool", |tx| {
            let Some(old) = tx.lock_pool(&entity.name).await? else {
                let description = entity.description.as_deref();
                return tx
                    .create_pool(&entity.name, entity.slots, description, entity.include_deferred)
                    .await;
            };
            let new = PoolRecord {
                slots: if masked("slots") { entity.slots } else { old.slots },
                description: if masked("description") {
                    entity.description.clone()
                } else {
                    old.description.clone()
                },
                include_deferred: if masked("include_deferred") {
                    entity.include_deferred
                } else {
                    old.include_deferred
                },
                ..old
            };
            tx.update_pool(&entity.name, &new).await.map(|_| ())
        })?;
        Ok(())
    }

    async fn remove(app: &App, key: &str) -> ApiResult<()> {
        if key == DEFAULT {
            return Err(ApiError::bad_request("Default Pool can't be deleted"));
        }
        let name = PoolName::new(key);
        store::transact!(app.store, "delete pool", |tx| tx.delete_pool(&name).await)?;
        Ok(())
    }
}

pub(crate) async fn bulk(
    State(app): State<App>,
    caller: Caller,
    headers: HeaderMap,
    bytes: Bytes,
) -> ApiResult {
    caller.must_be(Role::Op)?;
    super::bulk::run::<Pools>(&app, &headers, &bytes).await
}

pub(crate) async fn patch(
    State(app): State<App>,
    caller: Caller,
    Path(name): Path<PoolName>,
    query: Query,
    headers: HeaderMap,
    bytes: Bytes,
) -> ApiResult {
    caller.must_be(Role::Op)?;
    let mut body = Body::read(&headers, &bytes)?;
    let present = ["pool", "slots", "include_deferred"]
        .map(|key| (key, body.has(key) || (key == "pool" && body.has("name"))));
    let named = body
        .text("pool", limits::POOL.most)
        .or_else(|| body.text("name", limits::POOL.most));
    let slots = body.integer("slots", Some(-1), false);
    let (has_description, description) = (body.has("description"), body.text("description", limits::PROSE));
    let has_deferred = body.has("include_deferred");
    let include_deferred = body.boolean("include_deferred", Some(false));
    body.text("team_name", 50);
    body.finish()?;
    if named.as_ref().is_some_and(|named| named != name.as_str()) {
        return Err(ApiError::bad_request(
            "Invalid body, pool name from request body doesn't match uri parameter",
        ));
    }
    find(&app, &name).await?;
    let mask = query.all("update_mask");
    let is_default = name.as_str() == DEFAULT;
    if is_default
        && (mask.is_empty()
            || mask
                .iter()
                .any(|key| !matches!(*key, "slots" | "include_deferred")))
    {
        return Err(ApiError::bad_request(
            "Only slots and included_deferred can be modified on Default Pool",
        ));
    }
    let absent: Vec<Value> = present
        .iter()
        .filter(|(_, present)| !present && !is_default)
        .map(|(key, _)| {
            json!({"type": "missing", "loc": [key], "msg": "Field required",
                   "input": serde_json::from_slice::<Value>(&bytes).unwrap_or_default(),
                   "url": "https://errors.pydantic.dev/2.14/v/missing"})
        })
        .collect();
    if !absent.is_empty() {
        return Err(ApiError::invalid(absent));
    }
    let masked = |key: &str| mask.is_empty() || mask.contains(&key);
    let found = store::transact!(app.store, "patch pool", |tx| {
        let Some(old) = tx.lock_pool(&name).await? else {
            return Ok(false);
        };
        let new = PoolRecord {
            slots: slots.filter(|_| masked("slots")).unwrap_or(old.slots),
            description: if has_description && masked("description") {
                description.clone()
            } else {
                old.description
            },
            include_deferred: if has_deferred && masked("include_deferred") {
                include_deferred
            } else {
                old.include_deferred
            },
            ..old
        };
        tx.update_pool(&name, &new).await
    })?;
    if !found {
        return Err(missing(&name));
    }
    find(&app, &name).await.map(|(_, shown)| Json(shown))
}

pub(crate) async fn delete(
    State(app): State<App>,
    caller: Caller,
    Path(name): Path<PoolName>,
) -> ApiResult<StatusCode> {
    caller.must_be(Role::Op)?;
    if name.as_str() == DEFAULT {
        return Err(ApiError::bad_request("Default Pool can't be deleted"));
    }
    let deleted = store::transact!(app.store, "delete pool", |tx| tx.delete_pool(&name).await)?;
    if deleted {
        Ok(StatusCode::NO_CONTENT)
    } else {
        Err(missing(&name))
    }
}
