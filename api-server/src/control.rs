//! The gRPC control plane: workers, and clients that follow runs.

mod ask;
mod beat;
mod joining;
mod report;
mod runs;
mod start;
mod triggers;
mod worker;

use crate::App;
use anyhow::Context;
use config::Config;
use lifecycle::Lifecycle;
use proto::v1::run_service_server::RunServiceServer;
use proto::v1::worker_service_server::WorkerServiceServer;
use std::path::Path;
use std::time::Duration;
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;
use tonic::metadata::MetadataMap;
use tonic::service::interceptor::InterceptedService;
use tonic::transport::server::TcpIncoming;
use tonic::transport::{Identity, Server, ServerTlsConfig};
use tonic::{Code, Request, Status};

/// How long open streams get after everything else has ended.
const LAST: Duration = Duration::from_secs(3);

pub(crate) async fn serve(
    app: App,
    listener: TcpListener,
    lifecycle: Lifecycle,
    end: CancellationToken,
) -> anyhow::Result<()> {
    let incoming = TcpIncoming::from(listener)
        .with_nodelay(Some(true))
        .with_keepalive(Some(Duration::from_secs(30)));
    let (reporter, health) = tonic_health::server::health_reporter();
    reporter
        .set_serving::<WorkerServiceServer<worker::Workers>>()
        .await;
    reporter.set_serving::<RunServiceServer<runs::Runs>>().await;
    let reflection = tonic_reflection::server::Builder::configure()
        .register_encoded_file_descriptor_set(proto::DESCRIPTORS)
        .register_encoded_file_descriptor_set(tonic_health::pb::FILE_DESCRIPTOR_SET)
        .build_v1()?;
    // What older clients ask for.
    let old_reflection = tonic_reflection::server::Builder::configure()
        .register_encoded_file_descriptor_set(proto::DESCRIPTORS)
        .register_encoded_file_descriptor_set(tonic_health::pb::FILE_DESCRIPTOR_SET)
        .build_v1alpha()?;
    let limit = proto::message_limit(app.config.updraft.max_message_bytes);
    let workers = WorkerServiceServer::new(worker::Workers { app: app.clone() })
        .max_decoding_message_size(limit)
        .max_encoding_message_size(limit);
    let known = move |app: App| move |request: Request<()>| known_caller(&app, request);
    let reflection = InterceptedService::new(reflection, known(app.clone()));
    let old_reflection = InterceptedService::new(old_reflection, known(app.clone()));
    let builder = builder(&app.config)?;
    let runs = RunServiceServer::new(runs::Runs { app, lifecycle });
    let serving = builder
        .http2_keepalive_interval(Some(Duration::from_secs(20)))
        .max_concurrent_streams(Some(4096))
        .add_service(workers)
        .add_service(runs)
        .add_service(health)
        .add_service(reflection)
        .add_service(old_reflection)
        .serve_with_incoming_shutdown(incoming, end.clone().cancelled_owned());
    tokio::select! {
        ended = serving => ended?,
        () = async { end.cancelled().await; tokio::time::sleep(LAST).await } => {}
    }
    Ok(())
}

/// A server that speaks TLS if a certificate is configured.
///
/// # Errors
/// When certificate or key cannot be read, or are none.
pub(crate) fn builder(config: &Config) -> anyhow::Result<Server> {
    let Some((certificate, key)) = &config.updraft.grpc_ssl else {
        return Ok(Server::builder());
    };
    let read = |path: &Path| std::fs::read(path).with_context(|| format!("cannot read {}", path.display()));
    let identity = Identity::from_pem(
        read(certificate).context("[updraft] grpc_ssl_cert")?,
        read(key).context("[updraft] grpc_ssl_key")?,
    );
    Server::builder()
        .tls_config(ServerTlsConfig::new().identity(identity))
        .context("[updraft] grpc_ssl_cert and grpc_ssl_key cannot be used")
}

/// Lets users and workers pass: what the control plane offers is told to nobody else.
fn known_caller(app: &App, request: Request<()>) -> Result<Request<()>, Status> {
    if app.config.core.all_admins {
        return Ok(request);
    }
    let token = token_of(&request)?;
    if app.user_of(token).is_ok() || app.tokens.worker(token).is_ok() {
        return Ok(request);
    }
    Err(Status::unauthenticated("the token is not valid"))
}

/// The bearer token of a call.
fn bearer(metadata: &MetadataMap) -> Result<&str, Status> {
    let value = metadata
        .get("authorization")
        .and_then(|value| value.to_str().ok());
    let token = value
        .and_then(|value| value.split_once(' '))
        .filter(|(scheme, _)| scheme.eq_ignore_ascii_case("bearer"));
    token
        .map(|(_, token)| token.trim())
        .ok_or_else(|| Status::unauthenticated("the call carries no bearer token"))
}

fn token_of<T>(request: &Request<T>) -> Result<&str, Status> {
    bearer(request.metadata())
}

fn store_status(error: &store::StoreError) -> Status {
    if error.is_transient() {
        tracing::warn!("{error}");
        return Status::unavailable("the metadata store is not available");
    }
    tracing::error!("{error}");
    Status::new(Code::FailedPrecondition, error.to_string())
}
