//! One child of the fork server: answers its requests, keeps its output, decides how it ended.

use super::output::{Stream, pump, take};
use crate::Shared;
use crate::control::is_away;
use crate::log::TryLog;
use crate::run::{End, Facts};
use backoff::Backoff;
use chrono::{DateTime, Utc};
use model::Timestamp;
use model::trigger::{Deferral, timed_out};
use nix::sys::signal::Signal;
use proto::v1::{Ending, NewTrigger};
use python::frames::{FrameError, FrameReader, Incoming, RequestFrame, write_reply, write_reply_with};
use python::messages::{Answer, FromTask, timedelta};
use python::{Child, ChildExit};
use serde::Deserialize;
use serde_json::Value;
use std::os::fd::{AsFd, AsRawFd};
use std::sync::Arc;
use std::time::Duration;
use tokio::net::UnixStream;
use tokio::task::JoinSet;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

/// How long a question waits for an API server that is away, and its pauses in between.
const AWAY: Duration = Duration::from_secs(60);
const FIRST_PAUSE: Duration = Duration::from_millis(100);
const LAST_PAUSE: Duration = Duration::from_secs(2);
/// How long a child may go on after it said how it ended (`[core] task_success_overtime`), callbacks included.
const OVERTIME: Duration = Duration::from_secs(20);
/// Between SIGTERM and SIGKILL for a child that goes on for too long after its end.
const ESCALATION: Duration = Duration::from_secs(5);
/// How long the socket of a child that has ended is read: what it said is there already.
const LAST_WORDS: Duration = Duration::from_millis(100);
/// How long output is still read after the child ended: a grandchild may hold it open.
const LEFTOVERS: Duration = Duration::from_secs(2);

/// Whether user code has begun.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Begun {
    No,
    Yes,
    /// The child was about to begin, and found that it must not.
    Refused,
}

/// Arguments as JSON; none is an empty object.
fn object(arguments: Option<Value>) -> String {
    let arguments = arguments.filter(|arguments| !arguments.is_null());
    arguments.map_or_else(|| "{}".to_owned(), |arguments| arguments.to_string())
}

/// A list as it is reported: nothing for an empty one.
fn listed(items: Option<Vec<Value>>) -> String {
    let items = items.filter(|items| !items.is_empty());
    items
        .map(|items| Value::from(items).to_string())
        .unwrap_or_default()
}

/// One child of the fork server, from its fork to its end.
pub(super) struct Supervision<'a> {
    shared: &'a Shared,
    facts: &'a Facts,
    log: &'a TryLog,
    /// What the task itself said.
    end: Option<End>,
    pub(super) rendered: Option<Value>,
    pub(super) label: Option<String>,
    pub(super) begun: Begun,
    frames: FrameReader,
    /// Who read what the task and its own children write.
    readers: JoinSet<()>,
}

impl<'a> Supervision<'a> {
    pub(super) fn new(shared: &'a Shared, facts: &'a Facts, log: &'a TryLog) -> Self {
        Self {
            shared,
            facts,
            log,
            end: None,
            rendered: None,
            label: None,
            begun: Begun::No,
            frames: FrameReader::within(
                shared.config.updraft.max_message_bytes,
                Arc::clone(&shared.large_frames),
            ),
            readers: JoinSet::new(),
        }
    }

    /// Supervises a child to its end. Tells how the try ended, and whether the child was killed.
    pub(super) async fn supervise(&mut self, mut child: Child, stop: &CancellationToken) -> (End, bool) {
        let streams = [
            (
                take(&mut child.stdout),
                Stream::Output {
                    level: "info",
                    logger: "task.stdout",
                },
            ),
            (
                take(&mut child.stderr),
                Stream::Output {
                    level: "error",
                    logger: "task.stderr",
                },
            ),
            (take(&mut child.logs), Stream::Records),
        ];
        for (stream, kind) in streams {
            if let Some(stream) = stream {
                self.readers.spawn(pump(stream, kind, self.log.clone()));
            }
        }
        let (cause, exit) = self.serve(&mut child, stop).await;
        // The log is complete before the report is made; but nobody waits for a grandchild that keeps a pipe open.
        tokio::time::timeout(LEFTOVERS, async {
            while self.readers.join_next().await.is_some() {}
        })
        .await
        .ok();
        let was_killed = cause.is_some() || !matches!(exit, ChildExit::Code(_));
        let is_silent = self.end.is_none() && cause.is_none() && self.begun == Begun::Yes;
        if is_silent && exit == ChildExit::Code(0) {
            let text =
                "Process exited with exit code 0 before the task said how it ended; that counts as success";
            self.log.record("warning", "task", text).await;
        }
        (self.verdict(cause, exit), was_killed)
    }

    /// Answers the child's requests until it has ended. Tells why it was stopped, if it was, and how it ended.
    async fn serve(&mut self, child: &mut Child, stop: &CancellationToken) -> (Option<String>, ChildExit) {
        let mut cause = None;
        if let Err(error) = write_reply(&mut child.requests, 0, Some(&self.facts.startup), None).await {
            cause = Some(format!("the task could not be told what to run: {error}"));
            child.signal(Signal::SIGKILL);
        }
        let mut kill_at: Option<Instant> = None;
        let mut overtime: Option<Instant> = None;
        let mut open = cause.is_none();
        loop {
            let deadline = kill_at
                .or(overtime)
                .unwrap_or_else(|| Instant::now() + Duration::from_secs(3600));
            tokio::select! {
                biased;
                exit = &mut child.exit => {
                    self.hear_last_words(child).await;
                    return (cause, exit.unwrap_or(ChildExit::Lost));
                }
                () = stop.cancelled(), if cause.is_none() => {
                    cause = Some("stopped: the task instance is not to run any more".to_owned());
                    child.signal(Signal::SIGTERM);
                    kill_at = Some(Instant::now() + self.shared.kill_patience());
                }
                () = tokio::time::sleep_until(deadline) => {
                    if kill_at.is_some() {
                        child.signal(Signal::SIGKILL);
                        kill_at = Some(Instant::now() + Duration::from_secs(3600));
                    } else if overtime.is_some() {
                        self.log.record("warning", "task", "The task went on for too long after it ended; stopping it.").await;
                        child.signal(Signal::SIGTERM);
                        overtime = None;
                        kill_at = Some(Instant::now() + ESCALATION);
                    }
                }
                request = self.frames.next(&mut child.requests), if open => match request {
                    Ok(Some(incoming)) => {
                        if let Err(error) = self.answer(child, incoming).await {
                            cause.get_or_insert(error);
                            open = false;
                            child.signal(Signal::SIGKILL);
                        }
                        if self.end.is_some() && overtime.is_none() && kill_at.is_none() {
                            overtime = Some(Instant::now() + OVERTIME);
                        }
                    }
                    Ok(None) => open = false,
                    Err(error) => {
                        cause.get_or_insert_with(|| format!("the task sent something that is no request: {error}"));
                        open = false;
                        child.signal(Signal::SIGKILL);
                    }
                },
            }
        }
    }

    /// Gives a program that the task started (a Python of its own, with the SDK) a way to write to the log.
    async fn hand_over_log(&mut self, child: &mut Child, id: u64) -> Result<(), FrameError> {
        let (ours, theirs) = std::os::unix::net::UnixStream::pair()?;
        ours.set_nonblocking(true)?;
        let ours = UnixStream::from_std(ours)?;
        let body = serde_json::json!({"type": "SentFDs", "fds": [theirs.as_raw_fd()]});
        write_reply_with(&mut child.requests, id, &body, theirs.as_fd()).await?;
        self.readers.spawn(pump(ours, Stream::Records, self.log.clone()));
        Ok(())
    }

    /// Returns `true` if user code began may stand unread in the socket of a child that has ended.
    async fn hear_last_words(&mut self, child: &mut Child) {
        while self.begun != Begun::Refused {
            let next = self.frames.next(&mut child.requests);
            match tokio::time::timeout(LAST_WORDS, next).await {
                Ok(Ok(Some(Incoming::Request(frame)))) => {
                    self.note_begin(&frame);
                }
                Ok(Ok(Some(Incoming::TooLarge { .. }) | None) | Err(_)) | Err(_) => return,
            }
        }
    }

    /// Takes what the shim says about the begin of user code. Returns `true` if it was that.
    fn note_begin(&mut self, frame: &RequestFrame) -> bool {
        self.begun = match frame.body.get("type").and_then(Value::as_str) {
            Some("UpdraftBegins") => Begun::Yes,
            Some("UpdraftVoid") => Begun::Refused,
            Some(_) | None => return false,
        };
        true
    }

    async fn answer(&mut self, child: &mut Child, incoming: Incoming) -> Result<(), String> {
        let frame = match incoming {
            Incoming::Request(frame) => frame,
            Incoming::TooLarge { id: None, error } => return Err(format!("the task sent {error}")),
            Incoming::TooLarge { id: Some(id), error } => return self.refuse(child, id, &error).await,
        };
        let id = frame.id;
        if self.note_begin(&frame) {
            return Ok(());
        }
        if frame.body.get("type").and_then(Value::as_str) == Some("ResendLoggingFD") {
            let sent = self.hand_over_log(child, id).await;
            return sent.map_err(|error| format!("the task could not be given another log: {error}"));
        }
        let had_ended = self.end.is_some();
        let answer = match FromTask::deserialize(&frame.body) {
            Ok(message) => self.take_message(message),
            Err(_) => self.ask(&frame.body).await,
        };
        if let Some(end) = self.end.as_ref().filter(|_| !had_ended) {
            self.keep(end).await;
        }
        let sent = write_reply(
            &mut child.requests,
            id,
            answer.body.as_ref(),
            answer.error.as_ref(),
        )
        .await;
        sent.map_err(|error| format!("the task could not be answered: {error}"))
    }

    /// Writes down how the task says that it ended, before the task goes on: should this worker die before the process has
    /// ended, the task is not run again.
    async fn keep(&self, end: &End) {
        if self.shared.running.has_given_up() {
            return;
        }
        if let Some(claim) = self.facts.claim() {
            let said = End {
                rendered_fields: self.rendered.as_ref().map(ToString::to_string),
                map_label: self.label.clone(),
                ..end.clone()
            };
            let report = said.message(self.log.waiting());
            let token = &self.facts.start.token;
            self.shared.spool.keep(claim, token, &report).await;
        }
        processes::pause::point("python-said");
    }

    /// A message that is too large is an error of the task's, which it may handle.
    async fn refuse(&self, child: &mut Child, id: u64, error: &FrameError) -> Result<(), String> {
        let text = format!("the message is too large: {error}; [updraft] max_message_mb sets the limit");
        let answer = Answer::failure(413, text);
        let sent = write_reply(&mut child.requests, id, None, answer.error.as_ref()).await;
        sent.map_err(|error| format!("the task could not be answered: {error}"))
    }

    /// What the supervisor itself deals with.
    fn take_message(&mut self, message: FromTask) -> Answer {
        let end = match message {
            FromTask::SucceedTask {
                end_date,
                rendered_map_index,
                task_outlets,
                outlet_events,
            } => {
                self.label = rendered_map_index.or_else(|| self.label.take());
                End {
                    end_date: instant(&end_date),
                    task_outlets: listed(task_outlets),
                    outlet_events: listed(outlet_events),
                    ..End::of(Ending::Success)
                }
            }
            FromTask::TaskState {
                state,
                end_date,
                rendered_map_index,
            } => {
                self.label = rendered_map_index.or_else(|| self.label.take());
                let ending = match state.as_str() {
                    "skipped" => Ending::Skipped,
                    "removed" => Ending::Removed,
                    _ => Ending::Failed,
                };
                End {
                    end_date: end_date.as_deref().and_then(instant),
                    ..End::of(ending)
                }
            }
            FromTask::RetryTask {
                end_date,
                retry_delay_seconds,
                rendered_map_index,
                ..
            } => {
                self.label = rendered_map_index.or_else(|| self.label.take());
                End {
                    end_date: instant(&end_date),
                    retry_delay: retry_delay_seconds,
                    ..End::of(Ending::UpForRetry)
                }
            }
            FromTask::RescheduleTask {
                reschedule_date,
                end_date,
            } => End {
                end_date: instant(&end_date),
                reschedule_at: Some(instant(&reschedule_date).unwrap_or_else(Utc::now)),
                ..End::of(Ending::Reschedule)
            },
            FromTask::DeferTask {
                classpath,
                trigger_kwargs,
                trigger_timeout,
                queue,
                next_method,
                next_kwargs,
            } => {
                let timeout = trigger_timeout.as_ref().and_then(timedelta);
                let next = (next_method.as_str(), next_kwargs.as_ref());
                match Deferral::to_time(&classpath, &trigger_kwargs, next, timeout, Utc::now()) {
                    Some(deferral) => End {
                        reschedule_at: Some(deferral.until),
                        next: deferral
                            .next
                            .map(|(method, arguments)| (method, Value::Object(arguments).to_string())),
                        ..End::of(Ending::Deferred)
                    },
                    None => {
                        let (method, arguments) = timed_out();
                        let trigger = NewTrigger {
                            classpath,
                            kwargs: object(Some(trigger_kwargs)),
                            queue,
                            next_method,
                            next_kwargs: object(next_kwargs),
                        };
                        End {
                            reschedule_at: timeout.and_then(|timeout| Utc::now().checked_add_signed(timeout)),
                            next: Some((method, Value::Object(arguments).to_string())),
                            trigger: Some(trigger),
                            ..End::of(Ending::Deferred)
                        }
                    }
                }
            }
            FromTask::AwaitInputTask {
                timeout,
                next_method,
                next_kwargs,
            } => {
                let timeout = timeout.as_ref().and_then(timedelta);
                End {
                    reschedule_at: timeout.and_then(|timeout| Utc::now().checked_add_signed(timeout)),
                    next: Some((next_method, object(next_kwargs))),
                    ..End::of(Ending::AwaitingInput)
                }
            }
            FromTask::SetRenderedFields { rendered_fields } => {
                self.facts.show_rendered(rendered_fields.to_string());
                self.rendered = Some(rendered_fields);
                return Answer::done();
            }
            FromTask::SetRenderedMapIndex { rendered_map_index } => {
                self.label = Some(rendered_map_index);
                return Answer::done();
            }
            FromTask::MaskSecret { value, name } => {
                self.log.masker().add(&value, name.as_deref());
                return Answer::done();
            }
            // Answered with a descriptor, not with a message.
            FromTask::ResendLoggingFD => return Answer::done(),
        };
        // A task says once how it ended; what comes later (from its callbacks) does not change that.
        self.end.get_or_insert(end);
        Answer::done()
    }

    /// What the control plane answers. A server that is away for a moment is waited for: no task fails because an API
    /// server was restarted.
    async fn ask(&self, body: &Value) -> Answer {
        let (begin, request) = (Instant::now(), body.to_string().into_bytes());
        let mut backoff = Backoff::new(FIRST_PAUSE, LAST_PAUSE);
        let outcome = loop {
            let control = &self.shared.control;
            match control.ask(&self.facts.start.token, request.clone()).await {
                Err(status) if is_away(&status) && begin.elapsed() < AWAY => {
                    backoff.pause().await;
                }
                other => break other,
            }
        };
        match outcome {
            Ok(reply) => {
                let read = |bytes: &[u8]| serde_json::from_slice::<Value>(bytes).ok();
                let answer = Answer {
                    body: read(&reply.body),
                    error: read(&reply.error),
                };
                self.mask_connection(answer.body.as_ref());
                answer
            }
            Err(status) => Answer::failure(500, status.message()),
        }
    }

    fn mask_connection(&self, body: Option<&Value>) {
        let Some(body) =
            body.filter(|body| body.get("type").and_then(Value::as_str) == Some("ConnectionResult"))
        else {
            return;
        };
        self.log.masker().add_connection(body);
    }

    /// How the try ended: by what the task said, by how its process ended, and by whether we stopped it.
    fn verdict(&mut self, cause: Option<String>, exit: ChildExit) -> End {
        let said = self.end.take();
        if let Some(cause) = cause {
            // Stopped in the middle of its callbacks, it had ended all the same.
            return said.unwrap_or_else(|| End::failure(self.facts, cause));
        }
        match (said, exit) {
            (Some(end), _) => end,
            (None, ChildExit::Code(0)) => End::of(Ending::Success),
            (None, ChildExit::Code(code)) => End::failure(
                self.facts,
                format!("Process exited abnormally with exit code {code}"),
            ),
            (None, ChildExit::Signal(signal)) => {
                let name = Signal::try_from(signal)
                    .map_or_else(|_| signal.to_string(), |signal| signal.as_str().to_owned());
                let hint = if signal == Signal::SIGKILL as i32 {
                    " Likely out of memory error (OOM)."
                } else {
                    ""
                };
                End::failure(self.facts, format!("Process terminated by signal {name}.{hint}"))
            }
            (None, ChildExit::Lost) => {
                End::failure(self.facts, "The process was lost; nobody knows how it ended")
            }
        }
    }
}

fn instant(text: &str) -> Option<Timestamp> {
    DateTime::parse_from_rfc3339(text).ok().map(|at| at.to_utc())
}
