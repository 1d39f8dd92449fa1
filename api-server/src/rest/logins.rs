//! Where browsers log in and out.

use super::access::{self, cookie};
use super::error::{ApiError, ApiResult};
use super::query::Query;
use crate::{App, revoked};
use axum::extract::State;
use axum::http::{HeaderMap, StatusCode, header};
use axum::response::{IntoResponse, Response};

/// Where the page for logging in is.
const LOGIN: &str = "/auth/login";

/// The cookie with a token; an empty one is taken away. Only over TLS if that is how people come here.
pub(super) fn token_cookie(app: &App, token: &str) -> String {
    let value = if token.is_empty() { "\"\"" } else { token };
    let end = if token.is_empty() { "; Max-Age=0" } else { "" };
    let secure = if app.config.api.base_url.starts_with("https://") {
        "; Secure"
    } else {
        ""
    };
    format!("_token={value}; HttpOnly{end}; Path=/; SameSite=lax{secure}")
}

fn redirect(to: &str) -> Response {
    (
        StatusCode::TEMPORARY_REDIRECT,
        [(header::LOCATION, to), (header::CONTENT_LENGTH, "0")],
    )
        .into_response()
}

/// Returns `true` if an address leads to a page of ours, and nowhere else.
fn is_own(app: &App, next: &str) -> bool {
    let base = app.config.api.base_url.trim_end_matches('/');
    let path = match next.strip_prefix(base) {
        Some(path) if !base.is_empty() => path,
        Some(_) | None => next,
    };
    path.starts_with('/')
        && !path.starts_with("//")
        && !path.contains('\\')
        && !path.chars().any(char::is_control)
}

fn next(app: &App, query: &Query) -> ApiResult<Option<String>> {
    match query.text("next").filter(|next| !next.is_empty()) {
        Some(next) if !is_own(app, next) => Err(ApiError::bad_request("Invalid or unsafe next URL")),
        next => Ok(next.map(str::to_owned)),
    }
}

fn escaped(text: &str) -> String {
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || b"-_.~".contains(&byte);
    let escape = |byte: u8| match plain(byte) {
        true => char::from(byte).to_string(),
        false => format!("%{byte:02X}"),
    };
    text.bytes().map(escape).collect()
}

/// `GET /api/v2/auth/login`
pub(crate) async fn login(State(app): State<App>, query: Query) -> ApiResult<Response> {
    Ok(match next(&app, &query)? {
        Some(next) => redirect(&format!("{LOGIN}?next={}", escaped(&next))),
        None => redirect(LOGIN),
    })
}

/// `GET /api/v2/auth/logout`: the token of the request is good no more, and its cookie goes.
pub(crate) async fn logout(State(app): State<App>, headers: HeaderMap) -> ApiResult<Response> {
    for token in [access::bearer(&headers), cookie(&headers)].into_iter().flatten() {
        revoked::revoke(&app, token).await?;
    }
    Ok(([(header::SET_COOKIE, token_cookie(&app, ""))], redirect(LOGIN)).into_response())
}

/// `GET /auth/token/login`: logs in a browser, if everyone is an admin.
pub(crate) async fn token_login(State(app): State<App>, query: Query) -> ApiResult<Response> {
    let token = access::token_of_all(&app)?;
    let next = next(&app, &query)?.unwrap_or_else(|| "/".to_owned());
    Ok((
        [(header::SET_COOKIE, token_cookie(&app, &token))],
        redirect(&next),
    )
        .into_response())
}
