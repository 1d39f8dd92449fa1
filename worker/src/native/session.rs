//! What the child does between its fork and its program, as Python's `subprocess` does for Airflow's hook.

use nix::libc;
use processes::lease::Permit;
use std::io;
use tokio::process::Command;

/// Error of a command that was not started because its claim is void.
pub(super) const VOID: i32 = libc::ECANCELED;

/// Gives a command a session of its own (`start_new_session=True`) and none of the worker's descriptors but its standard
/// streams (`close_fds=True`). The last thing that it does before the program is to look whether its claim has become
/// void: then starting it fails with [`VOID`].
#[expect(
    unsafe_code,
    reason = "the closure runs between fork and exec, where only async-signal-safe calls are allowed: it makes a few system calls and nothing else"
)]
pub(super) fn own(command: &mut Command, permit: Permit) {
    // SAFETY: setsid, close_range, and the pread and clock_gettime of the permit are async-signal-safe system calls; nothing
    // is allocated and no lock is taken.
    unsafe {
        command.pre_exec(move || {
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
            if permit.holds() {
                Ok(())
            } else {
                Err(io::Error::from_raw_os_error(VOID))
            }
        });
    }
}
