//! Variables.

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
use model::json::{Text, dumps, read, write_pretty};
use serde_json::{Value, json};
use std::collections::HashSet;
use store::repo::VariableRecord;
use store::{StoreError, limits};

fn response(app: &App, variable: &VariableRecord) -> Value {
    let value = match read(&variable.value) {
        Ok(value) => dumps(&app.names.redact(&value, Some(&variable.key))),
        Err(_) if app.names.is_sensitive(&variable.key) => "***".to_owned(),
        Err(_) => variable.value.clone(),
    };
    json!({
        "key": variable.key, "value": value, "description": variable.description, "is_encrypted": variable.is_encrypted,
        "team_name": null,
    })
}

fn missing(key: &str) -> ApiError {
    ApiError::not_found(format!("The Variable with key: `{key}` was not found"))
}

pub(crate) async fn list(State(app): State<App>, caller: Caller, mut query: Query) -> ApiResult {
    caller.must_be(Role::Op)?;
    let page = query.page(&app)?;
    let known = |name: &str| {
        matches!(
            name,
            "key" | "id" | "_val" | "description" | "is_encrypted" | "team_name"
        )
        .then_some("var_key")
    };
    let order = query.order(&known, "var_key", "var_key")?;
    let mut variables = app.store.reader().await?.variables(&app.cipher).await?;
    query.retain("variable_key", &mut variables, |variable| variable.key.as_str());
    if order[0].descending {
        variables.reverse();
    }
    let total = variables.len();
    let variables: Vec<Value> = cut(variables, page)
        .iter()
        .map(|variable| response(&app, variable))
        .collect();
    Ok(Json(json!({"variables": variables, "total_entries": total})))
}

async fn find(app: &App, key: &str) -> ApiResult<VariableRecord> {
    app.store
        .reader()
        .await?
        .variable(key, &app.cipher)
        .await?
        .ok_or_else(|| missing(key))
}

pub(crate) async fn show(State(app): State<App>, caller: Caller, Path(key): Path<String>) -> ApiResult {
    caller.must_be(Role::Op)?;
    Ok(Json(response(&app, &find(&app, &key).await?)))
}

/// A text as it is; anything else as JSON.
fn stored(value: &Value) -> String {
    match value {
        Value::String(text) => match Text::of(text) {
            Text::Plain(text) | Text::Integer(text) => text.to_owned(),
        },
        other => write_pretty(other),
    }
}

/// A variable as a request gives it.
pub(crate) struct VariableEntity {
    key: String,
    value: Value,
    /// Absent leaves the old one.
    description: Option<Option<String>>,
}

impl VariableEntity {
    fn read(mut body: Body) -> ApiResult<Self> {
        let key = body.required_text_within("key", limits::VARIABLE_KEY.most);
        let value = body.any("value");
        let has_description = body.has("description");
        let description = body.text("description", limits::PROSE);
        body.text("team_name", 50);
        body.finish()?;
        Ok(Self {
            key,
            value,
            description: has_description.then_some(description),
        })
    }

    /// Creates it.
    async fn create(&self, app: &App) -> Result<(), StoreError> {
        let text = stored(&self.value);
        let description = self.description.clone().flatten();
        store::transact!(app.store, "create variable", |tx| {
            tx.create_variable(&self.key, &text, description.as_deref(), &app.cipher)
                .await
        })
    }

    /// Stores the fields that the mask names over the old ones; all of them without a mask. Returns `false` if there is no
    /// old one and there must be.
    async fn store(&self, app: &App, mask: &[&str], must_exist: bool) -> ApiResult<bool> {
        if mask.contains(&"key") {
            let text =
                "Update not allowed: the following fields are immutable and cannot be modified: {'key'}";
            return Err(ApiError::bad_request(text));
        }
        let masked = |name: &str| mask.is_empty() || mask.contains(&name);
        let found = store::transact!(app.store, "set variable", |tx| {
            let old = tx.lock_variable(&self.key, &app.cipher).await?;
            if old.is_none() && must_exist {
                return Ok(false);
            }
            let (old_value, old_description) =
                old.map_or((None, None), |old| (Some(old.value), old.description));
            let text = old_value
                .filter(|_| !masked("value"))
                .unwrap_or_else(|| stored(&self.value));
            let given = self.description.clone().filter(|_| masked("description"));
            let description = given.unwrap_or(old_description);
            tx.set_variable(&self.key, &text, description.as_deref(), &app.cipher)
                .await?;
            Ok(true)
        })?;
        Ok(found)
    }
}

fn exists(key: &str) -> ApiError {
    ApiError::conflict(format!("The Variable with key: `{key}` already exists"))
}

pub(crate) async fn create(
    State(app): State<App>,
    caller: Caller,
    headers: HeaderMap,
    bytes: Bytes,
) -> ApiResult<(StatusCode, Json<Value>)> {
    caller.must_be(Role::Op)?;
    let entity = VariableEntity::read(Body::read(&headers, &bytes)?)?;
    let key = &entity.key;
    entity.create(&app).await.map_err(|error| match error {
        StoreError::Duplicate { .. } => exists(key),
        error => error.into(),
    })?;
    Ok((StatusCode::CREATED, Json(response(&app, &find(&app, key).await?))))
}

pub(crate) async fn patch(
    State(app): State<App>,
    caller: Caller,
    Path(key): Path<String>,
    query: Query,
    headers: HeaderMap,
    bytes: Bytes,
) -> ApiResult {
    caller.must_be(Role::Op)?;
    let entity = VariableEntity::read(Body::read(&headers, &bytes)?)?;
    if entity.key != key {
        return Err(ApiError::bad_request(
            "Invalid body, key from request body doesn't match uri parameter",
        ));
    }
    if !entity.store(&app, &query.all("update_mask"), true).await? {
        return Err(missing(&key));
    }
    Ok(Json(response(&app, &find(&app, &key).await?)))
}

/// Variables in bulk.
struct Variables;

impl Collection for Variables {
    const NAMES: &'static str = "variables with these keys";
    type Entity = VariableEntity;

    fn read(body: Body) -> ApiResult<VariableEntity> {
        VariableEntity::read(body)
    }

    fn key(entity: &VariableEntity) -> &str {
        &entity.key
    }

    async fn existing(app: &App) -> ApiResult<HashSet<String>> {
        let variables = app.store.reader().await?.variables(&app.cipher).await?;
        Ok(variables.into_iter().map(|variable| variable.key).collect())
    }

    async fn create(app: &App, entity: &VariableEntity) -> Result<(), StoreError> {
        entity.create(app).await
    }

    async fn put(app: &App, entity: VariableEntity, mask: &[&str]) -> ApiResult<()> {
        entity.store(app, mask, false).await.map(|_| ())
    }

    async fn remove(app: &App, key: &str) -> ApiResult<()> {
        store::transact!(app.store, "delete variable", |tx| tx.delete_variable(key).await)?;
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
    super::bulk::run::<Variables>(&app, &headers, &bytes).await
}

pub(crate) async fn delete(
    State(app): State<App>,
    caller: Caller,
    Path(key): Path<String>,
) -> ApiResult<StatusCode> {
    caller.must_be(Role::Op)?;
    let deleted = store::transact!(app.store, "delete variable", |tx| tx.delete_variable(&key).await)?;
    if deleted {
        Ok(StatusCode::NO_CONTENT)
    } else {
        Err(missing(&key))
    }
}
