//! Answers of JSON, line by line.

use axum::body::Body;
use axum::http::header;
use axum::response::{IntoResponse, Response};
use futures_util::{Stream, StreamExt};
use std::error::Error;

/// An answer of lines as they come.
///
/// Every stream of lines goes through here: the compression of answers asks a stream again after its end, which
/// `unfold` and other streams panic at unless they are fused.
pub(super) fn answer<E>(lines: impl Stream<Item = Result<String, E>> + Send + 'static) -> Response
where
    E: Into<Box<dyn Error + Send + Sync>> + 'static,
{
    #[expect(clippy::disallowed_methods, reason = "the stream is fused")]
    let body = Body::from_stream(lines.fuse());
    ([(header::CONTENT_TYPE, "application/x-ndjson")], body).into_response()
}
