//! Triggers that tasks of any worker wait for: Airflow's own trigger runner, in one child of the fork server.
//!
//! Which triggers to run is asked of the control plane, which gives those of a dead worker to another one. What the
//! child knows may be lost at any time: the next answer brings it back.

use crate::Shared;
use crate::control::is_transient;
use crate::log::{Line, Lines, TryLog};
use backoff::Backoff;
use lifecycle::Stop;
use nix::sys::signal::Signal;
use processes::lease::Permit;
use proto::v1::{RunTrigger, SyncTriggersRequest, TriggerFiredRequest};
use python::frames::{RequestFrame, read_request, write_reply};
use python::messages::Answer;
use python::{Child, Work};
use serde_json::{Map, Value, json};
use std::collections::{HashMap, VecDeque};
use std::sync::Arc;
use std::time::Duration;
use telemetry::metric;
use tokio::io::AsyncReadExt;
use tokio::net::UnixStream;
use tokio::net::unix::{OwnedReadHalf, OwnedWriteHalf};
use tokio::sync::mpsc::{self, Receiver, Sender};
use tokio::task::{AbortHandle, JoinSet};
use tokio::time::{Instant, MissedTickBehavior};

/// How often the control plane is asked when nothing else is a reason to.
const LOOK: Duration = Duration::from_secs(2);
/// How long the child gets to end.
const FAREWELL: Duration = Duration::from_secs(3);
/// How long to wait before another child, when one has died.
const RECOVERY: Duration = Duration::from_secs(2);
/// How long a watcher that failed rests before it is started again.
const REST: Duration = Duration::from_secs(30);
/// Lines, requests and replies under way.
const UNDER_WAY: usize = 256;
/// The reply that wakes the runner (`NUDGE` of the shim).
const NUDGE: u64 = 1 << 31;

type Reply = (u64, Answer);

/// A trigger that is run here.
struct Hosted {
    /// Where its words go; a watcher has none of its own.
    log: Option<(TryLog, AbortHandle)>,
    /// Events that the control plane has not heard of yet.
    untold: usize,
    /// Whether it has ended.
    finished: bool,
    /// A watcher that failed is left alone until then.
    rests_until: Option<Instant>,
}

impl Drop for Hosted {
    fn drop(&mut self) {
        if let Some((_, sending)) = &self.log {
            sending.abort();
        }
    }
}

struct Host {
    shared: Arc<Shared>,
    hosted: HashMap<i64, Hosted>,
    /// What the runner is to start, and to cancel, with its next look.
    to_start: VecDeque<Value>,
    to_cancel: Vec<i64>,
    /// Those who tell the control plane of events.
    telling: JoinSet<i64>,
    /// Those who send the logs of triggers along.
    sending: JoinSet<()>,
}

/// Runs triggers until told to stop.
pub(crate) async fn host(shared: Arc<Shared>, stop: Stop) {
    let mut host = Host {
        shared,
        hosted: HashMap::new(),
        to_start: VecDeque::new(),
        to_cancel: Vec::new(),
        telling: JoinSet::new(),
        sending: JoinSet::new(),
    };
    loop {
        tokio::select! {
            () = stop.draining().cancelled() => return,
            () = host.shared.triggers.notified() => {}
            () = tokio::time::sleep(LOOK) => {}
        }
        let permit = host.shared.lease.permit();
        host.look().await;
        if host.to_start.is_empty() {
            continue;
        }
        processes::pause::point("triggers-fork");
        let child = match &host.shared.python {
            Some(python) => python.fork(&Work::Triggers(permit.clone()), &[]).await,
            None => return,
        };
        match child {
            Ok(child) => host.serve(child, &permit, &stop).await,
            Err(error) => tracing::error!("triggers cannot run: {error}"),
        }
        // What ran in it is given out again.
        host.hosted.clear();
        host.to_start.clear();
        host.to_cancel.clear();
        metrics::gauge!(metric::TRIGGERS_RUNNING).set(0);
        if !stop.draining().is_cancelled() {
            tokio::time::sleep(RECOVERY).await;
        }
    }
}

impl Host {
    /// Asks the control plane which triggers to run. Whether there is something new.
    async fn look(&mut self) -> bool {
        let now = Instant::now();
        self.hosted
            .retain(|_, hosted| hosted.rests_until.is_none_or(|until| until > now));
        let message = SyncTriggersRequest {
            worker_id: self.shared.id().to_string(),
            capacity: self.shared.config.triggerer.capacity,
            running: self.hosted.keys().copied().collect(),
            queues: self.shared.config.updraft.queues.clone(),
        };
        let reply = match self.shared.control.sync_triggers(self.shared.id(), message).await {
            Ok(reply) => reply,
            Err(status) => {
                tracing::warn!("the control plane does not tell which triggers to run: {status}");
                return false;
            }
        };
        let is_new = !reply.start.is_empty() || !reply.cancel.is_empty();
        for order in reply.start {
            self.take(order);
        }
        self.to_cancel.extend(reply.cancel);
        metrics::gauge!(metric::TRIGGERS_RUNNING).set(self.hosted.len() as u32);
        is_new
    }

    fn take(&mut self, order: RunTrigger) {
        let ti: Value = serde_json::from_str(&order.task_instance).unwrap_or_default();
        let log = (!order.token.is_empty()).then(|| {
            let control = self.shared.control.clone();
            let log = TryLog::new(
                control,
                &order.token,
                self.shared.native.log_rules(),
                order.log_limit,
                order.log_offset,
            );
            let sending = log.clone();
            // Those that have ended are not kept.
            while self.sending.try_join_next().is_some() {}
            let sending = self.sending.spawn(async move { sending.send_along().await });
            (log, sending)
        });
        self.to_start.push_back(workload(&order, ti));
        let hosted = Hosted {
            log,
            untold: 0,
            finished: false,
            rests_until: None,
        };
        self.hosted.insert(order.id, hosted);
    }

    /// Looks after the runner until it ends, or the worker does.
    async fn serve(&mut self, mut child: Child, permit: &Permit, stop: &Stop) {
        let (Some(requests), Some(logs), Some(stdout), Some(stderr)) = (
            take_stream(&mut child.requests),
            take_stream(&mut child.logs),
            take_stream(&mut child.stdout),
            take_stream(&mut child.stderr),
        ) else {
            return;
        };
        let (reader, writer) = requests.into_split();
        let (frames, mut incoming) = mpsc::channel(UNDER_WAY);
        let (replies, outgoing) = mpsc::channel(UNDER_WAY);
        let (records, mut lines) = mpsc::channel(UNDER_WAY);
        let mut pumps = JoinSet::new();
        pumps.spawn(read_frames(
            reader,
            self.shared.config.updraft.max_message_bytes,
            frames,
        ));
        pumps.spawn(write_replies(writer, outgoing));
        pumps.spawn(read_lines(logs, records.clone()));
        pumps.spawn(read_lines(stdout, records.clone()));
        pumps.spawn(read_lines(stderr, records));
        let begin = Answer {
            body: Some(json!({"type": "StartTriggerer"})),
            error: None,
        };
        replies.send((0, begin)).await.ok();
        let mut asking = JoinSet::new();
        // Not a sleep within the loop: the runner speaks more often than that, and would put every look off.
        let mut looks = tokio::time::interval(LOOK);
        looks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            tokio::select! {
                biased;
                () = stop.draining().cancelled() => break,
                exit = &mut child.exit => {
                    tracing::warn!(?exit, "the trigger runner has ended; starting another one");
                    return;
                }
                Some(line) = lines.recv() => self.note(line).await,
                frame = incoming.recv() => match frame {
                    // What runs in it may run elsewhere by now; dropping it kills it.
                    Some(_) if !permit.holds() => return,
                    Some(frame) => self.answer(frame, &replies, &mut asking).await,
                    None => break,
                },
                Some(told) = self.telling.join_next() => self.told(told.ok()),
                Some(_) = asking.join_next() => {}
                () = self.shared.triggers.notified() => self.look_and_wake(&replies).await,
                _ = looks.tick() => self.look_and_wake(&replies).await,
            }
        }
        child.signal(Signal::SIGTERM);
        tokio::time::timeout(FAREWELL, &mut child.exit).await.ok();
    }

    async fn look_and_wake(&mut self, replies: &Sender<Reply>) {
        if self.look().await {
            replies.send((NUDGE, Answer::done())).await.ok();
        }
    }

    /// A record of the runner goes to the log of the task that waits, or to ours.
    async fn note(&self, line: Line) {
        let trigger = serde_json::from_slice::<Value>(&line.bytes)
            .ok()
            .and_then(|record| record.get("trigger_id").and_then(Value::as_i64));
        let hosted = trigger.and_then(|id| self.hosted.get(&id));
        match hosted.and_then(|hosted| hosted.log.as_ref()) {
            Some((log, _)) => log.sdk_record(line).await,
            None => tracing::debug!(target: "triggers", "{}", line.into_text()),
        }
    }

    async fn answer(&mut self, frame: RequestFrame, replies: &Sender<Reply>, asking: &mut JoinSet<()>) {
        let kind = frame.body.get("type").and_then(Value::as_str);
        match kind {
            Some("TriggerStateChanges") => {
                self.take_changes(&frame.body);
                let body = json!({
                    "type": "TriggerStateSync", "to_create": self.to_start.drain(..).collect::<Vec<_>>(),
                    "to_cancel": std::mem::take(&mut self.to_cancel), "events_persisted": null,
                });
                let answer = Answer {
                    body: Some(body),
                    error: None,
                };
                replies.send((frame.id, answer)).await.ok();
            }
            Some("MaskSecret") => {
                for hosted in self.hosted.values() {
                    if let Some((log, _)) = &hosted.log {
                        let name = frame.body.get("name").and_then(Value::as_str);
                        log.masker().add(&frame.body["value"], name);
                    }
                }
                replies.send((frame.id, Answer::done())).await.ok();
            }
            _ => {
                let (shared, replies) = (Arc::clone(&self.shared), replies.clone());
                asking.spawn(async move {
                    let answer = ask(&shared, &frame.body).await;
                    replies.send((frame.id, answer)).await.ok();
                });
            }
        }
    }

    fn take_changes(&mut self, changes: &Value) {
        let list = |key: &str| {
            changes
                .get(key)
                .and_then(Value::as_array)
                .cloned()
                .unwrap_or_default()
        };
        for event in list("events") {
            let Some(id) = event.get("id").and_then(Value::as_i64) else {
                continue;
            };
            let state = event.get("state").and_then(Value::as_str).map(str::to_owned);
            let message = TriggerFiredRequest {
                id,
                payload: state
                    .is_none()
                    .then(|| event.get("payload").cloned().unwrap_or_default().to_string()),
                xcoms: event.get("xcoms").map(Value::to_string).unwrap_or_default(),
                state,
                ..TriggerFiredRequest::default()
            };
            self.tell(message);
        }
        for failure in list("failures") {
            let Some(id) = failure.get("id").and_then(Value::as_i64) else {
                continue;
            };
            let lines = failure.get("traceback").and_then(Value::as_array);
            let message = TriggerFiredRequest {
                id,
                failed: true,
                traceback: lines
                    .into_iter()
                    .flatten()
                    .filter_map(|line| line.as_str().map(str::to_owned))
                    .collect(),
                ..TriggerFiredRequest::default()
            };
            self.tell(message);
            if let Some(hosted) = self.hosted.get_mut(&id) {
                hosted.finished = true;
                hosted.rests_until = hosted.log.is_none().then(|| Instant::now() + REST);
            }
        }
        for id in list("finished").iter().filter_map(Value::as_i64) {
            if let Some(hosted) = self.hosted.get_mut(&id) {
                hosted.finished = true;
            }
            self.forget_if_done(id);
        }
    }

    /// Tells the control plane of an event, for as long as it takes.
    fn tell(&mut self, mut message: TriggerFiredRequest) {
        let Some(hosted) = self.hosted.get_mut(&message.id) else {
            return;
        };
        hosted.untold += 1;
        let log = hosted.log.as_ref().map(|(log, _)| log.clone());
        let shared = Arc::clone(&self.shared);
        self.telling.spawn(async move {
            let id = message.id;
            if let Some(log) = log {
                // The task may go on elsewhere, and write to the same log, as soon as this is told.
                log.send_rest().await;
            }
            let mut backoff = Backoff::new(crate::FIRST_PAUSE, crate::LONGEST_PAUSE);
            loop {
                let worker = shared.id();
                message.worker_id = worker.to_string();
                match shared.control.trigger_fired(worker, message.clone()).await {
                    // A worker whose token has run out registers anew.
                    Err(status) if is_transient(&status) || status.code() == tonic::Code::Unauthenticated => {
                        backoff.pause().await;
                    }
                    Err(status) => {
                        tracing::error!(trigger = id, "the event of a trigger was refused: {status}");
                        return id;
                    }
                    Ok(_) => return id,
                }
            }
        });
    }

    fn told(&mut self, id: Option<i64>) {
        if let Some(hosted) = id.and_then(|id| self.hosted.get_mut(&id)) {
            hosted.untold = hosted.untold.saturating_sub(1);
        }
        if let Some(id) = id {
            self.forget_if_done(id);
        }
    }

    fn forget_if_done(&mut self, id: i64) {
        let is_done = |hosted: &Hosted| hosted.finished && hosted.untold == 0 && hosted.rests_until.is_none();
        if self.hosted.get(&id).is_some_and(is_done) {
            self.hosted.remove(&id);
        }
    }
}

/// Airflow's `RunTrigger`. Arguments that begin with a brace are taken as they are, not decrypted.
fn workload(order: &RunTrigger, ti: Value) -> Value {
    let assets: Map<String, Value> = serde_json::from_str(&order.watched_assets).unwrap_or_default();
    let timeout = order
        .timeout_at
        .and_then(model::time::from_micros)
        .map(model::time::rest_format);
    let read = |text: &str| serde_json::from_str::<Value>(text).unwrap_or_default();
    json!({
        "id": order.id, "classpath": order.classpath, "encrypted_kwargs": order.kwargs, "ti": ti,
        "timeout_after": timeout, "type": "RunTrigger", "dag_data": read(&order.dag), "dag_run_data": read(&order.dag_run),
        "watched_assets": if assets.is_empty() { Value::Null } else { Value::Object(assets) },
    })
}

async fn ask(shared: &Shared, body: &Value) -> Answer {
    let request = body.to_string().into_bytes();
    match shared.control.ask_for_trigger(shared.id(), request).await {
        Ok(reply) => {
            let read = |bytes: &[u8]| serde_json::from_slice::<Value>(bytes).ok();
            Answer {
                body: read(&reply.body),
                error: read(&reply.error),
            }
        }
        Err(status) => Answer::failure(500, status.message()),
    }
}

fn take_stream(stream: &mut UnixStream) -> Option<UnixStream> {
    let (closed, _) = UnixStream::pair().ok()?;
    Some(std::mem::replace(stream, closed))
}

async fn read_frames(mut reader: OwnedReadHalf, limit: usize, frames: Sender<RequestFrame>) {
    loop {
        match read_request(&mut reader, limit).await {
            Ok(Some(frame)) => {
                if frames.send(frame).await.is_err() {
                    return;
                }
            }
            Ok(None) => return,
            Err(error) => {
                tracing::error!("the trigger runner sent something that is no request: {error}");
                return;
            }
        }
    }
}

async fn write_replies(mut writer: OwnedWriteHalf, mut replies: Receiver<Reply>) {
    while let Some((id, answer)) = replies.recv().await {
        let sent = write_reply(&mut writer, id, answer.body.as_ref(), answer.error.as_ref()).await;
        if sent.is_err() {
            return;
        }
    }
}

async fn read_lines(mut stream: UnixStream, records: Sender<Line>) {
    let mut lines = Lines::default();
    let mut buffer = vec![0; 16 << 10];
    while let Ok(length @ 1..) = stream.read(&mut buffer).await {
        for line in lines.push(&buffer[..length]) {
            if records.send(line).await.is_err() {
                return;
            }
        }
    }
}
