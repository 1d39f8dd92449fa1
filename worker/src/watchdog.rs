//! The watchdog: a small process of its own that kills everything a worker started when the worker is gone, or has not
//! renewed its lease in time. A worker that is stopped or stuck cannot keep its tasks alive past the point where others
//! may try them again.
//!
//! It knows its wards by an environment variable that every process started by a worker inherits, so that neither new
//! process groups nor new sessions escape it.

mod begun;
mod wards;

use crate::WorkerName;
use crate::address::Address;
use crate::containers::{self, Engine};
use crate::spool;
use begun::{Claimed, TaskChange};
use nix::fcntl::{FcntlArg, OFlag, fcntl};
use processes::lease::{BootInstant, Lease};
use processes::orphans::Kept;
use proto::v1::Claim;
use proto::v1::worker_service_client::WorkerServiceClient;
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, BTreeSet};
use std::io::{BufRead, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

pub(crate) use wards::kill_all;

/// Names the worker's life in the environment of everything that it starts.
pub const LIFE: &str = "UPDRAFT_WORKER_LIFE";
/// Names the worker, the same over its lives.
pub const NAME: &str = "UPDRAFT_WORKER_NAME";
/// The sub-command (or first argument) that makes a process a watchdog.
pub const ARGUMENT: &str = "--watchdog";

/// What a watchdog says to the control plane after its worker's death. It goes through the pipe, never onto a command
/// line.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct Farewell {
    pub(crate) control_plane: Address,
    pub(crate) worker: String,
    /// Good for telling of the death, and for nothing else.
    pub(crate) token: String,
    /// Bytes of a message that the control plane accepts.
    pub(crate) message_limit: usize,
}

/// What a worker tells its watchdog again and again, a line of JSON each time.
#[derive(Debug, Default, Clone, Serialize, Deserialize)]
struct Renewal {
    /// When the lease ends, in nanoseconds of CLOCK_BOOTTIME; absent when only the engines are told. An instant, not a
    /// span: however late it is read, the lease ends when it does.
    until: Option<u64>,
    farewell: Option<Farewell>,
    /// Where containers may be left.
    engines: Vec<Engine>,
    /// `true` if `engines` is not told with this.
    keeps_engines: bool,
    /// Reports that are to be delivered before the death is told, and their digests.
    spooled: BTreeMap<PathBuf, String>,
    /// What changed about the tasks that have begun.
    tasks: Option<TaskChange>,
}

impl Renewal {
    /// Keeps what is told once and holds until it is told anew.
    fn note(&mut self, newer: &Self) {
        if newer.until.is_some() {
            self.until = newer.until;
            self.farewell.clone_from(&newer.farewell);
        }
        if !newer.keeps_engines {
            self.engines.clone_from(&newer.engines);
        }
    }
}

/// The longest wait of a watchdog before it looks at the clock again: waits do not count the time that the machine sleeps.
const LOOK: Duration = Duration::from_secs(1);

/// Bytes that the pipe to a watchdog holds.
const ROOM: i32 = 1 << 20;
/// Between two looks at what the worker says, and the bytes of one look.
const LULL: Duration = Duration::from_millis(5);
const PIPE: usize = 64 << 10;

/// How long the control plane is told of the death, if it does not answer.
const FAREWELL: Duration = Duration::from_secs(30);

/// A worker's end of its watchdog.
#[derive(Clone)]
pub struct Watchdog {
    life: String,
    arguments: Vec<String>,
    lease: Lease,
    /// `None` where there is none to tell anything.
    process: Option<Arc<Mutex<(Child, Kept)>>>,
    spooled: Arc<Mutex<BTreeMap<PathBuf, String>>>,
    /// The claims under which user code may have begun.
    begun: Arc<Mutex<BTreeSet<Claimed>>>,
    /// What a successor is told.
    known: Arc<Mutex<Renewal>>,
}

impl Watchdog {
    /// Starts a watchdog: this same program with `arguments`, which must lead to [`main`].
    ///
    /// # Errors
    /// When the process cannot be started.
    pub fn start(arguments: &[&str]) -> std::io::Result<Self> {
        let life = uuid::Uuid::new_v4().simple().to_string();
        let arguments: Vec<String> = arguments.iter().map(|argument| (*argument).to_owned()).collect();
        let process = Arc::new(Mutex::new(spawn(&arguments, &life)?));
        processes::orphans::adopt();
        Ok(Self {
            life,
            arguments,
            lease: Lease::new()?,
            process: Some(process),
            spooled: Arc::default(),
            begun: Arc::default(),
            known: Arc::default(),
        })
    }

    /// One without a process, which hears and does nothing.
    #[cfg(test)]
    pub(crate) fn deaf() -> Self {
        Self {
            life: String::new(),
            arguments: Vec::new(),
            lease: Lease::new().expect("memory for a lease"),
            process: None,
            spooled: Arc::default(),
            begun: Arc::default(),
            known: Arc::default(),
        }
    }

    /// The worker's lease, for whoever starts something.
    pub(crate) fn lease(&self) -> &Lease {
        &self.lease
    }

    /// Tells of a report in a file, which is to be delivered if the worker dies.
    pub(crate) fn spooled(&self, path: PathBuf, digest: String) {
        self.spooled
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .insert(path, digest);
        self.say(Renewal {
            keeps_engines: true,
            ..Renewal::default()
        });
    }

    /// Tells that a report is not to be delivered any more.
    pub(crate) fn unspooled(&self, path: &Path) {
        let removed = self
            .spooled
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .remove(path);
        if removed.is_some() {
            self.say(Renewal {
                keeps_engines: true,
                ..Renewal::default()
            });
        }
    }

    /// The worker's life.
    pub(crate) fn life(&self) -> &str {
        &self.life
    }

    /// The variables that everything started by the worker must have.
    pub fn environment(&self, name: &WorkerName) -> [(String, String); 2] {
        [
            (LIFE.to_owned(), self.life.clone()),
            (NAME.to_owned(), name.mark().to_owned()),
        ]
    }

    /// Tells that the lease is good until `deadline`. A watchdog that was killed gets a successor.
    pub(crate) fn renew(&self, deadline: BootInstant, farewell: Option<Farewell>, engines: Vec<Engine>) {
        let renewal = Renewal {
            until: Some(deadline.nanos()),
            farewell,
            engines,
            ..Renewal::default()
        };
        self.say(renewal);
    }

    /// Tells of engines that were not used before, so that it need not learn of them with the next renewal.
    pub(crate) fn know(&self, engines: Vec<Engine>) {
        self.say(Renewal {
            engines,
            ..Renewal::default()
        });
    }

    fn say(&self, mut renewal: Renewal) {
        let Some(process) = &self.process else { return };
        let mut process = lock(process);
        let mut known = lock(&self.known);
        known.note(&renewal);
        renewal.spooled = lock(&self.spooled).clone();
        if tell(&mut process.0, &renewal) {
            return;
        }
        // It is dead or deaf; one that still lived would kill at the end of the lease it knows.
        process.0.kill().ok();
        process.0.wait().ok();
        match spawn(&self.arguments, &self.life) {
            Ok(successor) => {
                *process = successor;
                let all = Renewal {
                    spooled: renewal.spooled,
                    tasks: Some(TaskChange::All(lock(&self.begun).clone())),
                    ..known.clone()
                };
                tell(&mut process.0, &all);
                tracing::warn!("the watchdog was gone; there is another one");
            }
            Err(error) => tracing::error!(
                "the watchdog is gone and there is no other ({error}); tasks could outlive this worker"
            ),
        }
    }

    /// Kills what earlier lives of the worker of that name left running on this machine and on these engines.
    pub(crate) async fn sweep_earlier(&self, name: &WorkerName, engines: &[Engine]) {
        let (mark, life) = (format!("{NAME}={}", name.mark()), format!("{LIFE}={}", self.life));
        let swept = tokio::task::spawn_blocking(move || kill_all(&mark, Some(&life)))
            .await
            .unwrap_or(0);
        let worker = (containers::WORKER, name.mark());
        let killed = containers::kill_all(engines, worker, Some((containers::LIFE, &self.life))).await;
        if swept + killed > 0 {
            tracing::warn!(
                processes = swept,
                containers = killed,
                "killed what an earlier life of this worker left running"
            );
        }
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

fn spawn(arguments: &[String], life: &str) -> std::io::Result<(Child, Kept)> {
    let child = Command::new(std::env::current_exe()?)
        .args(arguments)
        .arg(life)
        // It needs none of the worker's secrets, and its environment can be read by whoever may read ours.
        .env_clear()
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        // Signals meant for the worker's process group must not reach it.
        .process_group_zero()
        .spawn()?;
    if let Some(pipe) = &child.stdin {
        fcntl(pipe, FcntlArg::F_SETFL(OFlag::O_NONBLOCK))?;
        // Where that is more than a user may have, it holds less.
        fcntl(pipe, FcntlArg::F_SETPIPE_SZ(ROOM)).ok();
    }
    let kept = Kept::new(i32::try_from(child.id()).map_err(std::io::Error::other)?);
    Ok((child, kept))
}

/// Returns `true` if the watchdog will read it. One that does not read what it was told before takes no more, and is not waited
/// for.
fn tell(process: &mut Child, renewal: &Renewal) -> bool {
    let (Some(pipe), Ok(mut line)) = (process.stdin.as_mut(), serde_json::to_vec(renewal)) else {
        return false;
    };
    line.push(b'\n');
    pipe.write_all(&line).is_ok()
}

trait OwnGroup {
    fn process_group_zero(&mut self) -> &mut Self;
}

impl OwnGroup for Command {
    fn process_group_zero(&mut self) -> &mut Self {
        use std::os::unix::process::CommandExt;
        self.process_group(0)
    }
}

/// The watchdog itself: reads a renewal from each line, and kills when the lease ends or the worker does.
pub fn main(life: &str) -> std::process::ExitCode {
    // What it is told is not for tasks, which run as the same user. Nothing has been told yet.
    if nix::sys::prctl::set_dumpable(false).is_err() {
        return std::process::ExitCode::FAILURE;
    }
    let (sender, renewals) = std::sync::mpsc::channel();
    std::thread::spawn(move || {
        let mut pipe = std::io::BufReader::with_capacity(PIPE, std::io::stdin());
        loop {
            let mut line = String::new();
            if !matches!(pipe.read_line(&mut line), Ok(1..)) || sender.send(line).is_err() {
                break;
            }
            if pipe.buffer().is_empty() {
                // Each task is told of several times; a worker with many short ones does not wake us for each.
                std::thread::sleep(LULL);
            }
        }
    });
    let no_lease = BootInstant::from_nanos(u64::MAX);
    let mut deadline = no_lease;
    let mut last = Renewal::default();
    let mut begun = BTreeSet::new();
    loop {
        match renewals.recv_timeout(deadline.left().min(LOOK)) {
            Ok(line) => {
                let renewal: Renewal = serde_json::from_str(&line).unwrap_or_default();
                if let Some(until) = renewal.until {
                    deadline = BootInstant::from_nanos(until);
                }
                last.note(&renewal);
                last.spooled = renewal.spooled;
                if let Some(change) = renewal.tasks {
                    change.apply(&mut begun);
                }
            }
            Err(std::sync::mpsc::RecvTimeoutError::Timeout) => {
                if deadline.left().is_zero() {
                    kill_wards(life, &last.engines);
                    deadline = no_lease;
                }
            }
            Err(std::sync::mpsc::RecvTimeoutError::Disconnected) => {
                kill_wards(life, &last.engines);
                if let Some(farewell) = last.farewell {
                    farewell.say(&last.spooled, &begun);
                }
                return std::process::ExitCode::SUCCESS;
            }
        }
    }
}

/// Kills the processes and the containers of a worker's life.
fn kill_wards(life: &str, engines: &[Engine]) {
    kill_all(&format!("{LIFE}={life}"), None);
    if !engines.is_empty()
        && let Some(runtime) = runtime()
    {
        runtime.block_on(containers::kill_all(engines, (containers::LIFE, life), None));
    }
}

fn runtime() -> Option<tokio::runtime::Runtime> {
    tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .ok()
}

impl Farewell {
    /// Tells the control plane that the worker is dead, so that its tasks need not wait for the lease to run out. If nobody
    /// hears it, they do.
    ///
    /// Reports that the worker had in hand go first: what they tell has happened, and is not to be done again.
    fn say(&self, spooled: &BTreeMap<PathBuf, String>, begun: &BTreeSet<Claimed>) {
        if let Some(runtime) = runtime() {
            runtime.block_on(async {
                let all = async {
                    for (path, digest) in spooled {
                        self.deliver(path, digest).await;
                    }
                    self.until_heard(begun).await;
                };
                tokio::time::timeout(FAREWELL, all).await.ok()
            });
        }
    }

    /// Delivers a report from its file, if the file is as the worker wrote it.
    async fn deliver(&self, path: &Path, digest: &str) {
        let Ok(bytes) = std::fs::read(path) else { return };
        if spool::digest(&bytes) != digest {
            return;
        }
        let Some((page, report)) = serde_json::from_slice::<spool::Page>(&bytes)
            .ok()
            .and_then(|page| page.report().map(|report| (page, report)))
        else {
            return;
        };
        let mut attempts = spool::Attempts::default();
        while let Err(status) = self.send(&page.token, &report).await {
            // What is refused now is refused again.
            if !attempts.again(&status).await {
                return;
            }
        }
        std::fs::remove_file(path).ok();
    }

    async fn send(&self, token: &str, report: &proto::v1::ReportRequest) -> Result<(), tonic::Status> {
        let mut client = self.client().await?;
        let mut request = tonic::Request::new(report.clone());
        sign(&mut request, token)?;
        client.report(request).await.map(|_| ())
    }

    async fn until_heard(&self, begun: &BTreeSet<Claimed>) {
        while let Err(status) = self.leave(begun).await {
            // A worker that left in good order, or whose token has run out, has nothing to say.
            if !crate::control::is_transient(&status) {
                return;
            }
            tokio::time::sleep(Duration::from_millis(500)).await;
        }
    }

    async fn client(&self) -> Result<WorkerServiceClient<tonic::transport::Channel>, tonic::Status> {
        let away = |error: &dyn std::fmt::Display| tonic::Status::unavailable(error.to_string());
        let endpoint = self
            .control_plane
            .endpoint()
            .map_err(|error| tonic::Status::invalid_argument(error.to_string()))?;
        let channel = endpoint
            .connect_timeout(Duration::from_secs(2))
            .connect()
            .await
            .map_err(|error| away(&error))?;
        Ok(WorkerServiceClient::new(channel)
            .max_decoding_message_size(self.message_limit)
            .max_encoding_message_size(self.message_limit))
    }

    async fn leave(&self, begun: &BTreeSet<Claimed>) -> Result<(), tonic::Status> {
        let mut client = self.client().await?;
        let mut request = tonic::Request::new(proto::v1::LeaveRequest {
            worker_id: self.worker.clone(),
            died: true,
            tells_held: true,
            held: begun
                .iter()
                .map(|(task_instance_id, epoch)| Claim {
                    task_instance_id: task_instance_id.clone(),
                    epoch: *epoch,
                })
                .collect(),
        });
        sign(&mut request, &self.token)?;
        client.leave(request).await.map(|_| ())
    }
}

/// Signs a call, and gives it a few seconds.
fn sign<T>(request: &mut tonic::Request<T>, token: &str) -> Result<(), tonic::Status> {
    let token = format!("Bearer {token}").parse();
    let token = token.map_err(|_| tonic::Status::unauthenticated("the token is not text"))?;
    request.metadata_mut().insert("authorization", token);
    request.set_timeout(Duration::from_secs(5));
    Ok(())
}
