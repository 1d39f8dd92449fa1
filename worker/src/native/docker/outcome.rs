//! What became of a container, in docker-py's words.

use crate::native::fault::{Fault, may_pass};
use crate::native::registry::NoLogin;
use bollard::errors::Error;
use nix::sys::signal::Signal;

/// A container that has ended.
pub(super) struct Exit {
    pub(super) code: i64,
    /// Whether the kernel ended it for want of memory.
    pub(super) out_of_memory: bool,
    /// Its memory limit in bytes; 0 if it has none.
    pub(super) memory_limit: i64,
    /// Whether the engine's answer has an empty error, too (before API 1.42).
    pub(super) old_answer: bool,
    /// Its output: all of it or the last line, as the task wants it.
    pub(super) lines: Vec<String>,
}

impl Exit {
    /// The text of Airflow's exception.
    pub(super) fn failure(&self) -> String {
        let error = if self.old_answer { "'Error': None, " } else { "" };
        format!("Docker container failed: {{{error}'StatusCode': {}}}", self.code)
    }

    /// Why, if the exit code does not say it to everybody.
    pub(super) fn cause(&self) -> String {
        if self.out_of_memory {
            let limit = match self.memory_limit {
                0 => String::new(),
                bytes => format!(" (its mem_limit is {} MiB)", bytes >> 20),
            };
            return format!(
                "the container ran out of memory{limit} and was killed: exit code {}",
                self.code
            );
        }
        let signal = i32::try_from(self.code - 128)
            .ok()
            .and_then(|number| Signal::try_from(number).ok());
        signal.map_or_else(String::new, |signal| {
            format!("the container was ended by {signal}: exit code {}", self.code)
        })
    }
}

/// Why there is no exit code.
pub(super) struct Problem {
    /// The exception that Airflow would raise.
    pub(super) kind: &'static str,
    pub(super) text: String,
    pub(super) fault: Fault,
}

impl Problem {
    pub(super) fn airflow(text: impl Into<String>) -> Self {
        Self {
            kind: "AirflowException",
            text: text.into(),
            fault: Fault::Task,
        }
    }

    /// The same, but that it is the fault of somebody else.
    pub(super) fn by(self, fault: Fault) -> Self {
        Self { fault, ..self }
    }

    /// The same, once a container may have been started.
    pub(super) fn after_the_start(self) -> Self {
        let fault = self.fault.after_the_start();
        self.by(fault)
    }
}

/// Words of the engine about a container that cannot be made as it was asked for, in lower case: it says so as if it had failed
/// itself.
const IMPOSSIBLE: [&str; 8] = [
    "oci runtime",
    "runc",
    "mount",
    "invalid",
    "not found",
    "denied",
    "unauthorized",
    "no matching manifest",
];

/// Returns `true` if the engine is away, or could not do what it was asked for no reason of the task's.
fn is_of_the_engine(error: &Error) -> bool {
    match error {
        Error::DockerResponseServerError { status_code: 429, .. } => true,
        Error::DockerResponseServerError {
            status_code: 500..,
            message,
        } => {
            let lower = message.to_lowercase();
            may_pass(message) || !IMPOSSIBLE.iter().any(|text| lower.contains(text))
        }
        Error::DockerResponseServerError { .. } => false,
        Error::DockerStreamError { error } => may_pass(error),
        Error::RequestTimeoutError
        | Error::IOError { .. }
        | Error::HttpClientError { .. }
        | Error::HyperResponseError { .. }
        | Error::HyperLegacyError { .. }
        | Error::SocketNotFoundError(_) => true,
        _ => false,
    }
}

/// The engine's own words, where it has some.
pub(super) fn message(error: &Error) -> String {
    match error {
        Error::DockerResponseServerError { message, .. } => message.clone(),
        Error::DockerStreamError { error } => error.clone(),
        other => other.to_string(),
    }
}

impl From<NoLogin> for Problem {
    fn from(why: NoLogin) -> Self {
        match why {
            NoLogin::Untold(text) => Self::airflow(text).by(Fault::Platform),
            NoLogin::Unfit(text) => Self::airflow(text),
        }
    }
}

impl From<Error> for Problem {
    /// What the engine said before anything was started.
    fn from(error: Error) -> Self {
        let fault = if is_of_the_engine(&error) {
            Fault::Platform
        } else {
            Fault::Task
        };
        let Error::DockerResponseServerError { status_code, message } = &error else {
            return Self {
                kind: "DockerException",
                text: message(&error),
                fault,
            };
        };
        let side = if *status_code < 500 { "Client" } else { "Server" };
        let kind = match status_code {
            404 if message.contains("No such image") => "ImageNotFound",
            404 => "NotFound",
            _ => "APIError",
        };
        Self {
            kind,
            text: format!("{status_code} {side} Error (\"{message}\")"),
            fault,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn exit(code: i64, out_of_memory: bool) -> Exit {
        Exit {
            code,
            out_of_memory,
            memory_limit: 64 << 20,
            old_answer: true,
            lines: Vec::new(),
        }
    }

    #[test]
    fn memory_and_signals_are_named_and_plain_codes_are_not() {
        assert_eq!(
            exit(3, false).failure(),
            "Docker container failed: {'Error': None, 'StatusCode': 3}"
        );
        assert_eq!(exit(3, false).cause(), "");
        assert!(exit(143, false).cause().contains("SIGTERM"));
        assert!(
            exit(137, true)
                .cause()
                .contains("ran out of memory (its mem_limit is 64 MiB)")
        );
    }

    #[test]
    fn an_engine_that_fails_is_told_from_a_task_that_asks_for_the_impossible() {
        let said = |status_code: u16, message: &str| {
            let message = message.to_owned();
            Problem::from(Error::DockerResponseServerError { status_code, message }).fault
        };
        assert_eq!(said(500, "i/o timeout"), Fault::Platform);
        assert_eq!(said(503, "the engine is starting"), Fault::Platform);
        assert_eq!(
            said(500, "Get \"https://r/v2/\": dial tcp: no such host"),
            Fault::Platform
        );
        assert_eq!(
            said(500, "OCI runtime create failed: exec: \"x\": not found"),
            Fault::Task
        );
        assert_eq!(said(404, "No such image: x:latest"), Fault::Task);
        assert_eq!(said(409, "the name is in use"), Fault::Task);
        let away = || Problem::from(Error::RequestTimeoutError);
        assert_eq!(away().fault, Fault::Platform);
        assert_eq!(away().after_the_start().fault, Fault::Lost);
    }
}
