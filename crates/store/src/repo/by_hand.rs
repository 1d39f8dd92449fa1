//! What people do to task instances: mark, clear, note, delete.

use super::tasks::TaskInstanceRecord;
use crate::unit_of_work::Tx;
use crate::{StoreError, params};
use model::dag::Task;
use model::task_instance::StateName;
use model::{DagRunKey, DagVersionId, TaskInstanceId, Timestamp};

impl Tx {
    /// Sets the outcome as a person asks. A process that runs is stopped when its worker hears that it lost its claim.
    ///
    /// # Errors
    /// As the database says.
    pub async fn mark_task_instance(
        &mut self,
        ti: &TaskInstanceRecord,
        to: StateName,
        now: Timestamp,
    ) -> Result<TaskInstanceRecord, StoreError> {
        let sql = "UPDATE task_instance SET state = ?, start_date = COALESCE(start_date, ?), end_date = ?, not_before = NULL, \
                   updated_at = ? WHERE id = ? AND state = ?";
        let values = params![to.as_str(), now, now, now, ti.id, ti.state.as_str()];
        if self.execute(sql, values).await?.rows != 1 {
            return Err(self.moved_meanwhile("mark", ti.id));
        }
        self.add_task_event(ti.run_key, ti.id, now).await?;
        Ok(TaskInstanceRecord {
            state: to,
            start_date: ti.start_date.or(Some(now)),
            end_date: Some(now),
            not_before: None,
            ..ti.clone()
        })
    }

    /// Clears a task instance so that it runs again; one that runs is stopped first.
    ///
    /// # Errors
    /// As the database says.
    pub async fn clear_task_instance(
        &mut self,
        ti: &TaskInstanceRecord,
        retries: u32,
        now: Timestamp,
    ) -> Result<(), StoreError> {
        let next = ti
            .full_state()?
            .apply(model::task_instance::TaskEvent::Clear, ti.counters())
            .map_err(|error| StoreError::Inconsistent(error.to_string()))?
            .name();
        self.keep_try(
            ti,
            if ti.state.is_finished() {
                ti.state
            } else {
                StateName::Failed
            },
            now,
        )
        .await?;
        let sql = "UPDATE task_instance SET state = ?, max_tries = ?, not_before = NULL, next_method = NULL, \
                   next_kwargs = NULL, reschedules = 0, exit_cause = NULL, infra_losses = 0, unstarted = NULL, worker_losses = NULL, \
                   updated_at = ? WHERE id = ? AND state = ?";
        let max_tries = if next == StateName::Restarting {
            ti.max_tries
        } else {
            ti.try_number.0 + retries
        };
        let values = params![next.as_str(), max_tries, now, ti.id, ti.state.as_str()];
        if self.execute(sql, values).await?.rows != 1 {
            return Err(self.moved_meanwhile("clear", ti.id));
        }
        self.add_task_event(ti.run_key, ti.id, now).await
    }

    /// Lets a cleared task instance run as another version of its DAG says (`TaskInstance.refresh_from_task`).
    ///
    /// # Errors
    /// As the database says.
    pub async fn move_to_version(
        &mut self,
        ti: &TaskInstanceRecord,
        task: &Task,
        version: DagVersionId,
        now: Timestamp,
    ) -> Result<(), StoreError> {
        let sql = "UPDATE task_instance SET version_id = ?, pool = ?, pool_slots = ?, queue = ?, priority_weight = ?, \
                   dispatch_order = ?, operator = ?, operator_name = ?, executor = ?, updated_at = ? WHERE id = ?";
        let values = params![
            version,
            &task.pool,
            task.pool_slots,
            &task.queue,
            task.priority_weight,
            -task.priority_weight,
            &task.task_type,
            &task.operator_name,
            task.executor.clone(),
            now,
            ti.id,
        ];
        self.execute(sql, values).await.map(|_| ())
    }

    /// Counts a clearing of a run, and starts it again if it had ended and `reset` says so.
    ///
    /// # Errors
    /// As the database says.
    pub async fn note_clearing(
        &mut self,
        key: DagRunKey,
        reset: bool,
        now: Timestamp,
    ) -> Result<(), StoreError> {
        let sql =
            "UPDATE dag_run SET clear_number = clear_number + 1, queued_at = ?, updated_at = ? WHERE id = ?";
        self.execute(sql, params![now, now, key]).await?;
        self.move_deadlines(key, now).await?;
        if reset {
            let sql = "UPDATE dag_run SET state = 'queued', start_date = NULL, end_date = NULL, last_decision_at = NULL \
                       WHERE id = ? AND state IN ('success', 'failed')";
            self.execute(sql, params![key]).await?;
        }
        self.add_run_event(key, now).await
    }

    /// Sets the note; `None` removes it.
    ///
    /// # Errors
    /// As the database says.
    pub async fn set_task_note(
        &mut self,
        id: TaskInstanceId,
        note: Option<&str>,
        now: Timestamp,
    ) -> Result<(), StoreError> {
        let sql = "UPDATE task_instance SET note = ?, updated_at = ? WHERE id = ?";
        self.execute(sql, params![note, now, id]).await.map(|_| ())
    }

    /// Deletes a task instance with all that it left.
    ///
    /// # Errors
    /// As the database says.
    pub async fn delete_task_instance(&mut self, ti: &TaskInstanceRecord) -> Result<(), StoreError> {
        for table in [
            "outbox",
            "rendered_fields",
            "task_instance_history",
            "ti_mutation",
        ] {
            self.execute(&format!("DELETE FROM {table} WHERE ti_id = ?"), params![ti.id])
                .await?;
        }
        let sql = "DELETE FROM xcom WHERE run_key = ? AND task_id = ? AND map_index = ?";
        self.execute(sql, params![ti.run_key, &ti.task_id, ti.map_index])
            .await?;
        self.execute("DELETE FROM task_instance WHERE id = ?", params![ti.id])
            .await?;
        Ok(())
    }
}
