//! One try, from its claim to its report.

use crate::control::is_transient;
use crate::log::TryLog;
use crate::permission::Witness;
use crate::running::{Held, RunningTask};
use crate::{Shared, native, python_task};
use backoff::Backoff;
use chrono::Utc;
use model::{ClaimEpoch, Timestamp};
use processes::lease::Permit;
use proto::v1::{Ending, NewTrigger, ReportRequest, StartTask, XCom};
use serde_json::{Map, Value};
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};
use telemetry::metric;
use tokio_util::sync::CancellationToken;
use tonic::{Code, Status};
use tracing::Instrument;

/// How long a report is tried before the worker gives up: by then the lease of a control plane that stays away is over.
const REPORT_FOR: Duration = Duration::from_secs(600);

/// How long a report waits for its answer before it is made to outlive the machine, too.
const HARDEN_AFTER: Duration = Duration::from_millis(250);

/// How long a task runs before its rendered fields are shown.
const ANNOUNCE_AFTER: Duration = Duration::from_millis(500);

/// How a try ended.
#[derive(Debug, Default, Clone)]
pub(crate) struct End {
    pub(crate) ending: Ending,
    pub(crate) end_date: Option<Timestamp>,
    pub(crate) exit_cause: Option<String>,
    pub(crate) retry_delay: Option<f64>,
    pub(crate) reschedule_at: Option<Timestamp>,
    pub(crate) xcoms: Vec<XCom>,
    pub(crate) rendered_fields: Option<String>,
    pub(crate) map_label: Option<String>,
    pub(crate) next: Option<(String, String)>,
    /// What a success updates: JSON lists, empty for nothing.
    pub(crate) task_outlets: String,
    pub(crate) outlet_events: String,
    /// What a deferred task waits for, if it is not a time.
    pub(crate) trigger: Option<NewTrigger>,
    /// `true` for one that never began because something outside of this worker is away: the worker itself is well.
    pub(crate) is_held_up: bool,
}

impl End {
    pub(crate) fn of(ending: Ending) -> Self {
        Self {
            ending,
            ..Self::default()
        }
    }

    /// User code never began, for this cause: the same try is started again, here or elsewhere, at no cost to the user.
    pub(crate) fn never_started(cause: impl Into<String>) -> Self {
        Self {
            exit_cause: Some(cause.into()),
            ..Self::of(Ending::NeverStarted)
        }
    }

    /// User code never began, because what it is to run on does not answer or cannot do it now, for this cause.
    pub(crate) fn held_up(cause: impl Into<String>) -> Self {
        Self {
            is_held_up: true,
            ..Self::never_started(cause)
        }
    }

    /// User code may have begun, and nobody knows how it ended, for this cause: one more try at no cost to the user.
    pub(crate) fn lost(cause: impl Into<String>) -> Self {
        Self {
            exit_cause: Some(cause.into()),
            ..Self::of(Ending::Unspecified)
        }
    }

    /// What is reported of it, with this part of the log.
    pub(crate) fn message(self, (log_offset, log_tail): (u64, Vec<u8>)) -> ReportRequest {
        let (next_method, next_kwargs) = self.next.unzip();
        ReportRequest {
            ending: self.ending.into(),
            end_date: model::time::to_micros(self.end_date.unwrap_or_else(Utc::now)),
            exit_cause: self.exit_cause,
            retry_delay: self.retry_delay,
            reschedule_at: self.reschedule_at.map(model::time::to_micros),
            xcoms: self.xcoms,
            rendered_fields: self.rendered_fields,
            map_label: self.map_label,
            next_method,
            next_kwargs,
            log_offset,
            log_tail: log_tail.into(),
            task_outlets: self.task_outlets,
            outlet_events: self.outlet_events,
            trigger: self.trigger,
        }
    }

    /// A failure, followed by another try if the task has one left.
    pub(crate) fn failure(facts: &Facts, cause: impl Into<String>) -> Self {
        let ending = if facts.should_retry {
            Ending::UpForRetry
        } else {
            Ending::Failed
        };
        Self {
            ending,
            exit_cause: Some(cause.into()),
            ..Self::default()
        }
    }
}

/// A try that ended before user code began, which is nobody's fault but ours.
#[derive(Debug)]
pub(crate) struct NeverStarted {
    /// Why.
    pub(crate) cause: String,
}

/// What a claim tells about its try.
pub(crate) struct Facts {
    pub(crate) start: StartTask,
    /// What starts the task must have it; it ends with the claim.
    pub(crate) permit: Permit,
    /// Who is told before user code begins.
    pub(crate) witness: Witness,
    /// `StartupDetails`.
    pub(crate) startup: Value,
    /// The side document of a native task.
    pub(crate) native: Option<Value>,
    pub(crate) should_retry: bool,
    /// What the templates came to, once that is known.
    pub(crate) rendered: OnceLock<String>,
}

impl Facts {
    pub(crate) fn new(start: StartTask, permit: Permit) -> Self {
        // Nothing that can be run is without it; see `problem`.
        let startup: Value = serde_json::from_slice(&start.startup).unwrap_or_default();
        let native = serde_json::from_slice(&start.native)
            .ok()
            .filter(Value::is_object);
        let should_retry = startup
            .pointer("/ti_context/should_retry")
            .and_then(Value::as_bool)
            .unwrap_or(false);
        Self {
            start,
            permit,
            witness: Witness::default(),
            startup,
            native,
            should_retry,
            rendered: OnceLock::new(),
        }
    }

    /// The claim; none if what the control plane sent names none.
    pub(crate) fn claim(&self) -> Option<Held> {
        let id = self.start.task_instance_id.parse().ok()?;
        Some((id, ClaimEpoch(self.start.epoch)))
    }

    /// Why it cannot be run: what came with the claim makes no sense.
    fn problem(&self) -> Option<String> {
        if self.startup.is_object() {
            return None;
        }
        let bytes = self.start.startup.len();
        Some(format!(
            "what the control plane sent to start it with ({bytes} bytes) is no JSON object"
        ))
    }

    /// The templates have been rendered.
    pub(crate) fn show_rendered(&self, fields: String) {
        self.rendered.set(fields).ok();
    }

    /// A text of the task instance, such as `dag_id`.
    pub(crate) fn ti(&self, key: &str) -> &str {
        self.startup
            .pointer("/ti")
            .and_then(|ti| ti.get(key))
            .and_then(Value::as_str)
            .unwrap_or_default()
    }

    /// A text of the run, such as `logical_date`.
    pub(crate) fn run(&self, key: &str) -> Option<&str> {
        self.startup
            .pointer("/ti_context/dag_run")
            .and_then(|run| run.get(key))
            .and_then(Value::as_str)
    }

    pub(crate) fn try_number(&self) -> u64 {
        self.startup
            .pointer("/ti/try_number")
            .and_then(Value::as_u64)
            .unwrap_or(1)
    }
}

/// Runs a claimed task to its end and reports it. Returns how it ended.
pub(crate) async fn run_task(
    shared: Arc<Shared>,
    start: StartTask,
    permit: Permit,
    mut task: RunningTask,
) -> Ending {
    let mut facts = Facts::new(start, permit);
    facts.witness = Witness::of(&shared.watchdog, task.claim());
    let span = tracing::info_span!(
        "task.run",
        dag.id = facts.ti("dag_id"),
        run.id = facts.ti("run_id"),
        task.id = facts.ti("task_id"),
        ti.try_number = facts.try_number(),
    );
    telemetry::set_parent(&span, Some(&facts.start.trace_context));
    let ending = run_and_report(&shared, &facts, &mut task).instrument(span).await;
    // Of one that is lost, or given up because the worker leaves, it must stay known that it had begun.
    if ending != Ending::Unspecified && !shared.running.has_given_up() {
        facts.witness.is_over();
    }
    ending
}

async fn run_and_report(shared: &Shared, facts: &Facts, task: &mut RunningTask) -> Ending {
    let stop = &task.stopped();
    let start = &facts.start;
    let log = TryLog::new(
        shared.control.clone(),
        &start.token,
        shared.native.log_rules(),
        start.log_limit,
        start.log_offset,
    );
    let begin = Instant::now();
    let work = async {
        let (end, way) = run(shared, facts, &log, stop).await;
        let end = unless_lapsed(facts, end);
        let failed = matches!(end.ending, Ending::Failed | Ending::UpForRetry);
        let is_given_up = failed && shared.running.has_given_up();
        let report = end.clone().message(log.waiting());
        let keeps = !is_given_up && end.ending != Ending::Unspecified;
        let is_kept = keeps && shared.spool.keep(task.claim(), &start.token, &report).await;
        processes::pause::point("ended");
        tell_cause(shared, &log, &end, is_given_up).await;
        (end, way, is_kept, is_given_up)
    };
    let (end, way, is_kept, is_given_up) = tokio::select! {
        ended = work => ended,
        // Sends the log along; never ends by itself.
        () = log.send_along() => return Ending::Unspecified,
        // Nor does this.
        () = announce(shared, facts) => return Ending::Unspecified,
    };
    metrics::counter!(metric::TASKS_ENDED, "ending" => end.ending.as_str_name(), "way" => way).increment(1);
    tracing::debug!(
        task = facts.ti("task_id"),
        way,
        ending = end.ending.as_str_name(),
        ms = begin.elapsed().as_millis(),
        "task ended"
    );
    let ending = end.ending;
    if is_given_up || ending == Ending::Unspecified {
        shared.spool.forget(task.claim());
        log.send_rest().await;
        if let Some(cause) = end.exit_cause.filter(|_| !is_given_up) {
            task.lose(cause);
        }
        return Ending::Unspecified;
    }
    let wakes_triggers = end.trigger.is_some();
    report(shared, facts, &log, end, is_kept, task).await;
    if wakes_triggers {
        shared.triggers.notify_one();
    }
    ending
}

/// A failure under a lease that has run out is none of the task's own: the watchdog has killed it, or was about to.
fn unless_lapsed(facts: &Facts, end: End) -> End {
    if !matches!(end.ending, Ending::Failed | Ending::UpForRetry) || !facts.permit.has_lapsed() {
        return end;
    }
    let cause = "the worker's lease ran out, and with it ended all that the worker ran";
    End {
        exit_cause: Some(cause.to_owned()),
        ..End::of(Ending::Unspecified)
    }
}

/// Writes to the log why a try ended, and heeds what that says of this worker.
async fn tell_cause(shared: &Shared, log: &TryLog, end: &End, is_given_up: bool) {
    if is_given_up {
        let text = "The worker is leaving; the task is tried again elsewhere.";
        return log.record("warning", "task", text).await;
    }
    match (end.ending, &end.exit_cause) {
        (Ending::NeverStarted, cause) => {
            let cause = cause.as_deref().unwrap_or("its process could not be started");
            if !end.is_held_up {
                shared.wellness.failed_to_start(cause);
            }
            let text = format!("The task could not be started, and is started again: {cause}");
            log.record("warning", "task", &text).await;
        }
        (Ending::Unspecified, Some(cause)) => {
            let text = format!("Nobody knows how the task ended, and it is tried again: {cause}");
            log.record("error", "task", &text).await;
        }
        (_, Some(cause)) => log.record("error", "task", cause).await,
        (_, None) => {}
    }
    if end.ending != Ending::NeverStarted {
        shared.wellness.started();
    }
}

/// Shows the rendered fields of a task that runs for a while before it ends; a short one shows them with its report.
async fn announce(shared: &Shared, facts: &Facts) {
    let fields = loop {
        tokio::time::sleep(ANNOUNCE_AFTER).await;
        if let Some(fields) = facts.rendered.get() {
            break fields;
        }
    };
    let fields: Value = serde_json::from_str(fields).unwrap_or_default();
    let message = serde_json::json!({"type": "SetRenderedFields", "rendered_fields": fields});
    let request = message.to_string().into_bytes();
    // They come again with the report.
    shared.control.ask(&facts.start.token, request).await.ok();
    std::future::pending::<()>().await;
}

/// Runs natively where that is possible, else in Python.
async fn run(shared: &Shared, facts: &Facts, log: &TryLog, stop: &CancellationToken) -> (End, &'static str) {
    if let Some(problem) = facts.problem() {
        return (End::never_started(problem), "none");
    }
    if let Some(document) = facts
        .native
        .as_ref()
        .filter(|_| shared.config.updraft.native_tasks)
    {
        match native::prepare(&shared.native, facts, document) {
            Ok(task) => return (native::run(shared, facts, task, log, stop).await, "native"),
            // Rendering has no effects, so trying it here and then in Python is the same as only in Python.
            Err(why) => tracing::debug!(task = facts.ti("task_id"), "runs in Python: {why}"),
        }
    }
    (python_task::run(shared, facts, log, stop).await, "python")
}

/// What became of a report.
enum Sent {
    /// The control plane has it, or knows better.
    Settled,
    /// It will never take this one.
    Refused(Status),
    /// It was not reached for as long as it is worth trying.
    Undelivered,
}

async fn report(
    shared: &Shared,
    facts: &Facts,
    log: &TryLog,
    end: End,
    is_kept: bool,
    task: &mut RunningTask,
) {
    let request = end.message(log.tail().await);
    let end_date = request.end_date;
    let sent = match send(shared, facts, request, is_kept, task).await {
        Sent::Refused(status) => {
            tracing::error!(task = facts.ti("task_id"), "the report was refused: {status}");
            let plain = refused(facts, end_date, &status);
            let is_kept = shared.spool.keep(task.claim(), &facts.start.token, &plain).await;
            match send(shared, facts, plain, is_kept, task).await {
                // Told as lost below, with this as its cause.
                Sent::Refused(again) => {
                    task.lose(format!("its report was refused: {}", again.message()));
                    return;
                }
                other => other,
            }
        }
        other => other,
    };
    match sent {
        Sent::Settled => task.settle(),
        Sent::Refused(_) | Sent::Undelivered => {
            tracing::error!(task = facts.ti("task_id"), "the report could not be delivered");
            task.lose("its report could not be delivered".to_owned());
        }
    }
}

/// The report of a try whose own report the control plane will never take: it failed, for that reason.
fn refused(facts: &Facts, end_date: i64, status: &Status) -> ReportRequest {
    let end = End::failure(
        facts,
        format!(
            "The control plane refused the report of this try: {}",
            status.message()
        ),
    );
    ReportRequest {
        ending: end.ending.into(),
        end_date,
        exit_cause: end.exit_cause,
        ..ReportRequest::default()
    }
}

/// Sends a report until somebody has taken or refused it. It was written down before, for others to deliver if this worker
/// dies: what has been done is not to be done again.
async fn send(
    shared: &Shared,
    facts: &Facts,
    request: ReportRequest,
    is_kept: bool,
    task: &RunningTask,
) -> Sent {
    let sending = deliver(shared, facts, &request, task);
    tokio::pin!(sending);
    let sent = tokio::select! {
        sent = &mut sending => sent,
        () = tokio::time::sleep(HARDEN_AFTER), if is_kept => {
            let (sent, ()) = tokio::join!(sending, shared.spool.harden(task.claim()));
            sent
        }
    };
    // One that was not delivered because the worker leaves may still be when it is back.
    if !matches!(sent, Sent::Undelivered) || !shared.running.has_given_up() {
        shared.spool.forget(task.claim());
    }
    sent
}

async fn deliver(shared: &Shared, facts: &Facts, request: &ReportRequest, task: &RunningTask) -> Sent {
    let stop = task.stopped();
    let begin = Instant::now();
    let mut backoff = Backoff::new(crate::FIRST_PAUSE, crate::LONGEST_PAUSE);
    while begin.elapsed() < REPORT_FOR {
        match shared.control.report(&facts.start.token, request.clone()).await {
            Ok(reply) => {
                if reply.stale {
                    tracing::info!(
                        task = facts.ti("task_id"),
                        "the report came too late; it changed nothing"
                    );
                }
                if !reply.refused.is_empty() {
                    tracing::error!(task = facts.ti("task_id"), "{}", reply.refused);
                }
                return Sent::Settled;
            }
            // Its run was deleted.
            Err(status) if status.code() == Code::NotFound => return Sent::Settled,
            Err(status) if is_transient(&status) => {
                if stop.is_cancelled() && begin.elapsed() > Duration::from_secs(5) {
                    // The claim is void, or the worker leaves and says so.
                    return match shared.running.has_given_up() {
                        true => Sent::Undelivered,
                        false => Sent::Settled,
                    };
                }
                backoff.pause().await;
            }
            Err(status) => return Sent::Refused(status),
        }
    }
    Sent::Undelivered
}

/// Fields for a log record.
pub(crate) fn fields<const N: usize>(pairs: [(&str, Value); N]) -> Map<String, Value> {
    pairs
        .into_iter()
        .map(|(key, value)| (key.to_owned(), value))
        .collect()
}
