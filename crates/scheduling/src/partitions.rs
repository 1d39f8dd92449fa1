//! Which partitions have what their runs wait for.

use model::Timestamp;
use model::asset::{AssetCondition, UpdatedAsset};
use model::partition::ForeignTarget;
use model::timetable::PartitionedAssets;
use std::collections::{BTreeMap, BTreeSet};

/// An update of a partition, and the partition of the run that it is for.
#[derive(Debug, Clone)]
pub struct PartitionUpdate {
    /// The asset.
    pub asset: UpdatedAsset,
    /// Its partition.
    pub source_key: String,
    /// The partition date of the run that updated it.
    pub source_date: Option<Timestamp>,
    /// The partition of the run.
    pub target_key: String,
    /// What a mapper said of it that only Python knows.
    pub said: Option<ForeignTarget>,
}

/// A partition that a run is due for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DuePartition {
    /// Its key.
    pub key: String,
    /// Its date, where there is one that all agree on.
    pub date: Option<Timestamp>,
}

/// The partitions whose condition is met by these updates (in the order in which they came), the longest waiting first
/// (`SchedulerJobRunner._create_dagruns_for_partitioned_asset_dags`).
pub fn choose_partitions(
    assets: &PartitionedAssets,
    condition: &AssetCondition,
    updates: &[PartitionUpdate],
) -> Vec<DuePartition> {
    let mut order: Vec<&str> = Vec::new();
    let mut by_target: BTreeMap<&str, Vec<&PartitionUpdate>> = BTreeMap::new();
    for update in updates {
        let target = update.target_key.as_str();
        let entry = by_target.entry(target).or_default();
        if entry.is_empty() {
            order.push(target);
        }
        entry.push(update);
    }
    let due = |key: &&str| is_met(assets, condition, key, &by_target[key]);
    let order = order.into_iter().filter(due);
    order
        .map(|key| DuePartition {
            key: key.to_owned(),
            date: date_of(assets, key, &by_target[key]),
        })
        .collect()
}

fn is_met(
    assets: &PartitionedAssets,
    condition: &AssetCondition,
    key: &str,
    updates: &[&PartitionUpdate],
) -> bool {
    let mut come: BTreeMap<_, (&PartitionUpdate, BTreeSet<String>)> = BTreeMap::new();
    for update in updates.iter().filter(|update| update.asset.is_active) {
        let entry = come.entry(&update.asset.key).or_insert((update, BTreeSet::new()));
        entry.1.insert(update.source_key.clone());
    }
    let is_complete = |(update, keys): &&(&PartitionUpdate, BTreeSet<String>)| {
        let enough = match &update.said {
            Some(said) => said.is_satisfied(keys),
            None => assets.mapper(&update.asset.key).is_satisfied(key, keys),
        };
        enough.unwrap_or(false)
    };
    let complete: Vec<UpdatedAsset> = come
        .values()
        .filter(is_complete)
        .map(|(update, _)| update.asset.clone())
        .collect();
    condition.is_met(&complete)
}

/// The date that the assets' mappers read from the key; else the one that the updating runs carry over.
fn date_of(assets: &PartitionedAssets, key: &str, updates: &[&PartitionUpdate]) -> Option<Timestamp> {
    let (mut read, mut carried) = (BTreeSet::new(), BTreeSet::new());
    for update in updates {
        if let Some(said) = &update.said {
            read.extend(said.date());
            carried.extend(said.carried());
            continue;
        }
        let mapper = assets.mapper(&update.asset.key);
        read.extend(mapper.to_partition_date(key).ok()?);
        carried.extend(update.source_date.filter(|_| mapper.carries_date()));
    }
    let agreed = if read.is_empty() { carried } else { read };
    Some(agreed)
        .filter(|dates| dates.len() == 1)
        .and_then(|dates| dates.first().copied())
}

#[cfg(test)]
mod tests {
    use super::*;
    use model::asset::AssetKey;
    use model::timetable::Timetable;
    use serde_json::{Value, json};

    fn dag(config: Value) -> (PartitionedAssets, AssetCondition) {
        let asset =
            |name: &str| json!({"__type": "asset", "name": name, "uri": name, "group": "asset", "extra": {}});
        let condition = json!({"__type": "asset_all", "objects": [asset("a"), asset("b")]});
        let identity = json!({"__type": "airflow.partition_mappers.identity.IdentityMapper", "__var": {}});
        let timetable = json!({"__type": "airflow.timetables.simple.PartitionedAssetTimetable", "__var": {
            "asset_condition": condition, "default_partition_mapper": identity, "partition_mapper_config": config,
        }});
        match Timetable::from_serialized(&timetable) {
            Ok(Timetable::PartitionedAssets(assets)) => (
                *assets,
                AssetCondition::from_serialized(&condition).expect("a condition"),
            ),
            other => panic!("{other:?}"),
        }
    }

    fn update(asset: &str, source: &str, date: i64, target: &str) -> PartitionUpdate {
        PartitionUpdate {
            asset: UpdatedAsset {
                key: AssetKey {
                    name: asset.into(),
                    uri: asset.into(),
                },
                is_active: true,
                aliases: Vec::new(),
            },
            source_key: source.into(),
            source_date: model::time::from_micros(date).filter(|_| date > 0),
            target_key: target.into(),
            said: None,
        }
    }

    #[test]
    fn a_partition_is_due_once_all_its_assets_have_it() {
        let (assets, condition) = dag(json!([]));
        let mut updates = vec![
            update("a", "x", 5, "x"),
            update("a", "y", 5, "y"),
            update("b", "y", 0, "y"),
        ];
        let due = choose_partitions(&assets, &condition, &updates);
        assert_eq!(due.iter().map(|due| due.key.as_str()).collect::<Vec<_>>(), ["y"]);
        assert_eq!(
            due[0].date,
            model::time::from_micros(5),
            "the producer's date is carried over"
        );
        updates.push(update("b", "x", 7, "x"));
        let due = choose_partitions(&assets, &condition, &updates);
        assert_eq!(due[0].key, "x");
        assert_eq!(due[0].date, None, "the dates of x are not the same");
    }

    #[test]
    fn what_only_python_knows_is_taken_as_it_was_said() {
        let (assets, condition) = dag(json!([]));
        let said = |target: Value| serde_json::from_value::<ForeignTarget>(target).expect("an answer");
        let policy = json!({"__type": "airflow.partition_mappers.wait_policy.WaitForAll", "__var": {}});
        let rolled =
            said(json!({"key": "k", "date": 9, "is_rollup": true, "upstream": ["x", "y"], "policy": policy}));
        let mut updates = vec![
            PartitionUpdate {
                said: Some(rolled.clone()),
                ..update("a", "x", 0, "k")
            },
            PartitionUpdate {
                said: Some(said(json!({"key": "k", "carried": 5}))),
                ..update("b", "z", 5, "k")
            },
        ];
        assert!(choose_partitions(&assets, &condition, &updates).is_empty());
        updates.push(PartitionUpdate {
            said: Some(rolled),
            ..update("a", "y", 0, "k")
        });
        let due = choose_partitions(&assets, &condition, &updates);
        assert_eq!(
            due[0].date,
            model::time::from_micros(9),
            "its own date comes before one that is carried over"
        );
        let silent = said(json!({"key": "k", "is_rollup": true}));
        updates[2].said = Some(silent.clone());
        updates[0].said = Some(silent);
        assert!(choose_partitions(&assets, &condition, &updates).is_empty());
    }

    #[test]
    fn a_rollup_waits_for_every_key() {
        let rollup = json!({"__type": "airflow.partition_mappers.base.RollupMapper", "__var": {
            "upstream_mapper": {"__type": "airflow.partition_mappers.fixed_key.FixedKeyMapper", "__var": {"downstream_key": "all"}},
            "window": {"__type": "airflow.partition_mappers.window.SegmentWindow", "__var": {"segments": ["us", "eu"]}},
            "wait_policy": {"__type": "airflow.partition_mappers.wait_policy.WaitForAll", "__var": {}},
        }});
        let (assets, condition) = dag(json!([[{"__type": "asset_ref", "name": "a"}, rollup]]));
        let mut updates = vec![
            update("b", "all", 0, "all"),
            update("a", "us", 0, "all"),
            update("a", "us", 0, "all"),
        ];
        assert!(choose_partitions(&assets, &condition, &updates).is_empty());
        updates.push(update("a", "eu", 0, "all"));
        assert_eq!(choose_partitions(&assets, &condition, &updates).len(), 1);
    }
}
