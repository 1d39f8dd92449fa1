//! Backfills: runs for dates in the past, under a limit of their own.

use super::list::Listing;
use super::runs::RunRecord;
use crate::sql::Row;
use crate::unit_of_work::Tx;
use crate::{StoreError, params};
use model::timetable::Partition;
use model::{BackfillId, DagId, DagRunKey, Timestamp};

const COLUMNS: &str = "id, dag_id, from_date, to_date, conf, is_paused, reprocess, max_active_runs, created_at, completed_at, \
    updated_at, triggering_user";

/// A backfill.
#[derive(Debug, Clone)]
#[expect(
    missing_docs,
    reason = "each field is the column of its name; the names are those of Airflow's Backfill"
)]
pub struct BackfillRecord {
    pub id: BackfillId,
    pub dag_id: DagId,
    pub from_date: Timestamp,
    pub to_date: Timestamp,
    /// JSON object, if parameters were given.
    pub conf: Option<String>,
    pub is_paused: bool,
    /// `none`, `failed` or `completed`.
    pub reprocess: String,
    pub max_active_runs: u32,
    pub created_at: Timestamp,
    pub completed_at: Option<Timestamp>,
    pub updated_at: Timestamp,
    pub triggering_user: Option<String>,
}

impl BackfillRecord {
    fn read(mut row: Row) -> Result<Self, StoreError> {
        Ok(Self {
            id: row.next()?,
            dag_id: row.next()?,
            from_date: row.next()?,
            to_date: row.next()?,
            conf: row.next()?,
            is_paused: row.next()?,
            reprocess: row.next()?,
            max_active_runs: row.next()?,
            created_at: row.next()?,
            completed_at: row.next()?,
            updated_at: row.next()?,
            triggering_user: row.next()?,
        })
    }
}

/// A backfill to make.
#[derive(Debug, Clone)]
#[expect(missing_docs, reason = "as in BackfillRecord")]
pub struct NewBackfill {
    pub dag_id: DagId,
    pub from_date: Timestamp,
    pub to_date: Timestamp,
    pub conf: Option<String>,
    pub reprocess: &'static str,
    pub max_active_runs: u32,
    pub triggering_user: Option<String>,
}

impl Tx {
    /// Makes a backfill without runs.
    ///
    /// # Errors
    /// As the database says.
    pub async fn create_backfill(
        &mut self,
        new: &NewBackfill,
        now: Timestamp,
    ) -> Result<BackfillId, StoreError> {
        let sql = "INSERT INTO backfill (dag_id, from_date, to_date, conf, is_paused, reprocess, max_active_runs, \
                   created_at, updated_at, triggering_user) VALUES (?, ?, ?, ?, 0, ?, ?, ?, ?, ?)";
        let values = params![
            &new.dag_id,
            new.from_date,
            new.to_date,
            new.conf.clone(),
            new.reprocess,
            new.max_active_runs,
            now,
            now,
            new.triggering_user.clone(),
        ];
        Ok(BackfillId(self.execute(sql, values).await?.last_key))
    }

    /// The backfill with that number.
    ///
    /// # Errors
    /// As the database says.
    pub async fn backfill(&mut self, id: BackfillId) -> Result<Option<BackfillRecord>, StoreError> {
        let sql = format!("SELECT {COLUMNS} FROM backfill WHERE id = ?");
        self.query_one(&sql, params![id])
            .await?
            .map(BackfillRecord::read)
            .transpose()
    }

    /// A page of backfills, and how many there are.
    ///
    /// # Errors
    /// As the database says.
    pub async fn backfills(&mut self, listing: &Listing) -> Result<(Vec<BackfillRecord>, i64), StoreError> {
        let (rows, total) = self.list("backfill", COLUMNS, listing).await?;
        let backfills = rows.into_iter().map(BackfillRecord::read);
        Ok((backfills.collect::<Result<_, _>>()?, total))
    }

    /// The backfills of a DAG that are not complete.
    ///
    /// # Errors
    /// As the database says.
    pub async fn open_backfills(&mut self, dag_id: &DagId) -> Result<Vec<BackfillRecord>, StoreError> {
        let sql =
            format!("SELECT {COLUMNS} FROM backfill WHERE dag_id = ? AND completed_at IS NULL ORDER BY id");
        let rows = self.query(&sql, params![dag_id]).await?;
        rows.into_iter().map(BackfillRecord::read).collect()
    }

    /// The backfills of a DAG that have queued runs and are not paused. Runs of one that is complete may have been
    /// cleared since.
    ///
    /// # Errors
    /// As the database says.
    pub async fn waiting_backfills(&mut self, dag_id: &DagId) -> Result<Vec<BackfillRecord>, StoreError> {
        let sql = format!(
            "SELECT {COLUMNS} FROM backfill WHERE dag_id = ? AND (is_paused = 0 OR completed_at IS NOT NULL) AND id IN \
             (SELECT backfill_id FROM dag_run WHERE dag_id = ? AND state = 'queued' AND backfill_id IS NOT NULL) ORDER BY id"
        );
        let rows = self.query(&sql, params![dag_id, dag_id]).await?;
        rows.into_iter().map(BackfillRecord::read).collect()
    }

    /// Notes what became of one of a backfill's dates: its run, or why it has none.
    ///
    /// # Errors
    /// As the database says.
    pub async fn add_backfill_run(
        &mut self,
        id: BackfillId,
        (logical_date, partition): (Option<Timestamp>, Option<&Partition>),
        ordinal: u32,
        run: Result<DagRunKey, &'static str>,
    ) -> Result<(), StoreError> {
        let sql = "INSERT INTO backfill_run (backfill_id, run_key, exception_reason, logical_date, partition_key, \
                   sort_ordinal) VALUES (?, ?, ?, ?, ?, ?)";
        let partition = partition.map(|partition| partition.key.as_str());
        let values = params![id, run.ok(), run.err(), logical_date, partition, ordinal];
        self.execute(sql, values).await?;
        if let Ok(key) = run {
            let sql = "UPDATE dag_run SET backfill_id = ?, run_type = 'backfill', triggered_by = 'backfill' WHERE id = ?";
            self.execute(sql, params![id, key]).await?;
        }
        Ok(())
    }

    /// Replaces the parameters of a run that a backfill runs again.
    ///
    /// # Errors
    /// As the database says.
    pub async fn set_run_conf(&mut self, key: DagRunKey, conf: &str) -> Result<(), StoreError> {
        let sql = "UPDATE dag_run SET conf = ? WHERE id = ?";
        self.execute(sql, params![conf, key]).await.map(|_| ())
    }

    /// Lets no further runs of a backfill start, or lets them again. Whether it is still open.
    ///
    /// # Errors
    /// As the database says.
    pub async fn set_backfill_paused(
        &mut self,
        id: BackfillId,
        paused: bool,
        now: Timestamp,
    ) -> Result<bool, StoreError> {
        let sql = "UPDATE backfill SET updated_at = CASE WHEN is_paused = ? THEN updated_at ELSE ? END, is_paused = ? \
                   WHERE id = ? AND completed_at IS NULL";
        Ok(self.execute(sql, params![paused, now, paused, id]).await?.rows == 1)
    }

    /// Ends a backfill: runs of it that have not started fail. Whether it was still open.
    ///
    /// # Errors
    /// As the database says.
    pub async fn cancel_backfill(&mut self, id: BackfillId, now: Timestamp) -> Result<bool, StoreError> {
        let sql = "UPDATE backfill SET is_paused = 1, completed_at = ?, updated_at = ? WHERE id = ? AND completed_at IS NULL";
        if self.execute(sql, params![now, now, id]).await?.rows != 1 {
            return Ok(false);
        }
        let sql = "UPDATE dag_run SET state = 'failed', end_date = ?, updated_at = ? WHERE backfill_id = ? AND state = 'queued'";
        self.execute(sql, params![now, now, id]).await?;
        Ok(true)
    }

    /// How many runs of a backfill are running.
    ///
    /// # Errors
    /// As the database says.
    pub async fn running_backfill_runs(&mut self, id: BackfillId) -> Result<u32, StoreError> {
        let sql = "SELECT COUNT(*) FROM dag_run WHERE backfill_id = ? AND state = 'running'";
        self.query_one(sql, params![id])
            .await?
            .map_or(Ok(0), |mut row| row.next())
    }

    /// Queued runs of a backfill in the order in which they start.
    ///
    /// # Errors
    /// As the database says.
    pub async fn queued_backfill_runs(
        &mut self,
        id: BackfillId,
        limit: u32,
    ) -> Result<Vec<DagRunKey>, StoreError> {
        let sql = "SELECT r.id FROM dag_run r JOIN backfill_run b ON b.run_key = r.id AND b.backfill_id = r.backfill_id \
                   WHERE r.backfill_id = ? AND r.state = 'queued' ORDER BY b.sort_ordinal LIMIT ?";
        let rows = self.query(sql, params![id, limit]).await?;
        rows.into_iter().map(|mut row| row.next()).collect()
    }

    /// Open backfills none of whose runs is left to end.
    ///
    /// # Errors
    /// As the database says.
    pub async fn exhausted_backfills(&mut self) -> Result<Vec<BackfillId>, StoreError> {
        let sql = "SELECT id FROM backfill b WHERE completed_at IS NULL AND NOT EXISTS (SELECT 1 FROM dag_run r \
                   WHERE r.backfill_id = b.id AND r.state IN ('queued', 'running'))";
        let rows = self.query(sql, &[]).await?;
        rows.into_iter().map(|mut row| row.next()).collect()
    }

    /// Notes that a backfill is complete.
    ///
    /// # Errors
    /// As the database says.
    pub async fn complete_backfill(&mut self, id: BackfillId, now: Timestamp) -> Result<(), StoreError> {
        let sql =
            "UPDATE backfill SET completed_at = ?, updated_at = ? WHERE id = ? AND completed_at IS NULL";
        self.execute(sql, params![now, now, id]).await.map(|_| ())
    }

    /// The run of a DAG with that logical date.
    ///
    /// # Errors
    /// As the database says.
    pub async fn run_dated(
        &mut self,
        dag_id: &DagId,
        logical_date: Timestamp,
    ) -> Result<Option<RunRecord>, StoreError> {
        let found = self
            .runs_dated(dag_id, Some(logical_date), Some(logical_date))
            .await?;
        Ok(found.into_iter().next())
    }
}
