//! `updraft-scheduler`

use std::process::ExitCode;

fn main() -> ExitCode {
    bootstrap::component_main("scheduler", scheduler::service::run)
}
