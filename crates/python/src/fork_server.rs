//! The fork server: one Python process that has imported the SDK, and its children.

use crate::parse::Instead;
use crate::shim::{LOADER, PROGRAM};
use nix::sys::signal::{Signal, killpg};
use nix::sys::socket::{
    AddressFamily, ControlMessage, MsgFlags, SockFlag, SockType, recv, send, sendmsg, setsockopt, socketpair,
    sockopt,
};
use nix::sys::time::TimeVal;
use nix::unistd::Pid;
use serde::Deserialize;
use serde_json::{Value, json};
use std::collections::HashMap;
use std::io::IoSlice;
use std::os::fd::{AsRawFd, OwnedFd, RawFd};
use std::path::PathBuf;
use std::process::Stdio;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;
use thiserror::Error;
use tokio::net::UnixStream;
use tokio::sync::oneshot;

/// How long the fork server may take to import the SDK.
const WARM_UP: Duration = Duration::from_secs(120);
/// How long forking a child may take.
const FORK: Duration = Duration::from_secs(30);

/// A folder of DAG files.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Bundle {
    /// Its name.
    pub name: String,
    /// The folder.
    pub path: PathBuf,
}

/// What a fork server needs to know.
#[derive(Debug, Clone)]
pub struct ForkServerConfig {
    /// The interpreter, with the SDK.
    pub python: PathBuf,
    /// `$AIRFLOW_HOME`.
    pub home: PathBuf,
    /// Folders with DAG files.
    pub bundles: Vec<Bundle>,
    /// Environment variables that children get beside the inherited ones.
    pub env: Vec<(String, String)>,
    /// Environment variables that children must not get.
    pub hidden_env: Vec<String>,
}

/// Why Python cannot be used.
#[derive(Debug, Error)]
pub enum PythonError {
    /// The interpreter cannot be started.
    #[error(
        "cannot start {python}: {source}; set [updraft] python to the interpreter of the DAGs' environment"
    )]
    Interpreter {
        /// The interpreter.
        python: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// The interpreter lacks the SDK, or has one that cannot be used.
    #[error(
        "{python} cannot run DAGs: {problem}; install apache-airflow-task-sdk 1.3 and apache-airflow-core into its environment, or set [updraft] python"
    )]
    Environment {
        /// The interpreter.
        python: PathBuf,
        /// What Python said.
        problem: String,
    },
    /// The fork server died or does not answer.
    #[error("the Python fork server {0}")]
    Gone(String),
    /// The system refused something.
    #[error("cannot fork a Python child: {0}")]
    System(String),
}

/// What a child is to do.
#[derive(Debug, Clone)]
pub enum Work {
    /// Run the task that is sent as `StartupDetails` on the requests socket.
    Task,
    /// Run the triggers that are asked for on the requests socket.
    Triggers,
    /// Parse a DAG file.
    Parse {
        /// The file.
        file: PathBuf,
        /// Its bundle.
        bundle: Bundle,
        /// MiB of memory above the fork server's own.
        memory_mb: u64,
        /// What to do instead.
        instead: Option<Instead>,
    },
}

/// How a child ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ChildExit {
    /// With this exit code.
    Code(i32),
    /// By this signal.
    Signal(i32),
    /// With the fork server.
    Lost,
}

/// A running child.
#[derive(Debug)]
pub struct Child {
    /// Its process, which leads a process group.
    pub pid: i32,
    /// Frames go both ways here.
    pub requests: UnixStream,
    /// Its standard output.
    pub stdout: UnixStream,
    /// Its standard error.
    pub stderr: UnixStream,
    /// Its log records: JSON, a line each.
    pub logs: UnixStream,
    /// How it ended.
    pub exit: oneshot::Receiver<ChildExit>,
}

impl Child {
    /// Sends a signal to the child and everything that it started in its process group. One that is gone is no error.
    pub fn signal(&self, signal: Signal) {
        killpg(Pid::from_raw(self.pid), signal).ok();
    }
}

/// Dropping a child's handle kills it: nobody would look after it.
impl Drop for Child {
    fn drop(&mut self) {
        if self
            .exit
            .try_recv()
            .is_err_and(|error| error == oneshot::error::TryRecvError::Empty)
        {
            self.signal(Signal::SIGKILL);
        }
    }
}

#[derive(Deserialize)]
struct Told {
    #[serde(default)]
    ready: Option<Value>,
    #[serde(default)]
    broken: Option<String>,
    #[serde(default)]
    tag: Option<u64>,
    #[serde(default)]
    pid: Option<i32>,
    #[serde(default)]
    exit: Option<i32>,
    #[serde(default)]
    status: Option<i32>,
}

#[derive(Default)]
struct Waiting {
    forks: HashMap<u64, oneshot::Sender<(i32, oneshot::Receiver<ChildExit>)>>,
    exits: HashMap<i32, oneshot::Sender<ChildExit>>,
    dead: bool,
}

fn lock(waiting: &Mutex<Waiting>) -> MutexGuard<'_, Waiting> {
    waiting.lock().unwrap_or_else(PoisonError::into_inner)
}

struct Process {
    control: OwnedFd,
    waiting: Arc<Mutex<Waiting>>,
    child: Mutex<std::process::Child>,
}

impl Process {
    fn is_dead(&self) -> bool {
        lock(&self.waiting).dead
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        // Shutting the socket down wakes our reader; its end of file makes the fork server kill its children and go.
        nix::sys::socket::shutdown(self.control.as_raw_fd(), nix::sys::socket::Shutdown::Both).ok();
        let child = self.child.get_mut().unwrap_or_else(PoisonError::into_inner);
        for _ in 0..200 {
            if matches!(child.try_wait(), Ok(Some(_)) | Err(_)) {
                return;
            }
            std::thread::sleep(Duration::from_millis(5));
        }
        child.kill().ok();
        child.wait().ok();
    }
}

/// A fork server, started when it is first needed and again when it died. Clones share it.
#[derive(Clone)]
pub struct ForkServer {
    config: Arc<ForkServerConfig>,
    process: Arc<tokio::sync::Mutex<Option<Arc<Process>>>>,
    tags: Arc<AtomicU64>,
}

impl ForkServer {
    /// A fork server that is not started yet.
    pub fn new(config: ForkServerConfig) -> Self {
        Self {
            config: Arc::new(config),
            process: Arc::default(),
            tags: Arc::default(),
        }
    }

    /// What it was made with.
    pub fn config(&self) -> &ForkServerConfig {
        &self.config
    }

    /// Starts it if it is not running.
    ///
    /// # Errors
    /// When the interpreter cannot be started or lacks the SDK.
    pub async fn start(&self) -> Result<(), PythonError> {
        self.process().await.map(|_| ())
    }

    /// Stops it, and with it every child.
    pub async fn stop(&self) {
        let process = self.process.lock().await.take();
        if let Some(process) = process {
            tokio::task::spawn_blocking(move || drop(process)).await.ok();
        }
    }

    /// Forks a child.
    ///
    /// # Errors
    /// When there is no fork server to be had, or it does not answer.
    pub async fn fork(&self, work: &Work, env: &[(String, String)]) -> Result<Child, PythonError> {
        let process = self.process().await?;
        let tag = self.tags.fetch_add(1, Ordering::Relaxed);
        let env: HashMap<&str, &str> = env
            .iter()
            .map(|(key, value)| (key.as_str(), value.as_str()))
            .collect();
        let op = match work {
            Work::Task => "task",
            Work::Triggers => "triggers",
            Work::Parse { .. } => "parse",
        };
        let mut request = json!({"tag": tag, "op": op, "env": env});
        if let (
            Work::Parse {
                file,
                bundle,
                memory_mb,
                instead,
            },
            Some(fields),
        ) = (work, request.as_object_mut())
        {
            fields.insert("file".to_owned(), file.to_string_lossy().into());
            fields.insert("bundle_path".to_owned(), bundle.path.to_string_lossy().into());
            fields.insert("bundle_name".to_owned(), bundle.name.as_str().into());
            fields.insert("memory_mb".to_owned(), (*memory_mb).into());
            match instead {
                Some(Instead::Callback(callback)) => fields.insert("callback".to_owned(), callback.clone()),
                Some(Instead::Question(question)) => fields.insert("question".to_owned(), question.clone()),
                None => None,
            };
        }
        let system = |error: &dyn std::fmt::Display| PythonError::System(error.to_string());
        let mut ours = Vec::new();
        let mut theirs = Vec::new();
        for _ in 0..4 {
            let (mine, its) = socketpair(
                AddressFamily::Unix,
                SockType::Stream,
                None,
                SockFlag::SOCK_CLOEXEC,
            )
            .map_err(|error| system(&error))?;
            let mine = std::os::unix::net::UnixStream::from(mine);
            mine.set_nonblocking(true).map_err(|error| system(&error))?;
            ours.push(UnixStream::from_std(mine).map_err(|error| system(&error))?);
            theirs.push(its);
        }
        let (sender, receiver) = oneshot::channel();
        lock(&process.waiting).forks.insert(tag, sender);
        let numbers: Vec<RawFd> = theirs.iter().map(AsRawFd::as_raw_fd).collect();
        let text = request.to_string();
        let sent = sendmsg::<()>(
            process.control.as_raw_fd(),
            &[IoSlice::new(text.as_bytes())],
            &[ControlMessage::ScmRights(&numbers)],
            MsgFlags::MSG_NOSIGNAL,
            None,
        );
        drop(theirs);
        sent.map_err(|error| PythonError::Gone(format!("does not take requests: {error}")))?;
        let (pid, exit) = match tokio::time::timeout(FORK, receiver).await {
            Ok(Ok(forked)) => forked,
            Ok(Err(_)) => return Err(PythonError::Gone("died".to_owned())),
            Err(_) => {
                self.stop().await;
                return Err(PythonError::Gone(format!(
                    "did not fork within {} s",
                    FORK.as_secs()
                )));
            }
        };
        let [requests, stdout, stderr, logs] = <[UnixStream; 4]>::try_from(ours)
            .map_err(|_| PythonError::System("sockets are missing".to_owned()))?;
        Ok(Child {
            pid,
            requests,
            stdout,
            stderr,
            logs,
            exit,
        })
    }

    async fn process(&self) -> Result<Arc<Process>, PythonError> {
        let mut slot = self.process.lock().await;
        if let Some(process) = slot.as_ref().filter(|process| !process.is_dead()) {
            return Ok(Arc::clone(process));
        }
        if slot.take().is_some() {
            tracing::warn!("the Python fork server died; starting another one");
        }
        let process = Arc::new(self.launch().await?);
        *slot = Some(Arc::clone(&process));
        Ok(process)
    }

    async fn launch(&self) -> Result<Process, PythonError> {
        let system = |error: &dyn std::fmt::Display| PythonError::System(error.to_string());
        let (control, its) = socketpair(
            AddressFamily::Unix,
            SockType::SeqPacket,
            None,
            SockFlag::SOCK_CLOEXEC,
        )
        .map_err(|error| system(&error))?;
        setsockopt(&control, sockopt::SendTimeout, &TimeVal::new(10, 0)).map_err(|error| system(&error))?;
        // The program is one packet, nearly as large as what a socket takes by default.
        setsockopt(&control, sockopt::SndBuf, &(1 << 20)).map_err(|error| system(&error))?;
        let program = json!(PROGRAM).to_string();
        send(control.as_raw_fd(), program.as_bytes(), MsgFlags::empty()).map_err(|error| system(&error))?;
        let mut command = self.command();
        command
            .stdin(Stdio::from(its))
            .stdout(Stdio::piped())
            .stderr(Stdio::piped());
        let python = self.config.python.clone();
        let mut child = command
            .spawn()
            .map_err(|source| PythonError::Interpreter { python, source })?;
        drop(command);
        forward_output(child.stdout.take(), child.stderr.take());
        let waiting = Arc::new(Mutex::new(Waiting::default()));
        let (ready, readiness) = oneshot::channel();
        let reader = control.try_clone().map_err(|error| system(&error))?;
        let shared = Arc::clone(&waiting);
        std::thread::Builder::new()
            .name("fork-server".to_owned())
            .spawn(move || listen(&reader, &shared, ready))
            .map_err(|error| system(&error))?;
        let process = Process {
            control,
            waiting,
            child: Mutex::new(child),
        };
        match tokio::time::timeout(WARM_UP, readiness).await {
            Ok(Ok(Ok(facts))) => {
                tracing::info!(sdk = %facts["sdk"], python = %facts["python"], seconds = %facts["seconds"], "Python is ready");
                Ok(process)
            }
            Ok(Ok(Err(problem))) => Err(PythonError::Environment {
                python: self.config.python.clone(),
                problem,
            }),
            Ok(Err(_)) => {
                let problem = "it ended before it was ready; its output is in the log".to_owned();
                Err(PythonError::Environment {
                    python: self.config.python.clone(),
                    problem,
                })
            }
            Err(_) => Err(PythonError::Gone(format!(
                "was not ready within {} s",
                WARM_UP.as_secs()
            ))),
        }
    }

    fn command(&self) -> std::process::Command {
        let config = &*self.config;
        let bundles: Vec<Value> = config
            .bundles
            .iter()
            .map(|bundle| {
                json!({"name": bundle.name, "classpath": "airflow.dag_processing.bundles.local.LocalDagBundle",
                       "kwargs": {"path": bundle.path}})
            })
            .collect();
        let mut command = std::process::Command::new(&config.python);
        // Nothing is written beside sources; what Python itself is not told by a variable, programs of tasks do not inherit.
        command.args(["-u", "-B", "-c", LOADER]);
        for name in &config.hidden_env {
            command.env_remove(name);
        }
        command
            .envs(config.env.iter().map(|(key, value)| (key, value)))
            .env("AIRFLOW_HOME", &config.home)
            .env("AIRFLOW__CORE__LOAD_EXAMPLES", "False")
            // Parseable, and impossible to open: tasks and parsers have no way to a database.
            .env(
                "AIRFLOW__DATABASE__SQL_ALCHEMY_CONN",
                "sqlite:////nonexistent/none.db",
            )
            .env(
                "AIRFLOW__DAG_PROCESSOR__DAG_BUNDLE_CONFIG_LIST",
                Value::from(bundles).to_string(),
            )
            .env("_AIRFLOW_PROCESS_CONTEXT", "client");
        command
    }
}

/// Hands what the fork server itself prints (warnings of the environment) to our log.
fn forward_output(stdout: Option<std::process::ChildStdout>, stderr: Option<std::process::ChildStderr>) {
    fn forward(stream: impl std::io::Read + Send + 'static) {
        let work = move || {
            let mut lines = std::io::BufRead::lines(std::io::BufReader::new(stream));
            while let Some(Ok(line)) = lines.next() {
                tracing::debug!(target: "python", "{line}");
            }
        };
        // Without the thread the output is lost, nothing else.
        std::thread::Builder::new()
            .name("fork-server-output".to_owned())
            .spawn(work)
            .ok();
    }
    if let Some(stream) = stdout {
        forward(stream);
    }
    if let Some(stream) = stderr {
        forward(stream);
    }
}

/// Reads what the fork server tells, until it ends.
fn listen(control: &OwnedFd, waiting: &Mutex<Waiting>, ready: oneshot::Sender<Result<Value, String>>) {
    let mut ready = Some(ready);
    let mut buffer = vec![0; 1 << 16];
    loop {
        let length = match recv(control.as_raw_fd(), &mut buffer, MsgFlags::empty()) {
            Ok(0) => break,
            Ok(length) => length,
            Err(nix::errno::Errno::EINTR) => continue,
            Err(_) => break,
        };
        let Ok(told) = serde_json::from_slice::<Told>(&buffer[..length]) else {
            continue;
        };
        if let Some(facts) = told.ready {
            ready.take().map(|ready| ready.send(Ok(facts)));
        } else if let Some(problem) = told.broken {
            ready.take().map(|ready| ready.send(Err(problem)));
        } else if let (Some(tag), Some(pid)) = (told.tag, told.pid) {
            let mut waiting = lock(waiting);
            let (sender, receiver) = oneshot::channel();
            waiting.exits.insert(pid, sender);
            if let Some(fork) = waiting.forks.remove(&tag) {
                // Whoever asked may have given up; then the child sees its sockets closed.
                fork.send((pid, receiver)).ok();
            }
        } else if let (Some(pid), Some(status)) = (told.exit, told.status) {
            let exit = if status < 0 {
                ChildExit::Signal(-status)
            } else {
                ChildExit::Code(status)
            };
            lock(waiting).exits.remove(&pid).map(|sender| sender.send(exit));
        }
    }
    let mut waiting = lock(waiting);
    waiting.dead = true;
    waiting.forks.clear();
    for (_, sender) in waiting.exits.drain() {
        sender.send(ChildExit::Lost).ok();
    }
}
