//! Trace contexts that travel through the database and messages, in W3C's form.

use opentelemetry::global;
use std::collections::HashMap;
use tracing::Span;
use tracing_opentelemetry::OpenTelemetrySpanExt;

const HEADER: &str = "traceparent";

/// The context of a span as `traceparent` text; `None` when traces are off.
pub fn context_of(span: &Span) -> Option<String> {
    let mut carrier = HashMap::new();
    let context = span.context();
    global::get_text_map_propagator(|propagator| propagator.inject_context(&context, &mut carrier));
    carrier.remove(HEADER)
}

/// The context of the current span.
pub fn current_context() -> Option<String> {
    context_of(&Span::current())
}

/// Makes a span, not entered yet, a child of a context that came from elsewhere.
pub fn set_parent(span: &Span, context: Option<&str>) {
    let Some(context) = context.filter(|text| !text.is_empty()) else {
        return;
    };
    let carrier = HashMap::from([(HEADER.to_owned(), context.to_owned())]);
    let parent = global::get_text_map_propagator(|propagator| propagator.extract(&carrier));
    // Fails when traces are off, and then there is nothing to link.
    span.set_parent(parent).ok();
}
