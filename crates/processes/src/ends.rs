//! How a child ended. The safe forms of these calls know no real-time signals, and a process may end by one.

use nix::errno::Errno;
use nix::libc;
use std::os::unix::process::ExitStatusExt;
use std::process::ExitStatus;

/// How the child ended, if it has; it is gone then.
///
/// # Errors
/// `ECHILD` when it is no child of ours.
pub(crate) fn reap(pid: libc::pid_t) -> Result<Option<ExitStatus>, Errno> {
    waited(pid, libc::WNOHANG)
}

/// Waits until the child has ended. Blocks.
///
/// # Errors
/// `ECHILD` when it is no child of ours.
pub(crate) fn wait(pid: libc::pid_t) -> Result<ExitStatus, Errno> {
    loop {
        if let Some(status) = waited(pid, 0)? {
            return Ok(status);
        }
    }
}

#[expect(
    unsafe_code,
    reason = "the safe form fails for children that ended by a real-time signal"
)]
fn waited(pid: libc::pid_t, flags: libc::c_int) -> Result<Option<ExitStatus>, Errno> {
    let mut status = 0;
    // SAFETY: a system call that writes one number, which outlives it.
    let ended = unsafe { libc::waitpid(pid, &raw mut status, flags) };
    match Errno::result(ended) {
        Ok(0) | Err(Errno::EINTR) => Ok(None),
        Ok(_) => Ok(Some(ExitStatus::from_raw(status))),
        Err(error) => Err(error),
    }
}
