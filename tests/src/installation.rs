//! An installation under test: a home, DAG files, and processes that may be killed.

use crate::{Api, eventually};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use std::collections::BTreeMap;
use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;
use tempfile::TempDir;

/// A port that nobody uses now, and that is given once only. It is none of those that the system gives to connections that
/// name no port: one of these could take it before the server does.
fn free_port() -> u16 {
    const FIRST: u32 = 16_000;
    const COUNT: u32 = 14_000;
    static GIVEN: AtomicU32 = AtomicU32::new(0);
    // Test programs that run at the same time begin at different places.
    let begin = std::process::id().wrapping_mul(97);
    (0..COUNT)
        .filter_map(|_| {
            let place = begin.wrapping_add(GIVEN.fetch_add(1, Ordering::Relaxed));
            u16::try_from(FIRST + place % COUNT).ok()
        })
        .find(|port| TcpListener::bind(("127.0.0.1", *port)).is_ok())
        .expect("a free port")
}

/// The folder of the built programs.
fn programs() -> PathBuf {
    let own = std::env::current_exe().expect("our own path");
    // Tests are in a folder below the programs, tools beside them.
    let found = own
        .ancestors()
        .skip(1)
        .take(2)
        .find(|folder| folder.join("updraft").exists());
    found
        .unwrap_or_else(|| {
            panic!(
                "there is no updraft near {}; run `cargo build --workspace`",
                own.display()
            )
        })
        .to_owned()
}

/// A home with DAG files and a configuration.
pub struct Installation {
    home: TempDir,
    environment: BTreeMap<String, String>,
    /// Port of the REST API.
    pub port: u16,
    /// Port of the control plane.
    pub control_port: u16,
}

impl Installation {
    /// An installation without examples, with this interpreter.
    pub fn new(python: &str) -> Self {
        let home = tempfile::tempdir().expect("a home");
        std::fs::create_dir(home.path().join("dags")).expect("a folder");
        let (port, control_port) = (free_port(), free_port());
        let mut installation = Self {
            home,
            environment: BTreeMap::new(),
            port,
            control_port,
        };
        let path = installation.path().to_string_lossy().into_owned();
        installation.set("AIRFLOW_HOME", &path);
        installation.set("AIRFLOW__CORE__LOAD_EXAMPLES", "False");
        installation.set("AIRFLOW__CORE__DAGS_ARE_PAUSED_AT_CREATION", "False");
        installation.set("AIRFLOW__UPDRAFT__PYTHON", python);
        installation.set("AIRFLOW__API__HOST", "127.0.0.1");
        installation.set("AIRFLOW__API__PORT", &port.to_string());
        installation.set("AIRFLOW__UPDRAFT__GRPC_PORT", &control_port.to_string());
        installation.set(
            "AIRFLOW__UPDRAFT__CONTROL_PLANE",
            &format!("http://127.0.0.1:{control_port}"),
        );
        installation.set(
            "AIRFLOW__API_AUTH__JWT_SECRET",
            "a secret of the tests, long enough",
        );
        installation
    }

    /// `$AIRFLOW_HOME`
    pub fn path(&self) -> &Path {
        self.home.path()
    }

    /// Sets an environment variable of everything started from here on.
    pub fn set(&mut self, name: &str, value: &str) {
        self.environment.insert(name.to_owned(), value.to_owned());
    }

    /// Unsets one.
    pub fn unset(&mut self, name: &str) {
        self.environment.remove(name);
    }

    /// The environment of everything that is started from here on.
    pub fn environment(&self) -> &BTreeMap<String, String> {
        &self.environment
    }

    /// Path of one of the built programs.
    pub fn program(name: &str) -> PathBuf {
        programs().join(name)
    }

    /// Writes a DAG file, whole at once.
    pub fn dag(&self, name: &str, text: &str) {
        let path = self.path().join("dags").join(name);
        std::fs::create_dir_all(path.parent().expect("a folder")).expect("a folder");
        let draft = path.with_extension("draft");
        std::fs::write(&draft, text).expect("a DAG file");
        std::fs::rename(&draft, &path).expect("a DAG file");
    }

    /// Deletes a DAG file.
    pub fn remove_dag(&self, name: &str) {
        std::fs::remove_file(self.path().join("dags").join(name)).expect("a DAG file to delete");
    }

    fn command(&self, program: &str, arguments: &[&str]) -> Command {
        let mut command = Command::new(programs().join(program));
        for (name, _) in std::env::vars().filter(|(name, _)| name.starts_with("AIRFLOW")) {
            command.env_remove(name);
        }
        command.args(arguments).envs(&self.environment);
        command
    }

    /// Starts a program; its output goes to a file beside the home's logs.
    pub fn start(&self, program: &str, arguments: &[&str], more: &[(&str, &str)]) -> Process {
        let number = std::fs::read_dir(self.path()).map_or(0, |entries| entries.count());
        let name = program.rsplit('/').next().unwrap_or(program);
        let log = self.path().join(format!("{name}-{number}.out"));
        let output = std::fs::File::create(&log).expect("a log file");
        let errors = output.try_clone().expect("a log file");
        let mut command = self.command(program, arguments);
        command
            .envs(more.iter().copied())
            .stdin(Stdio::null())
            .stdout(output)
            .stderr(errors);
        let child = command
            .spawn()
            .unwrap_or_else(|error| panic!("{program}: {error}; run `cargo build --workspace`"));
        Process {
            name: program.to_owned(),
            child,
            log,
        }
    }

    /// Runs a program to its end: whether it succeeded, and all that it printed.
    pub fn run(&self, program: &str, arguments: &[&str]) -> (bool, String) {
        let output = self
            .command(program, arguments)
            .stdin(Stdio::null())
            .output()
            .expect("the program runs");
        let text = [output.stdout, output.stderr].concat();
        (
            output.status.success(),
            String::from_utf8_lossy(&text).into_owned(),
        )
    }

    /// The API, logged in as admin, as soon as it answers.
    pub fn api(&self) -> Api {
        let api = Api::new(self.port);
        let file = self.path().join("simple_auth_manager_passwords.json.generated");
        eventually("the API server answers", Duration::from_secs(60), || {
            let text = std::fs::read_to_string(&file).map_err(|error| error.to_string())?;
            let users: BTreeMap<String, String> =
                serde_json::from_str(&text).map_err(|error| error.to_string())?;
            let password = users.get("admin").ok_or("no admin")?;
            api.login("admin", password).map_err(|error| error.to_string())
        })
    }
}

/// A started program; killed when dropped.
pub struct Process {
    name: String,
    child: Child,
    log: PathBuf,
}

impl Process {
    /// All that it printed so far.
    pub fn output(&self) -> String {
        std::fs::read_to_string(&self.log).unwrap_or_default()
    }

    /// Its number.
    pub fn id(&self) -> u32 {
        self.child.id()
    }

    /// `kill -9`
    pub fn kill(&mut self) {
        self.signal(Signal::SIGKILL);
        self.child.wait().expect("the process ends");
    }

    /// Sends a signal.
    pub fn signal(&self, signal: Signal) {
        let pid = i32::try_from(self.child.id()).expect("a pid");
        // One that is gone is no error here; whoever waits will see.
        kill(Pid::from_raw(pid), signal).ok();
    }

    /// Waits for its end; whether it succeeded.
    pub fn wait(&mut self, patience: Duration) -> bool {
        let name = self.name.clone();
        eventually(&format!("{name} ends"), patience, || {
            match self.child.try_wait() {
                Ok(Some(status)) => Ok(status.success()),
                other => Err(format!("{other:?}\n{}", self.output())),
            }
        })
    }

    /// Waits for its end; its exit code, `None` when a signal ended it.
    pub fn exit_code(&mut self, patience: Duration) -> Option<i32> {
        self.wait(patience);
        self.child.wait().expect("it has ended").code()
    }

    /// The processes that it started, those whose command line contains `what`.
    pub fn children(&self, what: &str) -> Vec<i32> {
        let threads = std::fs::read_dir(format!("/proc/{}/task", self.child.id()));
        let lists = threads
            .into_iter()
            .flatten()
            .flatten()
            .filter_map(|thread| std::fs::read_to_string(thread.path().join("children")).ok());
        let text = lists.collect::<Vec<_>>().join(" ");
        text.split_whitespace()
            .filter(|pid| {
                std::fs::read_to_string(format!("/proc/{pid}/cmdline")).is_ok_and(|line| line.contains(what))
            })
            .filter_map(|pid| pid.parse().ok())
            .collect()
    }

    /// Its children that have ended and were not reaped.
    pub fn zombies(&self) -> Vec<String> {
        let own = self.child.id().to_string();
        let entries = std::fs::read_dir("/proc").into_iter().flatten().flatten();
        entries
            .filter_map(|entry| std::fs::read_to_string(entry.path().join("stat")).ok())
            .filter(|stat| {
                let facts = stat.rsplit_once(") ").map_or("", |(_, facts)| facts);
                facts.starts_with(&format!("Z {own} "))
            })
            .collect()
    }

    /// Whether it still runs.
    pub fn is_running(&mut self) -> bool {
        matches!(self.child.try_wait(), Ok(None))
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        if self.is_running() {
            // First the friendly way: a worker's tasks end with it in any case.
            self.signal(Signal::SIGKILL);
            self.child.wait().ok();
        }
        if std::thread::panicking() {
            let output = self.output();
            let tail: Vec<&str> = output.lines().rev().take(40).collect();
            let tail: Vec<&str> = tail.into_iter().rev().collect();
            use std::io::Write;
            writeln!(std::io::stderr(), "---- {}:\n{}", self.name, tail.join("\n")).ok();
        }
    }
}
