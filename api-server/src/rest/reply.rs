//! Answers of JSON.

use axum::http::header;
use axum::response::{IntoResponse, Response};
use serde_json::Value;

/// An answer: whole numbers digit by digit however large they are, floats as Python writes them.
#[derive(Debug)]
pub(crate) struct Json<T = Value>(pub(crate) T);

impl IntoResponse for Json<Value> {
    fn into_response(self) -> Response {
        let text = model::json::write(&self.0);
        ([(header::CONTENT_TYPE, "application/json")], text).into_response()
    }
}
