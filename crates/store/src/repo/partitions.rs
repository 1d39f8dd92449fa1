//! Updates of partitions that wait to start runs, and runs about partitions.

use super::asset_events::WAITS_FOR;
use super::runs::{COLUMNS as RUN, RunRecord};
use crate::sql::Row;
use crate::unit_of_work::Tx;
use crate::{StoreError, params};
use model::asset::UpdatedAsset;
use model::{AssetEventId, AssetId, DagId, DagRunKey, Timestamp};
use std::collections::HashMap;

/// An update of a partition that a DAG waits for.
#[derive(Debug, Clone)]
pub struct PartitionEvent {
    /// The update.
    pub event: AssetEventId,
    /// Of which asset.
    pub asset_id: AssetId,
    /// The partition that was updated.
    pub source_key: String,
    /// The partition date of the run that updated it, where the key is that run's own.
    pub source_date: Option<Timestamp>,
    /// The partition of the run that it is for; `None` while that is not decided.
    pub target_key: Option<String>,
    /// What a mapper said that only Python knows: of the target, or, while that is not decided, of the key.
    pub said: Option<String>,
    /// Whether such a mapper is being asked.
    pub is_asked: bool,
}

/// A partition of a run that an update is for, with what a mapper said of it that only Python knows.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PartitionTarget {
    /// The partition.
    pub key: String,
    /// JSON.
    pub said: Option<String>,
}

/// An update of a partition whose mapper only Python knows.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AskedPartition {
    /// The DAG whose mapper it is.
    pub dag_id: DagId,
    /// The update.
    pub event: AssetEventId,
    /// Of which asset.
    pub asset_id: AssetId,
    /// The partition that was updated.
    pub source_key: String,
    /// The partition date of the run that updated it.
    pub source_date: Option<Timestamp>,
}

/// Column `mapping` of an update that Python is asked about.
const ASKED: i64 = 2;
/// Of one that has started its run, kept while it still waits to start others: whatever becomes of that run, it does not
/// start it again.
const SERVED: &str = "(mapping IS NOT NULL AND mapping = 3)";

/// Runs about partitions that are meant: by name, by partition, or by partition date (both bounds included).
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum PartitionedRuns {
    /// The run of that name.
    Run(String),
    /// Those about that partition.
    Key(String),
    /// Those with a date in that range.
    Dated(Option<Timestamp>, Option<Timestamp>),
}

const PARTITIONED: &str = "('CronPartitionTimetable', 'PartitionedAssetTimetable')";

impl Tx {
    /// Notes an update of a partition for the DAGs that wait for partitions of the asset and are not paused.
    pub(super) async fn queue_partition_event(
        &mut self,
        event: AssetEventId,
        asset: AssetId,
        (key, date): (&str, Option<Timestamp>),
        now: Timestamp,
    ) -> Result<(), StoreError> {
        let Some(found) = self.asset_by_id(asset).await? else {
            return Ok(());
        };
        let sql = format!(
            "INSERT INTO partition_queue (dag_id, event_id, asset_id, source_key, source_date, created_at) \
             SELECT DISTINCT r.dag_id, ?, ?, ?, ?, ? FROM asset_reference r JOIN dag d ON d.dag_id = r.dag_id \
             WHERE d.is_paused = 0 AND d.timetable_type IN {PARTITIONED} AND {WAITS_FOR}"
        );
        let values = params![
            event,
            asset,
            key,
            date,
            now,
            asset,
            &found.key.name,
            &found.key.uri,
            event
        ];
        self.execute(&sql, values).await.map(|_| ())
    }

    /// DAGs with updates of partitions that nobody has looked at, or that another version of the DAG looked at.
    ///
    /// # Errors
    /// As the database says.
    pub async fn dags_with_updated_partitions(&mut self) -> Result<Vec<DagId>, StoreError> {
        let sql = "SELECT DISTINCT q.dag_id FROM partition_queue q JOIN dag d ON d.dag_id = q.dag_id \
                   WHERE q.mapping IS NULL AND d.is_paused = 0 AND d.is_stale = 0 AND d.has_import_errors = 0";
        let rows = self.query(sql, &[]).await?;
        rows.into_iter().map(|mut row| row.next()).collect()
    }

    /// Has the updates that wait for a DAG looked at again: it has changed.
    ///
    /// # Errors
    /// As the database says.
    pub async fn look_at_partitions_again(&mut self, dag_id: &DagId) -> Result<(), StoreError> {
        let sql = format!(
            "UPDATE partition_queue SET mapping = NULL, said = NULL WHERE dag_id = ? AND NOT {SERVED}"
        );
        self.execute(&sql, params![dag_id]).await.map(|_| ())
    }

    /// Has the updates of an asset looked at again: what waits for it may have come true.
    pub(super) async fn look_at_partitions_of(&mut self, asset: AssetId) -> Result<(), StoreError> {
        let sql = format!(
            "UPDATE partition_queue SET mapping = NULL, said = NULL WHERE asset_id = ? AND NOT {SERVED}"
        );
        self.execute(&sql, params![asset]).await.map(|_| ())
    }

    /// The updates that wait for a DAG (whose row is locked), the oldest first.
    ///
    /// # Errors
    /// As the database says.
    pub async fn partition_events(&mut self, dag_id: &DagId) -> Result<Vec<PartitionEvent>, StoreError> {
        let sql = format!(
            "SELECT event_id, asset_id, source_key, source_date, CASE WHEN mapping = 1 THEN target_key ELSE NULL END, said, \
             CASE WHEN mapping = ? THEN 1 ELSE 0 END FROM partition_queue WHERE dag_id = ? AND NOT {SERVED} \
             ORDER BY event_id, id"
        );
        let read = |mut row: Row| {
            Ok(PartitionEvent {
                event: row.next()?,
                asset_id: row.next()?,
                source_key: row.next()?,
                source_date: row.next()?,
                target_key: row.next()?,
                said: row.next()?,
                is_asked: row.next()?,
            })
        };
        let rows = self.query(&sql, params![ASKED, dag_id]).await?;
        rows.into_iter().map(read).collect()
    }

    /// The assets of these updates, as conditions know them.
    ///
    /// # Errors
    /// As the database says.
    pub async fn assets_of_partitions(
        &mut self,
        events: &[PartitionEvent],
    ) -> Result<HashMap<AssetId, UpdatedAsset>, StoreError> {
        let mut assets = HashMap::new();
        for event in events {
            if assets.contains_key(&event.asset_id) {
                continue;
            }
            if let Some(updated) = self.updated_asset(event.asset_id).await? {
                assets.insert(event.asset_id, updated);
            }
        }
        Ok(assets)
    }

    /// Decides for which partitions an update is; those that it has started a run of already are left out.
    ///
    /// # Errors
    /// As the database says.
    pub async fn map_partition_event(
        &mut self,
        dag_id: &DagId,
        event: &PartitionEvent,
        targets: &[PartitionTarget],
        now: Timestamp,
    ) -> Result<(), StoreError> {
        let sql = format!("DELETE FROM partition_queue WHERE dag_id = ? AND event_id = ? AND NOT {SERVED}");
        self.execute(&sql, params![dag_id, event.event]).await?;
        let sql =
            format!("SELECT target_key FROM partition_queue WHERE dag_id = ? AND event_id = ? AND {SERVED}");
        let rows = self.query(&sql, params![dag_id, event.event]).await?;
        let served: Vec<Option<String>> = rows
            .into_iter()
            .map(|mut row| row.next())
            .collect::<Result<_, _>>()?;
        for target in targets {
            if served.iter().flatten().any(|served| *served == target.key) {
                continue;
            }
            let sql = "INSERT INTO partition_queue (dag_id, event_id, asset_id, source_key, source_date, target_key, \
                       mapping, created_at, said) VALUES (?, ?, ?, ?, ?, ?, 1, ?, ?)";
            let values = params![
                dag_id,
                event.event,
                event.asset_id,
                &event.source_key,
                event.source_date,
                &target.key,
                now,
                target.said.clone()
            ];
            self.execute(sql, values).await?;
        }
        self.forget_served(dag_id).await
    }

    /// Forgets updates that have started all their runs.
    async fn forget_served(&mut self, dag_id: &DagId) -> Result<(), StoreError> {
        let sql = format!(
            "DELETE FROM partition_queue WHERE dag_id = ? AND {SERVED} AND event_id NOT IN \
             (SELECT event_id FROM (SELECT event_id FROM partition_queue WHERE dag_id = ? AND NOT {SERVED}) waiting)"
        );
        self.execute(&sql, params![dag_id, dag_id]).await.map(|_| ())
    }

    /// Has Python asked for which partitions an update is.
    ///
    /// # Errors
    /// As the database says.
    pub async fn ask_of_partition(&mut self, dag_id: &DagId, event: AssetEventId) -> Result<(), StoreError> {
        let sql =
            "UPDATE partition_queue SET mapping = ? WHERE dag_id = ? AND event_id = ? AND mapping IS NULL";
        self.execute(sql, params![ASKED, dag_id, event]).await.map(|_| ())
    }

    /// Updates that Python is asked about.
    ///
    /// # Errors
    /// As the database says.
    pub async fn asked_partitions(&mut self, limit: i64) -> Result<Vec<AskedPartition>, StoreError> {
        let sql = "SELECT DISTINCT dag_id, event_id, asset_id, source_key, source_date FROM partition_queue \
                   WHERE mapping = ? ORDER BY event_id, dag_id LIMIT ?";
        let read = |mut row: Row| {
            Ok(AskedPartition {
                dag_id: row.next()?,
                event: row.next()?,
                asset_id: row.next()?,
                source_key: row.next()?,
                source_date: row.next()?,
            })
        };
        let rows = self.query(sql, params![ASKED, limit]).await?;
        rows.into_iter().map(read).collect()
    }

    /// Notes what Python said of an update; the scheduler looks at it again. Whether it was still asked: the DAG may have
    /// changed, and with it its mapper.
    ///
    /// # Errors
    /// As the database says.
    pub async fn answer_partition(&mut self, asked: &AskedPartition, said: &str) -> Result<bool, StoreError> {
        let sql = "UPDATE partition_queue SET said = ?, mapping = NULL \
                   WHERE dag_id = ? AND event_id = ? AND mapping = ?";
        let values = params![said, &asked.dag_id, asked.event, ASKED];
        Ok(self.execute(sql, values).await?.rows > 0)
    }

    /// Gives the updates for a partition to the run that they started.
    ///
    /// # Errors
    /// As the database says.
    pub async fn consume_partition(
        &mut self,
        dag_id: &DagId,
        run: DagRunKey,
        target: &str,
    ) -> Result<(), StoreError> {
        let sql = "INSERT INTO run_asset_event (run_key, event_id) \
                   SELECT DISTINCT ?, event_id FROM partition_queue WHERE dag_id = ? AND target_key = ? AND mapping = 1";
        self.execute(sql, params![run, dag_id, target]).await?;
        let sql =
            "UPDATE partition_queue SET mapping = 3 WHERE dag_id = ? AND target_key = ? AND mapping = 1";
        self.execute(sql, params![dag_id, target]).await?;
        self.forget_served(dag_id).await
    }

    /// When the latest run about a partition was due that the DAG's timetable or a backfill made.
    ///
    /// # Errors
    /// As the database says.
    pub async fn last_partitioned_run(&mut self, dag_id: &DagId) -> Result<Option<Timestamp>, StoreError> {
        let sql = "SELECT run_after FROM dag_run WHERE dag_id = ? AND run_type IN ('scheduled', 'backfill') \
                   AND partition_key IS NOT NULL \
                   ORDER BY CASE WHEN partition_date IS NULL THEN 1 ELSE 0 END, partition_date DESC, run_after DESC LIMIT 1";
        let row = self.query_one(sql, params![dag_id]).await?;
        row.map(|mut row| row.next()).transpose()
    }

    /// The latest run about the partition with that date.
    ///
    /// # Errors
    /// As the database says.
    pub async fn run_about(
        &mut self,
        dag_id: &DagId,
        date: Option<Timestamp>,
    ) -> Result<Option<RunRecord>, StoreError> {
        let sql = format!(
            "SELECT {RUN} FROM dag_run WHERE dag_id = ? AND partition_date = ? \
             ORDER BY CASE WHEN start_date IS NULL THEN 1 ELSE 0 END, start_date DESC, id DESC LIMIT 1"
        );
        let row = self.query_one(&sql, params![dag_id, date]).await?;
        row.map(RunRecord::read).transpose()
    }

    /// The runs of a DAG that are meant, in the order of their partition dates.
    ///
    /// # Errors
    /// As the database says.
    pub async fn partitioned_runs(
        &mut self,
        dag_id: &DagId,
        wanted: &PartitionedRuns,
    ) -> Result<Vec<RunRecord>, StoreError> {
        let mut values = params![dag_id].to_vec();
        let mut conditions = String::new();
        match wanted {
            PartitionedRuns::Run(run_id) => {
                conditions.push_str(" AND run_id = ?");
                values.push(run_id.as_str().into());
            }
            PartitionedRuns::Key(key) => {
                conditions.push_str(" AND partition_key = ?");
                values.push(key.as_str().into());
            }
            PartitionedRuns::Dated(from, to) => {
                conditions.push_str(" AND partition_date IS NOT NULL");
                for (operator, bound) in [(">=", from), ("<=", to)] {
                    if let Some(bound) = bound {
                        conditions.push_str(&format!(" AND partition_date {operator} ?"));
                        values.push((*bound).into());
                    }
                }
            }
        }
        let sql =
            format!("SELECT {RUN} FROM dag_run WHERE dag_id = ?{conditions} ORDER BY partition_date, run_id");
        let rows = self.query(&sql, &values).await?;
        rows.into_iter().map(RunRecord::read).collect()
    }

    /// Lets a run be about no partition any more. Whether it was about one.
    ///
    /// # Errors
    /// As the database says.
    pub async fn clear_partition(&mut self, run: DagRunKey, now: Timestamp) -> Result<bool, StoreError> {
        let sql = "UPDATE dag_run SET partition_key = NULL, partition_date = NULL, updated_at = ? \
                   WHERE id = ? AND (partition_key IS NOT NULL OR partition_date IS NOT NULL)";
        Ok(self.execute(sql, params![now, run]).await?.rows == 1)
    }
}
