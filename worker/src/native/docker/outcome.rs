//! What became of a container, in docker-py's words.

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
}

impl Problem {
    pub(super) fn airflow(text: impl Into<String>) -> Self {
        Self {
            kind: "AirflowException",
            text: text.into(),
        }
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

impl From<Error> for Problem {
    fn from(error: Error) -> Self {
        let Error::DockerResponseServerError { status_code, message } = &error else {
            return Self {
                kind: "DockerException",
                text: message(&error),
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
}
