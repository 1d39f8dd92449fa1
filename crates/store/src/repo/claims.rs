//! What workers do: claim a task instance, and report how it ended.

use super::runs::RunRecord;
use super::tasks::{COLUMNS, TaskInstanceRecord};
use super::triggers::NewTrigger;
use super::xcoms::NewXCom;
use crate::unit_of_work::Tx;
use crate::{StoreError, params};
use model::asset::{Outlet, OutletEvent};
use model::task_instance::{BeatNumber, Outcome, StateName, TaskEvent};
use model::{ClaimEpoch, QueueName, TaskInstanceId, Timestamp, TryNumber, WorkerId};

/// A worker's wish to run a task instance.
#[derive(Debug, Clone)]
pub struct ClaimRequest {
    /// The task instance.
    pub id: TaskInstanceId,
    /// The try that the worker was told to run.
    pub try_number: TryNumber,
    /// Chosen by the worker for this attempt; asking again with the same gives the same answer.
    pub claim_id: String,
    /// The worker's present life.
    pub worker: WorkerId,
    /// The last heartbeat of this life that began before the worker noted that it asks; every later one names the claim.
    pub beat: BeatNumber,
    /// Its machine.
    pub hostname: String,
    /// The user that it runs as.
    pub unixname: String,
    /// Its process.
    pub pid: i64,
    /// The queue that the worker heard of it through, where a heavier one that waits there may be had instead: a message is
    /// a right to one of those that wait, and the heaviest is to go first, in whatever order the broker has them.
    pub any_of: Option<QueueName>,
    /// Whether the task itself removes what an earlier try left behind: an XCom backend of the user's own may keep the
    /// values elsewhere.
    pub keeps_xcoms: bool,
}

/// Answer to a claim.
#[derive(Debug)]
pub enum Claimed {
    /// The task instance is the worker's; it is running from now on.
    Granted(Box<(TaskInstanceRecord, RunRecord)>),
    /// It is not there to be claimed (any more): the message is to be forgotten.
    Refused(&'static str),
    /// The worker is not known, or its lease ran out: it must register anew.
    UnknownWorker,
}

/// A worker's report that a try ended.
#[derive(Debug, Clone)]
pub struct Report {
    /// The task instance.
    pub id: TaskInstanceId,
    /// The claim under which it ran.
    pub epoch: ClaimEpoch,
    /// How it ended.
    pub outcome: Outcome,
    /// When, by the worker's clock.
    pub end_date: Timestamp,
    /// What the process died of, in words; shown at the end of its log.
    pub exit_cause: Option<String>,
    /// Values that the try leaves behind.
    pub xcoms: Vec<NewXCom>,
    /// What its templates came to (JSON object).
    pub rendered_fields: Option<String>,
    /// Label of a mapped task instance.
    pub map_label: Option<String>,
    /// For one that is handed over to a trigger or a person: the method to go on with, and its arguments.
    pub next: Option<(String, String)>,
    /// The assets that it updated by succeeding.
    pub outlets: Vec<Outlet>,
    /// What it says about these updates.
    pub outlet_events: Vec<OutletEvent>,
    /// For a deferral to anything but a time: the trigger.
    pub trigger: Option<NewTrigger>,
}

/// Answer to a report.
#[derive(Debug)]
pub enum Reported {
    /// Applied; the task instance stands like this now.
    Applied(StateName),
    /// The same report was applied before.
    Repeated,
    /// The claim is no longer the current one; nothing was changed.
    Stale(StateName),
    /// There is no such task instance.
    Gone,
}

/// How an outcome is told apart from another under the same claim.
fn fingerprint(report: &Report) -> String {
    let word = match report.outcome {
        Outcome::Success => "success",
        Outcome::Failed { retry_at: None } => "failed",
        Outcome::Failed { retry_at: Some(_) } => "retry",
        Outcome::Skipped => "skipped",
        Outcome::Reschedule { .. } => "reschedule",
        Outcome::Deferred { .. } => "deferred",
        Outcome::AwaitingInput { .. } => "awaiting_input",
        Outcome::Removed => "removed",
    };
    format!("{}:{word}", report.epoch)
}

impl Tx {
    /// Claims a queued task instance: from here on it runs under a new epoch.
    ///
    /// # Errors
    /// As the database says.
    pub async fn claim(&mut self, request: &ClaimRequest, now: Timestamp) -> Result<Claimed, StoreError> {
        let Some(queue) = &request.any_of else {
            return self.claim_one(request, now).await;
        };
        if let Some(id) = self.claimed_before(request).await? {
            return self
                .claim_one(
                    &ClaimRequest {
                        id,
                        ..request.clone()
                    },
                    now,
                )
                .await;
        }
        // Each turn that is lost to another worker is one that another worker has won.
        loop {
            let other = match self.heavier(request, queue).await? {
                Some((id, try_number)) => ClaimRequest {
                    id,
                    try_number,
                    ..request.clone()
                },
                None => request.clone(),
            };
            match self.claim_one(&other, now).await? {
                Claimed::Refused(_) if other.id != request.id => {}
                // Somebody else's message had this one: ours is a right to what else waits.
                Claimed::Refused(why) => {
                    if self.heavier(request, queue).await?.is_none() {
                        return Ok(Claimed::Refused(why));
                    }
                }
                decided @ (Claimed::Granted(_) | Claimed::UnknownWorker) => return Ok(decided),
            }
        }
    }

    /// What was granted already to a claim whose answer was lost.
    async fn claimed_before(&mut self, request: &ClaimRequest) -> Result<Option<TaskInstanceId>, StoreError> {
        let sql = "SELECT id FROM task_instance WHERE worker_id = ? AND state = 'running' AND claim_id = ?";
        let row = self
            .query_one(sql, params![request.worker, &request.claim_id])
            .await?;
        row.map(|mut row| row.next()).transpose()
    }

    /// The heaviest that waits in the queue of the one that is asked for, if it is heavier than that, or if that one does
    /// not wait any more.
    async fn heavier(
        &mut self,
        request: &ClaimRequest,
        queue: &QueueName,
    ) -> Result<Option<(TaskInstanceId, TryNumber)>, StoreError> {
        let index = self.dialect().force_index("ix_ti_dispatch");
        let sql = format!(
            "SELECT other.id, other.try_number FROM task_instance named JOIN task_instance other{index} \
             ON other.state = 'queued' AND other.queue = named.queue \
             AND (other.executor = named.executor OR (other.executor IS NULL AND named.executor IS NULL)) \
             WHERE named.id = ? AND named.queue = ? \
             AND (other.dispatch_order < named.dispatch_order OR named.state <> 'queued' OR named.try_number <> ?) \
             ORDER BY other.dispatch_order, other.id LIMIT 1"
        );
        let row = self
            .query_one(&sql, params![request.id, queue, request.try_number])
            .await?;
        row.map(|mut row| Ok((row.next()?, row.next()?))).transpose()
    }

    async fn claim_one(&mut self, request: &ClaimRequest, now: Timestamp) -> Result<Claimed, StoreError> {
        let sql = format!(
            "UPDATE task_instance SET state = 'running', claim_epoch = claim_epoch + 1, claim_id = ?, worker_id = ?, \
             claim_beat = ?, unnamed_beat = NULL, hostname = ?, unixname = ?, pid = ?, end_date = NULL, exit_cause = NULL, updated_at = ?, \
             start_date = CASE WHEN next_method IS NULL OR start_date IS NULL THEN ? ELSE start_date END, \
             first_start = CASE WHEN reschedules > 0 THEN first_start ELSE ? END \
             WHERE id = ? AND state = 'queued' AND try_number = ? \
             AND EXISTS (SELECT 1 FROM worker w WHERE w.id = ? AND w.state = 'active' AND w.lease_expires_at > {})",
            self.dialect().now()
        );
        let values = params![
            &request.claim_id,
            request.worker,
            request.beat.0,
            &request.hostname,
            &request.unixname,
            request.pid,
            now,
            now,
            now,
            request.id,
            request.try_number,
            request.worker,
        ];
        let won = self.execute(&sql, values).await?.rows == 1;
        let Some(ti) = self.task_instance_by_id(request.id).await? else {
            return Ok(Claimed::Refused("the task instance is gone"));
        };
        let is_mine = ti.state == StateName::Running && ti.claim_id.as_deref() == Some(&request.claim_id);
        if !won && !is_mine {
            return self.why_refused(&ti, request).await;
        }
        if won && ti.next_method.is_none() && !request.keeps_xcoms {
            // A new try starts without what an earlier one left behind.
            let sql = "DELETE FROM xcom WHERE run_key = ? AND task_id = ? AND map_index = ?";
            self.execute(sql, params![ti.run_key, &ti.task_id, ti.map_index])
                .await?;
        }
        let Some(run) = self.run_by_key(ti.run_key).await? else {
            return Ok(Claimed::Refused("the run is gone"));
        };
        Ok(Claimed::Granted(Box::new((ti, run))))
    }

    async fn why_refused(
        &mut self,
        ti: &TaskInstanceRecord,
        request: &ClaimRequest,
    ) -> Result<Claimed, StoreError> {
        if ti.state == StateName::Queued && ti.try_number == request.try_number {
            return Ok(Claimed::UnknownWorker);
        }
        Ok(Claimed::Refused(if ti.state == StateName::Running {
            "another claim holds it"
        } else if ti.try_number == request.try_number {
            "it is not queued"
        } else {
            "the message is about another try"
        }))
    }

    /// Applies a worker's report. Reports may arrive any number of times and in any order.
    ///
    /// # Errors
    /// As the database says.
    pub async fn report(&mut self, report: &Report, now: Timestamp) -> Result<Reported, StoreError> {
        let lock = self.dialect().for_update();
        let sql = format!("SELECT {COLUMNS} FROM task_instance WHERE id = ?{lock}");
        let Some(row) = self.query_one(&sql, params![report.id]).await? else {
            return Ok(Reported::Gone);
        };
        let ti = TaskInstanceRecord::read(row)?;
        let fingerprint = fingerprint(report);
        if ti.last_report.as_deref() == Some(&fingerprint) {
            return Ok(Reported::Repeated);
        }
        let event = TaskEvent::Report {
            epoch: report.epoch,
            outcome: report.outcome,
        };
        let Ok(next) = ti.full_state()?.apply(event, ti.counters()) else {
            return Ok(Reported::Stale(ti.state));
        };
        let next = next.name();
        let ended = TaskInstanceRecord {
            end_date: Some(report.end_date),
            exit_cause: report.exit_cause.clone(),
            ..ti.clone()
        };
        self.write_end(&ended, report, next, &fingerprint, now).await?;
        for xcom in &report.xcoms {
            self.set_xcom(&ti, xcom, now).await?;
        }
        if let Some(fields) = &report.rendered_fields {
            self.set_rendered_fields(ti.id, ti.run_key, fields).await?;
        }
        if next == StateName::Success {
            self.register_outlets(&ti, &report.outlets, &report.outlet_events, now)
                .await?;
        }
        if let (StateName::Deferred, Some(trigger), Outcome::Deferred { until }) =
            (next, &report.trigger, report.outcome)
        {
            self.add_trigger(&ti, report.epoch, trigger, until, now).await?;
        }
        if next == StateName::AwaitingInput {
            self.resume_if_answered(ti.id, now).await?;
        }
        if next == StateName::UpForRetry {
            self.keep_try(&ended, StateName::Failed, now).await?;
        }
        self.add_task_event(ti.run_key, ti.id, now).await?;
        Ok(Reported::Applied(next))
    }

    async fn write_end(
        &mut self,
        ti: &TaskInstanceRecord,
        report: &Report,
        next: StateName,
        fingerprint: &str,
        now: Timestamp,
    ) -> Result<(), StoreError> {
        let not_before = match report.outcome {
            Outcome::Failed { retry_at } => retry_at,
            Outcome::Reschedule { at } => Some(at),
            Outcome::Deferred { until } | Outcome::AwaitingInput { until } => until,
            Outcome::Success | Outcome::Skipped | Outcome::Removed => None,
        };
        let reschedules = match report.outcome {
            Outcome::Reschedule { .. } => ti.reschedules + 1,
            Outcome::Deferred { .. } | Outcome::AwaitingInput { .. } => ti.reschedules,
            Outcome::Success | Outcome::Failed { .. } | Outcome::Skipped | Outcome::Removed => 0,
        };
        // One that was cleared while it ran begins anew, whatever it was to go on with.
        let begins_anew = next == StateName::NoStatus;
        let (not_before, reschedules) = if begins_anew {
            (None, 0)
        } else {
            (not_before, reschedules)
        };
        let (method, kwargs) = report.next.clone().filter(|_| !begins_anew).unzip();
        let sql = "UPDATE task_instance SET state = ?, end_date = ?, not_before = ?, reschedules = ?, exit_cause = ?, \
                   last_report = ?, rendered_map_index = COALESCE(?, rendered_map_index), next_method = ?, next_kwargs = ?, \
                   unstarted = NULL, worker_losses = NULL, updated_at = ? WHERE id = ? AND claim_epoch = ? AND state = ?";
        let values = params![
            next.as_str(),
            report.end_date,
            not_before,
            reschedules,
            report.exit_cause.clone(),
            fingerprint,
            report.map_label.clone(),
            method,
            kwargs,
            now,
            ti.id,
            report.epoch,
            ti.state.as_str(),
        ];
        match self.execute(sql, values).await?.rows {
            1 => Ok(()),
            _ => Err(self.moved_meanwhile("report", ti.id)),
        }
    }
}
