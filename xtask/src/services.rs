//! Private instances of MariaDB, RabbitMQ and Docker: own ports, own folders, for tests to kill.

use crate::engine;
use crate::say::say;
use anyhow::{Context, ensure};
use std::net::TcpStream;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

const MARIADB_PORT: u16 = 13306;
const RABBITMQ_PORT: u16 = 15673;
const RABBITMQ_SERVER: &str = "/usr/lib/rabbitmq/bin/rabbitmq-server";
const PATIENCE: Duration = Duration::from_secs(90);

/// Running instances.
pub(crate) struct Services {
    folder: PathBuf,
}

impl Services {
    /// How tests reach them.
    pub(crate) fn environment(&self) -> Vec<(String, String)> {
        vec![
            (
                "UPDRAFT_TEST_MARIADB".to_owned(),
                format!("mysql://updraft:updraft@127.0.0.1:{MARIADB_PORT}"),
            ),
            (
                "UPDRAFT_TEST_RABBITMQ".to_owned(),
                format!("amqp://guest:guest@127.0.0.1:{RABBITMQ_PORT}//"),
            ),
            ("UPDRAFT_TEST_DOCKER".to_owned(), engine::address()),
            (
                "UPDRAFT_TEST_SERVICES".to_owned(),
                self.folder.to_string_lossy().into_owned(),
            ),
        ]
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

/// Starts them, unless they run.
pub(crate) fn start() -> anyhow::Result<Services> {
    install()?;
    let folder = build_folder()?.join("services");
    std::fs::create_dir_all(&folder)?;
    if !listens(MARIADB_PORT) {
        start_mariadb(&folder)?;
    }
    if !listens(RABBITMQ_PORT) {
        start_rabbitmq(&folder)?;
    }
    engine::start(&folder)?;
    Ok(Services { folder })
}

fn start_mariadb(folder: &Path) -> anyhow::Result<()> {
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
        "#!/bin/sh\nexec mariadbd --no-defaults --user={user} --datadir={} --port={MARIADB_PORT} --bind-address=127.0.0.1 \
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
    wait_for("MariaDB", MARIADB_PORT, &log)
}

fn start_rabbitmq(folder: &Path) -> anyhow::Result<()> {
    let home = folder.join("rabbitmq");
    if home.exists() {
        std::fs::remove_dir_all(&home)?;
    }
    std::fs::create_dir_all(home.join("mnesia"))?;
    std::fs::write(home.join("plugins"), "[].\n")?;
    let script = folder.join("rabbitmq-start.sh");
    let at = |name: &str| home.join(name).display().to_string();
    let command = format!(
        "#!/bin/sh\nexport HOME={} RABBITMQ_NODENAME=updraft@localhost RABBITMQ_NODE_IP_ADDRESS=127.0.0.1 \
         RABBITMQ_NODE_PORT={RABBITMQ_PORT} RABBITMQ_DIST_PORT={} RABBITMQ_MNESIA_BASE={} RABBITMQ_LOG_BASE={} \
         ERL_EPMD_PORT=14369 ERL_EPMD_ADDRESS=127.0.0.1 RABBITMQ_ENABLED_PLUGINS_FILE={} RABBITMQ_CONF_ENV_FILE=/dev/null \
         RABBITMQ_PID_FILE={}\nexec {RABBITMQ_SERVER}\n",
        home.display(),
        RABBITMQ_PORT + 1,
        at("mnesia"),
        at("log"),
        at("plugins"),
        at("pid"),
    );
    std::fs::write(&script, command)?;
    let log = folder.join("rabbitmq.log");
    launch(Command::new("sh").arg(&script), &log)?;
    wait_for("RabbitMQ", RABBITMQ_PORT, &log)
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

/// Stops them.
pub(crate) fn stop() -> anyhow::Result<()> {
    let folder = build_folder()?.join("services");
    for file in [folder.join("mariadb.pid"), folder.join("rabbitmq/pid")] {
        if let Ok(pid) = std::fs::read_to_string(&file) {
            // One that is gone is what we want.
            Command::new("kill")
                .arg("-9")
                .arg(pid.trim())
                .stderr(Stdio::null())
                .status()
                .ok();
        }
    }
    engine::stop();
    Ok(())
}
