//! Private instances of MariaDB, RabbitMQ and Docker: own ports, own folders, for tests to kill.

use crate::engine;
use crate::say::say;
use anyhow::{Context, ensure};
use std::net::TcpStream;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

/// The first ports of the instances of the tests, and of those of a campaign of faults, which kills and stops them.
const OF_TESTS: u16 = 13306;
const OF_CHAOS: u16 = 13506;
/// From MariaDB's port to RabbitMQ's.
const TO_RABBITMQ: u16 = 2367;
const RABBITMQ_SERVER: &str = "/usr/lib/rabbitmq/bin/rabbitmq-server";
const PATIENCE: Duration = Duration::from_secs(90);

/// Running instances.
pub(crate) struct Services {
    folder: PathBuf,
    mariadb: u16,
    rabbitmq: u16,
    with_docker: bool,
}

impl Services {
    /// How tests reach them.
    pub(crate) fn environment(&self) -> Vec<(String, String)> {
        let mut environment = vec![
            (
                "UPDRAFT_TEST_MARIADB".to_owned(),
                format!("mysql://updraft:updraft@127.0.0.1:{}", self.mariadb),
            ),
            (
                "UPDRAFT_TEST_RABBITMQ".to_owned(),
                format!("amqp://guest:guest@127.0.0.1:{}//", self.rabbitmq),
            ),
            (
                "UPDRAFT_TEST_SERVICES".to_owned(),
                self.folder.to_string_lossy().into_owned(),
            ),
        ];
        if self.with_docker {
            environment.push(("UPDRAFT_TEST_DOCKER".to_owned(), engine::address()));
        }
        environment
    }

    /// Those of the tests.
    fn of_tests() -> anyhow::Result<Self> {
        Ok(Self {
            folder: build_folder()?.join("services"),
            mariadb: OF_TESTS,
            rabbitmq: OF_TESTS + TO_RABBITMQ,
            with_docker: true,
        })
    }

    /// Starts MariaDB and RabbitMQ, unless they run.
    fn launch(&self) -> anyhow::Result<()> {
        std::fs::create_dir_all(&self.folder)?;
        if !listens(self.mariadb) {
            self.start_mariadb()?;
        }
        if !listens(self.rabbitmq) {
            self.start_rabbitmq()?;
        }
        Ok(())
    }

    /// Stops MariaDB and RabbitMQ, as a test may have left them.
    pub(crate) fn kill(&self) {
        for file in [self.folder.join("mariadb.pid"), self.folder.join("rabbitmq/pid")] {
            let Ok(pid) = std::fs::read_to_string(&file) else {
                continue;
            };
            // A number that was left behind may be somebody else's by now.
            if self.is_ours(pid.trim()) {
                Command::new("kill")
                    .arg("-9")
                    .arg(pid.trim())
                    .stderr(Stdio::null())
                    .status()
                    .ok();
            }
            std::fs::remove_file(&file).ok();
        }
    }

    /// Returns `true` if that process works on our data.
    fn is_ours(&self, pid: &str) -> bool {
        let line = std::fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
        String::from_utf8_lossy(&line).contains(&*self.folder.to_string_lossy())
    }
}

/// The folder for everything that chores build.
pub(crate) fn build_folder() -> anyhow::Result<PathBuf> {
    let target = std::env::var("CARGO_TARGET_DIR").unwrap_or_else(|_| "target".to_owned());
    let folder = std::path::absolute(target)?.join("xtask");
    std::fs::create_dir_all(&folder)?;
    Ok(folder)
}

fn found(program: &str) -> bool {
    let path = std::env::var("PATH").unwrap_or_default() + ":/usr/sbin:/usr/local/sbin";
    Path::new(program).is_file()
        || path
            .split(':')
            .any(|folder| Path::new(folder).join(program).is_file())
}

fn install() -> anyhow::Result<()> {
    let wanted = [
        ("mariadbd", "mariadb-server"),
        ("sqlite3", "sqlite3"),
        (RABBITMQ_SERVER, "rabbitmq-server"),
        ("dockerd", "docker.io"),
        // Of the variants of busybox, only the static one runs in an empty image.
        ("/usr/share/doc/busybox-static/copyright", "busybox-static"),
    ];
    let packages: Vec<&str> = wanted
        .iter()
        .filter(|(program, _)| !found(program))
        .map(|(_, package)| *package)
        .collect();
    if packages.is_empty() {
        return Ok(());
    }
    say(&format!("installing {}", packages.join(" ")));
    let apt = |arguments: &[&str]| -> anyhow::Result<()> {
        let status = Command::new("apt-get")
            .args(arguments)
            .env("DEBIAN_FRONTEND", "noninteractive")
            // Packages must not start their own instances.
            .env("RUNLEVEL", "1")
            .stdout(Stdio::null())
            .status()
            .context("tests need MariaDB, RabbitMQ and Docker; install mariadb-server, rabbitmq-server, docker.io and busybox-static")?;
        ensure!(
            status.success(),
            "apt-get {} failed; install {} yourself",
            arguments.join(" "),
            packages.join(" ")
        );
        Ok(())
    };
    apt(&["update", "-qq"])?;
    let mut arguments = vec!["install", "-y", "-qq", "--no-install-recommends"];
    arguments.extend(&packages);
    apt(&arguments)
}

fn listens(port: u16) -> bool {
    TcpStream::connect(("127.0.0.1", port)).is_ok()
}

fn wait_for(name: &str, port: u16, log: &Path) -> anyhow::Result<()> {
    let begin = Instant::now();
    while !listens(port) {
        ensure!(
            begin.elapsed() < PATIENCE,
            "{name} did not start; see {}",
            log.display()
        );
        std::thread::sleep(Duration::from_millis(100));
    }
    Ok(())
}

fn log_file(path: &Path) -> anyhow::Result<Stdio> {
    Ok(Stdio::from(
        std::fs::File::options()
            .create(true)
            .append(true)
            .open(path)
            .with_context(|| format!("cannot write {}", path.display()))?,
    ))
}

/// Starts those of the tests, unless they run.
pub(crate) fn start() -> anyhow::Result<Services> {
    install()?;
    let services = Services::of_tests()?;
    services.launch()?;
    engine::start(&services.folder)?;
    Ok(services)
}

/// Starts MariaDB and RabbitMQ for a campaign of faults: fresh ones, at the first ports that are free.
pub(crate) fn start_for_chaos() -> anyhow::Result<Services> {
    install()?;
    let mut services = Services {
        folder: build_folder()?.join("chaos"),
        mariadb: 0,
        rabbitmq: 0,
        with_docker: false,
    };
    // What an earlier campaign left, if it was ended by force.
    services.kill();
    let free = (OF_CHAOS..OF_CHAOS + 100)
        .step_by(4)
        .find(|port| !listens(*port) && !listens(port + TO_RABBITMQ) && !listens(port + TO_RABBITMQ + 1));
    services.mariadb = free.context("no port is free for MariaDB and RabbitMQ")?;
    services.rabbitmq = services.mariadb + TO_RABBITMQ;
    services.launch()?;
    Ok(services)
}

impl Services {
    fn start_mariadb(&self) -> anyhow::Result<()> {
        let (folder, port) = (&self.folder, self.mariadb);
        let data = folder.join("mariadb");
        let user = std::env::var("USER").unwrap_or_else(|_| "root".to_owned());
        if data.exists() {
            std::fs::remove_dir_all(&data)?;
        }
        let made = Command::new("mariadb-install-db")
            .args([
                "--no-defaults",
                "--auth-root-authentication-method=normal",
                "--skip-test-db",
            ])
            .arg(format!("--user={user}"))
            .arg(format!("--datadir={}", data.display()))
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .status()?;
        ensure!(made.success(), "mariadb-install-db failed");
        let script = folder.join("mariadb-start.sh");
        let init = folder.join("mariadb-init.sql");
        std::fs::write(
            &init,
            // The server reads one statement per line.
            "CREATE USER IF NOT EXISTS 'updraft'@'%' IDENTIFIED BY 'updraft';\nGRANT ALL ON *.* TO 'updraft'@'%';\n",
        )?;
        // Tests kill the server and start it again with this.
        let command = format!(
            "#!/bin/sh\nexec mariadbd --no-defaults --user={user} --datadir={} --port={port} --bind-address=127.0.0.1 \
         --socket={} --pid-file={} --init-file={} --innodb-flush-log-at-trx-commit=1 --max-connections=300 \
         --innodb-buffer-pool-size=128M --skip-log-bin\n",
            data.display(),
            folder.join("mariadb.sock").display(),
            folder.join("mariadb.pid").display(),
            init.display(),
        );
        std::fs::write(&script, command)?;
        let log = folder.join("mariadb.log");
        launch(Command::new("sh").arg(&script), &log)?;
        wait_for("MariaDB", port, &log)
    }

    fn start_rabbitmq(&self) -> anyhow::Result<()> {
        let (folder, port) = (&self.folder, self.rabbitmq);
        let home = folder.join("rabbitmq");
        if home.exists() {
            std::fs::remove_dir_all(&home)?;
        }
        std::fs::create_dir_all(home.join("mnesia"))?;
        std::fs::write(home.join("plugins"), "[].\n")?;
        let script = folder.join("rabbitmq-start.sh");
        let at = |name: &str| home.join(name).display().to_string();
        let command = format!(
            "#!/bin/sh\nexport HOME={} RABBITMQ_NODENAME=updraft{port}@localhost RABBITMQ_NODE_IP_ADDRESS=127.0.0.1 \
         RABBITMQ_NODE_PORT={port} RABBITMQ_DIST_PORT={} RABBITMQ_MNESIA_BASE={} RABBITMQ_LOG_BASE={} \
         ERL_EPMD_PORT=14369 ERL_EPMD_ADDRESS=127.0.0.1 RABBITMQ_ENABLED_PLUGINS_FILE={} RABBITMQ_CONF_ENV_FILE=/dev/null \
         RABBITMQ_PID_FILE={}\nexec {RABBITMQ_SERVER}\n",
            home.display(),
            port + 1,
            at("mnesia"),
            at("log"),
            at("plugins"),
            at("pid"),
        );
        std::fs::write(&script, command)?;
        let log = folder.join("rabbitmq.log");
        launch(Command::new("sh").arg(&script), &log)?;
        wait_for("RabbitMQ", port, &log)
    }
}

/// Starts a process that outlives this one.
pub(crate) fn launch(command: &mut Command, log: &Path) -> anyhow::Result<()> {
    command
        .stdin(Stdio::null())
        .stdout(log_file(log)?)
        .stderr(log_file(log)?)
        .process_group(0)
        .spawn()?;
    Ok(())
}

/// Stops those of the tests.
pub(crate) fn stop() -> anyhow::Result<()> {
    Services::of_tests()?.kill();
    engine::stop();
    Ok(())
}
