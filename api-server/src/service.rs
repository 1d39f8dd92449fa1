//! An API server as a process of its own.

use crate::ApiServer;
use anyhow::Context;
use bootstrap::{Lifecycle, open_broker, open_cipher, open_store, tokens};
use config::Config;
use std::time::Duration;
use telemetry::Telemetry;
use tokio::net::TcpListener;

/// Runs the component to its end.
///
/// # Errors
/// When the configuration cannot work, or a part of the component breaks.
pub async fn run(config: Config, telemetry: &Telemetry) -> anyhow::Result<()> {
    let tokens = tokens(&config)?;
    let cipher = open_cipher(&config)?;
    // Ports first: a port that is taken is told before anything is waited for.
    let (rest, control) = (
        bind(&config.api.host, config.api.port),
        bind(&config.updraft.grpc_host, config.updraft.grpc_port),
    );
    let (rest, control) = (rest.await?, control.await?);
    let store = open_store(&config)
        .await
        .context("the metadata store cannot be used")?;
    let broker = open_broker(&config, "api-server")?;
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
    );
    let lifecycle = Lifecycle::default();
    let stop = lifecycle.stop().clone();
    // Workers and people find another API server, or this one again after its restart.
    let end = stop.draining().clone();
    lifecycle.spawn("rest", server.clone().serve_rest(rest, end.clone()));
    lifecycle.spawn(
        "control",
        server.clone().serve_control(control, stop.clone(), end),
    );
    lifecycle.spawn("hints", server.pass_hints_on(stop));
    tracing::info!(
        rest = config.api.port,
        control = config.updraft.grpc_port,
        "API server is ready"
    );
    lifecycle.run_to_end(Duration::from_secs(5)).await?;
    broker.close().await;
    store.close().await;
    Ok(())
}

async fn bind(host: &str, port: u16) -> anyhow::Result<TcpListener> {
    TcpListener::bind((host, port))
        .await
        .with_context(|| format!("cannot listen on {host}:{port}"))
}
