//! Talking to the developer.

use std::io::Write;

/// Prints a line.
pub(crate) fn say(text: &str) {
    // A closed output is no reason to stop a chore.
    writeln!(std::io::stdout(), "{text}").ok();
}
