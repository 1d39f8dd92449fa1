//! Logging in, and who is calling.

use super::body::Body;
use super::error::{ApiError, ApiResult};
use crate::App;
use crate::serve::Peer;
use axum::Json;
use axum::body::Bytes;
use axum::extract::{Extension, FromRequestParts, State};
use axum::http::request::Parts;
use axum::http::{HeaderMap, StatusCode, header};
use identity::{Role, UserToken};
use serde_json::{Value, json};
use std::time::{Duration, Instant};

/// Who is calling.
#[derive(Debug, Clone)]
pub(crate) struct Caller {
    pub(crate) name: String,
    role: Role,
}

impl Caller {
    /// Lets only this role (and those above it) pass.
    pub(crate) fn must_be(&self, role: Role) -> ApiResult<()> {
        if self.role >= role {
            Ok(())
        } else {
            Err(ApiError::forbidden())
        }
    }
}

pub(super) fn cookie(headers: &HeaderMap) -> Option<&str> {
    let cookies = headers
        .get_all(header::COOKIE)
        .iter()
        .filter_map(|value| value.to_str().ok());
    cookies
        .flat_map(|value| value.split(';'))
        .find_map(|pair| pair.trim().strip_prefix("_token="))
        .filter(|t| !t.is_empty())
}

/// The token of an `Authorization` header.
pub(super) fn bearer(headers: &HeaderMap) -> Option<&str> {
    headers
        .get(header::AUTHORIZATION)
        .and_then(|value| value.to_str().ok())
        .and_then(|value| value.split_once(' '))
        .filter(|(scheme, _)| scheme.eq_ignore_ascii_case("bearer"))
        .map(|(_, token)| token.trim())
}

/// Accepts a bearer token, or else a cookie.
pub(crate) fn identify(app: &App, headers: &HeaderMap) -> ApiResult<Caller> {
    if app.config.core.all_admins {
        return Ok(Caller {
            name: "Anonymous".to_owned(),
            role: Role::Admin,
        });
    }
    let Some(token) = bearer(headers).or_else(|| cookie(headers)) else {
        return Err(ApiError::detail(StatusCode::UNAUTHORIZED, "Not authenticated"));
    };
    let user = app.user_of(token).map_err(|error| match error {
        identity::TokenError::Expired => ApiError::detail(StatusCode::UNAUTHORIZED, error.to_string()),
        identity::TokenError::Invalid => ApiError::detail(StatusCode::FORBIDDEN, error.to_string()),
    })?;
    let role = user
        .role
        .as_deref()
        .and_then(Role::parse)
        .ok_or_else(ApiError::forbidden)?;
    Ok(Caller { name: user.sub, role })
}

impl FromRequestParts<App> for Caller {
    type Rejection = ApiError;

    async fn from_request_parts(parts: &mut Parts, app: &App) -> Result<Self, ApiError> {
        identify(app, &parts.headers)
    }
}

/// A token for whoever asks, if everyone is an admin.
pub(super) fn token_of_all(app: &App) -> ApiResult<String> {
    if !app.config.core.all_admins {
        let text = "This method is only allowed if ``[core] simple_auth_manager_all_admins`` is True";
        return Err(ApiError::detail(StatusCode::FORBIDDEN, text));
    }
    let user = UserToken {
        sub: "Anonymous".to_owned(),
        role: Some("ADMIN".to_owned()),
        teams: Vec::new(),
    };
    let token = app.tokens.for_user(&user, app.config.api_auth.jwt_expiration);
    token.map_err(|_| ApiError::forbidden())
}

fn issue(
    app: &App,
    Peer(address): Peer,
    (name, password): (&str, &str),
    lifetime: Duration,
) -> ApiResult<(StatusCode, Json<Value>)> {
    if app.config.core.all_admins {
        let token = token_of_all(app)?;
        return Ok((StatusCode::CREATED, Json(json!({"access_token": token}))));
    }
    if name.is_empty() || password.is_empty() {
        return Err(ApiError::bad_request("Username and password must be provided"));
    }
    app.logins
        .attempt(address, name, Instant::now())
        .map_err(ApiError::too_many_attempts)?;
    let wrong = || ApiError::detail(StatusCode::UNAUTHORIZED, "Invalid credentials");
    let right = app.passwords.check(name, password).map_err(|error| {
        tracing::error!("{error}");
        ApiError::detail(StatusCode::INTERNAL_SERVER_ERROR, "Internal Server Error")
    })?;
    let mut users = app.config.core.users.iter().filter(|_| right);
    let user = users.find(|user| user.name == name).ok_or_else(wrong)?;
    app.logins.succeeded(address, name);
    let token = UserToken {
        sub: user.name.clone(),
        role: Some(user.role.clone()),
        teams: Vec::new(),
    };
    let token = app.tokens.for_user(&token, lifetime).map_err(|_| wrong())?;
    Ok((StatusCode::CREATED, Json(json!({"access_token": token}))))
}

/// `POST /auth/token`: JSON or a form.
pub(crate) async fn create_token(
    State(app): State<App>,
    Extension(peer): Extension<Peer>,
    headers: HeaderMap,
    bytes: Bytes,
) -> ApiResult<(StatusCode, Json<Value>)> {
    let kind = headers
        .get(header::CONTENT_TYPE)
        .and_then(|value| value.to_str().ok())
        .unwrap_or("application/json");
    let kind = kind
        .split(';')
        .next()
        .unwrap_or_default()
        .trim()
        .to_ascii_lowercase();
    let lifetime = app.config.api_auth.jwt_expiration;
    match kind.as_str() {
        "application/json" => {
            let mut body = Body::read(&headers, &bytes)?;
            let (name, password) = (body.required_text("username"), body.required_text("password"));
            body.finish_as_text("LoginBody")?;
            issue(&app, peer, (&name, &password), lifetime)
        }
        "application/x-www-form-urlencoded" => {
            let pairs = super::query::pairs(&String::from_utf8_lossy(&bytes));
            let field = |key: &str| {
                pairs
                    .iter()
                    .find(|(k, _)| k == key)
                    .map(|(_, value)| value.clone())
            };
            let missing = |key: &str| {
                ApiError::invalid_text(format!(
                    "1 validation error for LoginBody\n{key}\n  Input should be a valid string [type=string_type, \
                     input_value=None, input_type=NoneType]\n    For further information visit \
                     https://errors.pydantic.dev/2.14/v/string_type"
                ))
            };
            let name = field("username").ok_or_else(|| missing("username"))?;
            let password = field("password").ok_or_else(|| missing("password"))?;
            issue(&app, peer, (&name, &password), lifetime)
        }
        _ => Err(ApiError::detail(
            StatusCode::UNSUPPORTED_MEDIA_TYPE,
            "Only application/json or application/x-www-form-urlencoded is supported",
        )),
    }
}

/// `POST /auth/token/cli`: JSON only, shorter.
pub(crate) async fn create_cli_token(
    State(app): State<App>,
    Extension(peer): Extension<Peer>,
    headers: HeaderMap,
    bytes: Bytes,
) -> ApiResult<(StatusCode, Json<Value>)> {
    let mut body = Body::read(&headers, &bytes)?;
    let (name, password) = (body.required_text("username"), body.required_text("password"));
    body.finish()?;
    issue(
        &app,
        peer,
        (&name, &password),
        app.config.api_auth.jwt_cli_expiration,
    )
}

/// `GET /auth/token`: for everyone, if everyone is an admin.
pub(crate) async fn token_for_all(State(app): State<App>) -> ApiResult<(StatusCode, Json<Value>)> {
    let token = token_of_all(&app)?;
    Ok((StatusCode::CREATED, Json(json!({"access_token": token}))))
}
