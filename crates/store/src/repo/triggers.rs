//! Triggers that need Python: who runs them, and what becomes of the tasks that wait for them.

use super::tasks::{COLUMNS as TASK, TaskInstanceRecord};
use super::xcoms::NewXCom;
use crate::sql::{Row, Value, placeholders};
use crate::unit_of_work::Tx;
use crate::{Cipher, StoreError, params};
use model::task_instance::{Outcome, StateName, TaskEvent};
use model::trigger::TriggerEvent;
use model::{ClaimEpoch, DagRunKey, TaskInstanceId, Timestamp, TriggerId, WorkerId};

const COLUMNS: &str = "id, ti_id, claim_epoch, watcher_hash, classpath, kwargs, is_encrypted, queue, next_method, next_kwargs, \
    timeout_at, worker_id, created_at";

/// A trigger that a task hands itself over to.
#[derive(Debug, Clone)]
pub struct NewTrigger {
    /// Import path of its class.
    pub classpath: String,
    /// Its arguments as the SDK serializes them: JSON, encrypted if there is a key.
    pub kwargs: String,
    /// Whether the arguments are encrypted.
    pub is_encrypted: bool,
    /// Queue of the triggerers that may run it.
    pub queue: Option<String>,
    /// The method to go on with once it has fired, and its arguments (JSON).
    pub next: (String, String),
}

/// A trigger.
#[derive(Debug, Clone)]
#[expect(
    missing_docs,
    reason = "each field is the column of its name; the names are those of Airflow's Trigger"
)]
pub struct TriggerRecord {
    pub id: TriggerId,
    pub task_instance: Option<TaskInstanceId>,
    pub epoch: ClaimEpoch,
    pub watcher_hash: Option<String>,
    pub classpath: String,
    pub kwargs: String,
    pub is_encrypted: bool,
    pub queue: Option<String>,
    pub next_method: Option<String>,
    pub next_kwargs: Option<String>,
    pub timeout_at: Option<Timestamp>,
    pub worker: Option<WorkerId>,
    pub created_at: Timestamp,
}

impl TriggerRecord {
    fn read(mut row: Row) -> Result<Self, StoreError> {
        Ok(Self {
            id: row.next()?,
            task_instance: row.next()?,
            epoch: row.next()?,
            watcher_hash: row.next()?,
            classpath: row.next()?,
            kwargs: row.next()?,
            is_encrypted: row.next()?,
            queue: row.next()?,
            next_method: row.next()?,
            next_kwargs: row.next()?,
            timeout_at: row.next()?,
            worker: row.next()?,
            created_at: row.next()?,
        })
    }

    /// Its arguments.
    ///
    /// # Errors
    /// When they cannot be decrypted.
    pub fn open_kwargs(&self, cipher: &Cipher) -> Result<String, StoreError> {
        cipher.open(self.kwargs.clone(), self.is_encrypted)
    }
}

/// Who may run which triggers.
#[derive(Debug, Clone)]
pub struct TriggerHost {
    /// The worker.
    pub worker: WorkerId,
    /// Triggers that it may run at the same time.
    pub capacity: u32,
    /// Queues that it serves, beside the triggers without one.
    pub queues: Vec<String>,
}

/// What became of a trigger that fired.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fired {
    /// The task goes on, or has ended.
    Task(DagRunKey),
    /// Assets were updated.
    Assets,
    /// Nobody waited for it any more.
    Stale,
}

impl Tx {
    /// Notes the trigger of a task instance that has just been deferred under that claim.
    pub(super) async fn add_trigger(
        &mut self,
        ti: &TaskInstanceRecord,
        epoch: ClaimEpoch,
        trigger: &NewTrigger,
        timeout_at: Option<Timestamp>,
        now: Timestamp,
    ) -> Result<(), StoreError> {
        let sql = "DELETE FROM pending_trigger WHERE ti_id = ?";
        self.execute(sql, params![ti.id]).await?;
        let sql = "INSERT INTO pending_trigger (ti_id, claim_epoch, classpath, kwargs, is_encrypted, queue, next_method, \
                   next_kwargs, timeout_at, created_at) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?)";
        let values = params![
            ti.id,
            epoch,
            &trigger.classpath,
            &trigger.kwargs,
            trigger.is_encrypted,
            trigger.queue.clone(),
            &trigger.next.0,
            &trigger.next.1,
            timeout_at,
            now,
        ];
        self.execute(sql, values).await.map(|_| ())
    }

    /// A worker's triggers that wait for nobody any more are forgotten: their tasks were cleared, marked, or went on in
    /// time.
    async fn forget_idle_triggers(&mut self, worker: WorkerId) -> Result<(), StoreError> {
        let sql = "SELECT p.id FROM pending_trigger p LEFT JOIN task_instance t ON t.id = p.ti_id \
                   WHERE p.worker_id = ? AND p.ti_id IS NOT NULL \
                   AND (t.id IS NULL OR t.state <> 'deferred' OR t.claim_epoch <> p.claim_epoch)";
        let rows = self.query(sql, params![worker]).await?;
        let ids = rows
            .into_iter()
            .map(|mut row| row.next::<i64>().map(Value::from))
            .collect::<Result<Vec<_>, _>>()?;
        for chunk in Self::chunks(&ids) {
            let marks = placeholders(chunk.len());
            let sql = format!("DELETE FROM pending_trigger WHERE id IN ({marks})");
            self.execute(&sql, chunk).await?;
        }
        Ok(())
    }

    /// Whether there is any trigger.
    ///
    /// # Errors
    /// As the database says.
    pub async fn has_triggers(&mut self) -> Result<bool, StoreError> {
        let row = self
            .query_one("SELECT id FROM pending_trigger LIMIT 1", &[])
            .await?;
        Ok(row.is_some())
    }

    /// Gives free triggers to a worker, and returns all that are its own now. Those of a worker that is gone are free.
    ///
    /// # Errors
    /// As the database says.
    pub async fn assign_triggers(&mut self, host: &TriggerHost) -> Result<Vec<TriggerRecord>, StoreError> {
        self.forget_idle_triggers(host.worker).await?;
        let watchers = self.active_watchers().await?;
        let is_wanted = |trigger: &TriggerRecord| {
            let watcher = trigger.watcher_hash.as_ref();
            watcher.is_none_or(|hash| watchers.contains(hash))
        };
        let mut own = self.triggers_of(host.worker).await?;
        let free = (host.capacity as usize).saturating_sub(own.len());
        if free > 0 {
            let now = self.dialect().now();
            let sql = format!(
                "SELECT {COLUMNS} FROM pending_trigger WHERE worker_id IS NULL OR worker_id NOT IN \
                 (SELECT id FROM worker WHERE state <> 'gone' AND lease_expires_at > {now}) ORDER BY id"
            );
            let mut found = Vec::new();
            for row in self.query(&sql, &[]).await? {
                let trigger = TriggerRecord::read(row)?;
                let serves = trigger
                    .queue
                    .as_ref()
                    .is_none_or(|queue| host.queues.contains(queue));
                if serves && is_wanted(&trigger) && found.len() < free {
                    found.push(trigger);
                }
            }
            for trigger in found {
                let sql = "UPDATE pending_trigger SET worker_id = ? WHERE id = ? AND (worker_id IS NULL OR worker_id = ?)";
                let values = params![host.worker, trigger.id, trigger.worker];
                // Whoever was faster has it.
                if self.execute(sql, values).await?.rows == 1 {
                    own.push(trigger);
                }
            }
        }
        own.retain(is_wanted);
        Ok(own)
    }

    async fn triggers_of(&mut self, worker: WorkerId) -> Result<Vec<TriggerRecord>, StoreError> {
        let sql = format!("SELECT {COLUMNS} FROM pending_trigger WHERE worker_id = ? ORDER BY id");
        let rows = self.query(&sql, params![worker]).await?;
        rows.into_iter().map(TriggerRecord::read).collect()
    }

    /// The trigger that a deferred task instance waits for.
    ///
    /// # Errors
    /// As the database says.
    pub async fn trigger_of(&mut self, ti: &TaskInstanceRecord) -> Result<Option<TriggerRecord>, StoreError> {
        let sql = format!("SELECT {COLUMNS} FROM pending_trigger WHERE ti_id = ? AND claim_epoch = ?");
        self.query_one(&sql, params![ti.id, ti.claim_epoch])
            .await?
            .map(TriggerRecord::read)
            .transpose()
    }

    /// The triggers that these task instances wait for, as far as they run in Python.
    ///
    /// # Errors
    /// As the database says.
    pub async fn triggers_waited_for(
        &mut self,
        ids: &[TaskInstanceId],
    ) -> Result<Vec<TriggerRecord>, StoreError> {
        if ids.is_empty() {
            return Ok(Vec::new());
        }
        let marks = placeholders(ids.len());
        let sql = format!("SELECT {COLUMNS} FROM pending_trigger WHERE ti_id IN ({marks})");
        let ids: Vec<Value> = ids.iter().copied().map(Value::from).collect();
        let rows = self.query(&sql, &ids).await?;
        rows.into_iter().map(TriggerRecord::read).collect()
    }

    /// The trigger with that number.
    ///
    /// # Errors
    /// As the database says.
    pub async fn trigger(&mut self, id: TriggerId) -> Result<Option<TriggerRecord>, StoreError> {
        let sql = format!("SELECT {COLUMNS} FROM pending_trigger WHERE id = ?");
        self.query_one(&sql, params![id])
            .await?
            .map(TriggerRecord::read)
            .transpose()
    }

    /// A trigger fired, or failed, where that worker ran it. `retry_at` is when a task that fails by it is tried again, if
    /// it has a try left.
    ///
    /// # Errors
    /// As the database says.
    pub async fn fire_trigger(
        &mut self,
        id: TriggerId,
        worker: WorkerId,
        event: &TriggerEvent,
        retry_at: Option<Timestamp>,
        now: Timestamp,
    ) -> Result<Fired, StoreError> {
        let lock = self.dialect().for_update();
        let sql = format!("SELECT {COLUMNS} FROM pending_trigger WHERE id = ? AND worker_id = ?{lock}");
        let Some(row) = self.query_one(&sql, params![id, worker]).await? else {
            return Ok(Fired::Stale);
        };
        let trigger = TriggerRecord::read(row)?;
        let Some(ti_id) = trigger.task_instance else {
            return self.fire_watcher(&trigger, event, now).await;
        };
        self.execute("DELETE FROM pending_trigger WHERE id = ?", params![id])
            .await?;
        let sql = format!("SELECT {TASK} FROM task_instance WHERE id = ?{lock}");
        let Some(row) = self.query_one(&sql, params![ti_id]).await? else {
            return Ok(Fired::Stale);
        };
        let ti = TaskInstanceRecord::read(row)?;
        if ti.state != StateName::Deferred || ti.claim_epoch != trigger.epoch {
            return Ok(Fired::Stale);
        }
        let next = (trigger.next_method.as_deref(), trigger.next_kwargs.as_deref());
        match event {
            TriggerEvent::Ended { outcome, xcoms } => {
                let outcome = match outcome {
                    Outcome::Failed { .. } if ti.should_retry() => Outcome::Failed { retry_at },
                    other => *other,
                };
                self.settle(&ti, outcome, xcoms, now).await?;
            }
            TriggerEvent::Fired(_) | TriggerEvent::Failed(_) => {
                let (method, arguments) = event.goes_on_with(next);
                // The planner lets it go on, under the same limits as one whose time has come.
                let sql = "UPDATE task_instance SET not_before = ?, next_method = ?, next_kwargs = ?, updated_at = ? \
                           WHERE id = ? AND state = 'deferred' AND claim_epoch = ?";
                let values = params![now, method, arguments, now, ti.id, ti.claim_epoch];
                if self.execute(sql, values).await?.rows != 1 {
                    return Err(self.moved_meanwhile("fire trigger", ti.id));
                }
            }
        }
        self.add_task_event(ti.run_key, ti.id, now).await?;
        Ok(Fired::Task(ti.run_key))
    }

    /// Ends a deferred task instance as its trigger says.
    async fn settle(
        &mut self,
        ti: &TaskInstanceRecord,
        outcome: Outcome,
        xcoms: &[(String, String)],
        now: Timestamp,
    ) -> Result<(), StoreError> {
        let event = TaskEvent::Settle(outcome);
        let next = ti
            .full_state()?
            .apply(event, ti.counters())
            .map_err(|error| StoreError::Inconsistent(error.to_string()))?
            .name();
        let not_before = match outcome {
            Outcome::Failed { retry_at } => retry_at,
            Outcome::Success
            | Outcome::Skipped
            | Outcome::Reschedule { .. }
            | Outcome::Deferred { .. }
            | Outcome::AwaitingInput { .. }
            | Outcome::Removed => None,
        };
        let sql = "UPDATE task_instance SET state = ?, end_date = ?, not_before = ?, next_method = NULL, next_kwargs = NULL, \
                   updated_at = ? WHERE id = ? AND state = 'deferred' AND claim_epoch = ?";
        let values = params![next.as_str(), now, not_before, now, ti.id, ti.claim_epoch];
        if self.execute(sql, values).await?.rows != 1 {
            return Err(self.moved_meanwhile("end by trigger", ti.id));
        }
        if next == StateName::UpForRetry {
            let ended = TaskInstanceRecord {
                end_date: Some(now),
                ..ti.clone()
            };
            return self.keep_try(&ended, StateName::Failed, now).await;
        }
        for (key, value) in xcoms {
            let xcom = NewXCom {
                key: key.clone(),
                value: value.clone(),
                mapped_length: None,
            };
            self.set_xcom(ti, &xcom, now).await?;
        }
        Ok(())
    }
}
