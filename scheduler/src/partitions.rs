//! Runs that updates of partitions start.

use crate::{Shared, new_task_instance_id};
use chrono::Utc;
use model::asset::UpdatedAsset;
use model::dag_run::DagRunType;
use model::partition::{ForeignAnswer, PartitionMapper};
use model::timetable::{Partition, PartitionedAssets, Timetable};
use model::{AssetId, DagId, Timestamp};
use scheduling::{DuePartition, PartitionUpdate, choose_partitions};
use std::collections::{HashMap, HashSet};
use store::repo::{DagRecord, NewRun, PartitionEvent, PartitionTarget};
use store::{Graph, StoreError, Tx};
use telemetry::metric;

/// Characters that a partition key may have.
const LONGEST_KEY: usize = 250;

impl Shared {
    /// Looks at the updates of partitions that wait for a DAG, and creates the runs that they ask for.
    pub(crate) async fn create_partition_runs(&self, dag_id: &DagId) -> Result<(), StoreError> {
        let now = Utc::now();
        let (created, started) = store::transact!(self.store, "create partition runs", |tx| {
            let Some(record) = tx.lock_dag(dag_id).await? else {
                return Ok((0, Vec::new()));
            };
            let created = self.create_for_partitions(tx, &record, now).await?;
            let started = self.start_queued(tx, &record, now).await?;
            Ok((created, started))
        })?;
        for key in &started {
            self.dirty.add(*key);
        }
        if created > 0 {
            metrics::counter!(metric::RUNS_CREATED, "type" => "asset_triggered").increment(created);
        }
        Ok(())
    }

    async fn create_for_partitions(
        &self,
        tx: &mut Tx,
        record: &DagRecord,
        now: Timestamp,
    ) -> Result<u64, StoreError> {
        if record.is_paused || record.is_stale || record.has_import_errors {
            return Ok(0);
        }
        let graph = self.graphs.get(tx, record.version_id).await?;
        let events = tx.partition_events(&record.dag_id).await?;
        let assets = tx.assets_of_partitions(&events).await?;
        let Timetable::PartitionedAssets(mapping) = &graph.dag.timetable else {
            for event in &events {
                tx.map_partition_event(&record.dag_id, event, &[], now).await?;
            }
            return Ok(0);
        };
        self.map_events(tx, record, mapping, (&events, &assets), now)
            .await?;
        let events = tx.partition_events(&record.dag_id).await?;
        let updates: Vec<PartitionUpdate> = events
            .iter()
            .filter_map(|event| {
                Some(PartitionUpdate {
                    asset: assets.get(&event.asset_id)?.clone(),
                    source_key: event.source_key.clone(),
                    source_date: event.source_date,
                    target_key: event.target_key.clone()?,
                    said: event
                        .said
                        .as_deref()
                        .and_then(|text| serde_json::from_str(text).ok()),
                })
            })
            .collect();
        let condition = graph.dag.asset_condition.as_ref();
        let due = condition.map(|condition| choose_partitions(mapping, condition, &updates));
        let due = due.unwrap_or_default();
        for partition in &due {
            create(tx, record, &graph, partition, now).await?;
        }
        Ok(due.len() as u64)
    }

    /// Decides for which partitions each new update is. One that cannot be mapped starts nothing, and that is told.
    async fn map_events(
        &self,
        tx: &mut Tx,
        record: &DagRecord,
        mapping: &PartitionedAssets,
        (events, assets): (&[PartitionEvent], &HashMap<AssetId, UpdatedAsset>),
        now: Timestamp,
    ) -> Result<(), StoreError> {
        let mut seen = HashSet::new();
        let is_open = |event: &&PartitionEvent| event.target_key.is_none() && !event.is_asked;
        for event in events.iter().filter(is_open) {
            if !seen.insert(event.event) {
                continue;
            }
            let Some(asset) = assets.get(&event.asset_id) else {
                tx.map_partition_event(&record.dag_id, event, &[], now).await?;
                continue;
            };
            let (name, key) = (&asset.key.name, &event.source_key);
            let mapper = mapping.mapper(&asset.key);
            if mapper.foreign.is_some() && event.said.is_none() {
                tx.ask_of_partition(&record.dag_id, event.event).await?;
                continue;
            }
            let default = self.config.scheduler.partition_mapper_max_downstream_keys;
            let targets = targets(mapper, event, default).unwrap_or_else(|why| {
                tracing::error!(dag_id = %record.dag_id, asset = name, "partition key {key:?} {why}; it starts no run");
                Vec::new()
            });
            tx.map_partition_event(&record.dag_id, event, &targets, now)
                .await?;
        }
        Ok(())
    }
}

/// The partitions that an update is for, as its mapper says, or said where only Python knows it; or why there are none.
fn targets(
    mapper: &PartitionMapper,
    event: &PartitionEvent,
    most: usize,
) -> Result<Vec<PartitionTarget>, String> {
    let refused = |why: String| format!("cannot be mapped: {why}");
    let (targets, own) = match &event.said {
        None => {
            let keys = mapper
                .to_downstream(&event.source_key)
                .map_err(|error| refused(error.to_string()))?;
            let native = |key| PartitionTarget { key, said: None };
            (keys.into_iter().map(native).collect(), mapper.max_downstream_keys)
        }
        Some(text) => {
            let answer: ForeignAnswer =
                serde_json::from_str(text).map_err(|error| refused(error.to_string()))?;
            if let Some(wrong) = answer.wrong {
                return Err(refused(wrong));
            }
            let mut targets = Vec::new();
            for target in &answer.targets {
                targets.push(PartitionTarget {
                    key: target.key.clone(),
                    said: serde_json::to_string(target).ok(),
                });
            }
            (targets, answer.most)
        }
    };
    let most = own.unwrap_or(most);
    if targets.len() > most {
        let number = targets.len();
        return Err(format!(
            "becomes {number} keys, more than partition_mapper_max_downstream_keys = {most}"
        ));
    }
    let is_too_long = |target: &PartitionTarget| target.key.chars().count() > LONGEST_KEY;
    if targets.iter().any(is_too_long) {
        return Err(format!("becomes one of more than {LONGEST_KEY} characters"));
    }
    Ok(targets)
}

async fn create(
    tx: &mut Tx,
    record: &DagRecord,
    graph: &Graph,
    partition: &DuePartition,
    now: Timestamp,
) -> Result<(), StoreError> {
    let span = tracing::info_span!("dag_run.create", dag.id = %record.dag_id);
    let run = NewRun {
        dag: &graph.dag,
        version_id: record.version_id,
        run_id: DagRunType::AssetTriggered.generate_run_id(now, Some(&crate::create::random_suffix())),
        run_type: DagRunType::AssetTriggered,
        logical_date: None,
        interval: None,
        run_after: now,
        conf: "{}".to_owned(),
        triggered_by: "asset",
        triggering_user: None,
        note: None,
        trace_context: telemetry::context_of(&span),
        partition: Some(Partition {
            key: partition.key.clone(),
            date: partition.date,
        }),
    };
    let key = tx.create_run(&run, &mut new_task_instance_id, now).await?;
    tx.consume_partition(&record.dag_id, key, &partition.key).await
}
