//! One process of the fork server: what it is asked, and what it tells.

use super::command::command;
use super::{ChildExit, ForkServerConfig, PythonError, answer, lock};
use crate::shim::PROGRAM;
use nix::sys::signal::{Signal, kill};
use nix::sys::socket::{
    AddressFamily, ControlMessage, MsgFlags, Shutdown, SockFlag, SockType, recv, send, sendmsg, setsockopt,
    shutdown, socketpair, sockopt,
};
use nix::sys::time::TimeVal;
use nix::unistd::Pid;
use processes::orphans::{self, Kept};
use serde::Deserialize;
use serde_json::{Value, json};
use std::collections::HashMap;
use std::io::IoSlice;
use std::os::fd::{AsRawFd, BorrowedFd, OwnedFd, RawFd};
use std::os::unix::process::ExitStatusExt;
use std::process::Stdio;
use std::sync::{Arc, Mutex};
use std::time::Duration;
use tokio::net::UnixStream;
use tokio::sync::{Notify, oneshot};

/// How long the fork server may take to import the SDK.
const WARM_UP: Duration = Duration::from_secs(120);
/// How long a fork server that was told to go is waited for before it is killed.
const GOING: Duration = Duration::from_secs(1);
/// How long the end of one that closed its socket is waited for.
const DYING: Duration = Duration::from_secs(10);

/// A child, and how it ended once it did.
pub(super) type Forked = (i32, oneshot::Receiver<ChildExit>);

/// Our ends of a child's sockets, or its own.
pub(super) struct Sockets<T> {
    /// Requests, standard output and error, log records.
    pub(super) streams: [T; 4],
    /// The child ends when ours is closed.
    pub(super) lifeline: OwnedFd,
}

fn system(error: &dyn std::fmt::Display) -> PythonError {
    PythonError::System(error.to_string())
}

fn pair(kind: SockType) -> Result<(OwnedFd, OwnedFd), PythonError> {
    socketpair(AddressFamily::Unix, kind, None, SockFlag::SOCK_CLOEXEC).map_err(|error| system(&error))
}

impl Sockets<UnixStream> {
    /// A child's sockets: our ends, and its own.
    pub(super) fn pair() -> Result<(Self, Sockets<OwnedFd>), PythonError> {
        let mut ours = Vec::new();
        let mut theirs = Vec::new();
        for _ in 0..4 {
            let (mine, its) = pair(SockType::Stream)?;
            let mine = std::os::unix::net::UnixStream::from(mine);
            mine.set_nonblocking(true).map_err(|error| system(&error))?;
            ours.push(UnixStream::from_std(mine).map_err(|error| system(&error))?);
            theirs.push(its);
        }
        let (mine, its) = pair(SockType::Stream)?;
        let (Ok(ours), Ok(theirs)) = (ours.try_into(), theirs.try_into()) else {
            return Err(PythonError::System("sockets are missing".to_owned()));
        };
        let ours = Self {
            streams: ours,
            lifeline: mine,
        };
        Ok((
            ours,
            Sockets {
                streams: theirs,
                lifeline: its,
            },
        ))
    }
}

/// What the fork server tells.
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

/// Who waits for a fork.
#[derive(Debug)]
enum Fork {
    Child(oneshot::Sender<Forked>),
    Copy(oneshot::Sender<i32>),
}

#[derive(Debug, Default)]
struct Waiting {
    tags: u64,
    forks: HashMap<u64, Fork>,
    exits: HashMap<i32, (oneshot::Sender<ChildExit>, Kept)>,
    dead: bool,
}

/// A process of the fork server.
#[derive(Debug)]
pub(super) struct Process {
    control: OwnedFd,
    pid: i32,
    /// We reap it ourselves.
    _kept: Kept,
    waiting: Arc<Mutex<Waiting>>,
}

impl Process {
    pub(super) fn is_dead(&self) -> bool {
        lock(&self.waiting).dead
    }

    /// Kills it, but none of its children: they go on as ours.
    pub(super) fn kill(&self) {
        if !std::mem::replace(&mut lock(&self.waiting).dead, true) {
            kill(Pid::from_raw(self.pid), Signal::SIGKILL).ok();
        }
    }

    /// Asks for a child that has these sockets, and the page of the worker's lease.
    pub(super) fn ask(
        &self,
        request: Value,
        sockets: &Sockets<OwnedFd>,
        page: Option<BorrowedFd<'_>>,
    ) -> Result<oneshot::Receiver<Forked>, PythonError> {
        let (sender, receiver) = oneshot::channel();
        let mut numbers: Vec<RawFd> = sockets.streams.iter().map(AsRawFd::as_raw_fd).collect();
        numbers.push(sockets.lifeline.as_raw_fd());
        numbers.extend(page.map(|page| page.as_raw_fd()));
        self.send(request, Fork::Child(sender), &numbers)?;
        Ok(receiver)
    }

    fn send(&self, mut request: Value, fork: Fork, descriptors: &[RawFd]) -> Result<(), PythonError> {
        let tag = {
            let mut waiting = lock(&self.waiting);
            if waiting.dead {
                return Err(PythonError::Gone("died".to_owned()));
            }
            waiting.tags += 1;
            let tag = waiting.tags;
            waiting.forks.insert(tag, fork);
            tag
        };
        request["tag"] = tag.into();
        let text = model::json::write(&request);
        let sent = sendmsg::<()>(
            self.control.as_raw_fd(),
            &[IoSlice::new(text.as_bytes())],
            &[ControlMessage::ScmRights(descriptors)],
            MsgFlags::MSG_NOSIGNAL,
            None,
        );
        sent.map_err(|error| PythonError::Gone(format!("does not take requests: {error}")))?;
        Ok(())
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        // Shutting the socket down wakes our reader; its end of file makes the fork server kill its children and go.
        shutdown(self.control.as_raw_fd(), Shutdown::Both).ok();
        if !orphans::has_ended(self.pid, GOING) {
            kill(Pid::from_raw(self.pid), Signal::SIGKILL).ok();
        }
        orphans::wait(self.pid);
    }
}

/// Starts a fork server; `died` is notified when it has ended.
pub(super) async fn launch(config: &ForkServerConfig, died: &Arc<Notify>) -> Result<Process, PythonError> {
    let (control, its) = pair(SockType::SeqPacket)?;
    setsockopt(&control, sockopt::SendTimeout, &TimeVal::new(10, 0)).map_err(|error| system(&error))?;
    // The program is one packet, nearly as large as what a socket takes by default.
    setsockopt(&control, sockopt::SndBuf, &(1 << 20)).map_err(|error| system(&error))?;
    let program = json!(PROGRAM).to_string();
    send(control.as_raw_fd(), program.as_bytes(), MsgFlags::empty()).map_err(|error| system(&error))?;
    let mut command = command(config);
    command
        .stdin(Stdio::from(its))
        .stdout(Stdio::piped())
        .stderr(Stdio::piped());
    let python = config.python.clone();
    let mut child = command.spawn().map_err(|source| PythonError::Interpreter {
        python,
        source: Arc::new(source),
    })?;
    drop(command);
    forward_output(child.stdout.take(), child.stderr.take());
    let (ready, readiness) = oneshot::channel();
    let pid = i32::try_from(child.id()).map_err(|error| system(&error))?;
    let process = follow(control, pid, Some(ready), Arc::clone(died))?;
    let broken = |problem: String| PythonError::Environment {
        python: config.python.clone(),
        problem,
    };
    match tokio::time::timeout(WARM_UP, readiness).await {
        Ok(Ok(Ok(facts))) => {
            tracing::info!(%facts, "Python is ready");
            Ok(process)
        }
        Ok(Ok(Err(problem))) => Err(broken(problem)),
        Ok(Err(_)) => {
            let problem = "it ended before it was ready; its output is in the log";
            Err(broken(problem.to_owned()))
        }
        Err(_) => {
            process.kill();
            Err(PythonError::Gone(format!(
                "was not ready within {} s",
                WARM_UP.as_secs()
            )))
        }
    }
}

/// Makes a copy of a fork server, which shares its memory and is ready at once.
pub(super) async fn copy(process: &Process, died: &Arc<Notify>) -> Result<Process, PythonError> {
    let (control, its) = pair(SockType::SeqPacket)?;
    setsockopt(&control, sockopt::SendTimeout, &TimeVal::new(10, 0)).map_err(|error| system(&error))?;
    let (sender, receiver) = oneshot::channel();
    process.send(json!({"op": "copy"}), Fork::Copy(sender), &[its.as_raw_fd()])?;
    drop(its);
    let pid = answer(receiver).await?;
    follow(control, pid, None, Arc::clone(died))
}

/// Listens to a fork server from now on.
fn follow(
    control: OwnedFd,
    pid: i32,
    ready: Option<oneshot::Sender<Result<Value, String>>>,
    died: Arc<Notify>,
) -> Result<Process, PythonError> {
    let waiting = Arc::new(Mutex::new(Waiting::default()));
    let reader = control.try_clone().map_err(|error| system(&error))?;
    let shared = Arc::clone(&waiting);
    let listener = std::thread::Builder::new().name("fork-server".to_owned());
    let process = Process {
        control,
        pid,
        _kept: Kept::new(pid),
        waiting,
    };
    let work = move || {
        listen(&reader, &shared, ready);
        let left = {
            let mut waiting = lock(&shared);
            waiting.dead = true;
            waiting.forks.clear();
            std::mem::take(&mut waiting.exits)
        };
        died.notify_one();
        adopt_children(pid, left);
    };
    listener.spawn(work).map_err(|error| system(&error))?;
    Ok(process)
}

/// Reads what the fork server tells, until it ends.
fn listen(
    control: &OwnedFd,
    waiting: &Mutex<Waiting>,
    mut ready: Option<oneshot::Sender<Result<Value, String>>>,
) {
    let mut buffer = vec![0; 1 << 16];
    loop {
        let length = match recv(control.as_raw_fd(), &mut buffer, MsgFlags::empty()) {
            Ok(0) => return,
            Ok(length) => length,
            Err(nix::errno::Errno::EINTR) => continue,
            Err(_) => return,
        };
        let Ok(told) = serde_json::from_slice::<Told>(&buffer[..length]) else {
            continue;
        };
        if let Some(facts) = told.ready {
            ready.take().map(|ready| ready.send(Ok(facts)));
        } else if let Some(problem) = told.broken {
            ready.take().map(|ready| ready.send(Err(problem)));
        } else if let (Some(tag), Some(pid)) = (told.tag, told.pid) {
            forked(&mut lock(waiting), tag, pid);
        } else if let (Some(pid), Some(status)) = (told.exit, told.status) {
            let exit = if status < 0 {
                ChildExit::Signal(-status)
            } else {
                ChildExit::Code(status)
            };
            let waits = lock(waiting).exits.remove(&pid);
            if let Some((sender, _)) = waits {
                sender.send(exit).ok();
            }
        }
    }
}

fn forked(waiting: &mut Waiting, tag: u64, pid: i32) {
    // Whoever asked may have given up; then the child sees its sockets closed.
    match waiting.forks.remove(&tag) {
        Some(Fork::Child(asked)) => {
            let (sender, receiver) = oneshot::channel();
            waiting.exits.insert(pid, (sender, Kept::new(pid)));
            asked.send((pid, receiver)).ok();
        }
        Some(Fork::Copy(asked)) => {
            asked.send(pid).ok();
        }
        None => {}
    }
}

/// The children of a fork server that died are ours from then on: waits for them.
fn adopt_children(server: i32, children: HashMap<i32, (oneshot::Sender<ChildExit>, Kept)>) {
    // Its socket is closed a moment before its children are given away.
    if !children.is_empty() && !orphans::has_ended(server, DYING) {
        tracing::warn!(
            pid = server,
            "a Python fork server has closed its socket but does not end"
        );
    }
    for (pid, (sender, kept)) in children {
        let wait = move || {
            let exit = orphans::wait(pid).map_or(ChildExit::Lost, |status| match status.code() {
                Some(code) => ChildExit::Code(code),
                None => status.signal().map_or(ChildExit::Lost, ChildExit::Signal),
            });
            drop(kept);
            sender.send(exit).ok();
        };
        // Without the thread the child counts as lost.
        std::thread::Builder::new()
            .name(format!("child-{pid}"))
            .spawn(wait)
            .ok();
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
