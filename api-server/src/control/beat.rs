//! Heartbeats of workers, and how their lives and claims end.

use super::store_status;
use super::worker::parse;
use crate::App;
use broker::Hint;
use chrono::Utc;
use model::task_instance::{BeatNumber, Finding, HeldClaim, LossCause, NamedClaims};
use model::{ClaimEpoch, DagRunKey, TaskInstanceId, WorkerId};
use proto::v1::{Claim, HeartbeatReply, HeartbeatRequest, LeaveRequest};
use std::collections::HashSet;
use store::StoreError;
use store::repo::{Beat, LossLimits, LostTask};
use telemetry::metric;
use tonic::Status;

/// What becomes of a claim whose answer its worker never heard.
const UNHEARD: &str = "the answer to its claim was lost on the way to the worker";

/// What becomes of a claim under which nothing was started when its worker ended.
const BEFORE_IT_BEGAN: &str = "its worker ended before the task began";

/// How much a task instance may lose, as configured.
pub(super) fn limits(app: &App) -> LossLimits {
    LossLimits {
        infra_retries: app.config.updraft.infra_retries,
        worker_losses: app.config.updraft.worker_losses,
        start_retries: app.config.updraft.start_retries,
    }
}

fn read_claim(claim: &Claim) -> Result<(TaskInstanceId, ClaimEpoch), Status> {
    Ok((
        parse("task instance", &claim.task_instance_id)?,
        ClaimEpoch(claim.epoch),
    ))
}

/// Takes in a worker's heartbeat: renews its lease, says which of its claims are void, gives back claims that it never
/// heard of, and ends those whose tries it says are over.
pub(super) async fn heard(
    app: &App,
    worker: WorkerId,
    message: HeartbeatRequest,
) -> Result<HeartbeatReply, Status> {
    let held: HashSet<_> = message.claims.iter().map(read_claim).collect::<Result<_, _>>()?;
    let lost: Vec<_> = message
        .lost
        .iter()
        .filter_map(|lost| Some((lost.claim.as_ref()?, lost.cause.clone())))
        .map(|(claim, cause)| Ok::<_, Status>((read_claim(claim)?, cause)))
        .collect::<Result<_, _>>()?;
    let mut named = NamedClaims {
        number: BeatNumber(message.number),
        held,
        asked: message.asked.into_iter().collect(),
    };
    // These are known to the worker, too, until they have ended below.
    named.held.extend(lost.iter().map(|(claim, _)| *claim));
    let beat = Beat {
        worker,
        draining: message.draining,
        unwell: Some(message.unwell).filter(|text| !text.is_empty()),
        named,
    };
    let lease = app.config.scheduler.worker_lease;
    let heard = store::transact!(app.store, "worker heartbeat", |tx| tx
        .hear_beat(&beat, lease)
        .await);
    let heard = heard.map_err(|error| store_status(&error))?;
    if heard.alive {
        if !heard.findings.is_empty() {
            reconcile(app, worker, &beat, &heard.findings).await?;
        }
        for (claim, cause) in lost {
            lose_claim(app, worker, claim, LossCause::Unreported(cause)).await?;
        }
    }
    let stop = heard.void.into_iter().map(|(id, epoch)| Claim {
        task_instance_id: id.to_string(),
        epoch: epoch.0,
    });
    Ok(HeartbeatReply {
        alive: heard.alive,
        stop: stop.collect(),
        pass: None,
    })
}

/// Writes what a heartbeat says about claims that it names again, or does not name.
async fn reconcile(
    app: &App,
    worker: WorkerId,
    beat: &Beat,
    findings: &[(HeldClaim, Finding)],
) -> Result<(), Status> {
    let now = Utc::now();
    let runs = store::transact!(app.store, "compare claims", |tx| {
        let mut runs = Vec::new();
        for (claim, finding) in findings {
            match finding {
                Finding::Nothing => {}
                Finding::Named => tx.note_unnamed(claim, None).await?,
                Finding::Unnamed => tx.note_unnamed(claim, Some(beat.named.number)).await?,
                Finding::Unknown => {
                    tracing::warn!(task_instance = %claim.id, %worker, "a claim is not known to its worker; it goes back to the queue");
                    let claim = (claim.id, claim.epoch);
                    let run = tx
                        .give_back(&app.graphs, claim, limits(app), UNHEARD, now)
                        .await?;
                    runs.extend(run);
                }
            }
        }
        Ok(runs)
    });
    tell(app, runs).await
}

async fn lose_claim(
    app: &App,
    worker: WorkerId,
    claim: (TaskInstanceId, ClaimEpoch),
    cause: LossCause,
) -> Result<(), Status> {
    tracing::warn!(task_instance = %claim.0, %worker, "a try ended without a report: {cause}");
    let now = Utc::now();
    let runs = store::transact!(app.store, "lose task", |tx| {
        let mut lost = tx.tasks_of_worker(worker).await?;
        lost.retain(|task| (task.id, task.epoch) == claim);
        tx.lose_all(&app.graphs, &lost, limits(app), &cause, now).await
    });
    tell(app, runs).await
}

/// Ends a worker's life, and its claims with it.
pub(super) async fn left(app: &App, worker: WorkerId, message: LeaveRequest) -> Result<(), Status> {
    let cause = if message.died {
        tracing::warn!(%worker, "a worker died; what it ran is tried again");
        LossCause::WorkerDied
    } else {
        LossCause::WorkerShutdown
    };
    if message.tells_held {
        let held: HashSet<_> = message.held.iter().map(read_claim).collect::<Result<_, _>>()?;
        give_unbegun_back(app, worker, &held).await?;
    }
    lose(app, worker, &cause).await?;
    let retired = store::transact!(app.store, "retire worker", |tx| tx.retire_worker(worker).await);
    retired.map(|_| ()).map_err(|error| store_status(&error))
}

async fn give_unbegun_back(
    app: &App,
    worker: WorkerId,
    held: &HashSet<(TaskInstanceId, ClaimEpoch)>,
) -> Result<(), Status> {
    let now = Utc::now();
    let runs = store::transact!(app.store, "give back claims", |tx| {
        let mut runs = Vec::new();
        for task in tx.tasks_of_worker(worker).await? {
            let claim = (task.id, task.epoch);
            if !held.contains(&claim) {
                let run = tx
                    .give_back(&app.graphs, claim, limits(app), BEFORE_IT_BEGAN, now)
                    .await?;
                runs.extend(run);
            }
        }
        Ok(runs)
    });
    tell(app, runs).await
}

/// Loses everything that a worker holds.
pub(super) async fn lose(app: &App, worker: WorkerId, cause: &LossCause) -> Result<(), Status> {
    let now = Utc::now();
    let runs = store::transact!(app.store, "lose tasks", |tx| {
        let mut lost = tx.tasks_of_worker(worker).await?;
        LostTask::accuse(&mut lost, cause, limits(app));
        tx.lose_all(&app.graphs, &lost, limits(app), cause, now).await
    });
    tell(app, runs).await
}

/// Hints to the schedulers about runs that lost a claim.
async fn tell(app: &App, runs: Result<Vec<DagRunKey>, StoreError>) -> Result<(), Status> {
    for run in runs.map_err(|error| store_status(&error))? {
        metrics::counter!(metric::TASKS_LOST).increment(1);
        app.broker.hint(Hint::Run(run));
    }
    Ok(())
}
