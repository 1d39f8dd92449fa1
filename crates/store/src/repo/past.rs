//! What the runs before decide: what tasks with `depends_on_past` wait for (`PrevDagrunDep`), and whether too many failed.

use super::runs::RunRecord;
use crate::sql::Row;
use crate::unit_of_work::Tx;
use crate::{StoreError, params};
use model::dag::{Dag, Task};
use model::{DagId, DagRunKey, TaskId, Timestamp};
use std::collections::HashSet;

impl Tx {
    /// Pauses a DAG whose last runs all failed, as many as its `max_consecutive_failed_dag_runs` says
    /// (`DagRun._check_last_n_dagruns_failed`).
    ///
    /// # Errors
    /// As the database says.
    pub async fn pause_after_failures(&mut self, dag_id: &DagId, now: Timestamp) -> Result<(), StoreError> {
        let Some(most) = self.dag(dag_id).await?.map(|dag| dag.max_consecutive_failed) else {
            return Ok(());
        };
        if most == 0 {
            return Ok(());
        }
        let sql = "SELECT COUNT(*), COUNT(CASE WHEN state = 'failed' THEN 1 END) FROM \
                   (SELECT state FROM dag_run WHERE dag_id = ? ORDER BY run_after DESC, id DESC LIMIT ?) latest";
        let counts = self.query_one(sql, params![dag_id, most]).await?;
        let Some(mut row) = counts else { return Ok(()) };
        let (runs, failed): (i64, i64) = (row.next()?, row.next()?);
        if runs >= i64::from(most) && failed == runs {
            tracing::warn!(%dag_id, "the last {most} runs of the DAG failed; it is paused (max_consecutive_failed_dag_runs)");
            self.set_paused(dag_id, true, now).await?;
        }
        Ok(())
    }

    /// Tasks with `depends_on_past` that the run before does not let start.
    ///
    /// # Errors
    /// As the database says.
    pub async fn held_by_past(&mut self, dag: &Dag, run: &RunRecord) -> Result<HashSet<TaskId>, StoreError> {
        let mut held = HashSet::new();
        let (true, Some(logical_date)) = (
            dag.tasks.iter().any(|task| task.depends_on_past),
            run.logical_date,
        ) else {
            return Ok(held);
        };
        if self.is_first_of_its_backfill(run.key).await? {
            return Ok(held);
        }
        let Some((previous, date)) = self.run_before(dag, logical_date).await? else {
            return Ok(held);
        };
        for task in dag.tasks.iter().filter(|task| task.depends_on_past) {
            // Where runs make up for the past, there is one for each date: also for those before the task's own start.
            let before_its_start = dag.catchup && task.start_date.is_some_and(|start| date < start);
            if !before_its_start && self.is_held(dag, task, previous, logical_date).await? {
                held.insert(task.task_id.clone());
            }
        }
        Ok(held)
    }

    async fn is_held(
        &mut self,
        dag: &Dag,
        task: &Task,
        previous: DagRunKey,
        logical_date: Timestamp,
    ) -> Result<bool, StoreError> {
        let (all, open) = self.instances_of(previous, &task.task_id).await?;
        if all == 0 {
            let is_new = task.ignore_first_depends_on_past
                && !self.ran_before(dag, &task.task_id, logical_date).await?;
            return Ok(!is_new);
        }
        if open > 0 || !task.wait_for_downstream {
            return Ok(open > 0);
        }
        for &after in &task.downstream {
            if self.instances_of(previous, &dag.tasks[after].task_id).await?.1 > 0 {
                return Ok(true);
            }
        }
        Ok(false)
    }

    async fn is_first_of_its_backfill(&mut self, key: DagRunKey) -> Result<bool, StoreError> {
        let sql = "SELECT MIN(sort_ordinal) FROM backfill_run WHERE run_key = ?";
        let read = |mut row: Row| row.next::<Option<i64>>();
        let ordinal = self.query_one(sql, params![key]).await?.map(read).transpose()?;
        Ok(ordinal.flatten() == Some(1))
    }

    /// The run before; of a DAG that makes up for the past, the one before that is not by hand.
    pub(super) async fn run_before(
        &mut self,
        dag: &Dag,
        logical_date: Timestamp,
    ) -> Result<Option<(DagRunKey, Timestamp)>, StoreError> {
        let filter = if dag.catchup {
            " AND run_type <> 'manual'"
        } else {
            ""
        };
        let sql = format!(
            "SELECT id, logical_date FROM dag_run WHERE dag_id = ? AND logical_date < ?{filter} \
             ORDER BY logical_date DESC LIMIT 1"
        );
        let read = |mut row: Row| Ok((row.next()?, row.next()?));
        let row = self.query_one(&sql, params![&dag.dag_id, logical_date]).await?;
        row.map(read).transpose()
    }

    /// How many instances a task has in a run, and how many of them have neither succeeded nor been skipped.
    async fn instances_of(&mut self, run: DagRunKey, task_id: &TaskId) -> Result<(i64, i64), StoreError> {
        let sql = "SELECT COUNT(*), COUNT(CASE WHEN state NOT IN ('success', 'skipped') THEN 1 END) \
                   FROM task_instance WHERE run_key = ? AND task_id = ?";
        let read = |mut row: Row| Ok((row.next()?, row.next()?));
        let row = self.query_one(sql, params![run, task_id]).await?;
        Ok(row.map(read).transpose()?.unwrap_or_default())
    }

    /// Whether any run before that date has the task.
    async fn ran_before(
        &mut self,
        dag: &Dag,
        task_id: &TaskId,
        logical_date: Timestamp,
    ) -> Result<bool, StoreError> {
        let sql = "SELECT ti.id FROM dag_run JOIN task_instance ti ON ti.run_key = dag_run.id AND ti.task_id = ? \
                   WHERE dag_run.dag_id = ? AND dag_run.logical_date < ? LIMIT 1";
        let row = self
            .query_one(sql, params![task_id, &dag.dag_id, logical_date])
            .await?;
        Ok(row.is_some())
    }
}
