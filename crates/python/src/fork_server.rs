//! The fork server: one Python process that has imported the SDK, and its children.
//!
//! Its death costs nothing: its children live on as ours, a copy of it that was made when it had warmed up takes its
//! place, and that copy is copied again.

mod command;
mod process;

use crate::bundle::Bundle;
use crate::parse::Instead;
use backoff::Backoff;
use lifecycle::{Kind, Lifecycle, Part};
use nix::sys::signal::{Signal, killpg};
use nix::unistd::Pid;
use process::{Process, Sockets};
use processes::lease::Permit;
use serde_json::{Value, json};
use std::collections::HashMap;
use std::os::fd::OwnedFd;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError, Weak};
use std::time::Duration;
use thiserror::Error;
use tokio::net::UnixStream;
use tokio::sync::{Notify, oneshot, watch};

/// How long forking a child may take. A fork server that takes longer is sick: it is replaced.
const FORK: Duration = Duration::from_secs(10);
/// How many fork servers are asked for one child.
const FORK_TRIES: u32 = 3;
/// Pauses between attempts to start Python where it cannot be started.
const FIRST_PAUSE: Duration = Duration::from_secs(1);
const LAST_PAUSE: Duration = Duration::from_secs(60);

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
#[derive(Debug, Clone, Error)]
pub enum PythonError {
    /// The interpreter cannot be started.
    #[error(
        "cannot start {python}: {source}; set [updraft] python to the interpreter of the DAGs' environment"
    )]
    Interpreter {
        /// The interpreter.
        python: PathBuf,
        /// Why.
        source: Arc<std::io::Error>,
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
    /// Run the task that is sent as `StartupDetails` on the requests socket, if its permit still holds then.
    Task(Permit),
    /// Run the triggers that are asked for on the requests socket, if the permit still holds then.
    Triggers(Permit),
    /// Parse a DAG file.
    Parse {
        /// The file.
        file: PathBuf,
        /// Its bundle.
        bundle: Box<Bundle>,
        /// MiB of memory above the fork server's own.
        memory_mb: u64,
        /// What to do instead.
        instead: Option<Instead>,
    },
}

impl Work {
    /// What the child must hold when user code is about to begin; none for what may be done by several at a time.
    fn permit(&self) -> Option<&Permit> {
        match self {
            Self::Task(permit) | Self::Triggers(permit) => Some(permit),
            Self::Parse { instead, .. } => match instead {
                Some(Instead::Callback(_, permit) | Instead::News(_, permit)) => Some(permit),
                Some(Instead::Question(_)) | None => None,
            },
        }
    }
}

/// How a child ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ChildExit {
    /// With this exit code.
    Code(i32),
    /// By this signal.
    Signal(i32),
    /// Nobody knows.
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
    /// The child is killed when this is closed: it ends with us, not with the fork server.
    _lifeline: OwnedFd,
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

/// Whether Python can be used now.
#[derive(Debug, Clone)]
enum State {
    /// Not known yet.
    Starting,
    /// This fork server takes requests, unless it has died since.
    Ready(Arc<Process>),
    /// It cannot; another attempt follows.
    Broken(PythonError),
    /// Nobody wants it any more.
    Stopped,
}

#[derive(Debug)]
struct Inner {
    config: ForkServerConfig,
    state: watch::Sender<State>,
    standby: Mutex<Option<Arc<Process>>>,
    /// Notified when a fork server has died.
    died: Arc<Notify>,
    keeper: Mutex<Option<Part>>,
    lifecycle: Lifecycle,
}

impl Drop for Inner {
    fn drop(&mut self) {
        if let Some(keeper) = lock(&self.keeper).take() {
            keeper.abort();
        }
    }
}

fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// A fork server, started when it is first needed and replaced when it died. Clones share it.
#[derive(Clone)]
pub struct ForkServer {
    inner: Arc<Inner>,
}

impl ForkServer {
    /// A fork server that is not started yet. Who keeps one ready is a part of this program.
    pub fn new(config: ForkServerConfig, lifecycle: Lifecycle) -> Self {
        Self {
            inner: Arc::new(Inner {
                config,
                state: watch::Sender::new(State::Starting),
                standby: Mutex::default(),
                died: Arc::default(),
                keeper: Mutex::default(),
                lifecycle,
            }),
        }
    }

    /// What it was made with.
    pub fn config(&self) -> &ForkServerConfig {
        &self.inner.config
    }

    /// Starts it if it is not running.
    ///
    /// # Errors
    /// When the interpreter cannot be started or lacks the SDK. Further attempts are made in the background.
    pub async fn start(&self) -> Result<(), PythonError> {
        self.process().await.map(|_| ())
    }

    /// Waits until Python can be used, as far as is known.
    pub async fn works(&self) {
        let mut states = self.inner.state.subscribe();
        // The sender lives as long as we do.
        states
            .wait_for(|state| !matches!(state, State::Broken(_)))
            .await
            .ok();
    }

    /// Stops it for good, and with it every child.
    pub async fn stop(&self) {
        if let Some(keeper) = lock(&self.inner.keeper).take() {
            keeper.abort();
        }
        let standby = lock(&self.inner.standby).take();
        let state = self.inner.state.send_replace(State::Stopped);
        tokio::task::spawn_blocking(move || drop((standby, state)))
            .await
            .ok();
    }

    /// Forks a child. A fork server that dies or hangs meanwhile is replaced, and the next one asked.
    ///
    /// # Errors
    /// When there is no fork server to be had, or none answers.
    pub async fn fork(&self, work: &Work, env: &[(String, String)]) -> Result<Child, PythonError> {
        let mut tries = 1;
        loop {
            let process = self.process().await?;
            match fork_in(&process, work, env).await {
                Err(PythonError::Gone(problem)) if tries < FORK_TRIES => {
                    tracing::warn!("the Python fork server {problem}; asking another one");
                    process.kill();
                    tries += 1;
                }
                Err(error @ PythonError::Gone(_)) => {
                    process.kill();
                    return Err(error);
                }
                forked => return forked,
            }
        }
    }

    async fn process(&self) -> Result<Arc<Process>, PythonError> {
        self.keep();
        let mut states = self.inner.state.subscribe();
        loop {
            match &*states.borrow_and_update() {
                State::Ready(process) if !process.is_dead() => return Ok(Arc::clone(process)),
                State::Ready(_) | State::Starting => {}
                State::Broken(problem) => return Err(problem.clone()),
                State::Stopped => return Err(PythonError::Gone("was stopped".to_owned())),
            }
            // The sender lives as long as we do.
            states.changed().await.ok();
        }
    }

    /// Has somebody see to it that there is a fork server, from the first call on.
    fn keep(&self) {
        let mut keeper = lock(&self.inner.keeper);
        if keeper.is_none() && !matches!(*self.inner.state.borrow(), State::Stopped) {
            processes::orphans::adopt();
            let work = keep(Arc::downgrade(&self.inner), Arc::clone(&self.inner.died));
            let end = self.inner.lifecycle.stop().now().clone();
            let work = async move {
                end.run_until_cancelled(work).await;
            };
            let lifecycle = &self.inner.lifecycle;
            *keeper = Some(lifecycle.spawn("fork server keeper", Kind::Background, work));
        }
    }
}

/// Starts fork servers, one after the other died, and keeps a copy at hand.
async fn keep(inner: Weak<Inner>, died: Arc<Notify>) {
    let mut backoff = Backoff::new(FIRST_PAUSE, LAST_PAUSE);
    loop {
        let Some(inner) = inner.upgrade() else { return };
        match renew(&inner).await {
            Ok(()) => {
                backoff.reset();
                drop(inner);
                died.notified().await;
            }
            Err(problem) => {
                let pause = backoff.next_pause();
                tracing::error!(
                    "Python cannot be used: {problem}; trying again in {} s",
                    pause.as_secs_f64().ceil()
                );
                inner.state.send_replace(State::Broken(problem));
                drop(inner);
                tokio::time::sleep(pause).await;
            }
        }
    }
}

/// Makes sure that there is a fork server that lives, and a copy of it.
async fn renew(inner: &Inner) -> Result<(), PythonError> {
    let present = match &*inner.state.borrow() {
        State::Ready(process) if !process.is_dead() => Some(Arc::clone(process)),
        State::Ready(_) | State::Starting | State::Broken(_) | State::Stopped => None,
    };
    let present = match present {
        Some(present) => present,
        None => {
            let standby = lock(&inner.standby).take();
            let next = match standby.filter(|standby| !standby.is_dead()) {
                Some(standby) => {
                    tracing::warn!("the Python fork server died; its copy takes over");
                    standby
                }
                None => Arc::new(process::launch(&inner.config, &inner.died).await?),
            };
            let before = inner.state.send_replace(State::Ready(Arc::clone(&next)));
            // The last of it is waited for.
            tokio::task::spawn_blocking(move || drop(before)).await.ok();
            next
        }
    };
    let has_standby = lock(&inner.standby).as_ref().is_some_and(|copy| !copy.is_dead());
    if !has_standby {
        // Without one the next fork server takes longer to start, that is all.
        match process::copy(&present, &inner.died).await {
            Ok(copy) => *lock(&inner.standby) = Some(Arc::new(copy)),
            Err(PythonError::Gone(problem)) => {
                tracing::warn!("the Python fork server {problem}; replacing it");
                present.kill();
            }
            Err(error) => tracing::warn!("there is no copy of the Python fork server: {error}"),
        }
    }
    Ok(())
}

/// What the fork server is asked for.
fn request(work: &Work, env: &[(String, String)]) -> Value {
    let env: HashMap<&str, &str> = env
        .iter()
        .map(|(key, value)| (key.as_str(), value.as_str()))
        .collect();
    match work {
        Work::Task(permit) => json!({"op": "task", "env": env, "life": permit.life()}),
        Work::Triggers(permit) => json!({"op": "triggers", "env": env, "life": permit.life()}),
        Work::Parse {
            file,
            bundle,
            memory_mb,
            instead,
        } => {
            let mut request = json!({
                "op": "parse", "env": env, "file": file.to_string_lossy(), "bundle_path": bundle.path.to_string_lossy(),
                "bundle_name": bundle.name, "memory_mb": memory_mb,
            });
            match instead {
                Some(Instead::Callback(callback, _)) => request["callback"] = callback.clone(),
                Some(Instead::Question(question) | Instead::News(question, _)) => {
                    request["question"] = question.clone();
                }
                None => {}
            }
            if let Some(permit) = work.permit() {
                request["life"] = permit.life().into();
            }
            request
        }
    }
}

async fn fork_in(process: &Process, work: &Work, env: &[(String, String)]) -> Result<Child, PythonError> {
    let (ours, theirs) = Sockets::pair()?;
    let page = work.permit().map(Permit::page);
    let receiver = process.ask(request(work, env), &theirs, page)?;
    drop(theirs);
    let (pid, exit) = answer(receiver).await?;
    let Sockets {
        streams: [requests, stdout, stderr, logs],
        lifeline,
    } = ours;
    Ok(Child {
        pid,
        requests,
        stdout,
        stderr,
        logs,
        exit,
        _lifeline: lifeline,
    })
}

async fn answer<T>(receiver: oneshot::Receiver<T>) -> Result<T, PythonError> {
    match tokio::time::timeout(FORK, receiver).await {
        Ok(Ok(answer)) => Ok(answer),
        Ok(Err(_)) => Err(PythonError::Gone("died".to_owned())),
        Err(_) => Err(PythonError::Gone(format!(
            "did not fork within {} s",
            FORK.as_secs()
        ))),
    }
}
