//! Connections. Passwords go in and never come out.

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
use model::json;
use serde_json::{Value, json};
use std::collections::HashSet;
use store::repo::ConnectionRecord;
use store::{StoreError, limits};

const HIDDEN: &str = "***";
/// Characters of a connection's id.
const CONNECTION_ID: usize = 200;

fn response(app: &App, connection: &ConnectionRecord) -> Value {
    let extra = connection.extra.as_ref().map(|text| match json::read(text) {
        Ok(value) => json::dumps(&app.names.redact(&value, None)),
        Err(_) if text.is_empty() => String::new(),
        Err(_) => HIDDEN.to_owned(),
    });
    json!({
        "connection_id": connection.conn_id, "conn_type": connection.conn_type, "description": connection.description,
        "host": connection.host, "login": connection.login, "schema": connection.schema, "port": connection.port,
        "password": connection.password.as_ref().map(|_| HIDDEN), "extra": extra, "team_name": null,
    })
}

fn missing(id: &str) -> ApiError {
    ApiError::not_found(format!("The Connection with connection_id: `{id}` was not found"))
}

async fn find(app: &App, id: &str) -> ApiResult<ConnectionRecord> {
    app.store
        .reader()
        .await?
        .connection(id, &app.cipher)
        .await?
        .ok_or_else(|| missing(id))
}

pub(crate) async fn list(State(app): State<App>, caller: Caller, mut query: Query) -> ApiResult {
    caller.must_be(Role::Op)?;
    let page = query.page(&app)?;
    let known = |name: &str| {
        matches!(
            name,
            "conn_id" | "connection_id" | "conn_type" | "description" | "host" | "port" | "id" | "team_name"
        )
        .then_some("conn_id")
    };
    let order = query.order(&known, "conn_id", "conn_id")?;
    let mut connections = app.store.reader().await?.connections(&app.cipher).await?;
    query.retain("connection_id", &mut connections, |connection| {
        connection.conn_id.as_str()
    });
    if order[0].descending {
        connections.reverse();
    }
    let total = connections.len();
    let connections: Vec<Value> = cut(connections, page)
        .iter()
        .map(|connection| response(&app, connection))
        .collect();
    Ok(Json(json!({"connections": connections, "total_entries": total})))
}

pub(crate) async fn show(State(app): State<App>, caller: Caller, Path(id): Path<String>) -> ApiResult {
    caller.must_be(Role::Op)?;
    Ok(Json(response(&app, &find(&app, &id).await?)))
}

/// Why a text is no JSON object.
fn wrong_extra(extra: &str) -> Option<String> {
    let text = "The `extra` field must be a valid JSON object (e.g., {'key': 'value'})";
    match json::read(extra) {
        Ok(Value::Object(_)) => None,
        Ok(_) => Some(text.to_owned()),
        Err(_) => Some(format!("{text}, but encountered non-JSON in `extra` field")),
    }
}

fn read(mut body: Body) -> ApiResult<ConnectionRecord> {
    let mut record = ConnectionRecord {
        conn_id: body.required_text_within("connection_id", CONNECTION_ID),
        conn_type: body.required_text_within("conn_type", limits::CONNECTION_TYPE.most),
        description: body.text("description", limits::PROSE),
        host: body.text("host", 500),
        login: body.text("login", limits::PROSE),
        schema: body.text("schema", 500),
        port: body.integer("port", None, false),
        password: body.text("password", limits::PROSE),
        extra: body.text("extra", 1 << 20),
    };
    body.text("team_name", 50);
    match record.extra.as_deref() {
        None => {}
        Some("") => record.extra = Some("{}".to_owned()),
        Some(extra) => {
            if let Some(why) = wrong_extra(extra) {
                body.refuse_value("extra", &why, extra);
            }
        }
    }
    body.finish()?;
    let valid = |c: char| c.is_alphanumeric() || matches!(c, '_' | '.' | '-');
    if record.conn_id.is_empty() || !record.conn_id.chars().all(valid) {
        let location = [json!("body"), json!("connection_id")];
        let pattern = r"^[\w.-]+$";
        return Err(ApiError::invalid(vec![super::error::problem_with(
            "string_pattern_mismatch",
            &location,
            &format!("String should match pattern '{pattern}'"),
            json!(record.conn_id),
            json!({"pattern": pattern}),
        )]));
    }
    Ok(record)
}

pub(crate) async fn create(
    State(app): State<App>,
    caller: Caller,
    headers: HeaderMap,
    bytes: Bytes,
) -> ApiResult<(StatusCode, Json<Value>)> {
    caller.must_be(Role::Op)?;
    let record = read(Body::read(&headers, &bytes)?)?;
    create_one(&app, &record).await?;
    Ok((
        StatusCode::CREATED,
        Json(response(&app, &find(&app, &record.conn_id).await?)),
    ))
}

pub(crate) async fn patch(
    State(app): State<App>,
    caller: Caller,
    Path(id): Path<String>,
    query: Query,
    headers: HeaderMap,
    bytes: Bytes,
) -> ApiResult {
    caller.must_be(Role::Op)?;
    let record = read(Body::read(&headers, &bytes)?)?;
    if record.conn_id != id {
        return Err(ApiError::bad_request(
            "The connection_id in the request body does not match the URL parameter",
        ));
    }
    if !keep(&app, &record, &query.all("update_mask"), true).await? {
        return Err(missing(&id));
    }
    Ok(Json(response(&app, &find(&app, &id).await?)))
}

pub(crate) async fn delete(
    State(app): State<App>,
    caller: Caller,
    Path(id): Path<String>,
) -> ApiResult<StatusCode> {
    caller.must_be(Role::Op)?;
    let deleted = store::transact!(app.store, "delete connection", |tx| tx
        .delete_connection(&id)
        .await)?;
    if deleted {
        Ok(StatusCode::NO_CONTENT)
    } else {
        Err(missing(&id))
    }
}

async fn create_one(app: &App, record: &ConnectionRecord) -> Result<(), StoreError> {
    store::transact!(app.store, "create connection", |tx| tx
        .create_connection(record, &app.cipher)
        .await)
}

/// Stores the fields that the mask names, all of them without a mask; what was shown hidden and sent back stays what it is.
/// Returns `false` if there is no old one and there must be.
async fn keep(app: &App, record: &ConnectionRecord, mask: &[&str], must_exist: bool) -> ApiResult<bool> {
    let found = store::transact!(app.store, "set connection", |tx| {
        let old = tx.lock_connection(&record.conn_id, &app.cipher).await?;
        let mut new = match &old {
            None if must_exist => return Ok(false),
            Some(old) if !mask.is_empty() => masked(record.clone(), old, mask),
            None | Some(_) => record.clone(),
        };
        if let Some(old) = old.filter(|_| new.password.as_deref() == Some(HIDDEN)) {
            new.password = old.password;
        }
        tx.set_connection(&new, &app.cipher).await?;
        Ok(true)
    })?;
    Ok(found)
}

/// Connections in bulk.
struct Connections;

impl Collection for Connections {
    const NAMES: &'static str = "connections with these connection_ids";
    type Entity = ConnectionRecord;

    fn read(body: Body) -> ApiResult<ConnectionRecord> {
        read(body)
    }

    fn key(entity: &ConnectionRecord) -> &str {
        &entity.conn_id
    }

    async fn existing(app: &App) -> ApiResult<HashSet<String>> {
        let connections = app.store.reader().await?.connections(&app.cipher).await?;
        Ok(connections
            .into_iter()
            .map(|connection| connection.conn_id)
            .collect())
    }

    async fn create(app: &App, entity: &ConnectionRecord) -> Result<(), StoreError> {
        create_one(app, entity).await
    }

    async fn put(app: &App, entity: ConnectionRecord, mask: &[&str]) -> ApiResult<()> {
        keep(app, &entity, mask, false).await.map(|_| ())
    }

    async fn remove(app: &App, key: &str) -> ApiResult<()> {
        store::transact!(app.store, "delete connection", |tx| tx
            .delete_connection(key)
            .await)?;
        Ok(())
    }
}

/// The old connection with the fields that the mask names from the new one.
fn masked(new: ConnectionRecord, old: &ConnectionRecord, mask: &[&str]) -> ConnectionRecord {
    let named = |key: &str| mask.contains(&key);
    let pick = |key: &str, new: Option<String>, old: &Option<String>| {
        if named(key) { new } else { old.clone() }
    };
    ConnectionRecord {
        conn_id: new.conn_id,
        conn_type: if named("conn_type") {
            new.conn_type
        } else {
            old.conn_type.clone()
        },
        description: pick("description", new.description, &old.description),
        host: pick("host", new.host, &old.host),
        login: pick("login", new.login, &old.login),
        schema: pick("schema", new.schema, &old.schema),
        port: if named("port") { new.port } else { old.port },
        password: pick("password", new.password, &old.password),
        extra: pick("extra", new.extra, &old.extra),
    }
}

pub(crate) async fn bulk(
    State(app): State<App>,
    caller: Caller,
    headers: HeaderMap,
    bytes: Bytes,
) -> ApiResult {
    caller.must_be(Role::Op)?;
    super::bulk::run::<Connections>(&app, &headers, &bytes).await
}
