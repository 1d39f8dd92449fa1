//! Timetables whose runs are about partitions.

use super::clock::Clock;
use super::{
    CronExpression, DataInterval, NextRun, Restriction, RunImmediately, Timetable, TimetableError, Zone,
};
use crate::RunId;
use crate::asset::{AssetCondition, AssetKey, AssetLike};
use crate::dag_run::{DagRunType, is_valid_run_id};
use crate::partition::{DateFormat, PartitionError, PartitionMapper};
use crate::time::Timestamp;
use serde_json::{Map, Value};

/// What a run is about instead of a data interval.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Partition {
    /// Its name.
    pub key: String,
    /// The begin of its period, where it has one.
    pub date: Option<Timestamp>,
}

impl Timetable {
    /// Whether its runs are about partitions: they have no logical date and no data interval.
    pub fn is_partitioned(&self) -> bool {
        matches!(self, Self::CronPartition(_) | Self::PartitionedAssets(_))
    }

    /// Whether whoever asks for a run may name its partition.
    pub fn takes_partitions(&self) -> bool {
        self.is_partitioned() || matches!(self, Self::PartitionedAtRuntime)
    }

    /// The partition of the run that is due at that time, where the clock says which.
    ///
    /// # Errors
    /// When a cron expression names no date there.
    pub fn partition_of(&self, run_after: Timestamp) -> Result<Option<Partition>, TimetableError> {
        match self {
            Self::CronPartition(cron) => cron.partition_of(run_after).map(Some),
            _ => Ok(None),
        }
    }

    /// The begin of the period that a partition is about, where it has one.
    ///
    /// # Errors
    /// When the key is none of this timetable's.
    pub fn partition_date(&self, key: &str) -> Result<Option<Timestamp>, PartitionError> {
        match self {
            Self::CronPartition(cron) => cron.date_of(key).map(Some),
            Self::PartitionedAssets(assets) => assets.date_of(key),
            _ => Ok(None),
        }
    }

    /// What a clock in the timetable's zone means that shows what one in UTC shows at that instant, where its runs are
    /// about partitions; the instant itself otherwise.
    pub fn partition_instant(&self, at: Timestamp) -> Timestamp {
        match self {
            Self::CronPartition(cron) => cron.here(at),
            _ => at,
        }
    }

    /// The runs about partitions with dates from `from` to `to`, as the wall clock of the timetable's zone shows them
    /// (`iter_partition_dagrun_infos`).
    ///
    /// # Errors
    /// When a cron expression names no further date.
    pub fn partitions_between(
        &self,
        from: Timestamp,
        to: Timestamp,
        most: usize,
    ) -> Result<Vec<(NextRun, Partition)>, TimetableError> {
        match self {
            Self::CronPartition(cron) => cron.between(from, to, most),
            _ => Ok(Vec::new()),
        }
    }
}

impl Partition {
    /// The name of a run about it. What a run id may not have is left out, else no run of the DAG could be made (in
    /// Airflow none is).
    pub fn run_id(&self, run_type: DagRunType, run_after: Timestamp, suffix: &str) -> RunId {
        let fits = |c: &char| is_valid_run_id(c.encode_utf8(&mut [0; 4]));
        let key: String = self
            .key
            .chars()
            .map(|c| if fits(&c) { c } else { '_' })
            .take(120)
            .collect();
        run_type.generate_run_id(run_after, Some(&format!("_{key}__{suffix}")))
    }
}

/// Runs at the times of a cron expression, each about the partition so many times before or after
/// (`CronPartitionTimetable`).
#[derive(Debug, Clone)]
pub struct CronPartition {
    cron: CronExpression,
    zone: Zone,
    run_immediately: RunImmediately,
    /// From the time of a run to its partition's date, in times of the expression.
    offset: i64,
    key_format: DateFormat,
}

impl CronPartition {
    pub(super) fn from_serialized(
        cron: CronExpression,
        zone: Zone,
        body: &Value,
    ) -> Result<Self, TimetableError> {
        let format = body.get("key_format").and_then(Value::as_str);
        let format = format.ok_or_else(|| TimetableError::Malformed("`key_format` is missing".to_owned()))?;
        Ok(Self {
            cron,
            zone,
            run_immediately: RunImmediately::from_serialized(body.get("run_immediately")),
            offset: body.get("run_offset").and_then(Value::as_i64).unwrap_or(0),
            key_format: DateFormat::new(format),
        })
    }

    fn clock(&self) -> Clock<'_> {
        Clock {
            cron: &self.cron,
            zone: self.zone,
        }
    }

    pub(super) fn next_run(
        &self,
        last: Option<DataInterval>,
        restriction: &Restriction,
        now: Timestamp,
    ) -> Result<Option<NextRun>, TimetableError> {
        let at = self
            .clock()
            .trigger(last, restriction, now, self.run_immediately)?;
        let at = at.filter(|at| restriction.latest.is_none_or(|latest| *at <= latest));
        Ok(at.map(|at| NextRun::over(DataInterval::exact(at))))
    }

    pub(super) fn partition_of(&self, run_after: Timestamp) -> Result<Partition, TimetableError> {
        let clock = self.clock();
        let mut date = run_after;
        for _ in 0..self.offset.unsigned_abs() {
            date = if self.offset > 0 {
                clock.after(date)?
            } else {
                clock.before(date)?
            };
        }
        self.named(date)
    }

    fn named(&self, date: Timestamp) -> Result<Partition, TimetableError> {
        let key = self
            .key_format
            .format(self.zone.wall_clock(date), Some(self.zone));
        Ok(Partition {
            key: key.map_err(|error| TimetableError::Malformed(error.to_string()))?,
            date: Some(date),
        })
    }

    /// The partitions with dates between two readings of the zone's wall clock, both included; each runs at its date.
    pub(super) fn between(
        &self,
        from: Timestamp,
        to: Timestamp,
        most: usize,
    ) -> Result<Vec<(NextRun, Partition)>, TimetableError> {
        let (clock, to) = (self.clock(), self.here(to));
        let mut found = Vec::new();
        let mut at = clock.at_or_after(self.here(from))?;
        while at <= to && found.len() < most {
            found.push((NextRun::over(DataInterval::exact(at)), self.named(at)?));
            at = clock.after(at)?;
        }
        Ok(found)
    }

    /// What a clock in the zone means that shows what one in UTC shows at that instant.
    pub(super) fn here(&self, at: Timestamp) -> Timestamp {
        self.zone.instant(at.naive_utc())
    }

    pub(super) fn date_of(&self, key: &str) -> Result<Timestamp, PartitionError> {
        let read = self.key_format.parse(key, self.zone);
        read.map(|wall| self.zone.instant(wall)).map_err(|error| {
            PartitionError::Key(format!(
                "Partition key '{key}' does not match the timetable's key_format '{}': {error}",
                self.key_format.as_str()
            ))
        })
    }
}

/// The assets that a condition names; a reference by one of the two has only that.
fn named_assets(condition: &Value) -> Vec<AssetKey> {
    let condition = AssetCondition::from_serialized(condition);
    let leaves = condition.as_ref().map(AssetCondition::leaves).unwrap_or_default();
    let key = |name: &str, uri: &str| AssetKey {
        name: name.to_owned(),
        uri: uri.to_owned(),
    };
    leaves
        .into_iter()
        .filter_map(|leaf| match leaf {
            AssetLike::Asset(asset) => Some(asset.key.clone()),
            AssetLike::NameRef(name) => Some(key(name, "")),
            AssetLike::UriRef(uri) => Some(key("", uri)),
            AssetLike::Alias { .. } => None,
        })
        .collect()
}

/// How the updates of each asset become partitions (`PartitionedAssetTimetable`).
#[derive(Debug, Clone, PartialEq)]
pub struct PartitionedAssets {
    default: PartitionMapper,
    by_name: Vec<(String, PartitionMapper)>,
    by_uri: Vec<(String, PartitionMapper)>,
    /// The assets that the DAG waits for.
    assets: Vec<AssetKey>,
    /// What it is read from, to tell whether another version maps otherwise.
    serialized: String,
}

impl PartitionedAssets {
    pub(super) fn from_serialized(body: &Value) -> Result<Self, TimetableError> {
        let malformed = |error: PartitionError| TimetableError::Malformed(error.to_string());
        let read = |value: &Value| PartitionMapper::from_serialized(value).map_err(malformed);
        let default = body.get("default_partition_mapper").unwrap_or(&Value::Null);
        let config = body.get("partition_mapper_config").unwrap_or(&Value::Null);
        let mut mappers = Self {
            default: if default.is_null() {
                PartitionMapper::default()
            } else {
                read(default)?
            },
            by_name: Vec::new(),
            by_uri: Vec::new(),
            assets: body.get("asset_condition").map(named_assets).unwrap_or_default(),
            serialized: format!("{default}{config}"),
        };
        for entry in config.as_array().into_iter().flatten() {
            let (Some(assets), Some(mapper)) = (entry.get(0), entry.get(1)) else {
                continue;
            };
            let mapper = read(mapper)?;
            mappers.add(assets, &mapper);
        }
        Ok(mappers)
    }

    /// Gives a mapper to every asset of an expression.
    fn add(&mut self, assets: &Value, mapper: &PartitionMapper) {
        let body = assets.get("__var").unwrap_or(assets);
        let nothing = Map::new();
        let fields = body.as_object().unwrap_or(&nothing);
        let text = |key: &str| fields.get(key).and_then(Value::as_str).map(str::to_owned);
        match fields.get("objects").and_then(Value::as_array) {
            Some(objects) => objects.iter().for_each(|object| self.add(object, mapper)),
            None => {
                self.by_name
                    .extend(text("name").map(|name| (name, mapper.clone())));
                self.by_uri.extend(text("uri").map(|uri| (uri, mapper.clone())));
            }
        }
    }

    /// The mapper of an asset.
    pub fn mapper(&self, asset: &AssetKey) -> &PartitionMapper {
        let named = |entries: &'_ [(String, PartitionMapper)], word: &str| {
            entries.iter().rposition(|(entry, _)| entry == word)
        };
        named(&self.by_name, &asset.name)
            .map(|at| &self.by_name[at].1)
            .or_else(|| named(&self.by_uri, &asset.uri).map(|at| &self.by_uri[at].1))
            .unwrap_or(&self.default)
    }

    /// What the mapping is read from: the same text, the same mapping.
    pub fn serialized(&self) -> &str {
        &self.serialized
    }

    /// The period of a key, where all mappers that give one give the same.
    pub(super) fn date_of(&self, key: &str) -> Result<Option<Timestamp>, PartitionError> {
        let mut dates = Vec::new();
        // What only Python knows of a key it is asked when an asset is updated, not here.
        let known = self.assets.iter().map(|asset| self.mapper(asset));
        for mapper in known.filter(|mapper| mapper.foreign.is_none()) {
            let date = mapper.to_partition_date(key).map_err(|error| {
                let text = format!("Partition key '{key}' is invalid for this timetable's mappers: {error}");
                PartitionError::Key(text)
            })?;
            dates.extend(date);
        }
        dates.sort_unstable();
        dates.dedup();
        Ok(Some(dates).filter(|dates| dates.len() == 1).map(|dates| dates[0]))
    }
}
