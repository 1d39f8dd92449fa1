//! Connections. Passwords go in and never come out.

use super::access::Caller;
use super::body::Body;
use super::error::{ApiError, ApiResult};
use super::query::{Query, cut};
use super::variables::{python_dumps, redact};
use crate::App;
use axum::Json;
use axum::body::Bytes;
use axum::extract::{Path, State};
use axum::http::{HeaderMap, StatusCode};
use identity::Role;
use serde_json::{Value, json};
use store::repo::ConnectionRecord;

const HIDDEN: &str = "***";

fn response(app: &App, connection: &ConnectionRecord) -> Value {
    let extra = connection
        .extra
        .as_ref()
        .map(|text| match serde_json::from_str::<Value>(text) {
            Ok(mut value) => {
                redact(app, &mut value, false);
                python_dumps(&value)
            }
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

fn read(headers: &HeaderMap, bytes: &Bytes) -> ApiResult<ConnectionRecord> {
    let mut body = Body::read(headers, bytes)?;
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
    let record = read(&headers, &bytes)?;
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
    headers: HeaderMap,
    bytes: Bytes,
) -> ApiResult {
    caller.must_be(Role::Op)?;
    let mut record = read(&headers, &bytes)?;
    if record.conn_id != id {
        return Err(ApiError::bad_request(
            "The connection_id in the request body does not match the URL parameter",
        ));
    }
    let old = find(&app, &id).await?;
    // What was shown hidden and sent back stays what it is.
    if record.password.as_deref() == Some(HIDDEN) {
        record.password = old.password;
    }
    store::transact!(app.store, "patch connection", |tx| tx
        .set_connection(&record, &app.cipher)
        .await)?;
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
