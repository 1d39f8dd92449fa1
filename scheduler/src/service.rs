//! A scheduler as a process of its own.

use crate::Scheduler;
use anyhow::Context;
use bootstrap::{Health, Lifecycle, open_broker, open_store, serve_health};
use config::Config;
use std::time::Duration;
use telemetry::Telemetry;

/// Runs the component to its end.
///
/// # Errors
/// When the configuration cannot work, or a part of the component breaks.
pub async fn run(config: Config, telemetry: &Telemetry) -> anyhow::Result<()> {
    let store = open_store(&config)
        .await
        .context("the metadata store cannot be used")?;
    let broker = open_broker(&config, "scheduler")?;
    let lifecycle = Lifecycle::default();
    let health = Health::default();
    health.completed();
    let metrics = telemetry.metrics();
    let page = serve_health(
        config.updraft.metrics_port,
        health.clone(),
        config.scheduler.health_check_threshold,
        move || metrics.render(),
        lifecycle.stop().draining().clone(),
    );
    lifecycle.spawn("health", page);
    let scheduler = Scheduler::new(&config, store.clone(), broker.clone(), health);
    lifecycle.spawn("scheduler", scheduler.run(lifecycle.stop().clone()));
    tracing::info!("scheduler is ready");
    lifecycle.run_to_end(Duration::from_secs(20)).await?;
    broker.close().await;
    store.close().await;
    Ok(())
}
