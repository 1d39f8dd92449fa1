//! The private MariaDB and RabbitMQ of `cargo xtask services`, for tests that kill them.

use crate::wait_until;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use std::os::unix::process::CommandExt;
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::time::Duration;

const PATIENCE: Duration = Duration::from_secs(90);

/// One that tests may kill.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Service {
    /// The database server.
    MariaDb,
    /// The broker.
    RabbitMq,
}

/// A service that was killed; dropping this starts it again and waits until it listens.
#[must_use]
pub struct KilledService(Service);

fn folder() -> PathBuf {
    std::env::var_os("UPDRAFT_TEST_SERVICES")
        .expect("UPDRAFT_TEST_SERVICES is set by `cargo xtask test`")
        .into()
}

impl Service {
    fn file_of_pid(self) -> PathBuf {
        folder().join(match self {
            Self::MariaDb => "mariadb.pid",
            Self::RabbitMq => "rabbitmq/pid",
        })
    }

    fn name(self) -> &'static str {
        match self {
            Self::MariaDb => "mariadb",
            Self::RabbitMq => "rabbitmq",
        }
    }

    /// Where it listens.
    fn address(self) -> String {
        let url = match self {
            Self::MariaDb => crate::mariadb_url(),
            Self::RabbitMq => crate::rabbitmq_url(),
        };
        let url = url.expect("the service's address");
        let address = url.rsplit('@').next().unwrap_or(&url);
        address.trim_end_matches('/').to_owned()
    }

    fn listens(self) -> bool {
        std::net::TcpStream::connect(self.address()).is_ok()
    }

    /// Its process id.
    ///
    /// # Panics
    /// When it does not say.
    pub fn pid(self) -> i32 {
        let text = std::fs::read_to_string(self.file_of_pid()).expect("the service's pid");
        text.trim().parse().expect("a pid")
    }

    /// `kill -9`
    ///
    /// # Panics
    /// When it is not running.
    pub fn kill(self) -> KilledService {
        kill(Pid::from_raw(self.pid()), Signal::SIGKILL).expect("the service runs");
        wait_until("nobody listens", PATIENCE, || !self.listens());
        KilledService(self)
    }
}

impl Drop for KilledService {
    #[expect(
        clippy::zombie_processes,
        reason = "it is to outlive this test program: the next one uses it too"
    )]
    fn drop(&mut self) {
        let name = self.0.name();
        let log = std::fs::File::options()
            .append(true)
            .create(true)
            .open(folder().join(format!("{name}.log")))
            .expect("the service's log");
        let errors = log.try_clone().expect("the service's log");
        Command::new("sh")
            .arg(folder().join(format!("{name}-start.sh")))
            .stdin(Stdio::null())
            .stdout(log)
            .stderr(errors)
            .process_group(0)
            .spawn()
            .expect("the service starts");
        if !std::thread::panicking() {
            wait_until("it listens again", PATIENCE, || self.0.listens());
        }
    }
}
