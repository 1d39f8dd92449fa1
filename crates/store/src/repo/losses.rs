//! Claims that end without a report of their try: lost with their worker, or never begun.

use super::tasks::{COLUMNS, TaskInstanceRecord};
use crate::graphs::Graphs;
use crate::sql::Row;
use crate::unit_of_work::Tx;
use crate::{StoreError, params};
use chrono::Duration;
use model::task_instance::{LossCause, StateName, TaskEvent, the_poison};
use model::{ClaimEpoch, DagRunKey, TaskInstanceId, Timestamp, WorkerId};

/// Longest pause, in seconds, before a try that could not be started is started again.
const LONGEST_PAUSE: i64 = 60;

/// How much a task instance may lose to the infrastructure.
#[derive(Debug, Clone, Copy)]
pub struct LossLimits {
    /// Tries that may be lost (`[updraft] infra_retries`).
    pub infra_retries: u32,
    /// Workers in a row after which a task instance is taken to be the reason of their end
    /// (`[updraft] worker_losses`).
    pub worker_losses: u32,
    /// How often a try that could not be started goes back to the queue (`[updraft] start_retries`).
    pub start_retries: u32,
}

/// A task instance whose claim is lost.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LostTask {
    /// The task instance.
    pub id: TaskInstanceId,
    /// The claim that was held.
    pub epoch: ClaimEpoch,
    /// How often the infrastructure has lost it before.
    pub infra_losses: u32,
    /// How many workers in a row it has lost before.
    pub worker_losses: u32,
    /// `true` if it is taken to be the reason of its worker's end.
    pub is_poison: bool,
}

impl LostTask {
    /// Finds among everything that one worker held the one that is the reason of the worker's end, if there is one.
    pub fn accuse(lost: &mut [Self], cause: &LossCause, limits: LossLimits) {
        if !cause.killed_the_worker() {
            return;
        }
        let earlier: Vec<u32> = lost.iter().map(|task| task.worker_losses).collect();
        if let Some(place) = the_poison(&earlier, limits.worker_losses) {
            lost[place].is_poison = true;
        }
    }

    fn read(mut row: Row) -> Result<Self, StoreError> {
        Ok(Self {
            id: row.next()?,
            epoch: row.next()?,
            infra_losses: row.next()?,
            worker_losses: row.next()?,
            is_poison: false,
        })
    }
}

/// Who gives the next try after a loss.
#[derive(Clone, Copy)]
enum Retry {
    /// The infrastructure: the task's own retries stay as they are.
    Ours(Timestamp),
    /// The task, if it has one left: the infrastructure has given all of its own.
    Own(Timestamp),
    /// Nobody.
    Never,
}

/// What a lost claim leads to.
struct Ending<'a> {
    retry: Retry,
    /// Shown as the cause of the end.
    text: &'a str,
    /// `true` if it counts as the loss of a worker.
    lost_worker: bool,
}

impl Tx {
    /// Task instances that a worker holds, by its claims.
    ///
    /// # Errors
    /// As the database says.
    pub async fn tasks_of_worker(&mut self, id: WorkerId) -> Result<Vec<LostTask>, StoreError> {
        let sql = "SELECT id, claim_epoch, infra_losses, COALESCE(worker_losses, 0) FROM task_instance \
                   WHERE worker_id = ? AND state IN ('running', 'restarting')";
        let rows = self.query(sql, params![id]).await?;
        rows.into_iter().map(LostTask::read).collect()
    }

    /// Task instances still held by workers that are gone: what a crash between ending a worker's life and ending its
    /// claims left over.
    ///
    /// # Errors
    /// As the database says.
    pub async fn tasks_of_gone_workers(&mut self) -> Result<Vec<LostTask>, StoreError> {
        let sql = "SELECT t.id, t.claim_epoch, t.infra_losses, COALESCE(t.worker_losses, 0) \
                   FROM worker w JOIN task_instance t ON t.worker_id = w.id \
                   WHERE w.state = 'gone' AND t.state IN ('running', 'restarting')";
        let rows = self.query(sql, &[]).await?;
        rows.into_iter().map(LostTask::read).collect()
    }

    /// Ends claims whose tries will never be reported. Each task instance is tried again, as often as `limits` say without
    /// counting against its own retries, then as long as it has one; callbacks that its process would have called are noted. Returns the runs concerned.
    ///
    /// # Errors
    /// As the database says.
    pub async fn lose_all(
        &mut self,
        graphs: &Graphs,
        lost: &[LostTask],
        limits: LossLimits,
        cause: &LossCause,
        now: Timestamp,
    ) -> Result<Vec<DagRunKey>, StoreError> {
        let mut runs = Vec::new();
        for task in lost {
            let wait = Duration::seconds(1 << task.infra_losses.min(5));
            let retry = match () {
                () if task.is_poison => Retry::Never,
                () if task.infra_losses < limits.infra_retries => Retry::Ours(now + wait),
                () => Retry::Own(now + wait),
            };
            let text = if task.is_poison {
                format!(
                    "The worker that ran it met its end {} times in a row ({cause}). It is not tried again, because it may \
                     have been the reason, for example by using more memory than the worker has. Clear it to try it again; \
                     [updraft] worker_losses says how often.",
                    task.worker_losses + 1
                )
            } else {
                cause.to_string()
            };
            let ending = Ending {
                retry,
                text: &text,
                lost_worker: cause.killed_the_worker(),
            };
            if let Some(run) = self.lose(task.id, task.epoch, &ending, now).await? {
                runs.push(run);
                // Its process is gone, and with it whoever would have called them.
                self.add_task_callback(graphs, task.id, cause.word(), now).await?;
            }
        }
        Ok(runs)
    }

    async fn locked(&mut self, id: TaskInstanceId) -> Result<Option<TaskInstanceRecord>, StoreError> {
        let lock = self.dialect().for_update();
        let sql = format!("SELECT {COLUMNS} FROM task_instance WHERE id = ?{lock}");
        let row = self.query_one(&sql, params![id]).await?;
        row.map(TaskInstanceRecord::read).transpose()
    }

    /// Ends a claim as lost. Returns the run, or `None` when the claim was not held any more.
    async fn lose(
        &mut self,
        id: TaskInstanceId,
        epoch: ClaimEpoch,
        ending: &Ending<'_>,
        now: Timestamp,
    ) -> Result<Option<DagRunKey>, StoreError> {
        let Some(ti) = self.locked(id).await? else {
            return Ok(None);
        };
        let retry_at = match ending.retry {
            Retry::Ours(at) => Some(at),
            Retry::Own(at) => ti.should_retry().then_some(at),
            Retry::Never => None,
        };
        let Ok(next) = ti
            .full_state()?
            .apply(TaskEvent::Lose { epoch, retry_at }, ti.counters())
        else {
            return Ok(None);
        };
        let next = next.name();
        let is_ours = matches!(ending.retry, Retry::Ours(_));
        let extra = u32::from(next == StateName::UpForRetry && is_ours);
        let sql = "UPDATE task_instance SET state = ?, end_date = ?, not_before = ?, exit_cause = ?, reschedules = 0, \
                   infra_losses = infra_losses + 1, worker_losses = COALESCE(worker_losses, 0) + ?, unstarted = NULL, \
                   max_tries = max_tries + ?, next_method = NULL, next_kwargs = NULL, updated_at = ? \
                   WHERE id = ? AND claim_epoch = ? AND state = ?";
        let values = params![
            next.as_str(),
            now,
            retry_at,
            ending.text,
            u32::from(ending.lost_worker),
            extra,
            now,
            id,
            epoch,
            ti.state.as_str()
        ];
        if self.execute(sql, values).await?.rows != 1 {
            return Err(self.moved_meanwhile("lose", id));
        }
        if next == StateName::UpForRetry {
            self.keep_lost_try(&ti, ending.text, now).await?;
        }
        self.add_task_event(ti.run_key, ti.id, now).await?;
        Ok(Some(ti.run_key))
    }

    /// Ends a claim under which user code never began. The same try is started again after a pause that grows with each
    /// time; when it has gone back to the queue as often as `limits` say, the try fails. Returns the run, or `None` when the claim
    /// is not held any more: asking again changes nothing.
    ///
    /// # Errors
    /// As the database says.
    pub async fn give_back(
        &mut self,
        graphs: &Graphs,
        (id, epoch): (TaskInstanceId, ClaimEpoch),
        limits: LossLimits,
        cause: &str,
        now: Timestamp,
    ) -> Result<Option<DagRunKey>, StoreError> {
        let Some(ti) = self.locked(id).await? else {
            return Ok(None);
        };
        let sql = "SELECT COALESCE(unstarted, 0) FROM task_instance WHERE id = ?";
        let row = self.query_one(sql, params![id]).await?;
        let before: u32 = row.map_or(Ok(0), |mut row| row.next())?;
        if before >= limits.start_retries {
            let text = format!(
                "It could not be started {} times ([updraft] start_retries): {cause}",
                before + 1
            );
            let ending = Ending {
                retry: Retry::Own(now + Duration::seconds(LONGEST_PAUSE)),
                text: &text,
                lost_worker: false,
            };
            let run = self.lose(id, epoch, &ending, now).await?;
            if run.is_some() {
                self.add_task_callback(graphs, id, "not_started", now).await?;
            }
            return Ok(run);
        }
        let pause = match before {
            0 => 0,
            n => (1_i64 << (n - 1).min(6)).min(LONGEST_PAUSE),
        };
        let at = now + Duration::seconds(pause);
        let Ok(next) = ti
            .full_state()?
            .apply(TaskEvent::Return { epoch, at }, ti.counters())
        else {
            return Ok(None);
        };
        self.write_return(&ti, next.name(), cause, at, now).await?;
        Ok(Some(ti.run_key))
    }

    async fn write_return(
        &mut self,
        ti: &TaskInstanceRecord,
        next: StateName,
        cause: &str,
        at: Timestamp,
        now: Timestamp,
    ) -> Result<(), StoreError> {
        // One that was cleared meanwhile begins anew. Otherwise its number is free again, as for one that was only queued,
        // and what it goes on with stays.
        let begins_anew = next == StateName::NoStatus;
        let change = if begins_anew {
            "next_method = NULL, next_kwargs = NULL, reschedules = 0"
        } else {
            "try_number = try_number - CASE WHEN reschedules > 0 THEN 0 ELSE 1 END, \
             start_date = CASE WHEN next_method IS NULL THEN NULL ELSE start_date END"
        };
        let at = (!begins_anew).then_some(at);
        let sql = format!(
            "UPDATE task_instance SET state = ?, not_before = ?, exit_cause = ?, unstarted = COALESCE(unstarted, 0) + 1, \
             end_date = NULL, updated_at = ?, {change} WHERE id = ? AND claim_epoch = ? AND state = ?"
        );
        let values = params![
            next.as_str(),
            at,
            cause,
            now,
            ti.id,
            ti.claim_epoch,
            ti.state.as_str()
        ];
        if self.execute(&sql, values).await?.rows != 1 {
            return Err(self.moved_meanwhile("give back", ti.id));
        }
        self.add_task_event(ti.run_key, ti.id, now).await
    }
}
