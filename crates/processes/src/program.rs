//! Programs started as Python's `subprocess` starts them for Airflow's hook, with a last look at the lease.
//!
//! The standard library copies the whole process where something is to be done between fork and exec, which takes
//! milliseconds in a large one. Here parent and child share their memory until the program begins, and the parent's
//! thread waits that long, as with `posix_spawn` (which cannot look at a lease).

use crate::ends;
use crate::lease::Permit;
use crate::orphans::Kept;
use nix::errno::Errno;
use nix::libc;
use nix::sys::signal::{SigSet, SigmaskHow, Signal, pthread_sigmask};
use nix::unistd::Pid;
use std::collections::BTreeMap;
use std::ffi::{CString, OsString, c_char, c_int, c_void};
use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};
use std::os::unix::ffi::OsStrExt;
use std::path::PathBuf;
use std::process::ExitStatus;
use std::ptr::null_mut;
use std::sync::atomic::{AtomicI32, Ordering};
use tokio::io::unix::AsyncFd;
use tokio::signal::unix::SignalKind;

/// Words of 16 bytes on the stack of a child until its program begins.
const STACK: usize = 4096;
/// Signals that a process may have handlers for.
const SIGNALS: std::ops::RangeInclusive<c_int> = 1..=64;

/// A program to be started: in a session of its own (`start_new_session=True`), with its three streams and no other
/// descriptor of this process (`close_fds=True`).
#[derive(Debug)]
pub struct Program {
    /// The file. Nothing is looked up in `PATH`.
    pub file: PathBuf,
    /// Its arguments, its own name first.
    pub arguments: Vec<OsString>,
    /// All its environment variables.
    pub variables: BTreeMap<OsString, OsString>,
    /// The folder that it runs in.
    pub folder: PathBuf,
    /// What it reads.
    pub input: OwnedFd,
    /// What it writes to, both as output and as errors.
    pub output: OwnedFd,
}

/// Why a program did not start.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// The permit did not hold at the last instant before the program would have begun.
    #[error("the permit did not hold when the program was to begin")]
    Void,
    /// A name, argument or variable that no program can be given.
    #[error("an argument or a variable has a null character")]
    Null(#[from] std::ffi::NulError),
    /// The system could not make a process, or not start the program in it.
    #[error("{0}")]
    System(#[from] io::Error),
}

/// What the child needs, in memory that it shares with its parent.
struct Orders<'a> {
    file: &'a CString,
    arguments: &'a [*const c_char],
    variables: &'a [*const c_char],
    folder: &'a CString,
    input: RawFd,
    output: RawFd,
    permit: &'a Permit,
    signals: SigSet,
    /// The number of the error for which the program did not begin.
    error: AtomicI32,
}

impl Program {
    /// Starts the program if the permit holds: the child looks as its last step. The calling thread waits until it has begun,
    /// usually less than a millisecond.
    ///
    /// # Errors
    /// [`StartError`]. The program has not begun then.
    pub fn start(self, permit: &Permit) -> Result<Child, StartError> {
        let file = CString::new(self.file.as_os_str().as_bytes())?;
        let folder = CString::new(self.folder.as_os_str().as_bytes())?;
        let arguments = self
            .arguments
            .iter()
            .map(|argument| CString::new(argument.as_bytes()))
            .collect::<Result<Vec<_>, _>>()?;
        let variables = self
            .variables
            .iter()
            .map(|(name, value)| CString::new([name.as_bytes(), b"=", value.as_bytes()].concat()))
            .collect::<Result<Vec<_>, _>>()?;
        let orders = Orders {
            file: &file,
            arguments: &pointers(&arguments),
            variables: &pointers(&variables),
            folder: &folder,
            input: self.input.as_raw_fd(),
            output: self.output.as_raw_fd(),
            permit,
            signals: SigSet::empty(),
            error: AtomicI32::new(0),
        };
        // The standard streams of the child are put in place one after the other: none may be in the way of another.
        if orders.input <= libc::STDERR_FILENO || orders.output <= libc::STDERR_FILENO {
            return Err(io::Error::other("the standard streams of this process are closed").into());
        }
        let pid = begin(&orders)?;
        let kept = Kept::new(pid);
        match orders.error.into_inner() {
            0 => Ok(Child::new(pid, kept)),
            error => {
                ends::wait(pid).ok();
                Err(match error {
                    libc::ECANCELED => StartError::Void,
                    _ => io::Error::from_raw_os_error(error).into(),
                })
            }
        }
    }
}

fn pointers(texts: &[CString]) -> Vec<*const c_char> {
    let texts = texts.iter().map(|text| text.as_ptr());
    texts.chain([std::ptr::null()]).collect()
}

/// Makes the child, and waits until its program has begun or it has ended. Returns its process id.
#[expect(
    unsafe_code,
    reason = "clone has no safe form: its parts live until the child no longer uses this process's memory"
)]
fn begin(orders: &Orders<'_>) -> io::Result<c_int> {
    let mut stack = vec![0_u128; STACK];
    // A handler of this process that ran in the child would write to the memory of this process.
    let mut before = SigSet::empty();
    pthread_sigmask(SigmaskHow::SIG_SETMASK, Some(&SigSet::all()), Some(&mut before))?;
    let argument = std::ptr::from_ref(orders).cast_mut().cast::<c_void>();
    // SAFETY: the stack's end is aligned to 16 bytes; `CLONE_VFORK` holds this thread until the child has called exec or
    // has ended, so stack and orders outlive their use; the child makes system calls only (see `child`).
    let pid = unsafe {
        let end = stack.as_mut_ptr().add(STACK).cast::<c_void>();
        libc::clone(
            child,
            end,
            libc::CLONE_VM | libc::CLONE_VFORK | libc::SIGCHLD,
            argument,
        )
    };
    let error = Errno::last();
    pthread_sigmask(SigmaskHow::SIG_SETMASK, Some(&before), None)?;
    if pid < 0 { Err(error.into()) } else { Ok(pid) }
}

/// The child's way to its program. It returns only when that did not begin.
extern "C" fn child(orders: *mut c_void) -> c_int {
    #[expect(
        unsafe_code,
        reason = "`begin` gives a pointer to its orders, which live until this process has called exec or has ended"
    )]
    // SAFETY: see the reason; only shared references to them exist, and the parent's thread waits.
    let orders = unsafe { &*orders.cast_const().cast::<Orders<'_>>() };
    let error = prepare(orders).err().unwrap_or_else(|| execute(orders));
    orders.error.store(error as i32, Ordering::SeqCst);
    127
}

/// Sets up what the program finds, up to the look at the permit.
#[expect(
    unsafe_code,
    reason = "these calls have no safe form that allocates nothing; they touch this process's own signals and descriptors"
)]
fn prepare(orders: &Orders<'_>) -> Result<(), Errno> {
    // SAFETY: async-signal-safe system calls with arguments that outlive them; handlers, descriptors, session and folder are
    // the child's own, since it shares its memory only.
    unsafe {
        for signal in SIGNALS {
            let mut action: libc::sigaction = std::mem::zeroed();
            if libc::sigaction(signal, std::ptr::null(), &raw mut action) == -1 {
                continue;
            }
            let is_caught = action.sa_sigaction != libc::SIG_DFL && action.sa_sigaction != libc::SIG_IGN;
            if is_caught || signal == libc::SIGPIPE {
                action = std::mem::zeroed();
                action.sa_sigaction = libc::SIG_DFL;
                libc::sigaction(signal, &raw const action, null_mut());
            }
        }
        Errno::result(libc::setsid())?;
        Errno::result(libc::dup2(orders.input, libc::STDIN_FILENO))?;
        Errno::result(libc::dup2(orders.output, libc::STDOUT_FILENO))?;
        Errno::result(libc::dup2(orders.output, libc::STDERR_FILENO))?;
        Errno::result(libc::chdir(orders.folder.as_ptr()))?;
        // A kernel without the call (before 5.11) leaves those that this process itself inherited, and no others.
        libc::syscall(
            libc::SYS_close_range,
            libc::STDERR_FILENO as libc::c_uint + 1,
            libc::c_uint::MAX,
            libc::CLOSE_RANGE_CLOEXEC,
        );
        Errno::result(libc::sigprocmask(
            libc::SIG_SETMASK,
            orders.signals.as_ref(),
            null_mut(),
        ))?;
    }
    Ok(())
}

/// Looks at the permit and becomes the program. Returns why it did not.
#[expect(unsafe_code, reason = "exec has no safe form that allocates nothing")]
fn execute(orders: &Orders<'_>) -> Errno {
    if !orders.permit.holds() {
        return Errno::ECANCELED;
    }
    // SAFETY: the arrays end with a null pointer, and they and their texts outlive the call.
    unsafe {
        libc::execve(
            orders.file.as_ptr(),
            orders.arguments.as_ptr(),
            orders.variables.as_ptr(),
        );
    }
    Errno::last()
}

/// A program that has begun. It is killed when this is dropped before its end was seen; [`crate::orphans`] reap it then.
#[derive(Debug)]
pub struct Child {
    pid: Pid,
    /// Readable when it has ended. `None` where the system has no such descriptors.
    end: Option<AsyncFd<OwnedFd>>,
    status: Option<ExitStatus>,
    _kept: Kept,
}

impl Child {
    fn new(pid: c_int, kept: Kept) -> Self {
        Self {
            pid: Pid::from_raw(pid),
            end: end_of(pid),
            status: None,
            _kept: kept,
        }
    }

    /// Its process id, which is its session's and its process group's, too.
    pub fn pid(&self) -> Pid {
        self.pid
    }

    /// Waits until it has ended. May be dropped and called again.
    ///
    /// # Errors
    /// When the system does not tell how it ended.
    pub async fn wait(&mut self) -> io::Result<ExitStatus> {
        let mut signals = match self.end {
            Some(_) => None,
            None => Some(tokio::signal::unix::signal(SignalKind::child())?),
        };
        loop {
            if let Some(status) = self.look()? {
                return Ok(status);
            }
            match (&self.end, &mut signals) {
                (Some(end), _) => end.readable().await?.clear_ready(),
                (None, Some(signals)) => drop(signals.recv().await),
                (None, None) => {}
            }
        }
    }

    /// How it ended, if it has.
    fn look(&mut self) -> io::Result<Option<ExitStatus>> {
        if self.status.is_none() {
            self.status = ends::reap(self.pid.as_raw())?;
        }
        Ok(self.status)
    }
}

impl Drop for Child {
    fn drop(&mut self) {
        // As long as it is not reaped, the number is its own.
        if self.status.is_none() {
            nix::sys::signal::kill(self.pid, Signal::SIGKILL).ok();
        }
    }
}

/// A descriptor that is readable when the process has ended. `None` on kernels before 5.3.
#[expect(unsafe_code, reason = "neither call has a safe form")]
fn end_of(pid: c_int) -> Option<AsyncFd<OwnedFd>> {
    // SAFETY: a system call with two numbers; what it returns is a new descriptor that nobody else owns or closes.
    unsafe {
        let descriptor = Errno::result(libc::syscall(libc::SYS_pidfd_open, pid, 0)).ok()?;
        let descriptor = OwnedFd::from_raw_fd(RawFd::try_from(descriptor).ok()?);
        AsyncFd::register(descriptor).ok()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::lease::Lease;
    use nix::sys::signal::{SigHandler, signal};
    use nix::sys::wait::{WaitStatus, waitpid};
    use std::fs::File;
    use std::io::Read;
    use std::os::unix::process::ExitStatusExt;

    fn shell(script: &str) -> (Program, File) {
        let (reader, writer) = nix::unistd::pipe().unwrap();
        let program = Program {
            file: "/bin/sh".into(),
            arguments: ["sh", "-c", script].map(OsString::from).into(),
            variables: [("GIVEN".into(), "a value".into())].into(),
            folder: "/".into(),
            input: File::open("/dev/null").unwrap().into(),
            output: writer,
        };
        (program, File::from(reader))
    }

    async fn run(script: &str) -> (ExitStatus, String) {
        let (program, mut output) = shell(script);
        let mut child = program.start(&Permit::without_end().unwrap()).unwrap();
        let status = child.wait().await.unwrap();
        let mut text = String::new();
        output.read_to_string(&mut text).unwrap();
        (status, text)
    }

    #[tokio::test]
    async fn a_program_finds_its_own_session_streams_folder_variables_and_nothing_else() {
        let script = "pwd; echo $GIVEN; echo err >&2; read line || echo no input; ls -l /proc/self/fd | wc -l; \
                      echo $$ $(ps -o sid= -p $$); env | grep -c CARGO; exit 3";
        let (status, text) = run(script).await;
        assert_eq!(status.code(), Some(3), "{text}");
        let lines = text.lines().collect::<Vec<_>>();
        // `ls` has three streams, the folder that it reads, and a line with the total.
        assert_eq!(lines[..5], ["/", "a value", "err", "no input", "5"]);
        let ids = lines[5].split_whitespace().collect::<Vec<_>>();
        assert_eq!(ids[0], ids[1], "it leads a session of its own");
        assert_eq!(lines[6], "0");
    }

    #[tokio::test]
    async fn signals_are_as_a_new_program_expects_them() {
        extern "C" fn caught(_: c_int) {}
        #[expect(unsafe_code, reason = "installing a handler that does nothing")]
        // SAFETY: the handler does nothing.
        unsafe {
            signal(Signal::SIGUSR1, SigHandler::Handler(caught)).unwrap();
        }
        let (status, text) = run("cat /proc/self/status; kill -USR1 $$").await;
        assert_eq!(status.signal(), Some(Signal::SIGUSR1 as c_int));
        let mask = |name: &str| {
            let line = text.lines().find_map(|line| line.strip_prefix(name)).unwrap();
            u64::from_str_radix(line.trim(), 16).unwrap()
        };
        assert_eq!((mask("SigBlk:"), mask("SigCgt:")), (0, 0));
        assert_eq!(mask("SigIgn:") >> (Signal::SIGPIPE as c_int - 1) & 1, 0);
    }

    #[tokio::test]
    async fn nothing_begins_without_a_lease_and_errors_name_their_cause() {
        let lease = Lease::new().unwrap();
        let (program, mut output) = shell("echo begun");
        let error = program.start(&lease.permit()).unwrap_err();
        assert!(matches!(error, StartError::Void), "{error}");
        let mut text = String::new();
        output.read_to_string(&mut text).unwrap();
        assert_eq!(text, "");
        let permit = Permit::without_end().unwrap();
        let (program, _output) = shell("");
        let missing = Program {
            file: "/no/such/file".into(),
            ..program
        };
        let error = missing.start(&permit).unwrap_err();
        assert!(matches!(&error, StartError::System(error) if error.kind() == io::ErrorKind::NotFound));
        let (program, _output) = shell("a\0b");
        assert!(matches!(program.start(&permit), Err(StartError::Null(_))));
    }

    #[tokio::test]
    async fn a_child_that_nobody_waits_for_any_more_is_killed() {
        let (program, mut output) = shell("echo begun; exec sleep 1000");
        let child = program.start(&Permit::without_end().unwrap()).unwrap();
        let mut begun = [0; 6];
        output.read_exact(&mut begun).unwrap();
        let pid = child.pid();
        drop(child);
        assert!(matches!(
            waitpid(pid, None),
            Ok(WaitStatus::Signaled(_, Signal::SIGKILL, _))
        ));
    }

    #[tokio::test]
    async fn any_end_is_told_as_it_was() {
        for code in [0, 1, 127, 128, 255] {
            assert_eq!(run(&format!("exit {code}")).await.0.code(), Some(code));
        }
        // Real-time signals, too.
        for number in [libc::SIGTERM, libc::SIGKILL, libc::SIGRTMIN(), libc::SIGRTMAX()] {
            let (status, _) = run(&format!("kill -{number} $$")).await;
            assert_eq!(status.signal(), Some(number));
        }
    }

    #[tokio::test]
    async fn the_end_is_seen_without_descriptors_for_processes_too() {
        let (program, _output) = shell("sleep 0.1; exit 4");
        let mut child = program.start(&Permit::without_end().unwrap()).unwrap();
        child.end = None;
        assert_eq!(child.wait().await.unwrap().code(), Some(4));
    }
}
