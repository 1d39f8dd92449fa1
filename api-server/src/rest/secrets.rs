//! Connections. Passwords go in and never come out.

use super::access::Caller;
use super::body::Body;
use super::bulk::Collection;
use super::error::{ApiError, ApiResult};
use super::query::{Query, cut};
use super::variables::python_dumps;
use crate::App;
use axum::Json;
use axum::body::Bytes;
use axum::extract::{Path, State};
use axum::http::{HeaderMap, StatusCode};
use identity::Role;
use serde_json::{Value, json};
use std::collections::HashSet;
use store::repo::ConnectionRecord;

const HIDDEN: &str = "***";

fn response(app: &App, connection: &ConnectionRecord) -> Value {
    let extra = connection
        .extra
        .as_ref()
        .map(|text| match serde_json::from_str::<Value>(text) {
            Ok(value) => python_dumps(&app.names.redact(&value, None)),
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

fn read(mut body: Body) -> ApiResult<ConnectionRecord> {
    let record = ConnectionRecord {
        conn_id: body.required_text("connection_id"),
        conn_type: body.required_text("conn_type"),
        description: body.text("description", 5000),
        host: body.text("host", 500),
        login: body.text("login", 5000),
        schema: body.text("schema", 500),
        port: body.integer("port", None, false),
        password: body.text("password", 5000),
        extra: body.text("extra", 1 << 20),
    };
    body.text("team_name", 50);
    if let Some(extra) = record.extra.as_deref().filter(|extra| !extra.is_empty())
        && !serde_json::from_str::<Value>(extra).is_ok_and(|value| value.is_object())
    {
        body.refuse("The `extra` field must be a valid JSON object (e.g., {'key': 'value'})");
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
    if app
        .store
        .reader()
        .await?
        .connection(&record.conn_id, &app.cipher)
        .await?
        .is_some()
    {
        return Err(ApiError::duplicate());
    }
    store::transact!(app.store, "create connection", |tx| tx
        .set_connection(&record, &app.cipher)
        .await)?;
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
    let old = find(&app, &id).await?;
    let mask = query.all("update_mask");
    let record = if mask.is_empty() {
        record
    } else {
        masked(record, &old, &mask)
    };
    keep(&app, record, Some(old)).await?;
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

/// Stores it; what was shown hidden and sent back stays what it is.
async fn keep(app: &App, mut record: ConnectionRecord, old: Option<ConnectionRecord>) -> ApiResult<()> {
    if let Some(old) = old.filter(|_| record.password.as_deref() == Some(HIDDEN)) {
        record.password = old.password;
    }
    store::transact!(app.store, "set connection", |tx| tx
        .set_connection(&record, &app.cipher)
        .await)?;
    Ok(())
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

    async fn put(app: &App, entity: ConnectionRecord, mask: &[&str]) -> ApiResult<()> {
        let old = app
            .store
            .reader()
            .await?
            .connection(&entity.conn_id, &app.cipher)
            .await?;
        let entity = match &old {
            Some(old) if !mask.is_empty() => masked(entity, old, mask),
            _ => entity,
        };
        keep(app, entity, old).await
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
