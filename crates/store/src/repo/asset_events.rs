//! Updates of assets: who made them, which DAGs they concern, which runs consumed them.

use super::assets::{AssetAliasRecord, AssetRecord};
use super::list::Listing;
use super::runs::RunRecord;
use super::tasks::TaskInstanceRecord;
use crate::sql::{Row, Value, placeholders};
use crate::unit_of_work::Tx;
use crate::{StoreError, params};
use model::asset::UpdatedAsset;
use model::dag_run::DagRunType;
use model::{AssetEventId, AssetId, DagId, DagRunKey, MapIndex, RunId, TaskId, Timestamp};
use serde_json::{Map, Value as Json, json};
use std::collections::BTreeMap;

const COLUMNS: &str = "id, asset_id, created_at, extra, source_dag_id, source_run_id, source_task_id, source_map_index, \
    partition_key";

/// Updates that one statement consumes.
const CHUNK: usize = 200;

/// An update of an asset.
#[derive(Debug, Clone)]
#[expect(
    missing_docs,
    reason = "each field is the column of its name; the names are those of Airflow's AssetEvent"
)]
pub struct AssetEventRecord {
    pub id: AssetEventId,
    pub asset_id: AssetId,
    pub created_at: Timestamp,
    /// JSON object.
    pub extra: String,
    pub source_dag_id: Option<DagId>,
    pub source_run_id: Option<RunId>,
    pub source_task_id: Option<TaskId>,
    pub source_map_index: MapIndex,
    pub partition_key: Option<String>,
}

impl AssetEventRecord {
    fn read(mut row: Row) -> Result<Self, StoreError> {
        Ok(Self {
            id: row.next()?,
            asset_id: row.next()?,
            created_at: row.next()?,
            extra: row.next()?,
            source_dag_id: row.next()?,
            source_run_id: row.next()?,
            source_task_id: row.next()?,
            source_map_index: row.next()?,
            partition_key: row.next()?,
        })
    }
}

/// Who updated an asset.
#[derive(Debug, Clone, Copy)]
pub enum AssetEventSource<'a> {
    /// A task that succeeded.
    Task(&'a TaskInstanceRecord),
    /// A client, or something outside that a watcher saw.
    Outside,
}

impl<'a> AssetEventSource<'a> {
    pub(super) const fn task(self) -> Option<&'a TaskInstanceRecord> {
        match self {
            Self::Task(ti) => Some(ti),
            Self::Outside => None,
        }
    }
}

/// An update to note.
#[derive(Debug, Clone)]
pub struct NewAssetEvent<'a> {
    /// The asset.
    pub asset: AssetId,
    /// Who updated it.
    pub source: AssetEventSource<'a>,
    /// What is said about it.
    pub extra: &'a Map<String, Json>,
    /// The aliases through which it was updated.
    pub aliases: &'a [String],
    /// The partition that was updated.
    pub partition_key: Option<&'a str>,
    /// Its date, where the run that updated it is about the same partition.
    pub partition_date: Option<Timestamp>,
}

/// An update that waits to be consumed by a DAG.
#[derive(Debug, Clone)]
pub struct QueuedAssetEvent {
    /// The DAG.
    pub dag_id: DagId,
    /// The asset.
    pub asset_id: AssetId,
    /// When it was updated first since the DAG's last run.
    pub created_at: Timestamp,
}

/// What a DAG has not consumed yet.
#[derive(Debug, Clone)]
pub struct PendingAssets {
    /// The assets whose updates may start a run.
    pub updated: Vec<UpdatedAsset>,
    /// When the last of them was updated.
    pub last: Timestamp,
    /// All updates to consume, those that start nothing by themselves included.
    pub events: Vec<AssetEventId>,
}

/// Whether the reference `r` is by a DAG that waits for an asset: by its id, name and URI, or through an alias of the event.
pub(super) const WAITS_FOR: &str = "((r.kind = 'schedule' AND r.target = ?) \
    OR (r.kind = 'schedule_name' AND r.words = ?) OR (r.kind = 'schedule_uri' AND r.words = ?) \
    OR (r.kind = 'schedule_alias' AND r.target IN (SELECT alias_id FROM asset_event_alias WHERE event_id = ?)))";

impl Tx {
    /// Notes an update, and for which DAGs it is one.
    ///
    /// # Errors
    /// As the database says.
    pub async fn add_asset_event(
        &mut self,
        event: &NewAssetEvent<'_>,
        now: Timestamp,
    ) -> Result<AssetEventId, StoreError> {
        let source = event.source.task();
        let sql = "INSERT INTO asset_event (asset_id, created_at, extra, source_dag_id, source_run_id, source_task_id, \
                   source_map_index, partition_key) VALUES (?, ?, ?, ?, ?, ?, ?, ?)";
        let values = params![
            event.asset,
            now,
            Json::Object(event.extra.clone()).to_string(),
            source.map(|ti| &ti.dag_id),
            source.map(|ti| &ti.run_id),
            source.map(|ti| &ti.task_id),
            source.map_or(MapIndex::UNMAPPED, |ti| ti.map_index),
            event.partition_key.map(str::to_owned),
        ];
        let id = AssetEventId(self.execute(sql, values).await?.last_key);
        let mut is_new_for_alias = false;
        for alias in event.aliases {
            let alias = self.alias_id(alias, "asset", now).await?;
            let sql = "INSERT INTO asset_event_alias (event_id, alias_id) VALUES (?, ?)";
            self.execute(sql, params![id, alias]).await?;
            let head = self.dialect().insert_ignore();
            let sql = format!("{head} asset_alias_asset (alias_id, asset_id) VALUES (?, ?)");
            is_new_for_alias |= self.execute(&sql, params![alias, event.asset]).await?.rows == 1;
        }
        if is_new_for_alias {
            self.activate_assets().await?;
        }
        self.tell_of_asset_event(id, event, now).await?;
        // An update of one partition is none of the whole.
        match event.partition_key {
            None => self.queue_asset_event(id, event, now).await?,
            Some(key) => {
                let partition = (key, event.partition_date);
                self.queue_partition_event(id, event.asset, partition, now)
                    .await?;
            }
        }
        Ok(id)
    }

    async fn queue_asset_event(
        &mut self,
        id: AssetEventId,
        event: &NewAssetEvent<'_>,
        now: Timestamp,
    ) -> Result<(), StoreError> {
        let Some(asset) = self.asset_by_id(event.asset).await? else {
            return Ok(());
        };
        let sql = format!(
            "INSERT INTO asset_queue (dag_id, event_id, asset_id, is_trigger, created_at) \
                   SELECT DISTINCT r.dag_id, ?, ?, CASE WHEN d.is_paused = 0 THEN 1 ELSE 0 END, ? \
                   FROM asset_reference r JOIN dag d ON d.dag_id = r.dag_id \
                   WHERE d.timetable_type <> 'PartitionedAssetTimetable' AND {WAITS_FOR}"
        );
        let values = params![id, asset.id, now, asset.id, &asset.key.name, &asset.key.uri, id];
        self.execute(&sql, values).await.map(|_| ())
    }

    /// DAGs that are not paused and have updates that may start a run.
    ///
    /// # Errors
    /// As the database says.
    pub async fn dags_with_updated_assets(&mut self) -> Result<Vec<DagId>, StoreError> {
        let sql = "SELECT DISTINCT q.dag_id FROM asset_queue q JOIN dag d ON d.dag_id = q.dag_id \
                   WHERE q.is_trigger = 1 AND d.is_paused = 0 AND d.is_stale = 0 AND d.has_import_errors = 0";
        let rows = self.query(sql, &[]).await?;
        rows.into_iter().map(|mut row| row.next()).collect()
    }

    /// An asset as conditions know it.
    pub(super) async fn updated_asset(&mut self, id: AssetId) -> Result<Option<UpdatedAsset>, StoreError> {
        let Some(found) = self.asset_by_id(id).await? else {
            return Ok(None);
        };
        let aliases = self.aliases_of_asset(id).await?;
        Ok(Some(UpdatedAsset {
            key: found.key,
            is_active: found.is_active,
            aliases: aliases.into_iter().map(|alias| alias.name).collect(),
        }))
    }

    /// What a DAG (whose row is locked) has not consumed yet. `None` when nothing may start a run.
    ///
    /// # Errors
    /// As the database says.
    pub async fn pending_assets(&mut self, dag_id: &DagId) -> Result<Option<PendingAssets>, StoreError> {
        let sql = "SELECT event_id, asset_id, is_trigger, created_at FROM asset_queue WHERE dag_id = ? ORDER BY event_id";
        let mut assets: BTreeMap<AssetId, UpdatedAsset> = BTreeMap::new();
        let mut last = None;
        let mut events = Vec::new();
        for mut row in self.query(sql, params![dag_id]).await? {
            let (event, asset, is_trigger, at): (AssetEventId, AssetId, bool, Timestamp) =
                (row.next()?, row.next()?, row.next()?, row.next()?);
            events.push(event);
            if !is_trigger {
                continue;
            }
            last = last.max(Some(at));
            if assets.contains_key(&asset) {
                continue;
            }
            if let Some(updated) = self.updated_asset(asset).await? {
                assets.insert(asset, updated);
            }
        }
        Ok(last.map(|last| PendingAssets {
            updated: assets.into_values().collect(),
            last,
            events,
        }))
    }

    /// Gives updates to the run that they started: the DAG has consumed them.
    ///
    /// # Errors
    /// As the database says.
    pub async fn consume_asset_events(
        &mut self,
        dag_id: &DagId,
        run: DagRunKey,
        events: &[AssetEventId],
    ) -> Result<(), StoreError> {
        for chunk in events.chunks(CHUNK) {
            let rows = vec!["(?, ?)"; chunk.len()].join(", ");
            let sql = format!("INSERT INTO run_asset_event (run_key, event_id) VALUES {rows}");
            let values: Vec<Value> = chunk
                .iter()
                .flat_map(|event| [run.into(), (*event).into()])
                .collect();
            self.execute(&sql, &values).await?;
            let marks = placeholders(chunk.len());
            let sql = format!("DELETE FROM asset_queue WHERE dag_id = ? AND event_id IN ({marks})");
            let mut values = vec![Value::from(dag_id)];
            values.extend(chunk.iter().map(|event| Value::from(*event)));
            self.execute(&sql, &values).await?;
        }
        Ok(())
    }

    /// Updates that came before a DAG began to wait for its assets, for its very first run with `catchup`.
    ///
    /// # Errors
    /// As the database says.
    pub async fn earlier_asset_events(&mut self, dag_id: &DagId) -> Result<Vec<AssetEventId>, StoreError> {
        let sql = "SELECT COUNT(*) FROM dag_run WHERE dag_id = ? AND run_type = 'asset_triggered'";
        let runs: i64 = self
            .query_one(sql, params![dag_id])
            .await?
            .map_or(Ok(0), |mut row| row.next())?;
        if runs > 0 {
            return Ok(Vec::new());
        }
        let sql = "SELECT e.id FROM asset_event e WHERE e.partition_key IS NULL AND e.asset_id IN \
                   (SELECT target FROM asset_reference WHERE dag_id = ? AND kind = 'schedule') \
                   AND e.id < (SELECT MIN(event_id) FROM asset_queue WHERE dag_id = ?) ORDER BY e.id";
        let rows = self.query(sql, params![dag_id, dag_id]).await?;
        rows.into_iter().map(|mut row| row.next()).collect()
    }

    /// A page of updates, and how many there are.
    ///
    /// # Errors
    /// As the database says.
    pub async fn asset_events(
        &mut self,
        listing: &Listing,
    ) -> Result<(Vec<AssetEventRecord>, i64), StoreError> {
        let (rows, total) = self.list("asset_event", COLUMNS, listing).await?;
        let events = rows.into_iter().map(AssetEventRecord::read);
        Ok((events.collect::<Result<_, _>>()?, total))
    }

    /// The updates that a run consumed, the oldest first.
    ///
    /// # Errors
    /// As the database says.
    pub async fn consumed_asset_events(
        &mut self,
        run: DagRunKey,
    ) -> Result<Vec<AssetEventRecord>, StoreError> {
        let sql = format!(
            "SELECT {COLUMNS} FROM asset_event WHERE id IN (SELECT event_id FROM run_asset_event WHERE run_key = ?) \
             ORDER BY created_at, id"
        );
        let rows = self.query(&sql, params![run]).await?;
        rows.into_iter().map(AssetEventRecord::read).collect()
    }

    /// A run as the Task SDK knows it, with the updates that started it.
    ///
    /// # Errors
    /// As the database says.
    pub async fn run_for_sdk(&mut self, run: &RunRecord) -> Result<Json, StoreError> {
        let mut consumed = Vec::new();
        if run.run_type == DagRunType::AssetTriggered {
            for event in self.consumed_asset_events(run.key).await? {
                let asset = self.asset_of_event(&event).await?;
                let aliases = self.aliases_of_asset_event(event.id).await?;
                let aliases: Vec<Json> = aliases.iter().map(|alias| json!({"name": alias.name})).collect();
                let read = |text: &str| serde_json::from_str::<Json>(text).unwrap_or_else(|_| json!({}));
                consumed.push(json!({
                    "asset": {"name": asset.key.name, "uri": asset.key.uri, "extra": read(&asset.extra)},
                    "extra": read(&event.extra),
                    "source_task_id": event.source_task_id,
                    "source_dag_id": event.source_dag_id,
                    "source_run_id": event.source_run_id,
                    "source_map_index": event.source_map_index.0,
                    "source_aliases": aliases,
                    "timestamp": model::time::rest_format(event.created_at),
                    "partition_key": event.partition_key,
                }));
            }
        }
        Ok(run.for_sdk(consumed))
    }

    /// The runs that an update went into, each with whether it was the one that started it: its last.
    ///
    /// # Errors
    /// As the database says.
    pub async fn runs_of_asset_event(
        &mut self,
        event: AssetEventId,
    ) -> Result<Vec<(RunRecord, bool)>, StoreError> {
        let sql = "SELECT r.run_key, (SELECT MAX(o.event_id) FROM run_asset_event o WHERE o.run_key = r.run_key) \
                   FROM run_asset_event r WHERE r.event_id = ? ORDER BY r.run_key";
        let mut runs = Vec::new();
        for mut row in self.query(sql, params![event]).await? {
            let (key, last): (DagRunKey, AssetEventId) = (row.next()?, row.next()?);
            if let Some(run) = self.run_by_key(key).await? {
                runs.push((run, last == event));
            }
        }
        Ok(runs)
    }

    /// The aliases through which an update was made.
    ///
    /// # Errors
    /// As the database says.
    pub async fn aliases_of_asset_event(
        &mut self,
        event: AssetEventId,
    ) -> Result<Vec<AssetAliasRecord>, StoreError> {
        let sql = "SELECT id, name, asset_group FROM asset_alias \
                   WHERE id IN (SELECT alias_id FROM asset_event_alias WHERE event_id = ?) ORDER BY id";
        let rows = self.query(sql, params![event]).await?;
        rows.into_iter().map(AssetAliasRecord::read).collect()
    }

    /// What waits to be consumed, by DAG and asset; of one DAG, of one asset, and from before an instant, where given.
    ///
    /// # Errors
    /// As the database says.
    pub async fn queued_asset_events(
        &mut self,
        dag_id: Option<&DagId>,
        asset: Option<AssetId>,
        before: Option<Timestamp>,
    ) -> Result<Vec<QueuedAssetEvent>, StoreError> {
        let (filter, values) = queue_filter(dag_id, asset, before);
        let sql = format!(
            "SELECT dag_id, asset_id, MIN(created_at) FROM asset_queue WHERE {filter} \
             GROUP BY dag_id, asset_id ORDER BY dag_id, asset_id"
        );
        let read = |mut row: Row| {
            Ok(QueuedAssetEvent {
                dag_id: row.next()?,
                asset_id: row.next()?,
                created_at: row.next()?,
            })
        };
        self.query(&sql, &values).await?.into_iter().map(read).collect()
    }

    /// Lets what waits start nothing. Returns how much there was.
    ///
    /// # Errors
    /// As the database says.
    pub async fn drop_queued_asset_events(
        &mut self,
        dag_id: Option<&DagId>,
        asset: Option<AssetId>,
        before: Option<Timestamp>,
    ) -> Result<u64, StoreError> {
        let (filter, values) = queue_filter(dag_id, asset, before);
        let sql = format!("UPDATE asset_queue SET is_trigger = 0 WHERE {filter}");
        Ok(self.execute(&sql, &values).await?.rows)
    }

    /// The asset of an update.
    ///
    /// # Errors
    /// When it is gone.
    pub async fn asset_of_event(&mut self, event: &AssetEventRecord) -> Result<AssetRecord, StoreError> {
        let found = self.asset_by_id(event.asset_id).await?;
        found.ok_or_else(|| StoreError::Inconsistent(format!("asset {} of an event is gone", event.asset_id)))
    }
}

fn queue_filter(
    dag_id: Option<&DagId>,
    asset: Option<AssetId>,
    before: Option<Timestamp>,
) -> (String, Vec<Value>) {
    let mut filter = "is_trigger = 1".to_owned();
    let mut values = Vec::new();
    let conditions = [
        ("dag_id = ?", dag_id.map(Value::from)),
        ("asset_id = ?", asset.map(Value::from)),
        ("created_at < ?", before.map(Value::from)),
    ];
    for (condition, value) in conditions {
        if let Some(value) = value {
            filter.push_str(" AND ");
            filter.push_str(condition);
            values.push(value);
        }
    }
    (filter, values)
}
