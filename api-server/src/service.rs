//! An API server as a process of its own.

use crate::ApiServer;
use anyhow::Context;
use bootstrap::{open_broker, open_cipher, open_store, tokens};
use config::Config;
use lifecycle::{Kind, Lifecycle};
use std::time::Duration;
use telemetry::Telemetry;
use tokio::net::TcpListener;

/// Runs the component to its end.
///
/// # Errors
/// When the configuration cannot work, or a part of the component breaks.
pub async fn run(config: Config, telemetry: &Telemetry, lifecycle: Lifecycle) -> anyhow::Result<()> {
    let tokens = tokens(&config)?;
    let cipher = open_cipher(&config)?;
    // A certificate that cannot be used is told before anything is waited for.
    crate::control::builder(&config)?;
    // Ports first: a port that is taken is told before anything is waited for.
    let (rest, control) = (
        bind(&config.api.host, config.api.port, "[api] port"),
        bind(
            &config.updraft.grpc_host,
            config.updraft.grpc_port,
            "[updraft] grpc_port",
        ),
    );
    let (rest, control) = (rest.await?, control.await?);
    let store = open_store(&config)
        .await
        .context("the metadata store cannot be used")?;
    let broker = open_broker(&config, "api-server", &lifecycle)?;
    identity::Passwords::new(&config.core.passwords_file).ensure(&config.core.users)?;
    tracing::info!(
        "passwords of the users are in {}",
        config.core.passwords_file.display()
    );
    let metrics = telemetry.metrics();
    let server = ApiServer::new(
        &config,
        store.clone(),
        broker.clone(),
        cipher,
        tokens,
        move || metrics.render(),
    )?;
    let stop = lifecycle.stop().clone();
    // Workers and people find another API server, or this one again after its restart.
    let end = stop.draining().clone();
    let serving = server.clone().serve_rest(rest, lifecycle.clone(), end.clone());
    lifecycle.spawn("REST server", Kind::Service, serving);
    let serving = server.clone().serve_control(control, lifecycle.clone(), end);
    lifecycle.spawn("control plane", Kind::Service, serving);
    lifecycle.spawn("hint listener", Kind::Service, server.pass_hints_on(stop));
    tracing::info!(
        rest = config.api.port,
        control = config.updraft.grpc_port,
        "API server is ready"
    );
    let ended = lifecycle.run_to_end(Duration::from_secs(5)).await;
    broker.close().await;
    store.close().await;
    ended
}

async fn bind(host: &str, port: u16, option: &str) -> anyhow::Result<TcpListener> {
    TcpListener::bind((host, port))
        .await
        .with_context(|| format!("cannot listen on {host}:{port} ({option}); is another API server running?"))
}
