//! How a try ended, as its worker reports it.
//!
//! A report must end its try, whatever is in it: what the store refuses ends it as failed, with the store's words as the
//! cause, and a log that cannot be written changes nothing.

use super::beat::limits;
use super::store_status;
use crate::App;
use crate::logs::LogName;
use broker::Hint;
use chrono::{Duration, Utc};
use identity::ClaimToken;
use model::asset::{Outlet, OutletEvent};
use model::task_instance::{Outcome, StateName};
use model::{Timestamp, time};
use proto::v1::{Ending, ReportReply, ReportRequest};
use store::StoreError;
use store::repo::{NewTrigger, NewXCom, Report, Reported, TaskInstanceRecord};
use telemetry::metric;
use tonic::Status;

/// Characters of a store's refusal that are kept as a cause.
const LONGEST_CAUSE: usize = 2000;

/// Returns `true` if the claim is the current one of a try that is not over. A trigger writes on in the log of the try that it
/// belongs to.
pub(super) fn goes_on(ti: &TaskInstanceRecord, claim: &ClaimToken) -> bool {
    let is_open = matches!(
        ti.state,
        StateName::Running | StateName::Restarting | StateName::Deferred
    );
    is_open && ti.claim_epoch == claim.epoch
}

/// Appends to the log of a try. Returns the length of the log.
pub(super) async fn write_log(
    app: &App,
    ti: &TaskInstanceRecord,
    try_number: u32,
    offset: u64,
    data: bytes::Bytes,
) -> std::io::Result<u64> {
    let name = LogName::of(ti, try_number);
    let logs = app.logs.clone();
    let written = tokio::task::spawn_blocking(move || logs.append(&name, offset, &data)).await;
    written.map_err(std::io::Error::other).and_then(|written| written)
}

/// Stores a report. It may come any number of times.
pub(super) async fn store(
    app: &App,
    claim: &ClaimToken,
    mut message: ReportRequest,
) -> Result<ReportReply, Status> {
    let mut db = app.store.reader().await.map_err(|error| store_status(&error))?;
    let ti = db.task_instance_by_id(claim.task_instance).await;
    drop(db);
    let ti = ti.map_err(|error| store_status(&error))?;
    let ti = ti.ok_or_else(|| Status::not_found("the task instance is gone"))?;
    // A report that comes too late writes nothing, not even a log.
    if goes_on(&ti, claim) && !message.log_tail.is_empty() {
        let tail = std::mem::take(&mut message.log_tail);
        // A log is no condition for the end of its try. That it could not be written is told once, where it happens.
        write_log(app, &ti, claim.try_number, message.log_offset, tail)
            .await
            .ok();
    }
    if Ending::try_from(message.ending) == Ok(Ending::NeverStarted) {
        return never_started(app, claim, &message).await;
    }
    let applied = apply(app, claim, &ti, &message).await;
    let (reported, refused) = match applied {
        Ok(reported) => (reported, String::new()),
        Err(error) if error.is_transient() => return Err(store_status(&error)),
        Err(error) => {
            let text = refusal(&error);
            tracing::error!(dag = %ti.dag_id, task = %ti.task_id, "a report is stored as a failure: {text}");
            (fail_instead(app, claim, &ti, &message, &text).await?, text)
        }
    };
    let (word, stale) = match reported {
        Reported::Applied(_) if !refused.is_empty() => ("refused", false),
        Reported::Applied(_) => ("applied", false),
        Reported::Repeated => ("repeated", false),
        Reported::Stale(_) => ("stale", true),
        Reported::Gone => ("gone", true),
    };
    metrics::counter!(metric::REPORTS, "outcome" => word).increment(1);
    if !stale {
        app.broker.hint(Hint::Run(ti.run_key));
        if !message.task_outlets.is_empty() && refused.is_empty() {
            app.broker.hint(Hint::Timetables);
        }
    }
    Ok(ReportReply { stale, refused })
}

fn refusal(error: &StoreError) -> String {
    let text: String = error.to_string().chars().take(LONGEST_CAUSE).collect();
    format!("What the task left behind could not be stored, so its try counts as failed: {text}")
}

/// Stores the report as it is.
async fn apply(
    app: &App,
    claim: &ClaimToken,
    ti: &TaskInstanceRecord,
    message: &ReportRequest,
) -> Result<Reported, StoreError> {
    let retry_at = retry_at(app, ti, message).await?;
    let outcome = proto::outcome_of(message, || retry_at)
        .map_err(|error| StoreError::Inconsistent(format!("the worker's report makes no sense: {error}")))?;
    let now = Utc::now();
    let report = read(app, claim, message, outcome, now);
    store::transact!(app.store, "report", |tx| tx.report(&report, now).await)
}

/// Ends a try whose report cannot be stored: as failed, with nothing of the report but its time.
async fn fail_instead(
    app: &App,
    claim: &ClaimToken,
    ti: &TaskInstanceRecord,
    message: &ReportRequest,
    cause: &str,
) -> Result<Reported, Status> {
    let plain = ReportRequest {
        end_date: message.end_date,
        ..ReportRequest::default()
    };
    let retry_at = match ti.should_retry() {
        // A delay that cannot be computed is none.
        true => Some(retry_at(app, ti, &plain).await.unwrap_or_else(|_| Utc::now())),
        false => None,
    };
    let now = Utc::now();
    let report = Report {
        exit_cause: Some(cause.to_owned()),
        ..read(app, claim, &plain, Outcome::Failed { retry_at }, now)
    };
    let reported = store::transact!(app.store, "report a failure", |tx| tx.report(&report, now).await);
    let reported = reported.map_err(|error| store_status(&error))?;
    if matches!(reported, Reported::Applied(_)) {
        let record = serde_json::json!({
            "timestamp": time::rest_format(now), "event": cause, "level": "error", "logger": "task",
        });
        let end = app.logs.length(&LogName::of(ti, claim.try_number));
        write_log(app, ti, claim.try_number, end, format!("{record}\n").into())
            .await
            .ok();
    }
    Ok(reported)
}

async fn never_started(
    app: &App,
    claim: &ClaimToken,
    message: &ReportRequest,
) -> Result<ReportReply, Status> {
    let cause = message
        .exit_cause
        .as_deref()
        .unwrap_or("its process could not be started");
    let (now, held) = (Utc::now(), (claim.task_instance, claim.epoch));
    let run = store::transact!(app.store, "give back claim", |tx| tx
        .give_back(&app.graphs, held, limits(app), cause, now)
        .await);
    let run = run.map_err(|error| store_status(&error))?;
    let word = if run.is_some() { "never_started" } else { "stale" };
    metrics::counter!(metric::REPORTS, "outcome" => word).increment(1);
    let stale = run.is_none();
    if let Some(run) = run {
        app.broker.hint(Hint::Run(run));
    }
    Ok(ReportReply {
        stale,
        refused: String::new(),
    })
}

/// When the try after the one that ended is due.
async fn retry_at(
    app: &App,
    ti: &TaskInstanceRecord,
    message: &ReportRequest,
) -> Result<Timestamp, StoreError> {
    let mut db = app.store.reader().await?;
    let ended = time::from_micros(message.end_date).unwrap_or_else(Utc::now);
    let asked = message
        .retry_delay
        .map(|seconds| Duration::milliseconds((seconds * 1000.0) as i64));
    let longest = app.config.core.max_retry_delay;
    app.graphs.retry_at(&mut db, ti, ended, asked, longest).await
}

fn read(app: &App, claim: &ClaimToken, message: &ReportRequest, outcome: Outcome, now: Timestamp) -> Report {
    let listed = |text: &str| -> Vec<serde_json::Value> { serde_json::from_str(text).unwrap_or_default() };
    let xcom = |xcom: &proto::v1::XCom| NewXCom {
        key: xcom.key.clone(),
        value: xcom.value.clone(),
        mapped_length: xcom.mapped_length,
    };
    let next = |method: &String| {
        let kwargs = message.next_kwargs.clone().unwrap_or_else(|| "{}".to_owned());
        (method.clone(), kwargs)
    };
    Report {
        id: claim.task_instance,
        epoch: claim.epoch,
        outcome,
        end_date: time::from_micros(message.end_date).unwrap_or(now),
        exit_cause: message.exit_cause.clone(),
        xcoms: message.xcoms.iter().map(xcom).collect(),
        rendered_fields: message.rendered_fields.clone(),
        map_label: message.map_label.clone(),
        next: message.next_method.as_ref().map(next),
        outlets: listed(&message.task_outlets)
            .iter()
            .filter_map(Outlet::read)
            .collect(),
        outlet_events: listed(&message.outlet_events)
            .iter()
            .filter_map(OutletEvent::read)
            .collect(),
        trigger: message.trigger.as_ref().map(|trigger| {
            let (kwargs, is_encrypted) = app.cipher.seal(&trigger.kwargs);
            NewTrigger {
                classpath: trigger.classpath.clone(),
                kwargs,
                is_encrypted,
                queue: trigger.queue.clone(),
                next: (trigger.next_method.clone(), trigger.next_kwargs.clone()),
            }
        }),
    }
}
