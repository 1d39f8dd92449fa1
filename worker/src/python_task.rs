//! A try in Python: children of the fork server until user code has begun in one.

mod output;
mod supervision;

use crate::Shared;
use crate::containers;
use crate::log::TryLog;
use crate::run::{End, Facts, NeverStarted};
use backoff::Backoff;
use python::{ForkServer, Work};
use std::time::Duration;
use supervision::{Begun, Supervision};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

/// Pauses between attempts to start a task.
const FIRST_PAUSE: Duration = Duration::from_millis(100);
const LAST_PAUSE: Duration = Duration::from_secs(2);
/// How long a task is tried to be started: Python may be starting, or not be startable; a lease may be late.
const START_FOR: Duration = Duration::from_secs(60);
/// How many children may end before user code begins, for another reason than the lease.
const START_TRIES: u32 = 6;

/// Names the try in the environment of everything that it starts.
const TRY: &str = "UPDRAFT_TRY";
/// The number of the claim, which grows with every claim of the same task instance: a fencing token for systems of the
/// user's own.
pub(crate) const EPOCH: &str = "UPDRAFT_CLAIM_EPOCH";

/// What became of a child.
enum Attempt {
    /// User code ran, and ended like this.
    Ended(Box<End>),
    /// User code did not begin.
    NeverStarted(NeverStarted),
    /// User code did not begin, for the worker did not hold its lease at that moment.
    Void,
    /// There was no child to be had.
    NoPython(String),
}

/// Runs a task in Python. A child that is lost before user code began is replaced: that costs the user nothing.
pub(crate) async fn run(shared: &Shared, facts: &Facts, log: &TryLog, stop: &CancellationToken) -> End {
    let Some(python) = &shared.python else {
        return End::never_started(
            "this worker has no Python; set [updraft] python to the interpreter of the DAGs' environment",
        );
    };
    let (begin, mut tries) = (Instant::now(), 0);
    let mut backoff = Backoff::new(FIRST_PAUSE, LAST_PAUSE);
    loop {
        let lost = match attempt(shared, python, facts, log, stop).await {
            Attempt::Ended(end) => return *end,
            Attempt::NeverStarted(lost) => {
                tries += 1;
                lost
            }
            Attempt::Void => NeverStarted {
                cause: "this worker does not hold its lease; the task was not started".to_owned(),
            },
            Attempt::NoPython(cause) => {
                // There is another attempt to start it before long.
                tokio::select! {
                    () = python.works() => {}
                    () = stop.cancelled() => {}
                    () = tokio::time::sleep(START_FOR) => {}
                }
                NeverStarted { cause }
            }
        };
        let is_hopeless = stop.is_cancelled() || facts.permit.is_over();
        if is_hopeless || tries >= START_TRIES || begin.elapsed() > START_FOR {
            return End::never_started(lost.cause);
        }
        tracing::warn!(
            task = facts.ti("task_id"),
            "a task could not be started, trying again: {}",
            lost.cause
        );
        tokio::select! {
            () = backoff.pause() => {}
            () = stop.cancelled() => {}
        }
    }
}

/// Runs a task in one child.
async fn attempt(
    shared: &Shared,
    python: &ForkServer,
    facts: &Facts,
    log: &TryLog,
    stop: &CancellationToken,
) -> Attempt {
    let never = |cause: String| Attempt::NeverStarted(NeverStarted { cause });
    let mark = format!("{}:{}", facts.ti("id"), facts.start.epoch);
    let env = [
        (TRY.to_owned(), mark.clone()),
        (EPOCH.to_owned(), facts.start.epoch.to_string()),
    ];
    let work = Work::Task(facts.permit.clone());
    processes::pause::point("python-fork");
    let child = tokio::select! {
        biased;
        () = stop.cancelled() => return never("stopped before it began".to_owned()),
        child = python.fork(&work, &env) => child,
    };
    let child = match child {
        Ok(child) => child,
        Err(error) => return Attempt::NoPython(error.to_string()),
    };
    processes::pause::point("python-forked");
    if stop.is_cancelled() {
        return never("stopped before it began".to_owned());
    }
    // The child says when it begins, but nobody may be left to hear it.
    facts.witness.begins();
    let mut supervision = Supervision::new(shared, facts, log);
    let (end, was_killed) = supervision.supervise(child, stop).await;
    match supervision.begun {
        Begun::Yes => {}
        Begun::No => {
            facts.witness.is_over();
            return never(
                end.exit_cause
                    .unwrap_or_else(|| "its process ended before it began".to_owned()),
            );
        }
        Begun::Refused => {
            facts.witness.is_over();
            return Attempt::Void;
        }
    }
    if was_killed {
        // What the task started in sessions of its own does not hear of its death.
        let mark = format!("{TRY}={mark}");
        tokio::task::spawn_blocking(move || crate::watchdog::kill_all(&mark, None))
            .await
            .ok();
        containers::kill_try(&shared.engines, facts).await;
    }
    Attempt::Ended(Box::new(End {
        rendered_fields: supervision.rendered.map(|fields| fields.to_string()),
        map_label: supervision.label,
        ..end
    }))
}
