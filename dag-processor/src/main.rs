//! `updraft-dag-processor`

use std::process::ExitCode;

fn main() -> ExitCode {
    bootstrap::component_main("dag-processor", dag_processor::service::run)
}
