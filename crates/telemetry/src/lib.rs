//! Logs, metrics and traces: set up once per process, flushed at its end.

pub mod metric;
mod trace;

pub use trace::{context_of, current_context, set_parent};

use metrics_exporter_prometheus::{Matcher, PrometheusBuilder, PrometheusHandle};
use opentelemetry::trace::TracerProvider as _;
use opentelemetry_otlp::{SpanExporter, WithExportConfig};
use opentelemetry_sdk::Resource;
use opentelemetry_sdk::propagation::TraceContextPropagator;
use opentelemetry_sdk::trace::SdkTracerProvider;
use std::io::IsTerminal;
use std::time::Duration;
use thiserror::Error;
use tracing_subscriber::{EnvFilter, Layer, layer::SubscriberExt, util::SubscriberInitExt};

/// Telemetry cannot be set up.
#[derive(Debug, Error)]
pub enum TelemetryError {
    /// The OTLP endpoint is not one.
    #[error(
        "[updraft] otlp_endpoint {endpoint:?} cannot be used: {problem}; expected a URL such as http://localhost:4317"
    )]
    Endpoint {
        /// What was configured.
        endpoint: String,
        /// What is wrong with it.
        problem: String,
    },
    /// It was set up before.
    #[error("telemetry cannot be set up: {0}")]
    Setup(String),
}

/// Telemetry of this process.
pub struct Telemetry {
    metrics: PrometheusHandle,
    traces: Option<SdkTracerProvider>,
}

/// Airflow's names for log levels, as filters.
fn filter(level: &str) -> EnvFilter {
    let own = match level {
        "DEBUG" => "debug",
        "WARNING" => "warn",
        "ERROR" | "CRITICAL" => "error",
        _ => "info",
    };
    let quiet = "h2=warn,hyper=warn,tonic=warn,tower=warn,lapin=error,sqlx=warn,opentelemetry=error";
    EnvFilter::try_from_default_env().unwrap_or_else(|_| EnvFilter::new(format!("{own},{quiet}")))
}

impl Telemetry {
    /// Sets up logs to standard error at that level, metrics, and traces to `otlp` if given. Must run inside a tokio
    /// runtime.
    ///
    /// # Errors
    /// When the endpoint cannot be used, or telemetry was set up before.
    pub fn start(component: &'static str, level: &str, otlp: Option<&str>) -> Result<Self, TelemetryError> {
        let traces = otlp.map(|endpoint| exporter(component, endpoint)).transpose()?;
        let spans = traces.as_ref().map(|provider| {
            // Parts last as long as their program: they are for logs, and no roots of traces.
            let filter =
                EnvFilter::new("info,lifecycle=off,h2=off,hyper=off,tonic=off,tower=off,opentelemetry=off");
            tracing_opentelemetry::layer()
                .with_tracer(provider.tracer("updraft"))
                .with_filter(filter)
        });
        let logs = tracing_subscriber::fmt::layer()
            .with_writer(std::io::stderr)
            .with_ansi(std::io::stderr().is_terminal())
            .with_filter(filter(level));
        tracing_subscriber::registry()
            .with(spans)
            .with(logs)
            .try_init()
            .map_err(|error| TelemetryError::Setup(error.to_string()))?;
        let setup = |error: metrics_exporter_prometheus::BuildError| TelemetryError::Setup(error.to_string());
        let metrics = PrometheusBuilder::new()
            .set_buckets_for_metric(Matcher::Suffix("_seconds".to_owned()), &metric::BUCKETS)
            .map_err(setup)?
            .add_global_label("component", component)
            .install_recorder()
            .map_err(setup)?;
        metric::describe();
        Ok(Self { metrics, traces })
    }

    /// What `/metrics` answers with.
    pub fn metrics(&self) -> PrometheusHandle {
        self.metrics.clone()
    }

    /// Sends what has not been sent yet. Blocks for at most five seconds.
    pub fn shutdown(self) {
        if let Some(traces) = self.traces {
            // Losing the last spans is all that can happen.
            traces.shutdown_with_timeout(Duration::from_secs(5)).ok();
        }
    }
}

fn exporter(component: &'static str, endpoint: &str) -> Result<SdkTracerProvider, TelemetryError> {
    let bad = |problem: String| TelemetryError::Endpoint {
        endpoint: endpoint.to_owned(),
        problem,
    };
    if !endpoint.starts_with("http://") && !endpoint.starts_with("https://") {
        return Err(bad("it has no http:// or https://".to_owned()));
    }
    let exporter = SpanExporter::builder()
        .with_tonic()
        .with_endpoint(endpoint)
        .with_timeout(Duration::from_secs(5))
        .build()
        .map_err(|error| bad(error.to_string()))?;
    let resource = Resource::builder()
        .with_service_name(format!("updraft-{component}"))
        .build();
    let provider = SdkTracerProvider::builder()
        .with_batch_exporter(exporter)
        .with_resource(resource)
        .build();
    opentelemetry::global::set_text_map_propagator(TraceContextPropagator::new());
    opentelemetry::global::set_tracer_provider(provider.clone());
    Ok(provider)
}
