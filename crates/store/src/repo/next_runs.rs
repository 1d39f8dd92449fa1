//! When DAGs run next by themselves.

use crate::unit_of_work::Tx;
use crate::{StoreError, params};
use model::timetable::NextRun;
use model::{DagId, RunId, Timestamp};

impl Tx {
    /// Stores when the DAG runs next by itself; `None` for never.
    ///
    /// # Errors
    /// As the database says.
    pub async fn set_next_run(&mut self, dag_id: &DagId, next: Option<NextRun>) -> Result<(), StoreError> {
        let sql = "UPDATE dag SET next_logical_date = ?, next_interval_start = ?, next_interval_end = ?, next_run_after = ? \
                   WHERE dag_id = ?";
        let values = params![
            next.map(|run| run.logical_date),
            next.map(|run| run.interval.start),
            next.map(|run| run.interval.end),
            next.map(|run| run.run_after),
            dag_id,
        ];
        self.execute(sql, values).await.map(|_| ())
    }

    /// Stores the name that the DAG's next run has; `None` for the usual one.
    ///
    /// # Errors
    /// As the database says.
    pub async fn set_next_run_id(&mut self, dag_id: &DagId, run_id: Option<&str>) -> Result<(), StoreError> {
        let sql = "UPDATE dag SET next_run_id = ? WHERE dag_id = ?";
        self.execute(sql, params![run_id, dag_id]).await.map(|_| ())
    }

    /// The name that the DAG's next run has, where it is not the usual one.
    ///
    /// # Errors
    /// As the database says.
    pub async fn next_run_id(&mut self, dag_id: &DagId) -> Result<Option<RunId>, StoreError> {
        let row = self
            .query_one("SELECT next_run_id FROM dag WHERE dag_id = ?", params![dag_id])
            .await?;
        row.map_or(Ok(None), |mut row| row.next())
    }

    /// DAGs whose next run is due, the longest due first.
    ///
    /// # Errors
    /// As the database says.
    pub async fn due_dags(&mut self, now: Timestamp, limit: i64) -> Result<Vec<DagId>, StoreError> {
        let sql = "SELECT dag_id FROM dag WHERE is_paused = 0 AND is_stale = 0 AND next_run_after <= ? \
                   AND has_import_errors = 0 ORDER BY next_run_after LIMIT ?";
        self.query(sql, params![now, limit])
            .await?
            .into_iter()
            .map(|mut row| row.next())
            .collect()
    }

    /// When the next run after `now` is due.
    ///
    /// # Errors
    /// As the database says.
    pub async fn next_due(&mut self, now: Timestamp) -> Result<Option<Timestamp>, StoreError> {
        let sql =
            "SELECT MIN(next_run_after) FROM dag WHERE is_paused = 0 AND is_stale = 0 AND next_run_after > ?";
        self.query_one(sql, params![now])
            .await?
            .map_or(Ok(None), |mut row| row.next())
    }
}
