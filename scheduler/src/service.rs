//! A scheduler as a process of its own.

use crate::Scheduler;
use anyhow::Context;
use bootstrap::{Health, HealthPage, open_broker, open_store};
use config::Config;
use lifecycle::{Kind, Lifecycle};
use std::time::Duration;
use telemetry::Telemetry;

/// Runs the component to its end.
///
/// # Errors
/// When the configuration cannot work, or a part of the component breaks.
pub async fn run(config: Config, telemetry: &Telemetry, lifecycle: Lifecycle) -> anyhow::Result<()> {
    let page = HealthPage::listen(&config.updraft).await?;
    let store = open_store(&config)
        .await
        .context("the metadata store cannot be used")?;
    let broker = open_broker(&config, "scheduler", &lifecycle)?;
    let health = Health::default();
    health.completed();
    let metrics = telemetry.metrics();
    let limit = config.scheduler.health_check_threshold;
    page.serve(&lifecycle, health.clone(), limit, move || metrics.render());
    let scheduler = Scheduler::new(&config, store.clone(), broker.clone(), health);
    lifecycle.spawn("scheduler", Kind::Service, scheduler.run(lifecycle.clone()));
    tracing::info!("scheduler is ready");
    let ended = lifecycle.run_to_end(Duration::from_secs(20)).await;
    broker.close().await;
    store.close().await;
    ended
}
