//! A DAG processor as a process of its own.

use crate::DagProcessor;
use anyhow::Context;
use bootstrap::{Health, HealthPage, fork_server, open_broker, open_cipher, open_store};
use config::Config;
use lifecycle::{Kind, Lifecycle};
use std::time::Duration;
use telemetry::Telemetry;

/// Runs the component to its end.
///
/// # Errors
/// When the configuration cannot work, or a part of the component breaks.
pub async fn run(config: Config, telemetry: &Telemetry, lifecycle: Lifecycle) -> anyhow::Result<()> {
    let interpreter = config.updraft.python.clone().context(
        "[updraft] python is not set; it must name the interpreter of an environment with apache-airflow-task-sdk",
    )?;
    let page = HealthPage::listen(&config.updraft).await?;
    let store = open_store(&config)
        .await
        .context("the metadata store cannot be used")?;
    let broker = open_broker(&config, "dag-processor", &lifecycle)?;
    let python = fork_server(&config, interpreter, &[], &lifecycle)?;
    let health = Health::default();
    health.completed();
    let metrics = telemetry.metrics();
    let limit = config.dag_processor.refresh_interval * 2;
    page.serve(&lifecycle, health.clone(), limit, move || metrics.render());
    let cipher = open_cipher(&config)?;
    let processor = DagProcessor::new(
        &config,
        store.clone(),
        cipher,
        broker.clone(),
        python.clone(),
        health,
    );
    lifecycle.spawn("dag processor", Kind::Service, processor.run(lifecycle.clone()));
    let names = config
        .dag_processor
        .bundles
        .iter()
        .map(|bundle| bundle.name.as_str());
    tracing::info!(
        bundles = names.collect::<Vec<_>>().join(", "),
        "DAG processor is ready"
    );
    let ended = lifecycle.run_to_end(Duration::from_secs(20)).await;
    python.stop().await;
    broker.close().await;
    store.close().await;
    ended
}
