//! The logs of a container, followed over lost connections without losing or doubling a line.

use super::cluster::{Pauses, Pods, is_absent};
use super::watch::Watched;
use super::{MANAGER, state};
use crate::log::{Lines, TryLog};
use chrono::{DateTime, Utc};
use futures_util::{AsyncRead, AsyncReadExt};
use kube::Error;
use kube::api::LogParams;
use std::time::Duration;

/// How long a stream may be silent before it is opened again: the connection may be dead.
const SILENCE: Duration = Duration::from_secs(300);

/// How long after its log a container may take to end.
const SETTLING: Duration = Duration::from_secs(10);

/// Where a container's log has been read to.
#[derive(Default)]
struct Position {
    /// Timestamp of the last line, and how many lines with it have been seen.
    last: Option<(DateTime<Utc>, usize)>,
    /// Lines with that timestamp seen since the stream was opened again.
    again: usize,
}

impl Position {
    /// Whether a line is new. The server gives whole seconds again.
    fn is_new(&mut self, at: DateTime<Utc>) -> bool {
        match &mut self.last {
            Some((last, _)) if at < *last => false,
            Some((last, seen)) if at == *last => {
                self.again += 1;
                if self.again <= *seen {
                    return false;
                }
                *seen += 1;
                true
            }
            _ => {
                self.last = Some((at, 1));
                self.again = 1;
                true
            }
        }
    }
}

/// Writes the log of a container, to its end.
pub(super) async fn follow(
    pods: &Pods,
    pod: &str,
    container: &str,
    prefix: bool,
    log: &TryLog,
) -> Result<(), Error> {
    let mut position = Position::default();
    let mut pauses = Pauses::new();
    loop {
        let params = LogParams {
            container: Some(container.to_owned()),
            follow: true,
            timestamps: true,
            since_time: position
                .last
                .and_then(|(at, _)| at.timestamp_nanos_opt())
                .and_then(|nanos| k8s_openapi::jiff::Timestamp::from_nanosecond(i128::from(nanos)).ok()),
            ..LogParams::default()
        };
        position.again = 0;
        let whole = match pods.api.log_stream(pod, &params).await {
            Ok(stream) => read(stream, &mut position, container, prefix, log).await,
            Err(error) if is_absent(&error) => return Err(error),
            Err(error) => {
                tracing::debug!("the log of {pod} cannot be read now: {error}");
                false
            }
        };
        // The log ends a moment before the status says so; a log that ends and no end of the container is a lost stream.
        let patience = if whole { SETTLING } else { Duration::ZERO };
        let found = ended(pods, pod, container, patience).await?;
        if found && whole {
            return Ok(());
        }
        pauses.next().await;
    }
}

/// Whether the container has ended, or does so soon.
async fn ended(pods: &Pods, pod: &str, container: &str, patience: Duration) -> Result<bool, Error> {
    let mut watched = Watched::new(pods, pod);
    let work = async {
        while let Some(found) = watched.next().await? {
            if state::terminated(&found, container).is_some() || state::is_over(&found) {
                break;
            }
        }
        Ok(true)
    };
    if patience.is_zero() {
        let found = pods.get(pod).await?;
        return Ok(state::terminated(&found, container).is_some() || state::is_over(&found));
    }
    tokio::time::timeout(patience, work).await.unwrap_or(Ok(false))
}

/// Reads a stream to its end. Whether the server ended it.
async fn read(
    mut stream: impl AsyncRead + Unpin,
    position: &mut Position,
    container: &str,
    prefix: bool,
    log: &TryLog,
) -> bool {
    let mut lines = Lines::default();
    let mut buffer = vec![0; 16 << 10];
    loop {
        let (complete, end) = match tokio::time::timeout(SILENCE, stream.read(&mut buffer)).await {
            Ok(Ok(0)) => (lines.finish().into_iter().collect(), Some(true)),
            Ok(Ok(length)) => (lines.push(&buffer[..length]), None),
            // Half a line comes again.
            Ok(Err(_)) | Err(_) => (Vec::new(), Some(false)),
        };
        for line in complete {
            write(&line, position, container, prefix, log).await;
        }
        if let Some(whole) = end {
            return whole;
        }
    }
}

async fn write(line: &str, position: &mut Position, container: &str, prefix: bool, log: &TryLog) {
    let stamped = line.split_once(' ').unwrap_or((line, ""));
    let message = match DateTime::parse_from_rfc3339(stamped.0) {
        Ok(at) if position.is_new(at.to_utc()) => stamped.1,
        Ok(_) => return,
        Err(_) => line,
    };
    let message = message.trim_end();
    if message.is_empty() {
        return;
    }
    if message.starts_with("::group::") || message.starts_with("::endgroup::") {
        return log.record("info", "task.stdout", message).await;
    }
    let text = if prefix {
        format!("[{container}] {message}")
    } else {
        message.to_owned()
    };
    log.record(level(message), MANAGER, &text).await;
}

/// The level that a line names at its beginning.
fn level(message: &str) -> &'static str {
    let word = message.trim_start().trim_start_matches('[');
    let word: String = word.chars().take_while(char::is_ascii_alphabetic).collect();
    match word.to_ascii_uppercase().as_str() {
        "DEBUG" => "debug",
        "WARNING" | "WARN" => "warning",
        "ERROR" => "error",
        "CRITICAL" | "FATAL" => "critical",
        _ => "info",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_that_come_again_are_not_new() {
        let at = |second: u32| DateTime::from_timestamp(1_700_000_000 + i64::from(second), 5).unwrap();
        let mut position = Position::default();
        assert!(position.is_new(at(1)) && position.is_new(at(2)) && position.is_new(at(2)));
        position.again = 0;
        let replayed: Vec<bool> = [at(1), at(2), at(2), at(2), at(3)]
            .into_iter()
            .map(|at| position.is_new(at))
            .collect();
        assert_eq!(replayed, [false, false, false, true, true]);
    }

    #[test]
    fn levels_are_read_from_the_line() {
        assert_eq!(level("ERROR: no"), "error");
        assert_eq!(level("[warning] hm"), "warning");
        assert_eq!(level("Errors are fine"), "info");
    }
}
