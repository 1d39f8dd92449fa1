//! What the programs of this crate say, and how they end.

use std::io::Write;
use std::process::ExitCode;

/// Prints a line. A closed standard output is no reason to fail.
pub fn say(text: &str) {
    writeln!(std::io::stdout(), "{text}").ok();
}

/// The exit code of a comparison or a campaign: 0 when all was as it should be, 1 when it was not, 2 when it could not be
/// done, which is printed.
pub fn end(done: anyhow::Result<bool>) -> ExitCode {
    match done {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            say(&format!("error: {error:#}"));
            ExitCode::from(2)
        }
    }
}
