//! Callbacks of DAGs whose runs have ended, and of tasks whose process was lost. Each is called at least once; its id is
//! the event's.

use super::news::News;
use crate::graphs::Graphs;
use crate::unit_of_work::Tx;
use crate::{StoreError, params};
use model::task_instance::StateName;
use model::{DagRunKey, TaskInstanceId, Timestamp, TryNumber};
use serde_json::Value as Json;
use std::time::Duration;

/// Stands for the run of what is about none.
pub(super) const NO_RUN: DagRunKey = DagRunKey(0);

/// A callback to be called.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RunCallback {
    /// The event, the same however often it is called.
    pub id: i64,
    /// The run that it is about; listeners also hear of other things.
    pub run_key: Option<DagRunKey>,
    /// The task instance that its end is told with.
    pub task_instance: Option<TaskInstanceId>,
    /// Whether it is `on_failure_callback`.
    pub is_failure: bool,
    /// Airflow's word for why the run ended.
    pub reason: String,
    /// How often it has been tried before.
    pub attempts: u32,
    /// Until when it is held: tells this claim from every other one.
    pub held_until: Timestamp,
    /// What it is.
    pub kind: CallbackKind,
}

/// What is called.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum CallbackKind {
    /// The DAG's own callback, because a run ended.
    Run,
    /// That of the task instance: how its try ended, and which it was.
    Task(StateName, TryNumber),
    /// That of a missed deadline.
    Deadline(i64),
    /// This hook of listeners, with how it was when it happened.
    Listener(String, Json),
}

impl Tx {
    /// Notes, in the transaction that ends a run, that its DAG's callback is to be called.
    ///
    /// # Errors
    /// As the database says.
    pub async fn add_run_callback(
        &mut self,
        key: DagRunKey,
        about: Option<TaskInstanceId>,
        is_failure: bool,
        reason: &str,
        now: Timestamp,
    ) -> Result<(), StoreError> {
        let sql = "INSERT INTO run_callback (run_key, ti_id, is_failure, reason, created_at, claimed_until, attempts) \
                   VALUES (?, ?, ?, ?, ?, 0, 0)";
        self.execute(sql, params![key, about, is_failure, reason, now])
            .await
            .map(|_| ())
    }

    /// The task instance of a run that failed or succeeded last.
    ///
    /// # Errors
    /// As the database says.
    pub async fn last_ended(
        &mut self,
        key: DagRunKey,
        failed: bool,
    ) -> Result<Option<TaskInstanceId>, StoreError> {
        let state = if failed { "failed" } else { "success" };
        let sql = "SELECT id FROM task_instance WHERE run_key = ? AND state = ? ORDER BY end_date DESC, id DESC LIMIT 1";
        let found = self.query_one(sql, params![key, state]).await?;
        found.map(|mut row| row.next()).transpose()
    }

    /// The task instance of a run that began last among those that are not over.
    ///
    /// # Errors
    /// As the database says.
    pub async fn last_begun(&mut self, key: DagRunKey) -> Result<Option<TaskInstanceId>, StoreError> {
        let sql = "SELECT id FROM task_instance WHERE run_key = ? \
                   AND state NOT IN ('success', 'failed', 'upstream_failed', 'skipped', 'removed') \
                   ORDER BY start_date DESC, id LIMIT 1";
        let found = self.query_one(sql, params![key]).await?;
        found.map(|mut row| row.next()).transpose()
    }

    /// Notes, in the transaction that ends a try without the task's process, that listeners are to be told, and that its
    /// callback is to be called, if it declares one for this end. `reason` is told with it.
    ///
    /// # Errors
    /// As the database says.
    pub async fn add_task_callback(
        &mut self,
        graphs: &Graphs,
        id: TaskInstanceId,
        reason: &str,
        now: Timestamp,
    ) -> Result<(), StoreError> {
        let Some(ti) = self.task_instance_by_id(id).await? else {
            return Ok(());
        };
        let hooks = self.listeners().await?;
        let news = News::Task(&ti, Some(StateName::Running), reason);
        self.tell(&hooks, &news, now).await?;
        let graph = match graphs.get(self, ti.version_id).await {
            Ok(graph) => graph,
            // A version that cannot be read is no reason to keep a lost try.
            Err(StoreError::Inconsistent(_)) => return Ok(()),
            Err(error) => return Err(error),
        };
        let has = graph.dag.task(&ti.task_id).map(|task| task.has_callbacks);
        let is_wanted = has.is_some_and(|has| {
            (ti.state == StateName::Failed && (has.on_failure || has.mail_on_failure))
                || (ti.state == StateName::UpForRetry && (has.on_retry || has.mail_on_retry))
        });
        if !is_wanted {
            return Ok(());
        }
        let sql = "INSERT INTO run_callback \
                   (run_key, ti_id, is_failure, reason, created_at, claimed_until, attempts, task_state, try_number) \
                   VALUES (?, ?, 1, ?, ?, 0, 0, ?, ?)";
        let values = params![ti.run_key, id, reason, now, ti.state.as_str(), ti.try_number];
        self.execute(sql, values).await.map(|_| ())
    }

    /// Whether a callback waits that nobody has in hand.
    ///
    /// # Errors
    /// As the database says.
    pub async fn has_run_callback(&mut self, now: Timestamp) -> Result<bool, StoreError> {
        let sql = "SELECT id FROM run_callback WHERE claimed_until < ? LIMIT 1";
        Ok(self.query_one(sql, params![now]).await?.is_some())
    }

    /// Takes the oldest callback that nobody else has in hand, for so long.
    ///
    /// # Errors
    /// As the database says.
    pub async fn claim_run_callback(
        &mut self,
        now: Timestamp,
        hold: Duration,
    ) -> Result<Option<RunCallback>, StoreError> {
        let sql = "SELECT id, run_key, ti_id, is_failure, reason, attempts, claimed_until, task_state, try_number, \
                   deadline_id, listener, facts FROM run_callback \
                   WHERE claimed_until < ? ORDER BY claimed_until, id LIMIT 1";
        let Some(mut row) = self.query_one(sql, params![now]).await? else {
            return Ok(None);
        };
        let until = now + chrono::Duration::from_std(hold).unwrap_or_default();
        let mut callback = RunCallback {
            id: row.next()?,
            run_key: Some(row.next()?).filter(|key| *key != NO_RUN),
            task_instance: row.next()?,
            is_failure: row.next()?,
            reason: row.next()?,
            attempts: row.next()?,
            held_until: until,
            kind: CallbackKind::Run,
        };
        let claimed_until: i64 = row.next()?;
        let state: Option<String> = row.next()?;
        let state = state.and_then(|word| word.parse::<StateName>().ok());
        let of_task = state.zip(row.next::<Option<TryNumber>>()?);
        let of_task = of_task.map(|(state, number)| CallbackKind::Task(state, number));
        let deadline = row.next::<Option<i64>>()?.map(CallbackKind::Deadline);
        let listener: Option<String> = row.next()?;
        let facts: Option<String> = row.next()?;
        let facts = facts.and_then(|text| serde_json::from_str(&text).ok());
        let listener = listener.map(|hook| CallbackKind::Listener(hook, facts.unwrap_or_default()));
        callback.kind = of_task.or(deadline).or(listener).unwrap_or(CallbackKind::Run);
        let sql = "UPDATE run_callback SET claimed_until = ?, attempts = attempts + 1 WHERE id = ? AND claimed_until = ?";
        let won = self
            .execute(sql, params![until, callback.id, claimed_until])
            .await?
            .rows
            == 1;
        Ok(won.then_some(callback))
    }

    /// A callback has been called, or never can be. One that somebody else has taken meanwhile is left to them.
    ///
    /// # Errors
    /// As the database says.
    pub async fn end_run_callback(&mut self, callback: &RunCallback) -> Result<(), StoreError> {
        let sql = "DELETE FROM run_callback WHERE id = ? AND claimed_until = ?";
        let values = params![callback.id, callback.held_until];
        self.execute(sql, values).await.map(|_| ())
    }

    /// A callback did not begin: it waits until then, and that does not count as an attempt. One that somebody else has taken
    /// meanwhile is left to them.
    ///
    /// # Errors
    /// As the database says.
    pub async fn give_back_run_callback(
        &mut self,
        callback: &RunCallback,
        until: Timestamp,
    ) -> Result<(), StoreError> {
        let sql =
            "UPDATE run_callback SET claimed_until = ?, attempts = ? WHERE id = ? AND claimed_until = ?";
        let values = params![until, callback.attempts, callback.id, callback.held_until];
        self.execute(sql, values).await.map(|_| ())
    }
}
