//! What tasks keep for their own next try (Airflow's task state store).

use super::tasks::TaskInstanceRecord;
use crate::unit_of_work::Tx;
use crate::{StoreError, params};
use model::Timestamp;

impl Tx {
    /// What a task instance kept under a key, unless it has expired.
    ///
    /// # Errors
    /// As the database says.
    pub async fn task_state(
        &mut self,
        ti: &TaskInstanceRecord,
        key: &str,
        now: Timestamp,
    ) -> Result<Option<String>, StoreError> {
        let sql = "SELECT value FROM task_state WHERE run_key = ? AND task_id = ? AND map_index = ? AND state_key = ? \
                   AND (expires_at IS NULL OR expires_at > ?)";
        let values = params![ti.run_key, &ti.task_id, ti.map_index, key, now];
        let row = self.query_one(sql, values).await?;
        row.map(|mut row| row.next()).transpose()
    }

    /// Keeps a value (JSON) under a key, in place of the one before.
    ///
    /// # Errors
    /// As the database says.
    pub async fn set_task_state(
        &mut self,
        ti: &TaskInstanceRecord,
        key: &str,
        value: &str,
        expires_at: Option<Timestamp>,
    ) -> Result<(), StoreError> {
        let own = "run_key, task_id, map_index, state_key";
        let tail = self.dialect().on_duplicate(own, &["value", "expires_at"]);
        let sql =
            format!("INSERT INTO task_state ({own}, value, expires_at) VALUES (?, ?, ?, ?, ?, ?){tail}");
        let values = params![ti.run_key, &ti.task_id, ti.map_index, key, value, expires_at];
        self.execute(&sql, values).await.map(|_| ())
    }

    /// Forgets one key of a task instance, or all of them.
    ///
    /// # Errors
    /// As the database says.
    pub async fn delete_task_state(
        &mut self,
        ti: &TaskInstanceRecord,
        key: Option<&str>,
    ) -> Result<(), StoreError> {
        let all = "DELETE FROM task_state WHERE run_key = ? AND task_id = ? AND map_index = ?";
        match key {
            Some(key) => {
                let sql = format!("{all} AND state_key = ?");
                let values = params![ti.run_key, &ti.task_id, ti.map_index, key];
                self.execute(&sql, values).await?;
            }
            None => {
                self.execute(all, params![ti.run_key, &ti.task_id, ti.map_index])
                    .await?;
            }
        }
        Ok(())
    }
}
