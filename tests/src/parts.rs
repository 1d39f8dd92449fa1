//! The real parts that tests need. `cargo xtask test` provides them all and demands that none is skipped.

use std::io::Write;
use std::os::unix::process::CommandExt;
use std::path::PathBuf;
use std::process::{ChildStdin, Command, Output, Stdio};
use std::sync::{LazyLock, Mutex, PoisonError};

/// Whether a missing part is a failure rather than a reason to skip.
pub fn required() -> bool {
    std::env::var_os("UPDRAFT_TEST_REQUIRED").is_some()
}

fn part(name: &str) -> Option<String> {
    let value = std::env::var(name).ok().filter(|value| !value.is_empty());
    assert!(
        value.is_some() || !required(),
        "{name} is not set; run `cargo xtask test`"
    );
    value
}

/// Where MariaDB is, without a database.
pub fn mariadb_url() -> Option<String> {
    part("UPDRAFT_TEST_MARIADB")
}

/// Where RabbitMQ is.
pub fn rabbitmq_url() -> Option<String> {
    part("UPDRAFT_TEST_RABBITMQ")
}

/// The interpreter with the Task SDK.
pub fn python() -> Option<String> {
    part("UPDRAFT_TEST_PYTHON")
}

/// Where a Docker engine with the image [`IMAGE`] is.
pub fn docker() -> Option<String> {
    part("UPDRAFT_TEST_DOCKER")
}

/// The image of busybox that the test engine has.
pub const IMAGE: &str = "updraft-test/busybox:1";

/// The client of MariaDB; `url` may name a database. It prints a line for each row, its fields divided by tabs.
pub(crate) fn mariadb_client(url: &str) -> Command {
    let rest = url.split_once("://").map_or("", |(_, rest)| rest);
    let (credentials, address) = rest.split_once('@').unwrap_or(("", rest));
    let (user, password) = credentials.split_once(':').unwrap_or((credentials, ""));
    let (address, database) = address.split_once('/').unwrap_or((address, ""));
    let (host, port) = address.split_once(':').unwrap_or((address, "3306"));
    let mut command = Command::new("mariadb");
    command
        .args([
            "--no-defaults",
            "--protocol=tcp",
            "--batch",
            "--skip-column-names",
        ])
        .args(["-h", host, "-P", port, "-u", user])
        .env("MYSQL_PWD", password);
    if !database.is_empty() {
        command.arg(format!("--database={database}"));
    }
    command
}

/// Runs the client of MariaDB; `url` may name a database.
fn mariadb(url: &str, sql: &str) -> Output {
    mariadb_client(url)
        .args(["-e", sql])
        .output()
        .expect("the client of MariaDB")
}

/// Who drops the databases of this program when it has ended, however it does: a client that is fed the statements
/// when nobody holds this pipe any more.
static SWEEPER: LazyLock<Mutex<Option<ChildStdin>>> = LazyLock::new(Mutex::default);

/// Has a database dropped when this program has ended.
fn drop_in_the_end(url: &str, name: &str) {
    let mut sweeper = SWEEPER.lock().unwrap_or_else(PoisonError::into_inner);
    if sweeper.is_none() {
        drop_forgotten(url);
        let client = mariadb_client(url);
        let mut command = Command::new("sh");
        // All that is read is kept until the end of the input.
        command
            .args([
                "-c",
                "statements=$(cat); printf '%s' \"$statements\" | exec \"$@\"",
                "sh",
            ])
            .arg(client.get_program())
            .args(client.get_args())
            .arg("--force")
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .process_group(0);
        for (key, value) in client.get_envs() {
            command.env(key, value.unwrap_or_default());
        }
        *sweeper = command.spawn().expect("a shell").stdin.take();
    }
    let sweeper = sweeper.as_mut().expect("its input");
    writeln!(sweeper, "DROP DATABASE IF EXISTS {name};").expect("the sweeper reads");
}

/// Drops the databases of programs whose sweeper died with them, long ago.
fn drop_forgotten(url: &str) {
    let old = mariadb_query(
        url,
        "SELECT table_schema FROM information_schema.tables WHERE table_schema LIKE 't\\_%' \
         GROUP BY table_schema HAVING MAX(create_time) < NOW() - INTERVAL 1 DAY",
    );
    for name in old.lines() {
        // Another program may have been faster.
        mariadb(url, &format!("DROP DATABASE IF EXISTS {name}"));
    }
}

/// A fresh database, by URL. It is dropped when this program has ended.
///
/// # Panics
/// When MariaDB cannot be reached.
pub fn mariadb_database() -> Option<String> {
    let url = mariadb_url()?;
    let name = format!("t_{}", uuid::Uuid::new_v4().simple());
    let made = mariadb(&url, &format!("CREATE DATABASE {name} CHARACTER SET utf8mb4"));
    assert!(
        made.status.success(),
        "a test database could not be made: {made:?}"
    );
    drop_in_the_end(&url, &name);
    Some(format!("{url}/{name}"))
}

/// What a database answers: a line for each row, its fields divided by tabs.
///
/// # Panics
/// When it refuses.
pub fn mariadb_query(url: &str, sql: &str) -> String {
    let answer = mariadb(url, sql);
    assert!(answer.status.success(), "{sql}: {answer:?}");
    String::from_utf8_lossy(&answer.stdout).into_owned()
}

/// A folder that may lie beside the project; says so where it does not.
fn beside(name: &str) -> Option<PathBuf> {
    let own = PathBuf::from(env!("CARGO_MANIFEST_DIR"));
    // In a folder above the project; a copy of it may lie deeper than the project itself.
    let mut above = own
        .ancestors()
        .skip(2)
        .map(|folder| folder.join("shared").join(name));
    let first = above.next()?;
    let path = if first.is_dir() {
        first
    } else {
        above.find(|path| path.is_dir()).unwrap_or(first)
    };
    if !path.is_dir() {
        // Nobody to tell is no reason to fail.
        writeln!(std::io::stderr(), "skipped: there is no {}", path.display()).ok();
        return None;
    }
    Some(path)
}

/// The course files that must run unmodified, where they are at hand.
pub fn seeds() -> Option<PathBuf> {
    beside("seeds/dags")
}

/// Answers recorded from the real server, where they are at hand.
pub fn recordings() -> Option<PathBuf> {
    beside("golden")
}
