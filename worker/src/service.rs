//! A worker as a process of its own.

use crate::watchdog::{ARGUMENT, Watchdog};
use crate::{Address, Life, Worker, WorkerName, membership};
use anyhow::Context;
use bootstrap::{Health, HealthPage, join_token, open_broker};
use broker::{Broker, LocalBroker};
use config::Config;
use lifecycle::{Kind, Lifecycle};
use model::{TaskInstanceId, TryNumber};
use std::sync::Arc;
use std::time::Duration;
use telemetry::Telemetry;

/// Runs a worker to its end.
///
/// # Errors
/// When the configuration cannot work, or a part of the worker breaks.
pub async fn run(config: Config, telemetry: &Telemetry, lifecycle: Lifecycle) -> anyhow::Result<()> {
    let page = HealthPage::listen(&config.updraft).await?;
    let broker = open_broker(&config, "worker", &lifecycle)?;
    let health = Health::default();
    let name = WorkerName::take(&config)?;
    let worker = worker(&config, name, broker.clone(), health.clone(), &lifecycle)?;
    let metrics = telemetry.metrics();
    page.serve(&lifecycle, health, config.scheduler.worker_lease, move || {
        metrics.render()
    });
    lifecycle.spawn("worker", Kind::Service, worker.run(lifecycle.clone()));
    let ended = lifecycle.run_to_end(grace(&config)).await;
    broker.close().await;
    ended
}

/// Runs a worker that serves triggers only: Airflow's triggerer. `queues` are those of the triggers.
///
/// # Errors
/// As [`run`].
pub async fn run_triggerer(
    mut config: Config,
    telemetry: &Telemetry,
    lifecycle: Lifecycle,
) -> anyhow::Result<()> {
    config.updraft.queues.clear();
    config
        .updraft
        .worker_name
        .get_or_insert_with(|| format!("{}:triggerer", bootstrap::hostname()));
    run(config, telemetry, lifecycle).await
}

/// Runs one task to its end, as a worker of its own: what a pod of the KubernetesExecutor does. There is no broker, and
/// no health page.
///
/// # Errors
/// When the configuration cannot work, or the task fails.
pub async fn run_one(
    mut config: Config,
    id: TaskInstanceId,
    try_number: TryNumber,
    lifecycle: Lifecycle,
) -> anyhow::Result<()> {
    config.celery.worker_concurrency = 1;
    config.updraft.queues.clear();
    let name = WorkerName::for_one_task(&config);
    let worker = worker(
        &config,
        name,
        Arc::new(LocalBroker::default()),
        Health::default(),
        &lifecycle,
    )?;
    let (tell, outcome) = tokio::sync::oneshot::channel();
    let own = lifecycle.clone();
    lifecycle.spawn("worker", Kind::Work, async move {
        tell.send(worker.run_one(id, try_number, own.clone()).await).ok();
        own.stop().end();
    });
    lifecycle.run_to_end(grace(&config)).await?;
    outcome.await.context("the task was left running")?
}

fn grace(config: &Config) -> Duration {
    config.updraft.drain_grace + Duration::from_secs(20)
}

fn worker(
    config: &Config,
    name: WorkerName,
    broker: Arc<dyn Broker>,
    health: Health,
    lifecycle: &Lifecycle,
) -> anyhow::Result<Worker> {
    let membership = membership(&join_token(config)?, &name)?;
    let address = Address::of(config)?;
    let watchdog = Watchdog::start(&[ARGUMENT]).context("cannot start the watchdog")?;
    let channel = address
        .endpoint()?
        .tcp_nodelay(true)
        .http2_keep_alive_interval(Duration::from_secs(10))
        .keep_alive_timeout(Duration::from_secs(10))
        .keep_alive_while_idle(true)
        .connect_lazy();
    let python = python_of(config, &watchdog, &name, lifecycle)?;
    if python.is_none() {
        tracing::warn!("[updraft] python is not set: only tasks that need no Python can run on this worker");
    }
    let life = Life {
        name,
        watchdog,
        health,
    };
    let belonging = (membership, address);
    Ok(Worker::new(config, channel, belonging, broker, python, life))
}

fn python_of(
    config: &Config,
    watchdog: &Watchdog,
    name: &WorkerName,
    lifecycle: &Lifecycle,
) -> anyhow::Result<Option<python::ForkServer>> {
    let interpreter = config.updraft.python.clone();
    interpreter
        .map(|interpreter| {
            let env = watchdog.environment(name);
            bootstrap::fork_server(config, interpreter, &env, lifecycle)
        })
        .transpose()
}
