//! Partitions: how keys of asset updates become keys of runs.
//!
//! Follows `airflow/partition_mappers/*.py`.

mod dates;
mod foreign;
mod window;

pub use dates::{DateFormat, FormatError};
pub use foreign::{ForeignAnswer, ForeignTarget};
pub use window::{WaitPolicy, Window};

use crate::time::Timestamp;
use crate::timetable::Zone;
use chrono::{Datelike, Duration, NaiveDateTime, NaiveTime, Timelike};
use serde_json::Value;
use std::collections::BTreeSet;
use thiserror::Error;

/// A key that a mapper cannot map, or a mapper that cannot be understood.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum PartitionError {
    /// The serialized form is wrong.
    #[error("partition mapper: {0}")]
    Malformed(String),
    /// A class that only Python knows.
    #[error("the partition mapper {0} is a class of its own, which only Python can ask")]
    Foreign(String),
    /// A key does not fit.
    #[error("{0}")]
    Key(String),
}

impl From<FormatError> for PartitionError {
    fn from(error: FormatError) -> Self {
        Self::Key(error.to_string())
    }
}

/// What a downstream key stands for.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub enum Decoded {
    /// A word.
    Text(String),
    /// The begin of a period, on the mapper's wall clock.
    Moment(NaiveDateTime),
}

/// Maps keys of asset updates to keys of runs.
#[derive(Debug, Clone, PartialEq)]
pub struct PartitionMapper {
    kind: Kind,
    /// Most keys that one key may become, where the mapper says so itself.
    pub max_downstream_keys: Option<usize>,
    /// The serialized form, where something in it is a class that only Python knows.
    pub foreign: Option<Value>,
}

#[derive(Debug, Clone, PartialEq)]
enum Kind {
    Identity,
    Allowed(Vec<String>),
    Fixed(String),
    StartOf {
        period: Period,
        zone: Zone,
        input: DateFormat,
        output: DateFormat,
    },
    Product {
        delimiter: String,
        mappers: Vec<PartitionMapper>,
    },
    Chain(Vec<PartitionMapper>),
    Rollup {
        upstream: Box<PartitionMapper>,
        window: Window,
        policy: WaitPolicy,
    },
    FanOut {
        upstream: Box<PartitionMapper>,
        window: Window,
        downstream: Box<PartitionMapper>,
    },
    Foreign(String),
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Period {
    Hour,
    Day,
    Week,
    Month,
    Quarter,
    Year,
}

impl Period {
    fn named(word: &str) -> Option<Self> {
        Some(match word {
            "StartOfHourMapper" => Self::Hour,
            "StartOfDayMapper" => Self::Day,
            "StartOfWeekMapper" => Self::Week,
            "StartOfMonthMapper" => Self::Month,
            "StartOfQuarterMapper" => Self::Quarter,
            "StartOfYearMapper" => Self::Year,
            _ => return None,
        })
    }

    fn start(self, at: NaiveDateTime) -> NaiveDateTime {
        let midnight = at.date().and_time(NaiveTime::MIN);
        let first = |month: u32| {
            let date = midnight
                .date()
                .with_day(1)
                .and_then(|date| date.with_month(month));
            date.map_or(midnight, |date| date.and_time(NaiveTime::MIN))
        };
        match self {
            Self::Hour => midnight + Duration::hours(i64::from(at.hour())),
            Self::Day => midnight,
            Self::Week => midnight - Duration::days(i64::from(at.weekday().num_days_from_monday())),
            Self::Month => first(at.month()),
            Self::Quarter => first(at.month0() / 3 * 3 + 1),
            Self::Year => first(1),
        }
    }
}

/// The identity, which a timetable has by default.
impl Default for PartitionMapper {
    fn default() -> Self {
        Self {
            kind: Kind::Identity,
            max_downstream_keys: None,
            foreign: None,
        }
    }
}

impl PartitionMapper {
    /// Reads the serialized form `{"__type": path, "__var": {...}}`.
    ///
    /// # Errors
    /// When a known mapper has parts that make no sense.
    pub fn from_serialized(value: &Value) -> Result<Self, PartitionError> {
        let class = value.get("__type").and_then(Value::as_str);
        let class = class.ok_or_else(|| PartitionError::Malformed("`__type` is missing".to_owned()))?;
        let body = value.get("__var").unwrap_or(&Value::Null);
        let most = body.get("max_downstream_keys").and_then(Value::as_u64);
        let name = class.strip_prefix("airflow.partition_mappers.").unwrap_or(class);
        let kind = Kind::from_serialized(class, name, body)?;
        Ok(Self {
            foreign: kind.is_foreign().then(|| value.clone()),
            kind,
            max_downstream_keys: most.and_then(|most| usize::try_from(most).ok()),
        })
    }

    /// The keys that a key becomes.
    ///
    /// # Errors
    /// When the mapper does not take that key.
    pub fn to_downstream(&self, key: &str) -> Result<Vec<String>, PartitionError> {
        let one = |key: String| Ok(vec![key]);
        match &self.kind {
            Kind::Identity => one(key.to_owned()),
            Kind::Allowed(keys) if keys.iter().any(|allowed| allowed == key) => one(key.to_owned()),
            Kind::Allowed(keys) => Err(PartitionError::Key(format!(
                "Key '{key}' not in allowed keys {keys:?}"
            ))),
            Kind::Fixed(fixed) => one(fixed.clone()),
            Kind::StartOf {
                period,
                zone,
                input,
                output,
            } => one(output.format(period.start(input.parse(key, *zone)?), Some(*zone))?),
            Kind::Product { delimiter, mappers } => {
                let parts: Vec<&str> = key.split(delimiter.as_str()).collect();
                if parts.len() != mappers.len() {
                    let text = format!("Expected {} segments in key, got {}", mappers.len(), parts.len());
                    return Err(PartitionError::Key(text));
                }
                let mapped = mappers.iter().zip(parts);
                let mapped: Vec<String> = mapped
                    .map(|(mapper, part)| mapper.to_single(part))
                    .collect::<Result<_, _>>()?;
                one(mapped.join(delimiter))
            }
            Kind::Chain(mappers) => {
                let mut keys = vec![key.to_owned()];
                for mapper in mappers {
                    let mapped: Vec<Vec<String>> = keys
                        .iter()
                        .map(|key| mapper.to_downstream(key))
                        .collect::<Result<_, _>>()?;
                    keys = mapped.into_iter().flatten().collect();
                }
                Ok(keys)
            }
            Kind::Rollup { upstream, .. } => upstream.to_downstream(key),
            Kind::FanOut {
                upstream,
                window,
                downstream,
            } => {
                let whole = upstream.decode(&upstream.to_single(key)?)?;
                let parts = window.members(&whole)?;
                parts.iter().map(|part| downstream.show(part)).collect()
            }
            Kind::Foreign(class) => Err(PartitionError::Foreign(class.clone())),
        }
    }

    fn to_single(&self, key: &str) -> Result<String, PartitionError> {
        let mut keys = self.to_downstream(key)?;
        match (keys.pop(), keys.is_empty()) {
            (Some(only), true) => Ok(only),
            _ => Err(PartitionError::Key(format!(
                "one key for {key:?} was expected of the mapper, and it gave another number"
            ))),
        }
    }

    /// The period that a downstream key is about.
    ///
    /// # Errors
    /// When the key does not fit.
    pub fn to_partition_date(&self, key: &str) -> Result<Option<Timestamp>, PartitionError> {
        match &self.kind {
            Kind::Identity | Kind::Allowed(_) | Kind::Fixed(_) => Ok(None),
            Kind::StartOf {
                period, zone, output, ..
            } => {
                let begin = period.start(output.parse(key, *zone)?);
                Ok(Some(zone.instant(begin)))
            }
            Kind::Product { delimiter, mappers } => {
                let parts: Vec<&str> = key.split(delimiter.as_str()).collect();
                if parts.len() != mappers.len() {
                    return Ok(None);
                }
                let mut dates = Vec::new();
                for (mapper, part) in mappers.iter().zip(parts) {
                    dates.extend(mapper.to_partition_date(part)?);
                }
                Ok(Some(dates).filter(|dates| dates.len() == 1).map(|dates| dates[0]))
            }
            Kind::Chain(mappers) => mappers
                .last()
                .map_or(Ok(None), |last| last.to_partition_date(key)),
            Kind::Rollup { upstream, .. } => upstream.to_partition_date(key),
            Kind::FanOut { downstream, .. } => downstream.to_partition_date(key),
            Kind::Foreign(class) => Err(PartitionError::Foreign(class.clone())),
        }
    }

    /// Whether a run has the partition date of the run that updated the asset.
    pub fn carries_date(&self) -> bool {
        matches!(self.kind, Kind::Identity)
    }

    /// Whether several keys become one, and a run waits for all of them.
    pub fn is_rollup(&self) -> bool {
        matches!(self.kind, Kind::Rollup { .. })
    }

    /// Whether the keys that have come are enough for a run of that key.
    ///
    /// # Errors
    /// When the key does not fit.
    pub fn is_satisfied(&self, key: &str, come: &BTreeSet<String>) -> Result<bool, PartitionError> {
        match &self.kind {
            Kind::Rollup { policy, .. } => Ok(policy.is_satisfied(come, &self.to_upstream(key)?)),
            Kind::Identity
            | Kind::Allowed(_)
            | Kind::Fixed(_)
            | Kind::StartOf { .. }
            | Kind::Product { .. }
            | Kind::Chain(_)
            | Kind::FanOut { .. }
            | Kind::Foreign(_) => Ok(!come.is_empty()),
        }
    }

    /// The keys that a run of that key is made of; the key itself where it is not a rollup.
    ///
    /// # Errors
    /// When the key does not fit.
    pub fn to_upstream(&self, key: &str) -> Result<BTreeSet<String>, PartitionError> {
        let Kind::Rollup { upstream, window, .. } = &self.kind else {
            return Ok(BTreeSet::from([key.to_owned()]));
        };
        let members = window.members(&upstream.decode(key)?)?;
        members.iter().map(|member| upstream.encode(member)).collect()
    }

    /// What a downstream key of this mapper stands for.
    fn decode(&self, key: &str) -> Result<Decoded, PartitionError> {
        match &self.kind {
            Kind::StartOf { zone, output, .. } => Ok(Decoded::Moment(output.parse(key, *zone)?)),
            Kind::Identity
            | Kind::Allowed(_)
            | Kind::Fixed(_)
            | Kind::Product { .. }
            | Kind::Chain(_)
            | Kind::Rollup { .. }
            | Kind::FanOut { .. }
            | Kind::Foreign(_) => Ok(Decoded::Text(key.to_owned())),
        }
    }

    /// The upstream key that stands for it.
    fn encode(&self, part: &Decoded) -> Result<String, PartitionError> {
        match (&self.kind, part) {
            (Kind::StartOf { zone, input, .. }, Decoded::Moment(at)) => {
                Ok(input.format(zone.wall_clock(zone.instant(*at)), Some(*zone))?)
            }
            (_, Decoded::Moment(at)) => Ok(dates::isoformat(*at)),
            (_, Decoded::Text(text)) => Ok(text.clone()),
        }
    }

    /// The downstream key that stands for it.
    fn show(&self, part: &Decoded) -> Result<String, PartitionError> {
        match (&self.kind, part) {
            (Kind::StartOf { output, .. }, Decoded::Moment(at)) => Ok(output.format(*at, None)?),
            (_, Decoded::Moment(at)) => Ok(dates::isoformat(*at)),
            (_, Decoded::Text(text)) => Ok(text.clone()),
        }
    }
}

impl Kind {
    fn is_foreign(&self) -> bool {
        let is = |mapper: &PartitionMapper| mapper.foreign.is_some();
        match self {
            Self::Identity | Self::Allowed(_) | Self::Fixed(_) | Self::StartOf { .. } => false,
            Self::Product { mappers, .. } | Self::Chain(mappers) => mappers.iter().any(is),
            Self::Rollup { upstream, window, .. } => is(upstream) || window.is_foreign(),
            Self::FanOut {
                upstream,
                window,
                downstream,
            } => is(upstream) || window.is_foreign() || is(downstream),
            Self::Foreign(_) => true,
        }
    }

    fn from_serialized(class: &str, name: &str, body: &Value) -> Result<Self, PartitionError> {
        let malformed = |what: &str| PartitionError::Malformed(format!("{class}: `{what}` is missing"));
        let part = |key: &str| body.get(key).ok_or_else(|| malformed(key));
        let text = |key: &str| Ok::<_, PartitionError>(part(key)?.as_str().unwrap_or_default().to_owned());
        let mapper = |key: &str| PartitionMapper::from_serialized(part(key)?).map(Box::new);
        let list = |key: &str| Ok::<_, PartitionError>(part(key)?.as_array().cloned().unwrap_or_default());
        let mappers = || {
            let list = list("mappers")?;
            list.iter()
                .map(PartitionMapper::from_serialized)
                .collect::<Result<Vec<_>, _>>()
        };
        Ok(match name {
            "identity.IdentityMapper" => Self::Identity,
            "allowed_key.AllowedKeyMapper" => {
                let keys = list("allowed_keys")?;
                Self::Allowed(
                    keys.iter()
                        .filter_map(|key| Some(key.as_str()?.to_owned()))
                        .collect(),
                )
            }
            "fixed_key.FixedKeyMapper" => Self::Fixed(text("downstream_key")?),
            "product.ProductMapper" => Self::Product {
                delimiter: text("delimiter")?,
                mappers: mappers()?,
            },
            "chain.ChainMapper" => Self::Chain(mappers()?),
            "base.RollupMapper" => Self::Rollup {
                upstream: mapper("upstream_mapper")?,
                window: Window::from_serialized(part("window")?)?,
                policy: WaitPolicy::from_serialized(part("wait_policy")?)?,
            },
            "temporal.FanOutMapper" => Self::FanOut {
                upstream: mapper("upstream_mapper")?,
                window: Window::from_serialized(part("window")?)?,
                downstream: mapper("downstream_mapper")?,
            },
            _ => match name.strip_prefix("temporal.").and_then(Period::named) {
                Some(period) => Self::StartOf {
                    period,
                    zone: Zone::from_serialized(body.get("timezone"))
                        .map_err(|error| PartitionError::Malformed(error.to_string()))?,
                    input: DateFormat::new(text("input_format")?),
                    output: DateFormat::new(text("output_format")?),
                },
                None => Self::Foreign(class.to_owned()),
            },
        })
    }
}

#[cfg(test)]
mod tests;
