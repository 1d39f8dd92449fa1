//! `/health` and `/metrics` of components that have no other HTTP server.

use axum::extract::State;
use axum::http::{StatusCode, header};
use axum::response::IntoResponse;
use axum::{Router, routing::get};
use std::sync::atomic::{AtomicI64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, SystemTime, UNIX_EPOCH};
use tokio_util::sync::CancellationToken;

/// When a component last completed a piece of its work: health is work done, not a process that exists.
#[derive(Debug, Clone, Default)]
pub struct Health {
    last: Arc<AtomicI64>,
    trouble: Arc<Mutex<Option<String>>>,
}

fn seconds_now() -> i64 {
    SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .map_or(0, |d| i64::try_from(d.as_secs()).unwrap_or(i64::MAX))
}

impl Health {
    /// Notes that a piece of work was completed just now.
    pub fn completed(&self) {
        self.last.store(seconds_now(), Ordering::Relaxed);
    }

    /// Notes what the process cannot do now, for people to see; `None` when it can do everything again.
    pub fn troubled(&self, problem: Option<String>) {
        *self.trouble.lock().unwrap_or_else(PoisonError::into_inner) = problem;
    }

    /// What the process cannot do now.
    pub fn trouble(&self) -> Option<String> {
        self.trouble
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .clone()
    }

    /// Seconds since the last one.
    pub fn age(&self) -> i64 {
        seconds_now() - self.last.load(Ordering::Relaxed)
    }
}

#[derive(Clone)]
struct Page {
    health: Health,
    limit: Duration,
    metrics: Arc<dyn Fn() -> String + Send + Sync>,
}

/// Serves `/health` (200 while the last completed work is younger than `limit`, else 503) and `/metrics` until `stop`.
/// Port 0 serves nothing.
///
/// # Errors
/// When the port cannot be listened on.
pub async fn serve_health(
    port: u16,
    health: Health,
    limit: Duration,
    metrics: impl Fn() -> String + Send + Sync + 'static,
    stop: CancellationToken,
) -> anyhow::Result<()> {
    if port == 0 {
        stop.cancelled().await;
        return Ok(());
    }
    let page = Page {
        health,
        limit,
        metrics: Arc::new(metrics),
    };
    let app = Router::new()
        .route("/health", get(show_health))
        .route("/metrics", get(show_metrics))
        .with_state(page);
    let listener = tokio::net::TcpListener::bind(("0.0.0.0", port)).await?;
    axum::serve(listener, app)
        .with_graceful_shutdown(stop.cancelled_owned())
        .await?;
    Ok(())
}

async fn show_health(State(page): State<Page>) -> impl IntoResponse {
    let age = page.health.age();
    let healthy = age <= i64::try_from(page.limit.as_secs()).unwrap_or(i64::MAX);
    let status = if healthy {
        StatusCode::OK
    } else {
        StatusCode::SERVICE_UNAVAILABLE
    };
    let trouble = page.health.trouble();
    // Trouble alone is no reason to restart the process: it goes on trying.
    let word = if healthy && trouble.is_none() {
        "healthy"
    } else {
        "degraded"
    };
    let mut body = serde_json::json!({"status": word, "last_work_seconds_ago": age});
    if let Some(trouble) = trouble {
        body["problem"] = trouble.into();
    }
    let body = body.to_string();
    (status, [(header::CONTENT_TYPE, "application/json")], body)
}

async fn show_metrics(State(page): State<Page>) -> impl IntoResponse {
    (
        [(header::CONTENT_TYPE, "text/plain; version=0.0.4")],
        (page.metrics)(),
    )
}
