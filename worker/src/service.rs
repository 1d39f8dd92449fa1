//! A worker as a process of its own.

use crate::watchdog::{ARGUMENT, Watchdog};
use crate::{Life, Worker, WorkerName};
use anyhow::Context;
use bootstrap::{Health, Lifecycle, open_broker, serve_health, tokens};
use config::Config;
use std::time::Duration;
use telemetry::Telemetry;
use tonic::transport::Endpoint;

/// Runs a worker to its end.
///
/// # Errors
/// When the configuration cannot work, or a part of the worker breaks.
pub async fn run(config: Config, telemetry: &Telemetry) -> anyhow::Result<()> {
    let tokens = tokens(&config)?;
    let broker = open_broker(&config, "worker")?;
    let name = WorkerName::take(&config)?;
    let watchdog = Watchdog::start(&[ARGUMENT]).context("cannot start the watchdog")?;
    let channel = Endpoint::from_shared(config.updraft.control_plane.clone())
        .context("[updraft] control_plane is not a URL such as http://api-server:50051")?
        .connect_timeout(Duration::from_secs(5))
        .tcp_nodelay(true)
        .http2_keep_alive_interval(Duration::from_secs(10))
        .keep_alive_timeout(Duration::from_secs(10))
        .keep_alive_while_idle(true)
        .connect_lazy();
    let lifecycle = Lifecycle::default();
    let health = Health::default();
    let metrics = telemetry.metrics();
    let page = serve_health(
        config.updraft.metrics_port,
        health.clone(),
        config.scheduler.worker_lease,
        move || metrics.render(),
        lifecycle.stop().draining().clone(),
    );
    lifecycle.spawn("health", page);
    let python = python_of(&config, &watchdog, &name)?;
    if python.is_none() {
        tracing::warn!("[updraft] python is not set: only tasks that need no Python can run on this worker");
    }
    let grace = config.updraft.drain_grace + Duration::from_secs(20);
    let life = Life {
        name,
        watchdog,
        health,
    };
    let worker = Worker::new(&config, channel, tokens, broker.clone(), python, life);
    lifecycle.spawn("worker", worker.run(lifecycle.stop().clone()));
    lifecycle.run_to_end(grace).await?;
    broker.close().await;
    Ok(())
}

fn python_of(
    config: &Config,
    watchdog: &Watchdog,
    name: &WorkerName,
) -> anyhow::Result<Option<python::ForkServer>> {
    let interpreter = config.updraft.python.clone();
    interpreter
        .map(|interpreter| bootstrap::fork_server(config, interpreter, &watchdog.environment(name)))
        .transpose()
}
