//! A TCP proxy between one component and one server, whose wire can be delayed, cut and blocked, in one way or both.

use super::kinds::Wire;
use anyhow::Context;
use std::future::pending;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};
use tokio::net::{TcpListener, TcpStream};
use tokio::runtime::Runtime;
use tokio::sync::watch;
use tokio::task::{JoinHandle, JoinSet};

const CONNECT: Duration = Duration::from_secs(2);

/// One proxy. Ends with its runtime.
pub(super) struct Proxy {
    /// Where it listens.
    pub(super) port: u16,
    wire: watch::Sender<Wire>,
    listening: JoinHandle<()>,
}

impl Proxy {
    /// Starts one. Connections go to the servers in turn, to the first that takes them.
    ///
    /// # Errors
    /// When the port is taken.
    pub(super) fn start(runtime: &Runtime, port: u16, servers: Vec<SocketAddr>) -> anyhow::Result<Self> {
        let (wire, state) = watch::channel(Wire::Open);
        let listener = runtime
            .block_on(TcpListener::bind(("127.0.0.1", port)))
            .with_context(|| format!("a proxy cannot listen on port {port}"))?;
        let listening = runtime.spawn(listen(listener, Arc::from(servers), state));
        Ok(Self {
            port,
            wire,
            listening,
        })
    }

    /// From now on the wire is like this.
    pub(super) fn set(&self, wire: Wire) {
        self.wire.send_replace(wire);
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        self.listening.abort();
    }
}

async fn listen(listener: TcpListener, servers: Arc<[SocketAddr]>, wire: watch::Receiver<Wire>) {
    let turn = AtomicUsize::new(0);
    let mut connections = JoinSet::new();
    loop {
        tokio::select! {
            accepted = listener.accept() => {
                if let Ok((client, _)) = accepted {
                    let first = turn.fetch_add(1, Ordering::Relaxed);
                    connections.spawn(carry(client, Arc::clone(&servers), first, wire.clone()));
                }
            }
            Some(_) = connections.join_next() => {}
        }
    }
}

async fn connect(servers: &[SocketAddr], first: usize) -> Option<TcpStream> {
    for place in 0..servers.len() {
        let server = servers[(first + place) % servers.len()];
        if let Ok(Ok(stream)) = tokio::time::timeout(CONNECT, TcpStream::connect(server)).await {
            return Some(stream);
        }
    }
    None
}

/// Waits until the wire is one of these.
async fn until(wire: &mut watch::Receiver<Wire>, wanted: impl FnMut(&Wire) -> bool) {
    if wire.wait_for(wanted).await.is_err() {
        pending::<()>().await;
    }
}

fn passes(wire: &Wire) -> bool {
    matches!(wire, Wire::Open | Wire::Delay(_))
}

async fn carry(client: TcpStream, servers: Arc<[SocketAddr]>, first: usize, mut wire: watch::Receiver<Wire>) {
    client.set_nodelay(true).ok();
    let now = *wire.borrow();
    match now {
        Wire::Open | Wire::Delay(_) => {}
        Wire::Reset => return reset(client),
        // The server's system takes the connection, the server does not: it is served later.
        Wire::Hang => until(&mut wire, passes).await,
        // A new connection gets nowhere; who still waits for it then learns that it is none.
        Wire::Hole | Wire::HoleUp | Wire::HoleDown => {
            until(&mut wire, passes).await;
            return reset(client);
        }
    }
    let Some(server) = connect(&servers, first).await else {
        return reset(client);
    };
    server.set_nodelay(true).ok();
    let ((from_client, to_client), (from_server, to_server)) = (client.into_split(), server.into_split());
    let up = pump(from_client, to_server, wire.clone(), Wire::HoleUp);
    let down = pump(from_server, to_client, wire.clone(), Wire::HoleDown);
    tokio::select! {
        () = up => {}
        () = down => {}
        () = until(&mut wire, |wire| *wire == Wire::Reset) => {}
    }
}

fn reset(stream: TcpStream) {
    stream.set_zero_linger().ok();
}

/// Carries bytes in one direction until the connection ends.
async fn pump(
    mut from: OwnedReadHalf,
    mut to: OwnedWriteHalf,
    mut wire: watch::Receiver<Wire>,
    own_hole: Wire,
) {
    let mut buffer = vec![0; 64 << 10];
    loop {
        let count = match from.read(&mut buffer).await {
            Ok(0) | Err(_) => break,
            Ok(count) => count,
        };
        let now = *wire.borrow_and_update();
        match now {
            Wire::Delay(pause) => tokio::time::sleep(pause).await,
            Wire::Hang => until(&mut wire, passes).await,
            _ if now == Wire::Hole || now == own_hole => {
                // These bytes are lost. Both ends learn it when the wire works again.
                until(&mut wire, passes).await;
                to.as_ref().set_zero_linger().ok();
                from.as_ref().set_zero_linger().ok();
                return;
            }
            Wire::Open | Wire::Reset | Wire::Hole | Wire::HoleUp | Wire::HoleDown => {}
        }
        if to.write_all(&buffer[..count]).await.is_err() {
            break;
        }
    }
    let now = *wire.borrow();
    if now == Wire::Hole || now == own_hole || now == Wire::Hang {
        // That the connection ended is not heard of either.
        until(&mut wire, passes).await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::{Read, Write};
    use std::net::TcpStream as Plain;

    /// A server that answers what it is told.
    fn echo() -> SocketAddr {
        let listener = std::net::TcpListener::bind(("127.0.0.1", 0)).unwrap();
        let address = listener.local_addr().unwrap();
        std::thread::spawn(move || {
            for mut stream in listener.incoming().flatten() {
                std::thread::spawn(move || {
                    let mut buffer = [0; 64];
                    while let Ok(count) = stream.read(&mut buffer) {
                        if count == 0 || stream.write_all(&buffer[..count]).is_err() {
                            break;
                        }
                    }
                });
            }
        });
        address
    }

    fn client(port: u16) -> Plain {
        let stream = Plain::connect(("127.0.0.1", port)).unwrap();
        stream.set_read_timeout(Some(Duration::from_millis(300))).unwrap();
        stream
    }

    fn says(stream: &mut Plain) -> Option<bool> {
        stream.write_all(b"hello").ok()?;
        let mut buffer = [0; 64];
        match stream.read(&mut buffer) {
            Ok(0) => None,
            Ok(count) => Some(&buffer[..count] == b"hello"),
            Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => Some(false),
            Err(_) => None,
        }
    }

    #[test]
    fn a_wire_passes_hangs_loses_and_resets() {
        let runtime = Runtime::new().unwrap();
        // The first server is none: connections go on to the next.
        let nobody = SocketAddr::from(([127, 0, 0, 1], 1));
        let port = std::net::TcpListener::bind(("127.0.0.1", 0))
            .unwrap()
            .local_addr()
            .unwrap()
            .port();
        let proxy = Proxy::start(&runtime, port, vec![nobody, echo()]).unwrap();
        let mut stream = client(port);
        assert_eq!(says(&mut stream), Some(true), "open");

        proxy.set(Wire::Hang);
        assert_eq!(says(&mut stream), Some(false), "it hangs");
        proxy.set(Wire::Open);
        let mut buffer = [0; 5];
        stream.read_exact(&mut buffer).unwrap();
        assert_eq!(&buffer, b"hello", "what waited comes late");

        for hole in [Wire::Hole, Wire::HoleUp, Wire::HoleDown] {
            let mut stream = client(port);
            assert_eq!(says(&mut stream), Some(true), "{hole:?}");
            proxy.set(hole);
            assert_eq!(says(&mut stream), Some(false), "{hole:?}");
            proxy.set(Wire::Open);
            assert_eq!(says(&mut stream), None, "{hole:?}: the connection is lost");
        }
        proxy.set(Wire::Reset);
        assert_eq!(says(&mut client(port)), None);
        proxy.set(Wire::Open);
        assert_eq!(says(&mut client(port)), Some(true));
    }
}
