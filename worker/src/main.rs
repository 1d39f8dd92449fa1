//! `updraft-worker`

use std::process::ExitCode;
use worker::watchdog;

fn main() -> ExitCode {
    let mut arguments = std::env::args().skip(1);
    if arguments.next().as_deref() == Some(watchdog::ARGUMENT) {
        return watchdog::main(&arguments.next().unwrap_or_default());
    }
    bootstrap::component_main("worker", worker::service::run)
}
