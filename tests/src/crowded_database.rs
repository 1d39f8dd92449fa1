//! A way to MariaDB on which there is room for a few connections only.

use std::io::Write;
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

struct Shared {
    server: SocketAddr,
    /// Connections that may be open at a time.
    limit: usize,
    open: Vec<TcpStream>,
    refused: usize,
}

/// Passes connections on to a MariaDB, as many at a time as it is told to; ends with the test.
pub struct CrowdedDatabase {
    address: SocketAddr,
    shared: Arc<Mutex<Shared>>,
}

impl CrowdedDatabase {
    /// Stands before the server that listens there (`host:port`); there is room for all.
    ///
    /// # Panics
    /// When it cannot listen.
    pub fn before(server: &str) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
        let address = listener.local_addr().expect("an address");
        let shared = Arc::new(Mutex::new(Shared {
            server: server.parse().expect("an address with a port"),
            limit: usize::MAX,
            open: Vec::new(),
            refused: 0,
        }));
        let known = Arc::clone(&shared);
        std::thread::spawn(move || {
            for client in listener.incoming().flatten() {
                let known = Arc::clone(&known);
                std::thread::spawn(move || serve(client, &known));
            }
        });
        Self { address, shared }
    }

    /// Host and port of the way.
    pub fn address(&self) -> String {
        self.address.to_string()
    }

    /// Lets so many connections be open from now on; those that are too many break off.
    pub fn set_limit(&self, limit: usize) {
        let mut shared = lock(&self.shared);
        shared.limit = limit;
        while shared.open.len() > limit {
            if let Some(client) = shared.open.pop() {
                client.shutdown(Shutdown::Both).ok();
            }
        }
    }

    /// How many connections were refused.
    pub fn refused(&self) -> usize {
        lock(&self.shared).refused
    }
}

fn lock(shared: &Mutex<Shared>) -> MutexGuard<'_, Shared> {
    shared.lock().unwrap_or_else(PoisonError::into_inner)
}

/// What MariaDB says instead of its greeting when it has no room: error 1040.
fn refusal() -> Vec<u8> {
    let text = b"Too many connections";
    let mut packet = vec![u8::try_from(text.len() + 3).expect("a short text"), 0, 0, 0, 0xff];
    packet.extend_from_slice(&1040u16.to_le_bytes());
    packet.extend_from_slice(text);
    packet
}

fn serve(mut client: TcpStream, shared: &Mutex<Shared>) {
    let Ok(kept) = client.try_clone() else { return };
    let server = {
        let mut shared = lock(shared);
        if shared.open.len() >= shared.limit {
            shared.refused += 1;
            client.write_all(&refusal()).ok();
            return;
        }
        shared.open.push(kept);
        shared.server
    };
    pass_on(&client, server);
    let own = client.peer_addr().ok();
    lock(shared).open.retain(|other| other.peer_addr().ok() != own);
}

fn pass_on(client: &TcpStream, server: SocketAddr) {
    let Ok(server) = TcpStream::connect(server) else {
        return;
    };
    let (Ok(mut from_server), Ok(mut to_client)) = (server.try_clone(), client.try_clone()) else {
        return;
    };
    let (Ok(mut from_client), mut to_server) = (client.try_clone(), server) else {
        return;
    };
    let answers = std::thread::spawn(move || {
        std::io::copy(&mut from_server, &mut to_client).ok();
        to_client.shutdown(Shutdown::Both).ok();
    });
    std::io::copy(&mut from_client, &mut to_server).ok();
    to_server.shutdown(Shutdown::Both).ok();
    answers.join().ok();
}
