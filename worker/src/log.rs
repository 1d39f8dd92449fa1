//! The log of one try: records as JSON lines, sent to the control plane from the first one on.

mod lines;
mod record;

use crate::control::{ControlPlane, is_transient};
use backoff::Backoff;
use chrono::Utc;
pub(crate) use lines::{LINE, Line, Lines};
pub(crate) use record::Level;
use sensitive::Masker;
use serde_json::{Map, Value};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};
use tokio::sync::Notify;

/// How long a record waits for others before it is sent.
const LINGER: Duration = Duration::from_millis(200);
/// How long a worker that must end waits for the end of a log to arrive.
const LAST_WORDS: Duration = Duration::from_secs(3);
/// How long the end of a try waits for what must be sent before its report.
const LAST_CHUNKS: Duration = Duration::from_secs(60);
/// Bytes sent at a time.
const CHUNK: usize = 512 << 10;
/// Bytes that wait to be sent at most; then whoever writes waits, too.
const WAITING: usize = 4 << 20;

#[derive(Default)]
struct State {
    /// Bytes not acknowledged yet.
    waiting: Vec<u8>,
    /// Bytes acknowledged.
    sent: u64,
    /// Whether the limit was reached.
    full: bool,
    /// Whether the server said that there is nobody to send to any more.
    void: bool,
    /// Why the server cannot write logs at present.
    unwritten: Option<String>,
    /// Bytes of records that were left out because of that.
    dropped: usize,
}

impl State {
    /// Says in the log that records are missing here, if some are.
    fn mark_gap(&mut self) {
        if self.dropped == 0 {
            return;
        }
        let cause = self.unwritten.as_deref().unwrap_or("it could not be written");
        let mark = serde_json::json!({
            "timestamp": model::time::rest_format(Utc::now()),
            "event": format!("{} bytes of this log are left out here: {cause}", self.dropped),
            "level": "warning",
            "logger": "task",
        });
        self.waiting.extend_from_slice(format!("{mark}\n").as_bytes());
        self.dropped = 0;
    }
}

/// What is written, and how.
pub(crate) struct Rules {
    /// Hides secrets.
    pub(crate) masker: Masker,
    /// Records of ours that are less severe are left out (`[logging] logging_level`), as Python leaves out its own.
    pub(crate) least: Level,
}

struct Shared {
    state: Mutex<State>,
    wrote: Notify,
    drained: Notify,
    limit: u64,
    token: String,
    /// Who takes the log; without anybody it is kept.
    control: Option<ControlPlane>,
    rules: Rules,
    /// Keeps chunks in order.
    sending: tokio::sync::Mutex<()>,
}

/// The log of one try. Clones write to the same log.
#[derive(Clone)]
pub(crate) struct TryLog {
    shared: Arc<Shared>,
}

impl TryLog {
    pub(crate) fn new(control: ControlPlane, token: &str, rules: Rules, limit: u64, offset: u64) -> Self {
        Self::to(Some(control), token, rules, limit, offset)
    }

    /// A log that nobody takes: all that is written stays here.
    pub(crate) fn kept(rules: Rules) -> Self {
        Self::to(None, "", rules, u64::MAX, 0)
    }

    /// What is written and not sent.
    pub(crate) fn unsent(&self) -> Vec<u8> {
        self.lock().waiting.clone()
    }

    /// What was not acknowledged yet: where it begins, and the bytes.
    pub(crate) fn waiting(&self) -> (u64, Vec<u8>) {
        let state = self.lock();
        (state.sent, state.waiting.clone())
    }

    fn to(control: Option<ControlPlane>, token: &str, rules: Rules, limit: u64, offset: u64) -> Self {
        let shared = Shared {
            state: Mutex::new(State {
                sent: offset,
                ..State::default()
            }),
            wrote: Notify::new(),
            drained: Notify::new(),
            limit,
            token: token.to_owned(),
            control,
            rules,
            sending: tokio::sync::Mutex::new(()),
        };
        Self {
            shared: Arc::new(shared),
        }
    }

    pub(crate) fn masker(&self) -> &Masker {
        &self.shared.rules.masker
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.shared.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Writes one record.
    pub(crate) async fn record(&self, level: &str, logger: &str, event: &str) {
        self.record_with(level, logger, event, Map::new()).await;
    }

    /// Writes one record with more fields.
    pub(crate) async fn record_with(&self, level: &str, logger: &str, event: &str, more: Map<String, Value>) {
        if Level::of(level) < self.shared.rules.least {
            return;
        }
        let mut record = record::new(level, logger, event);
        record.extend(more);
        self.write(record).await;
    }

    /// Passes a record of the Task SDK on.
    pub(crate) async fn sdk_record(&self, line: Line) {
        self.write(record::of_sdk(line)).await;
    }

    async fn write(&self, mut record: Map<String, Value>) {
        record::bound(&mut record);
        let mut record = Value::Object(record);
        self.shared.rules.masker.mask_value(&mut record);
        self.line(record.to_string()).await;
    }

    async fn line(&self, mut line: String) {
        line.push('\n');
        loop {
            let drained = self.shared.drained.notified();
            {
                let mut state = self.lock();
                if state.full || state.void {
                    return;
                }
                if state.waiting.len() >= WAITING && state.unwritten.is_some() {
                    // No task waits for a disk on which its log has no place.
                    state.dropped += line.len();
                    return;
                }
                if state.waiting.len() < WAITING || self.shared.control.is_none() {
                    state.mark_gap();
                    if state.sent + (state.waiting.len() + line.len()) as u64 > self.shared.limit {
                        state.full = true;
                        line = format!(
                            "{{\"timestamp\":\"{}\",\"event\":\"The log reached {} bytes ([updraft] max_task_log_mb); the rest is left out.\",\"level\":\"warning\",\"logger\":\"task\"}}\n",
                            model::time::rest_format(Utc::now()),
                            self.shared.limit
                        );
                    }
                    state.waiting.extend_from_slice(line.as_bytes());
                    break;
                }
            }
            drained.await;
        }
        self.shared.wrote.notify_one();
    }

    /// Sends what was written, again and again, until it is dropped. Runs beside the task.
    pub(crate) async fn send_along(&self) {
        loop {
            self.shared.wrote.notified().await;
            tokio::time::sleep(LINGER).await;
            let mut backoff = Backoff::new(Duration::from_millis(100), crate::LONGEST_PAUSE);
            while self.has_waiting() {
                if self.send_chunk().await {
                    backoff.reset();
                } else {
                    backoff.pause().await;
                }
            }
        }
    }

    /// Sends what is left, for as long as a worker that must end can wait for it.
    pub(crate) async fn send_rest(&self) {
        let rest = async { while self.has_waiting() && self.send_chunk().await {} };
        tokio::time::timeout(LAST_WORDS, rest).await.ok();
    }

    fn has_waiting(&self) -> bool {
        !self.lock().waiting.is_empty()
    }

    /// Sends one chunk. Whether it arrived.
    async fn send_chunk(&self) -> bool {
        let _turn = self.shared.sending.lock().await;
        let (offset, chunk) = {
            let state = self.lock();
            (
                state.sent,
                state.waiting[..state.waiting.len().min(CHUNK)].to_vec(),
            )
        };
        if chunk.is_empty() {
            return true;
        }
        let Some(control) = &self.shared.control else {
            return true;
        };
        let length = chunk.len();
        match control.append_log(&self.shared.token, offset, chunk).await {
            Ok(reply) if !reply.unwritten.is_empty() => {
                self.lock().unwritten = Some(reply.unwritten);
                self.shared.drained.notify_waiters();
                return false;
            }
            Ok(_) => self.acknowledge(length),
            Err(status) if is_transient(&status) => return false,
            Err(status) => {
                tracing::warn!("the log of a try is not wanted any more: {status}");
                let mut state = self.lock();
                state.void = true;
                state.waiting.clear();
                drop(state);
                self.shared.drained.notify_waiters();
            }
        }
        true
    }

    fn acknowledge(&self, length: usize) {
        let mut state = self.lock();
        let length = length.min(state.waiting.len());
        state.waiting.drain(..length);
        state.sent += length as u64;
        if state.dropped == 0 {
            state.unwritten = None;
        }
        drop(state);
        self.shared.drained.notify_waiters();
    }

    /// Takes what is left to be sent with the report: where it begins, and the bytes. Sends more than that first, but no
    /// longer than a moment when it cannot be written: the end of a try does not wait for its log.
    pub(crate) async fn tail(&self) -> (u64, Vec<u8>) {
        let (begin, mut failures) = (Instant::now(), 0);
        while self.lock().waiting.len() > CHUNK && failures < 50 && begin.elapsed() < LAST_CHUNKS {
            if !self.send_chunk().await {
                failures += 1;
                if self.lock().unwritten.is_some() {
                    break;
                }
                tokio::time::sleep(Duration::from_millis(200)).await;
            }
        }
        let _turn = self.shared.sending.lock().await;
        let mut state = self.lock();
        state.mark_gap();
        (state.sent, state.waiting.clone())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn records_below_the_level_of_the_configuration_are_left_out() {
        let rules = Rules {
            masker: Masker::default(),
            least: Level::of("WARNING"),
        };
        let log = TryLog::kept(rules);
        for level in ["debug", "info", "warning", "error", "critical"] {
            log.record(level, "task", &format!("this is {level}")).await;
        }
        // What Python sends has been through the levels of Python's own loggers.
        let mut lines = Lines::default();
        for line in lines.push(b"{\"event\": \"of Python\", \"level\": \"info\"}\n") {
            log.sdk_record(line).await;
        }
        let text = String::from_utf8(log.unsent()).unwrap();
        let records = text
            .lines()
            .map(|line| serde_json::from_str::<Value>(line).unwrap());
        let events = records.map(|record| record["event"].as_str().unwrap().to_owned());
        assert_eq!(
            events.collect::<Vec<_>>(),
            [
                "this is warning",
                "this is error",
                "this is critical",
                "of Python"
            ]
        );
    }
}
