//! Serving HTTP: a connection whose request does not come is closed.

use axum::Router;
use axum::extract::Extension;
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use hyper_util::server::conn::auto;
use hyper_util::server::graceful::GracefulShutdown;
use hyper_util::service::TowerToHyperService;
use lifecycle::{Kind, Lifecycle};
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;
use tokio::net::{TcpListener, TcpStream};
use tokio_util::sync::CancellationToken;
use tower::Layer;

/// How long the head of a request may take to come, and how long a connection is kept that asks for nothing.
const HEAD: Duration = Duration::from_secs(30);
/// How long to wait when no connection can be accepted, because there are no file descriptors for it.
const PAUSE: Duration = Duration::from_millis(100);

/// Who is at the other end of a connection.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Peer(pub(crate) IpAddr);

async fn accept(listener: &TcpListener) -> (TcpStream, SocketAddr) {
    loop {
        match listener.accept().await {
            Ok(accepted) => return accepted,
            Err(error) => {
                tracing::warn!("a connection cannot be accepted: {error}");
                tokio::time::sleep(PAUSE).await;
            }
        }
    }
}

/// Serves until `end`; then lets the requests end that have begun. Each connection is a part of the program.
pub(crate) async fn serve(
    listener: TcpListener,
    router: Router,
    lifecycle: &Lifecycle,
    end: CancellationToken,
) {
    let mut builder = auto::Builder::new(TokioExecutor::new());
    builder.http1().timer(TokioTimer::new()).header_read_timeout(HEAD);
    builder
        .http2()
        .timer(TokioTimer::new())
        .keep_alive_interval(Some(HEAD));
    let open = GracefulShutdown::new();
    loop {
        let (stream, peer) = tokio::select! {
            () = end.cancelled() => break,
            accepted = accept(&listener) => accepted,
        };
        // Small answers are not to wait for more; without it they are only slower.
        stream.set_nodelay(true).ok();
        let service = TowerToHyperService::new(Extension(Peer(peer.ip())).layer(router.clone()));
        let connection = builder.serve_connection(TokioIo::new(stream), service);
        let connection = open.watch(connection.into_owned());
        // A client that breaks off is no fault of ours.
        lifecycle.spawn("connection", Kind::Request, async move {
            connection.await.ok();
        });
    }
    drop(listener);
    open.shutdown().await;
}
