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
    problem: Arc<Mutex<Option<String>>>,
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
        *self.problem.lock().unwrap_or_else(PoisonError::into_inner) = None;
    }

    /// Notes why no work can be completed at present. Forgotten with the next piece of work.
    pub fn unwell(&self, problem: String) {
        *self.problem.lock().unwrap_or_else(PoisonError::into_inner) = Some(problem);
    }

    fn problem(&self) -> Option<String> {
        self.problem
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
    let problem = page.health.problem();
    let healthy = problem.is_none() && age <= i64::try_from(page.limit.as_secs()).unwrap_or(i64::MAX);
    let status = if healthy {
        StatusCode::OK
    } else {
        StatusCode::SERVICE_UNAVAILABLE
    };
    let word = if healthy { "healthy" } else { "degraded" };
    let mut body = serde_json::json!({"status": word, "last_work_seconds_ago": age});
    if let Some(problem) = problem {
        body["problem"] = problem.into();
    }
    (status, axum::Json(body))
}

async fn show_metrics(State(page): State<Page>) -> impl IntoResponse {
    (
        [(header::CONTENT_TYPE, "text/plain; version=0.0.4")],
        (page.metrics)(),
    )
}
