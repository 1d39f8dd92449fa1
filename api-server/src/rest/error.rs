//! Errors in the forms that Airflow's clients know.

use super::reply::Json;
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use serde_json::{Value, json};
use std::time::Duration;
use store::StoreError;

/// An answer that is an error.
#[derive(Debug)]
pub(crate) struct ApiError {
    status: StatusCode,
    body: Value,
    /// Seconds after which to try again.
    retry_after: Option<u64>,
}

pub(crate) type ApiResult<T = Json<Value>> = Result<T, ApiError>;

impl ApiError {
    /// `{"detail": text}`
    pub(crate) fn detail(status: StatusCode, text: impl Into<String>) -> Self {
        Self {
            status,
            body: json!({"detail": text.into()}),
            retry_after: (status == StatusCode::SERVICE_UNAVAILABLE).then_some(1),
        }
    }

    pub(crate) fn not_found(text: impl Into<String>) -> Self {
        Self::detail(StatusCode::NOT_FOUND, text)
    }

    pub(crate) fn bad_request(text: impl Into<String>) -> Self {
        Self::detail(StatusCode::BAD_REQUEST, text)
    }

    pub(crate) fn conflict(text: impl Into<String>) -> Self {
        Self::detail(StatusCode::CONFLICT, text)
    }

    /// 429: somebody guesses passwords.
    pub(crate) fn too_many_attempts(wait: Duration) -> Self {
        let seconds = wait.as_secs().max(1);
        let text = format!("Too many attempts to log in; try again in {seconds} s");
        Self {
            retry_after: Some(seconds),
            ..Self::detail(StatusCode::TOO_MANY_REQUESTS, text)
        }
    }

    pub(crate) fn forbidden() -> Self {
        Self::detail(StatusCode::FORBIDDEN, "Forbidden")
    }

    /// Status and text, for answers that list errors.
    pub(crate) fn in_words(&self) -> (u16, String) {
        let detail = &self.body["detail"];
        let text = detail.as_str().map_or_else(|| detail.to_string(), str::to_owned);
        (self.status.as_u16(), text)
    }

    /// 422 with a list of what is wrong.
    pub(crate) fn invalid(problems: Vec<Value>) -> Self {
        Self {
            status: StatusCode::UNPROCESSABLE_ENTITY,
            body: json!({"detail": problems}),
            retry_after: None,
        }
    }

    /// 422 with a text.
    pub(crate) fn invalid_text(text: impl Into<String>) -> Self {
        Self::detail(StatusCode::UNPROCESSABLE_ENTITY, text)
    }

    /// 409 in the form that a violated unique key has.
    pub(crate) fn duplicate() -> Self {
        let id: String = uuid::Uuid::new_v4()
            .simple()
            .to_string()
            .chars()
            .take(8)
            .collect();
        let message = format!(
            "Serious error when handling your request. Check logs for more details - you will find it in api server when \
             you look for ID {id}"
        );
        let detail = json!({"reason": "Unique constraint violation", "statement": "hidden", "orig_error": "hidden", "message": message});
        Self {
            status: StatusCode::CONFLICT,
            body: json!({"detail": detail}),
            retry_after: None,
        }
    }
}

/// One problem of a 422 list.
pub(crate) fn problem(kind: &str, location: &[Value], message: &str, input: Value) -> Value {
    json!({"type": kind, "loc": location, "msg": message, "input": input})
}

/// One problem with a context.
pub(crate) fn problem_with(
    kind: &str,
    location: &[Value],
    message: &str,
    input: Value,
    context: Value,
) -> Value {
    json!({"type": kind, "loc": location, "msg": message, "input": input, "ctx": context})
}

impl From<StoreError> for ApiError {
    fn from(error: StoreError) -> Self {
        match error {
            StoreError::Duplicate { .. } => Self::duplicate(),
            StoreError::Contention { .. } => {
                tracing::warn!("{error}");
                Self::detail(
                    StatusCode::SERVICE_UNAVAILABLE,
                    "Others changed the same thing at the same time, again and again; try again.",
                )
            }
            StoreError::TooLong { .. } => Self::invalid_text(error.to_string()),
            StoreError::TooLarge { .. } => Self::detail(StatusCode::PAYLOAD_TOO_LARGE, error.to_string()),
            StoreError::TooSlow { .. } => {
                tracing::warn!("{error}");
                let text = format!(
                    "{error}; narrow it down with filters, order it by start_date or run_after, or read on by cursor."
                );
                Self::detail(StatusCode::SERVICE_UNAVAILABLE, text)
            }
            error if error.is_transient() => {
                tracing::warn!("{error}");
                Self::detail(
                    StatusCode::SERVICE_UNAVAILABLE,
                    "The metadata store is not available; try again.",
                )
            }
            error => {
                tracing::error!("{error}");
                Self::detail(StatusCode::INTERNAL_SERVER_ERROR, "Internal Server Error")
            }
        }
    }
}

impl IntoResponse for ApiError {
    fn into_response(self) -> Response {
        let mut response = (self.status, Json(self.body)).into_response();
        if let Some(seconds) = self.retry_after {
            response
                .headers_mut()
                .insert(header::RETRY_AFTER, header::HeaderValue::from(seconds));
        }
        response
    }
}
