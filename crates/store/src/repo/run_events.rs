//! What happened to runs since their last plan.

use crate::sql::{Row, Value, placeholders};
use crate::unit_of_work::Tx;
use crate::{StoreError, params};
use model::{DagRunKey, TaskInstanceId, Timestamp};

/// Something that happened to a run.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RunEvent {
    /// Its number.
    pub id: i64,
    /// The task instance that changed; `None` when anything may have.
    pub task_instance: Option<TaskInstanceId>,
}

impl Tx {
    /// Notes durably that something about a run changed, so that it is planned even if every hint is lost.
    ///
    /// # Errors
    /// As the database says.
    pub async fn add_run_event(&mut self, key: DagRunKey, now: Timestamp) -> Result<(), StoreError> {
        let sql = "INSERT INTO run_event (run_key, created_at) VALUES (?, ?)";
        self.execute(sql, params![key, now]).await.map(|_| ())
    }

    /// The same, where one task instance is all that changed.
    pub(super) async fn add_task_event(
        &mut self,
        key: DagRunKey,
        task_instance: TaskInstanceId,
        now: Timestamp,
    ) -> Result<(), StoreError> {
        let sql = "INSERT INTO run_event (run_key, ti_id, created_at) VALUES (?, ?, ?)";
        self.execute(sql, params![key, task_instance, now])
            .await
            .map(|_| ())
    }

    /// What happened to a run since its last plan. A plan whose snapshot is read afterwards covers these; others may come
    /// to light with lower numbers, so the plan forgets exactly these.
    ///
    /// # Errors
    /// As the database says.
    pub async fn run_events(&mut self, key: DagRunKey) -> Result<Vec<RunEvent>, StoreError> {
        let sql = "SELECT id, ti_id FROM run_event WHERE run_key = ?";
        let read = |mut row: Row| {
            Ok(RunEvent {
                id: row.next()?,
                task_instance: row.next()?,
            })
        };
        let rows = self.query(sql, params![key]).await?;
        rows.into_iter().map(read).collect()
    }

    /// Deletes the events that a plan has covered.
    ///
    /// # Errors
    /// As the database says.
    pub async fn clear_run_events(&mut self, events: &[RunEvent]) -> Result<(), StoreError> {
        let ids: Vec<Value> = events.iter().map(|event| event.id.into()).collect();
        for chunk in Self::chunks(&ids) {
            let sql = format!(
                "DELETE FROM run_event WHERE id IN ({})",
                placeholders(chunk.len())
            );
            self.execute(&sql, chunk).await?;
        }
        Ok(())
    }

    /// Deletes all events of a run that is gone.
    ///
    /// # Errors
    /// As the database says.
    pub async fn clear_all_run_events(&mut self, key: DagRunKey) -> Result<(), StoreError> {
        let sql = "DELETE FROM run_event WHERE run_key = ?";
        self.execute(sql, params![key]).await.map(|_| ())
    }

    /// Runs with events older than `before`: their hints were lost, or are being worked on.
    ///
    /// # Errors
    /// As the database says.
    pub async fn overlooked_runs(
        &mut self,
        before: Timestamp,
        limit: i64,
    ) -> Result<Vec<DagRunKey>, StoreError> {
        let sql = "SELECT DISTINCT run_key FROM run_event WHERE created_at < ? LIMIT ?";
        self.query(sql, params![before, limit])
            .await?
            .into_iter()
            .map(|mut row| row.next())
            .collect()
    }
}
