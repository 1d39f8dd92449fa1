//! Callbacks of DAGs: what is to be called when a run has ended. Each is called at least once; its id is the event's.

use crate::unit_of_work::Tx;
use crate::{StoreError, params};
use model::{DagRunKey, TaskInstanceId, Timestamp};
use std::time::Duration;

/// A callback to be called.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RunCallback {
    /// The event, the same however often it is called.
    pub id: i64,
    /// The run that ended.
    pub run_key: DagRunKey,
    /// The task instance that its end is told with.
    pub task_instance: Option<TaskInstanceId>,
    /// Whether it is `on_failure_callback`.
    pub is_failure: bool,
    /// Airflow's word for why the run ended.
    pub reason: String,
    /// How often it has been tried before.
    pub attempts: u32,
}

impl Tx {
    /// Notes, in the transaction that ends a run, that its DAG's callback is to be called.
    ///
    /// # Errors
    /// As the database says.
    pub async fn add_run_callback(
        &mut self,
        key: DagRunKey,
        is_failure: bool,
        reason: &str,
        now: Timestamp,
    ) -> Result<(), StoreError> {
        let states = if is_failure {
            "('failed', 'upstream_failed')"
        } else {
            "('success')"
        };
        let sql = format!(
            "SELECT id FROM task_instance WHERE run_key = ? AND state IN {states} ORDER BY end_date DESC, id DESC LIMIT 1"
        );
        let found = self.query_one(&sql, params![key]).await?;
        let task_instance: Option<TaskInstanceId> = found.map(|mut row| row.next()).transpose()?;
        let sql = "INSERT INTO run_callback (run_key, ti_id, is_failure, reason, created_at, claimed_until, attempts) \
                   VALUES (?, ?, ?, ?, ?, 0, 0)";
        self.execute(sql, params![key, task_instance, is_failure, reason, now])
            .await
            .map(|_| ())
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
        let sql = "SELECT id, run_key, ti_id, is_failure, reason, attempts, claimed_until FROM run_callback \
                   WHERE claimed_until < ? ORDER BY claimed_until, id LIMIT 1";
        let Some(mut row) = self.query_one(sql, params![now]).await? else {
            return Ok(None);
        };
        let callback = RunCallback {
            id: row.next()?,
            run_key: row.next()?,
            task_instance: row.next()?,
            is_failure: row.next()?,
            reason: row.next()?,
            attempts: row.next()?,
        };
        let claimed_until: i64 = row.next()?;
        let sql = "UPDATE run_callback SET claimed_until = ?, attempts = attempts + 1 WHERE id = ? AND claimed_until = ?";
        let until = now + chrono::Duration::from_std(hold).unwrap_or_default();
        let won = self
            .execute(sql, params![until, callback.id, claimed_until])
            .await?
            .rows
            == 1;
        Ok(won.then_some(callback))
    }

    /// A callback has been called, or never can be.
    ///
    /// # Errors
    /// As the database says.
    pub async fn end_run_callback(&mut self, id: i64) -> Result<(), StoreError> {
        self.execute("DELETE FROM run_callback WHERE id = ?", params![id])
            .await
            .map(|_| ())
    }
}
