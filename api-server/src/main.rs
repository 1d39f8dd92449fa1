//! `updraft-api-server`

use std::process::ExitCode;

fn main() -> ExitCode {
    bootstrap::component_main("api-server", api_server::service::run)
}
