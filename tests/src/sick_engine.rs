//! A socket before the test engine that refuses, hangs or fails on demand.

use std::io::{Read, Write};
use std::net::Shutdown;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

/// What becomes of calls.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Sickness {
    /// Nobody listens.
    Absent,
    /// Connections are taken and never answered.
    Hangs,
    /// Every call is answered with 500.
    Fails,
    /// Calls to create a container are answered with 503, all others by the engine.
    CreatesNothing,
    /// Calls to start a container reach the engine, but their answers are lost.
    LosesStarts,
    /// All is well.
    None,
}

/// The socket; it ends with the test.
pub struct SickEngine {
    path: PathBuf,
    sickness: Arc<Mutex<Sickness>>,
}

const FAILURE: &str = "HTTP/1.1 500 Internal Server Error\r\nContent-Type: application/json\r\nContent-Length: 40\r\nConnection: close\r\n\r\n{\"message\":\"the engine is out of order\"}";

impl SickEngine {
    /// Makes the socket in this folder, before the engine at `address` (`unix:///...`).
    ///
    /// # Panics
    /// When it cannot be made.
    pub fn start(folder: &Path, address: &str) -> Self {
        let path = folder.join("engine.sock");
        let engine = PathBuf::from(address.trim_start_matches("unix://"));
        let sickness = Arc::new(Mutex::new(Sickness::Absent));
        let known = Arc::clone(&sickness);
        // Renamed away while nobody is to listen.
        let listener = UnixListener::bind(&path).expect("a socket");
        std::fs::rename(&path, path.with_extension("away")).expect("a socket");
        std::thread::spawn(move || {
            for connection in listener.incoming().flatten() {
                let sickness = *known.lock().unwrap_or_else(PoisonError::into_inner);
                let engine = engine.clone();
                std::thread::spawn(move || serve(connection, &engine, sickness));
            }
        });
        Self { path, sickness }
    }

    /// What `DOCKER_HOST` is to be.
    pub fn address(&self) -> String {
        format!("unix://{}", self.path.display())
    }

    /// Changes what becomes of calls on connections from now on.
    ///
    /// # Panics
    /// When the socket cannot be moved.
    pub fn set(&self, sickness: Sickness) {
        *self.sickness.lock().unwrap_or_else(PoisonError::into_inner) = sickness;
        let away = self.path.with_extension("away");
        let (from, to) = match sickness {
            Sickness::Absent => (&self.path, &away),
            _ => (&away, &self.path),
        };
        if from.exists() {
            std::fs::rename(from, to).expect("a socket");
        }
    }
}

fn serve(mut connection: UnixStream, engine: &Path, sickness: Sickness) {
    match sickness {
        Sickness::Absent => {}
        Sickness::Hangs => std::thread::park(),
        Sickness::Fails => {
            if matches!(connection.read(&mut [0; 4096]), Ok(1..)) {
                connection.write_all(FAILURE.as_bytes()).ok();
            }
        }
        Sickness::CreatesNothing | Sickness::LosesStarts | Sickness::None => {
            pass_on(connection, engine, sickness);
        }
    }
}

/// Passes calls on, and looks at what they ask for.
fn pass_on(mut client: UnixStream, engine: &Path, sickness: Sickness) {
    let Ok(mut server) = UnixStream::connect(engine) else {
        return;
    };
    let (Ok(mut answers), Ok(mut to_client)) = (server.try_clone(), client.try_clone()) else {
        return;
    };
    std::thread::spawn(move || {
        std::io::copy(&mut answers, &mut to_client).ok();
        to_client.shutdown(Shutdown::Both).ok();
    });
    let mut buffer = [0; 64 << 10];
    while let Ok(length @ 1..) = client.read(&mut buffer) {
        let text = String::from_utf8_lossy(&buffer[..length]).into_owned();
        let line = text.lines().next().unwrap_or_default();
        if sickness == Sickness::CreatesNothing && line.contains("/containers/create") {
            let failure = FAILURE.replace("500 Internal Server Error", "503 Service Unavailable");
            client.write_all(failure.as_bytes()).ok();
            break;
        }
        if sickness == Sickness::LosesStarts && line.contains("/start ") {
            // The engine does it; its answer goes nowhere.
            client.shutdown(Shutdown::Both).ok();
            server.write_all(&buffer[..length]).ok();
            std::thread::sleep(std::time::Duration::from_millis(200));
            break;
        }
        if server.write_all(&buffer[..length]).is_err() {
            break;
        }
    }
    server.shutdown(Shutdown::Both).ok();
    client.shutdown(Shutdown::Both).ok();
}
