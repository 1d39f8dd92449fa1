//! `/health` and `/metrics` of components that have no other HTTP server.

use anyhow::Context;
use axum::extract::State;
use axum::http::{StatusCode, header};
use axum::response::IntoResponse;
use axum::{Router, routing::get};
use lifecycle::{Kind, Lifecycle};
use std::sync::atomic::{AtomicI64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, SystemTime, UNIX_EPOCH};
use tokio::net::TcpListener;

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

/// The port of `/health` and `/metrics`, taken at the start so that one that is taken already is told at once.
pub struct HealthPage {
    listener: Option<TcpListener>,
}

impl HealthPage {
    /// Listens on `[updraft] metrics_host` and `metrics_port`; port 0 serves nothing.
    ///
    /// # Errors
    /// When the port cannot be listened on.
    pub async fn listen(options: &config::Updraft) -> anyhow::Result<Self> {
        let (host, port) = (options.metrics_host.as_str(), options.metrics_port);
        if port == 0 {
            return Ok(Self { listener: None });
        }
        let listener = TcpListener::bind((host, port)).await;
        let listener = listener.with_context(|| {
            format!(
                "cannot listen on {host}:{port} ([updraft] metrics_host and metrics_port); does another component use this port?"
            )
        })?;
        Ok(Self {
            listener: Some(listener),
        })
    }

    /// Serves `/health` (200 while the last completed work is younger than `limit`, else 503) and `/metrics` until everything
    /// ends: also while the component drains.
    pub fn serve(
        self,
        lifecycle: &Lifecycle,
        health: Health,
        limit: Duration,
        metrics: impl Fn() -> String + Send + Sync + 'static,
    ) {
        let Some(listener) = self.listener else { return };
        let page = Page {
            health,
            limit,
            metrics: Arc::new(metrics),
        };
        let app = Router::new()
            .route("/health", get(show_health))
            .route("/metrics", get(show_metrics))
            .with_state(page);
        let end = lifecycle.stop().now().clone();
        lifecycle.spawn("health page", Kind::Background, async move {
            axum::serve(listener, app)
                .with_graceful_shutdown(end.cancelled_owned())
                .await
                .context("the health page cannot be served")
        });
    }
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
