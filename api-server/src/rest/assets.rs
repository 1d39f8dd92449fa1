//! Assets and aliases; materializing an asset.

use super::access::Caller;
use super::body::Body;
use super::error::{ApiError, ApiResult};
use super::query::{Query, listing, path_number};
use super::reply::Json;
use super::runs::{self, References, TriggerBody};
use crate::App;
use crate::trigger::trigger_run;
use axum::body::Bytes;
use axum::extract::{Path, State};
use axum::http::HeaderMap;
use identity::Role;
use model::AssetId;
use model::dag_run::DagRunType;
use model::time::rest_format;
use serde_json::{Value, json};
use store::Tx;
use store::repo::{AssetAliasRecord, AssetRecord, AssetReference, AssetUse, Condition, Listing, Order};

/// JSON as it is shown to clients: secrets within are hidden.
pub(super) fn extra(app: &App, text: &str) -> Value {
    let value: Value = serde_json::from_str(text).unwrap_or_else(|_| json!({}));
    app.names.redact(&value, None)
}

fn alias_response(alias: &AssetAliasRecord) -> Value {
    json!({"id": alias.id, "name": alias.name, "group": alias.group})
}

fn reference(reference: &AssetReference, of_task: bool) -> Value {
    let mut out = json!({"dag_id": reference.dag_id});
    if of_task {
        out["task_id"] = reference.task_id.as_str().into();
    }
    out["created_at"] = rest_format(reference.created_at).into();
    out["updated_at"] = rest_format(reference.updated_at).into();
    out
}

/// `AssetResponse`
async fn response(app: &App, db: &mut Tx, asset: &AssetRecord) -> ApiResult<Value> {
    let mut users = Vec::new();
    for (kind, of_task) in [
        (AssetUse::Schedule, false),
        (AssetUse::Outlet, true),
        (AssetUse::Inlet, true),
    ] {
        let found = db.asset_references(asset.id, kind).await?;
        users.push(found.iter().map(|it| reference(it, of_task)).collect::<Value>());
    }
    let [scheduled, producing, consuming] = users.try_into().unwrap_or_default();
    let aliases = db.aliases_of_asset(asset.id).await?;
    let watchers = db.watchers_of_asset(asset.id).await?;
    let watchers: Vec<Value> = watchers
        .into_iter()
        .map(|(name, id, at)| json!({"name": name, "trigger_id": id, "created_date": rest_format(at)}))
        .collect();
    let newest = Listing {
        conditions: vec![Condition::Is("asset_id", asset.id.into())],
        order: ["created_at", "id"]
            .map(|column| Order {
                column,
                descending: true,
            })
            .into(),
        limit: 1,
        ..Listing::default()
    };
    let last = db.asset_events(&newest).await?.0.pop();
    Ok(json!({
        "id": asset.id, "name": asset.key.name, "uri": asset.key.uri, "group": asset.group,
        "extra": extra(app, &asset.extra),
        "created_at": rest_format(asset.created_at), "updated_at": rest_format(asset.updated_at),
        "scheduled_dags": scheduled, "producing_tasks": producing, "consuming_tasks": consuming,
        "aliases": aliases.iter().map(alias_response).collect::<Value>(),
        "watchers": watchers,
        "last_asset_event": {
            "id": last.as_ref().map(|event| event.id),
            "timestamp": last.as_ref().map(|event| rest_format(event.created_at)),
        },
    }))
}

/// An asset's number in a path.
pub(super) fn asset_id(text: &str) -> ApiResult<AssetId> {
    path_number("asset_id", text, i64::MIN).map(AssetId)
}

pub(super) async fn find(db: &mut Tx, id: AssetId) -> ApiResult<AssetRecord> {
    let found = db.asset_by_id(id).await?;
    found.ok_or_else(|| ApiError::not_found(format!("The Asset with ID: `{id}` was not found")))
}

pub(crate) async fn list(State(app): State<App>, caller: Caller, mut query: Query) -> ApiResult {
    caller.must_be(Role::Viewer)?;
    let page = query.page(&app)?;
    let only_active = query.boolean("only_active").unwrap_or(true);
    query.checked()?;
    let mut conditions = Vec::new();
    if only_active {
        conditions.push(Condition::Is("is_active", 1_i64.into()));
    }
    query.pattern("name", "name", &mut conditions);
    query.pattern("uri", "uri", &mut conditions);
    let mut of_dags = Vec::new();
    query.one_of("dag_ids", "dag_id", &mut of_dags);
    let through = "SELECT target FROM asset_reference WHERE kind IN ('schedule', 'inlet', 'outlet') AND";
    conditions.extend(
        of_dags
            .into_iter()
            .map(|inner| Condition::Through("id", through, Box::new(inner))),
    );
    let known = |name: &str| match name {
        "id" => Some("id"),
        "name" => Some("name"),
        "uri" => Some("uri"),
        "created_at" => Some("created_at"),
        "updated_at" => Some("updated_at"),
        _ => None,
    };
    let order = query.order(&known, "id", "id")?;
    let mut db = app.store.lister().await?;
    let (assets, total) = db.assets(&listing(conditions, order, page)).await?;
    let mut out = Vec::with_capacity(assets.len());
    for asset in &assets {
        out.push(response(&app, &mut db, asset).await?);
    }
    Ok(Json(json!({"assets": out, "total_entries": total})))
}

pub(crate) async fn show(State(app): State<App>, caller: Caller, Path(id): Path<String>) -> ApiResult {
    caller.must_be(Role::Viewer)?;
    let id = asset_id(&id)?;
    let mut db = app.store.reader().await?;
    let asset = find(&mut db, id).await?;
    response(&app, &mut db, &asset).await.map(Json)
}

pub(crate) async fn aliases(State(app): State<App>, caller: Caller, mut query: Query) -> ApiResult {
    caller.must_be(Role::Viewer)?;
    let page = query.page(&app)?;
    let mut conditions = Vec::new();
    query.pattern("name", "name", &mut conditions);
    let known = |name: &str| match name {
        "id" => Some("id"),
        "name" => Some("name"),
        _ => None,
    };
    let order = query.order(&known, "id", "id")?;
    let mut db = app.store.lister().await?;
    let (aliases, total) = db.asset_aliases(&listing(conditions, order, page)).await?;
    let out: Vec<Value> = aliases.iter().map(alias_response).collect();
    Ok(Json(json!({"asset_aliases": out, "total_entries": total})))
}

pub(crate) async fn alias(State(app): State<App>, caller: Caller, Path(id): Path<String>) -> ApiResult {
    caller.must_be(Role::Viewer)?;
    let id = path_number("asset_alias_id", &id, i64::MIN)?;
    let wanted = listing(vec![Condition::Is("id", id.into())], Vec::new(), (1, 0));
    let found = app.store.lister().await?.asset_aliases(&wanted).await?.0.pop();
    found
        .map(|alias| Json(alias_response(&alias)))
        .ok_or_else(|| ApiError::not_found(format!("The Asset Alias with ID: `{id}` was not found")))
}

/// Triggers the one DAG that updates an asset.
pub(crate) async fn materialize(
    State(app): State<App>,
    caller: Caller,
    Path(id): Path<String>,
    headers: HeaderMap,
    bytes: Bytes,
) -> ApiResult {
    caller.must_be(Role::Op)?;
    let id = asset_id(&id)?;
    let wish = if bytes.is_empty() {
        TriggerBody::default()
    } else {
        let mut body = Body::read(&headers, &bytes)?;
        let wish = TriggerBody::read(&mut body, false);
        body.finish()?;
        wish
    };
    let mut db = app.store.reader().await?;
    let mut dags: Vec<_> = db
        .asset_references(id, AssetUse::Outlet)
        .await?
        .into_iter()
        .map(|it| it.dag_id)
        .collect();
    drop(db);
    dags.dedup();
    let dag_id = match dags.as_slice() {
        [] => {
            return Err(ApiError::not_found(format!(
                "No Dag materializes asset with ID: {id}"
            )));
        }
        [dag_id] => dag_id.clone(),
        _ => {
            return Err(ApiError::conflict(format!(
                "More than one Dag materializes asset with ID: {id}"
            )));
        }
    };
    let request = wish.request(dag_id, DagRunType::AssetMaterialization, "rest_api", caller.name);
    let run = trigger_run(&app.store, &app.graphs, &*app.broker, &request)
        .await
        .map_err(runs::refused)?;
    Ok(Json(
        runs::response(&app, &run, &mut References::default()).await?,
    ))
}
