//! Deadlines of runs.

use super::runs::NewRun;
use crate::sql::Row;
use crate::unit_of_work::Tx;
use crate::{StoreError, params};
use chrono::Duration;
use model::deadline::{DeadlineAlert, DeadlineInterval, DeadlineReference};
use model::{DagId, DagRunKey, Timestamp};
use serde_json::{Value as Json, json};

/// A deadline of which something must be asked before it is known when it is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct OpenDeadline {
    /// Its number.
    pub id: i64,
    /// The run.
    pub run_key: DagRunKey,
    /// The Variable that says how long it is, unless that is known.
    pub variable: Option<String>,
    /// How long it is, where that is known.
    pub length: Option<Duration>,
    /// The reference that only Python can ask from when on it counts, serialized; unless that is known.
    pub reference: Option<String>,
}

impl Tx {
    /// Sets the deadlines of a run that has just been made. One whose reference the run lacks is none.
    pub(super) async fn add_deadlines(
        &mut self,
        run: &NewRun<'_>,
        key: DagRunKey,
        now: Timestamp,
    ) -> Result<(), StoreError> {
        for alert in &run.dag.deadlines {
            let reference = match &alert.reference {
                DeadlineReference::Foreign(reference) => Some(reference.to_string()),
                DeadlineReference::LogicalDate
                | DeadlineReference::QueuedAt
                | DeadlineReference::Fixed(_)
                | DeadlineReference::AverageRuntime { .. } => None,
            };
            let Some(base) = self.base_of(run, alert, now).await? else {
                tracing::info!(dag_id = %run.dag.dag_id, run_id = %run.run_id, alert = alert.name, "the run has no deadline of this alert: {:?} is not known of it", alert.reference);
                continue;
            };
            let (interval, variable) = match &alert.interval {
                DeadlineInterval::Fixed(interval) => (interval.num_microseconds(), None),
                DeadlineInterval::Variable(key) => (None, Some(key.as_str())),
            };
            let is_queued = alert.reference == DeadlineReference::QueuedAt;
            let sql = "INSERT INTO deadline (run_key, name, base, is_queued_at, length, variable, deadline_at, missed, \
                       callback, created_at, updated_at, reference) VALUES (?, ?, ?, ?, ?, ?, ?, 0, ?, ?, ?, ?)";
            let is_known = reference.is_none();
            let at = interval
                .filter(|_| is_known)
                .and_then(|interval| base.checked_add_signed(Duration::microseconds(interval)));
            if at.is_none() && variable.is_none() && is_known {
                tracing::warn!(dag_id = %run.dag.dag_id, run_id = %run.run_id, alert = alert.name, "the run has no deadline of this alert: it would be beyond all time");
                continue;
            }
            let values = params![
                key,
                alert.name.clone(),
                base,
                is_queued,
                interval,
                variable,
                at,
                alert.callback.to_string(),
                now,
                now,
                reference
            ];
            self.execute(sql, values).await?;
        }
        Ok(())
    }

    /// From when on a deadline counts.
    async fn base_of(
        &mut self,
        run: &NewRun<'_>,
        alert: &DeadlineAlert,
        now: Timestamp,
    ) -> Result<Option<Timestamp>, StoreError> {
        Ok(match &alert.reference {
            DeadlineReference::LogicalDate => run.logical_date,
            DeadlineReference::QueuedAt => Some(now),
            DeadlineReference::Fixed(at) => Some(*at),
            DeadlineReference::AverageRuntime { most, least } => {
                let average = self.average_runtime(&run.dag.dag_id, *most, *least).await?;
                average.and_then(|average| now.checked_add_signed(average))
            }
            // Until it is asked.
            DeadlineReference::Foreign(_) => Some(now),
        })
    }

    /// What the last runs that succeeded took, if there are enough of them.
    async fn average_runtime(
        &mut self,
        dag_id: &DagId,
        most: u32,
        least: u32,
    ) -> Result<Option<Duration>, StoreError> {
        let sql = "SELECT start_date, end_date FROM dag_run WHERE dag_id = ? AND state = 'success' AND start_date IS NOT NULL \
                   AND end_date IS NOT NULL ORDER BY logical_date DESC LIMIT ?";
        let mut total = 0;
        let rows = self.query(sql, params![dag_id, most]).await?;
        let count = i64::try_from(rows.len()).unwrap_or(i64::MAX);
        for mut row in rows {
            let (start, end): (i64, i64) = (row.next()?, row.next()?);
            total += end - start;
        }
        Ok((count > 0 && count >= i64::from(least)).then(|| Duration::microseconds(total / count)))
    }

    /// Deadlines of which it is not known yet when they are.
    ///
    /// # Errors
    /// As the database says.
    pub async fn open_deadlines(&mut self, limit: i64) -> Result<Vec<OpenDeadline>, StoreError> {
        let sql = "SELECT id, run_key, variable, length, reference FROM deadline WHERE missed = 0 AND deadline_at IS NULL \
                   ORDER BY id LIMIT ?";
        let read = |mut row: Row| {
            Ok(OpenDeadline {
                id: row.next()?,
                run_key: row.next()?,
                variable: row.next()?,
                length: row.next::<Option<i64>>()?.map(Duration::microseconds),
                reference: row.next()?,
            })
        };
        let rows = self.query(sql, params![limit]).await?;
        rows.into_iter().map(read).collect()
    }

    /// Sets from when on a deadline counts, unless that is known, and its length; without one it is no deadline.
    ///
    /// # Errors
    /// As the database says.
    pub async fn set_deadline(
        &mut self,
        id: i64,
        base: Option<Timestamp>,
        length: Option<Duration>,
        now: Timestamp,
    ) -> Result<(), StoreError> {
        if let Some(base) = base {
            let sql = "UPDATE deadline SET base = ?, reference = NULL WHERE id = ? AND deadline_at IS NULL";
            self.execute(sql, params![base, id]).await?;
        }
        let Some(length) = length.and_then(|length| length.num_microseconds()) else {
            let sql = "DELETE FROM deadline WHERE id = ? AND deadline_at IS NULL";
            return self.execute(sql, params![id]).await.map(|_| ());
        };
        let sql = "UPDATE deadline SET length = ?, deadline_at = base + ?, updated_at = ? \
                   WHERE id = ? AND deadline_at IS NULL";
        self.execute(sql, params![length, length, now, id]).await?;
        // The run may have succeeded meanwhile.
        let sql = "DELETE FROM deadline WHERE id = ? AND missed = 0 AND EXISTS (SELECT 1 FROM dag_run r \
                   WHERE r.id = deadline.run_key AND r.state = 'success' AND r.end_date <= deadline.deadline_at)";
        self.execute(sql, params![id]).await.map(|_| ())
    }

    /// A run was queued anew: its deadlines that count from then on move, unless they were missed already.
    pub(super) async fn move_deadlines(&mut self, key: DagRunKey, now: Timestamp) -> Result<(), StoreError> {
        let sql = "UPDATE deadline SET base = ?, deadline_at = ? + length, updated_at = ? \
                   WHERE run_key = ? AND missed = 0 AND is_queued_at = 1";
        self.execute(sql, params![now, now, now, key]).await.map(|_| ())
    }

    /// A run succeeded: the deadlines that it kept are forgotten, as far as it is known when they are.
    ///
    /// # Errors
    /// As the database says.
    pub async fn keep_deadlines(&mut self, key: DagRunKey, now: Timestamp) -> Result<(), StoreError> {
        let sql = "DELETE FROM deadline WHERE run_key = ? AND missed = 0 AND deadline_at >= ?";
        self.execute(sql, params![key, now]).await.map(|_| ())
    }

    /// Deadlines that have passed, and of which nobody has been told.
    ///
    /// # Errors
    /// As the database says.
    pub async fn passed_deadlines(&mut self, now: Timestamp, limit: i64) -> Result<Vec<i64>, StoreError> {
        let sql = "SELECT id FROM deadline WHERE missed = 0 AND deadline_at < ? ORDER BY deadline_at LIMIT ?";
        let rows = self.query(sql, params![now, limit]).await?;
        rows.into_iter().map(|mut row| row.next()).collect()
    }

    /// A deadline is missed: its callback is to be called. The run, unless somebody else saw it first.
    ///
    /// # Errors
    /// As the database says.
    pub async fn miss_deadline(&mut self, id: i64, now: Timestamp) -> Result<Option<DagRunKey>, StoreError> {
        let sql =
            "UPDATE deadline SET missed = 1, updated_at = ? WHERE id = ? AND missed = 0 AND deadline_at < ?";
        if self.execute(sql, params![now, id, now]).await?.rows != 1 {
            return Ok(None);
        }
        let row = self
            .query_one("SELECT run_key FROM deadline WHERE id = ?", params![id])
            .await?;
        let Some(key) = row.map(|mut row| row.next::<DagRunKey>()).transpose()? else {
            return Ok(None);
        };
        let sql = "INSERT INTO run_callback (run_key, is_failure, reason, created_at, claimed_until, attempts, deadline_id) \
                   VALUES (?, 1, 'the deadline was missed', ?, 0, 0, ?)";
        self.execute(sql, params![key, now, id]).await?;
        Ok(Some(key))
    }

    /// What is called for a missed deadline: `path` and `kwargs` as the DAG has them, and the `deadline` itself.
    ///
    /// # Errors
    /// As the database says.
    pub async fn deadline_call(&mut self, id: i64) -> Result<Option<Json>, StoreError> {
        let sql = "SELECT callback, deadline_at FROM deadline WHERE id = ?";
        let Some(mut row) = self.query_one(sql, params![id]).await? else {
            return Ok(None);
        };
        let (text, at): (String, Timestamp) = (row.next()?, row.next()?);
        let callback: Json = serde_json::from_str(&text).unwrap_or_default();
        Ok(Some(json!({
            "path": callback.get("path"), "kwargs": callback.get("kwargs"),
            // Only a callback that is called, not awaited, names an executor, be it none.
            "is_awaited": callback.get("executor").is_none(),
            "deadline": {"id": id.to_string(), "deadline_time": model::time::rest_format(at)},
        })))
    }
}
