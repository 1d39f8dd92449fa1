//! What every request and every answer goes through.

use super::error::ApiError;
use crate::App;
use axum::body::{Body, to_bytes};
use axum::extract::{Request, State};
use axum::http::{HeaderValue, StatusCode, header};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use futures_util::StreamExt;
use std::time::Duration;

/// Bytes of a request's body.
pub(super) const BODY: usize = 16 << 20;
/// How long a body may take to come.
const PATIENCE: Duration = Duration::from_secs(30);
/// Bytes of an error in plain text.
const PLAIN: usize = 64 << 10;

/// Bytes beyond that which are read and thrown away, so that a client that is still sending hears the answer.
const THROWN_AWAY: usize = 48 << 20;

/// Reads a body; `None` if it is too large, or breaks off.
async fn read(body: Body) -> Option<Vec<u8>> {
    let (mut bytes, mut count) = (Vec::new(), 0);
    let mut stream = body.into_data_stream();
    while let Some(piece) = stream.next().await {
        // Who breaks off hears no answer; what came is not to be taken for the whole.
        let piece = piece.ok()?;
        count += piece.len();
        if count <= BODY {
            bytes.extend_from_slice(&piece);
        } else if count > BODY + THROWN_AWAY {
            break;
        }
    }
    (count <= BODY).then_some(bytes)
}

/// Takes in the whole body of a request before anything is done about it.
pub(super) async fn whole_body(request: Request, next: Next) -> Response {
    let (parts, body) = request.into_parts();
    match tokio::time::timeout(PATIENCE, read(body)).await {
        Ok(Some(bytes)) => next.run(Request::from_parts(parts, Body::from(bytes))).await,
        Ok(None) => {
            let text = format!("The body of a request has at most {BODY} bytes");
            ApiError::detail(StatusCode::PAYLOAD_TOO_LARGE, text).into_response()
        }
        Err(_) => {
            let text = format!("The body did not come within {} s", PATIENCE.as_secs());
            let answer = ApiError::detail(StatusCode::REQUEST_TIMEOUT, text);
            ([(header::CONNECTION, "close")], answer).into_response()
        }
    }
}

/// Gives errors that were found before any of ours looked at the request (such as a path that is not UTF-8) the form that
/// clients know.
pub(super) async fn errors_as_json(request: Request, next: Next) -> Response {
    let response = next.run(request).await;
    let status = response.status();
    let kind = response.headers().get(header::CONTENT_TYPE);
    let is_plain = kind.is_some_and(|kind| kind.as_bytes().starts_with(b"text/plain"));
    if !is_plain || !(status.is_client_error() || status.is_server_error()) {
        return response;
    }
    match to_bytes(response.into_body(), PLAIN).await {
        Ok(bytes) => ApiError::detail(status, String::from_utf8_lossy(&bytes)).into_response(),
        Err(_) => ApiError::detail(status, status.to_string()).into_response(),
    }
}

/// What browsers are told about every answer: its type is what it says, and only our own pages, and those of
/// `[updraft] frame_ancestors`, show it in a frame.
pub(super) async fn for_browsers(State(app): State<App>, request: Request, next: Next) -> Response {
    let mut response = next.run(request).await;
    let headers = response.headers_mut();
    headers.insert(
        header::X_CONTENT_TYPE_OPTIONS,
        HeaderValue::from_static("nosniff"),
    );
    let more = app.config.updraft.frame_ancestors.join(" ");
    let policy = format!("frame-ancestors 'self' {more}");
    let policy = HeaderValue::from_str(policy.trim_end());
    let policy = policy.unwrap_or(HeaderValue::from_static("frame-ancestors 'self'"));
    headers.insert(header::CONTENT_SECURITY_POLICY, policy);
    response
}
