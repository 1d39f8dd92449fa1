//! The logs of a container, followed over lost connections without losing or doubling a line.

use super::MANAGER;
use super::watch::Watched;
use crate::log::{Lines, TryLog};
use chrono::{DateTime, Utc};
use futures_util::{AsyncRead, AsyncReadExt};
use kube::Error;
use kube::api::LogParams;
use kubernetes::cluster::{Pods, is_transient, pauses};
use kubernetes::state;
use std::collections::{HashMap, VecDeque};
use std::hash::{DefaultHasher, Hash, Hasher};
use std::time::Duration;

/// How long a stream may be silent before it is opened again: the connection may be dead.
const SILENCE: Duration = Duration::from_secs(300);

/// How often in a row a log may be refused.
const FAILURES: u32 = 5;
/// Lines that are known again at most.
const RECENT: usize = 200_000;

/// How long after its log a container may take to end.
const SETTLING: Duration = Duration::from_secs(10);

/// Where a container's log has been read to. The server gives whole seconds again, and lines of the two streams may come
/// with timestamps slightly out of order.
#[derive(Default)]
struct Position {
    /// The latest timestamp.
    last: Option<DateTime<Utc>>,
    /// What came lately, with its timestamps.
    recent: VecDeque<(DateTime<Utc>, u64)>,
    /// How often each line that came lately will come again.
    again: HashMap<(DateTime<Utc>, u64), usize>,
}

impl Position {
    /// From where a stream is opened again: the whole second before the latest line.
    fn reopen(&mut self) -> Option<DateTime<Utc>> {
        self.again.clear();
        for line in &self.recent {
            *self.again.entry(*line).or_default() += 1;
        }
        let second = self.last?.timestamp() - 1;
        DateTime::from_timestamp(second, 0)
    }

    /// Whether a line is new.
    fn is_new(&mut self, at: DateTime<Utc>, text: &str) -> bool {
        let mut hasher = DefaultHasher::new();
        text.hash(&mut hasher);
        let line = (at, hasher.finish());
        if let Some(left) = self.again.get_mut(&line).filter(|left| **left > 0) {
            *left -= 1;
            return false;
        }
        let last = self.last.map_or(at, |last| last.max(at));
        self.last = Some(last);
        self.recent.push_back(line);
        while self.recent.len() > RECENT
            || self
                .recent
                .front()
                .is_some_and(|(at, _)| last - *at > chrono::Duration::seconds(3))
        {
            self.recent.pop_front();
        }
        true
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
    let mut pauses = pauses();
    let mut failures = 0;
    loop {
        let since = position.reopen().map(|at| at.timestamp());
        let params = LogParams {
            container: Some(container.to_owned()),
            follow: true,
            timestamps: true,
            since_time: since.and_then(|at| k8s_openapi::jiff::Timestamp::from_second(at).ok()),
            ..LogParams::default()
        };
        // The answer may come with the first line only.
        let opened = tokio::time::timeout(SILENCE, pods.api.log_stream(pod, &params)).await;
        let whole = match opened {
            Ok(Ok(stream)) => {
                failures = 0;
                read(stream, &mut position, container, prefix, log).await
            }
            // "The container is about to start" is a bad request, too.
            Ok(Err(error)) if !is_transient(&error) && failures >= FAILURES => return Err(error),
            Ok(Err(error)) => {
                failures += 1;
                tracing::debug!("the log of {pod} cannot be read now: {error}");
                false
            }
            Err(_) => false,
        };
        // The log ends a moment before the status says so; a log that ends and no end of the container is a lost stream.
        let patience = if whole { SETTLING } else { Duration::ZERO };
        let found = ended(pods, pod, container, patience).await?;
        if found && whole {
            return Ok(());
        }
        if found && failures > FAILURES {
            let text = format!("the rest of the log of container {container} cannot be read");
            log.record("warning", MANAGER, &text).await;
            return Ok(());
        }
        pauses.pause().await;
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
            // If this is half a line, the whole one comes when the stream is opened again.
            Ok(Ok(0)) => (lines.finish().into_iter().collect(), Some(true)),
            Ok(Ok(length)) => (lines.push(&buffer[..length]), None),
            // Half a line comes again.
            Ok(Err(_)) | Err(_) => (Vec::new(), Some(false)),
        };
        for line in complete {
            write(&line.into_text(), position, container, prefix, log).await;
        }
        if let Some(whole) = end {
            return whole;
        }
    }
}

async fn write(line: &str, position: &mut Position, container: &str, prefix: bool, log: &TryLog) {
    let stamped = line.split_once(' ').unwrap_or((line, ""));
    let message = match DateTime::parse_from_rfc3339(stamped.0) {
        Ok(at) if position.is_new(at.to_utc(), stamped.1) => stamped.1,
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
    fn lines_that_come_again_are_not_new_and_all_others_are() {
        let at = |millis: i64| DateTime::from_timestamp_millis(1_700_000_000_000 + millis).unwrap();
        let mut position = Position::default();
        // Out of order, and twice the same.
        for (millis, text) in [(700, "a"), (400, "b"), (900, "c"), (900, "c")] {
            assert!(position.is_new(at(millis), text), "{text}");
        }
        assert!(position.reopen().unwrap() <= at(0));
        let replayed: Vec<bool> = [
            (700, "a"),
            (400, "b"),
            (900, "c"),
            (900, "c"),
            (900, "c"),
            (300, "late"),
        ]
        .into_iter()
        .map(|(millis, text)| position.is_new(at(millis), text))
        .collect();
        assert_eq!(replayed, [false, false, false, false, true, true]);
    }

    #[test]
    fn levels_are_read_from_the_line() {
        assert_eq!(level("ERROR: no"), "error");
        assert_eq!(level("[warning] hm"), "warning");
        assert_eq!(level("Errors are fine"), "info");
    }
}
