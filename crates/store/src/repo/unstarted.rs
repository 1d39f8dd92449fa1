//! Task instances that were handed over and never claimed, for executors that know why.

use super::dags::id_values;
use super::tasks::{COLUMNS, TaskInstanceRecord};
use crate::sql::placeholders;
use crate::unit_of_work::Tx;
use crate::{StoreError, params};
use model::task_instance::{StateName, TaskEvent};
use model::{DagRunKey, TaskInstanceId, Timestamp};

impl Tx {
    /// The task instances of these ids that there are.
    ///
    /// # Errors
    /// As the database says.
    pub async fn task_instances_by_id(
        &mut self,
        ids: &[TaskInstanceId],
    ) -> Result<Vec<TaskInstanceRecord>, StoreError> {
        let mut found = Vec::with_capacity(ids.len());
        for chunk in Self::chunks(&id_values(ids)) {
            let marks = placeholders(chunk.len());
            let sql = format!("SELECT {COLUMNS} FROM task_instance WHERE id IN ({marks})");
            for row in self.query(&sql, chunk).await? {
                found.push(TaskInstanceRecord::read(row)?);
            }
        }
        Ok(found)
    }

    /// Ends the try of a queued task instance that its executor could not start: as a failure, followed by another try at
    /// `retry_at` if there is one. Returns the run, or `None` when that hand-over is over already.
    ///
    /// # Errors
    /// As the database says.
    pub async fn fail_unstarted(
        &mut self,
        id: TaskInstanceId,
        sequence: i64,
        retry_at: Option<Timestamp>,
        cause: &str,
        now: Timestamp,
    ) -> Result<Option<DagRunKey>, StoreError> {
        let lock = self.dialect().for_update();
        let sql = format!("SELECT {COLUMNS} FROM task_instance WHERE id = ?{lock}");
        let Some(row) = self.query_one(&sql, params![id]).await? else {
            return Ok(None);
        };
        let ti = TaskInstanceRecord::read(row)?;
        let event = TaskEvent::Refuse { sequence, retry_at };
        let Ok(next) = ti.full_state()?.apply(event, ti.counters()) else {
            return Ok(None);
        };
        let next = next.name();
        let sql = "UPDATE task_instance SET state = ?, end_date = ?, not_before = ?, exit_cause = ?, reschedules = 0, \
                   next_method = NULL, next_kwargs = NULL, \
                   updated_at = ? WHERE id = ? AND state = 'queued' AND dispatch_seq = ?";
        let values = params![next.as_str(), now, retry_at, cause, now, id, sequence];
        if self.execute(sql, values).await?.rows != 1 {
            return Err(self.moved_meanwhile("fail unstarted", id));
        }
        self.execute(
            "DELETE FROM outbox WHERE ti_id = ? AND dispatch_seq <= ?",
            params![id, sequence],
        )
        .await?;
        if next == StateName::UpForRetry {
            self.keep_lost_try(&ti, cause, now).await?;
        }
        self.add_task_event(ti.run_key, ti.id, now).await?;
        Ok(Some(ti.run_key))
    }
}
