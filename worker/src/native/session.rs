//! What the child does between its fork and its program, as Python's `subprocess` does for Airflow's hook.

use nix::libc;
use processes::lease::Permit;
use std::io;
use tokio::process::Command;

/// The error of a child that found its claim void.
pub(super) const WITHOUT_CLAIM: i32 = libc::ECANCELED;

/// Gives a command a session of its own (`start_new_session=True`) and none of the worker's descriptors but its standard
/// streams (`close_fds=True`). The child looks at the claim as its last step: without it the program is not started, and
/// starting it fails with [`WITHOUT_CLAIM`].
#[expect(
    unsafe_code,
    reason = "the closure runs between fork and exec, where only async-signal-safe calls are allowed: it makes a few system calls, allocates nothing and takes no lock"
)]
pub(super) fn own(command: &mut Command, permit: &Permit) {
    let permit = permit.clone();
    // SAFETY: setsid, close_range, pread and clock_gettime are async-signal-safe; nothing is allocated and no lock is taken.
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
            if !permit.holds() {
                return Err(io::Error::from_raw_os_error(WITHOUT_CLAIM));
            }
            Ok(())
        });
    }
}
