//! What the child does between its fork and its program, as Python's `subprocess` does for Airflow's hook.

use nix::libc;
use std::io;
use tokio::process::Command;

/// Gives a command a session of its own (`start_new_session=True`) and none of the worker's descriptors but its standard
/// streams (`close_fds=True`).
#[expect(
    unsafe_code,
    reason = "the closure runs between fork and exec, where only async-signal-safe calls are allowed: it makes two system calls and nothing else"
)]
pub(super) fn own(command: &mut Command) {
    // SAFETY: setsid and close_range are async-signal-safe system calls; nothing is allocated and no lock is taken.
    unsafe {
        command.pre_exec(|| {
            if libc::setsid() == -1 {
                return Err(io::Error::last_os_error());
            }
            // They are closed by exec, not at once: the one through which an error of exec is told is among them. A kernel
            // without the call (before 5.11) leaves those that the worker itself inherited, and no others.
            libc::syscall(
                libc::SYS_close_range,
                3 as libc::c_uint,
                libc::c_uint::MAX,
                libc::CLOSE_RANGE_CLOEXEC,
            );
            Ok(())
        });
    }
}
