//! Points at which a test may stop this process.

/// Stops this whole process (SIGSTOP) at its first pass over the point that `UPDRAFT_TEST_STOP_AT` names, as `POINT:FILE`;
/// the file is made just before, so that the test knows. In debug builds only: elsewhere it does nothing.
pub fn point(name: &str) {
    #[cfg(debug_assertions)]
    if let Ok(wanted) = std::env::var("UPDRAFT_TEST_STOP_AT")
        && let Some((at, file)) = wanted.split_once(':')
        && at == name
        && std::fs::File::create_new(file).is_ok()
    {
        // To the process, not to this thread alone; so this thread may run on for a moment before it stops, too.
        nix::sys::signal::kill(nix::unistd::Pid::this(), nix::sys::signal::Signal::SIGSTOP).ok();
        std::thread::sleep(std::time::Duration::from_millis(500));
    }
    #[cfg(not(debug_assertions))]
    let _ = name;
}
