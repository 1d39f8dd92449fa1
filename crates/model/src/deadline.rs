//! Deadlines: moments by which a run should have succeeded, and what is called when it has not.
//!
//! Follows `airflow/serialization/definitions/deadline.py`.

use crate::time::Timestamp;
use chrono::Duration;
use serde_json::Value;

/// A deadline that a DAG sets each of its runs.
#[derive(Debug, Clone, PartialEq)]
pub struct DeadlineAlert {
    /// What people call it.
    pub name: Option<String>,
    /// From when on it counts.
    pub reference: DeadlineReference,
    /// How long after that.
    pub interval: DeadlineInterval,
    /// What is called when it is missed, as serialized: `path` and `kwargs`.
    pub callback: Value,
}

/// From when on a deadline counts.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum DeadlineReference {
    /// The run's logical date.
    LogicalDate,
    /// When it was queued, the last time.
    QueuedAt,
    /// That moment.
    Fixed(Timestamp),
    /// When it is made, plus what the last runs that succeeded took on average.
    AverageRuntime {
        /// How many of them are looked at.
        most: u32,
        /// How many there must be.
        least: u32,
    },
    /// One that only Python knows, serialized.
    Foreign(Value),
}

/// How long after its reference a deadline is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum DeadlineInterval {
    /// So long.
    Fixed(Duration),
    /// As many seconds as a Variable says.
    Variable(String),
}

impl DeadlineAlert {
    /// Reads one entry of a serialized DAG's `deadline`; `None` when it makes no sense.
    pub fn from_serialized(value: &Value) -> Option<Self> {
        let reference = value.get("reference")?;
        let interval = value.get("interval")?;
        let data = interval.get("__data__").unwrap_or(interval);
        Some(Self {
            name: value.get("name").and_then(Value::as_str).map(str::to_owned),
            reference: DeadlineReference::from_serialized(reference)?,
            interval: match data.get("key").and_then(Value::as_str) {
                Some(key) => DeadlineInterval::Variable(key.to_owned()),
                None => DeadlineInterval::Fixed(micros(data.as_f64()?)),
            },
            callback: value.pointer("/callback/__data__")?.clone(),
        })
    }
}

fn micros(seconds: f64) -> Duration {
    Duration::microseconds((seconds * 1e6).round() as i64)
}

impl DeadlineReference {
    fn from_serialized(value: &Value) -> Option<Self> {
        let number = |key: &str| {
            value
                .get(key)
                .and_then(Value::as_u64)
                .and_then(|n| u32::try_from(n).ok())
        };
        let kind = value.get("reference_type")?.as_str()?;
        if value.get("__class_path").is_some() {
            return Some(Self::Foreign(value.clone()));
        }
        Some(match kind {
            "DagRunLogicalDateDeadline" => Self::LogicalDate,
            "DagRunQueuedAtDeadline" => Self::QueuedAt,
            "FixedDatetimeDeadline" => {
                let seconds = value.get("datetime")?.as_f64()?;
                Self::Fixed(crate::time::from_micros((seconds * 1e6).round() as i64)?)
            }
            "AverageRuntimeDeadline" => {
                let most = number("max_runs").unwrap_or(10);
                Self::AverageRuntime {
                    most,
                    least: number("min_runs").unwrap_or(most),
                }
            }
            _ => Self::Foreign(value.clone()),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn alerts_are_read_as_the_sdk_serializes_them() {
        let callback = json!({"__classname__": "airflow.sdk.definitions.callback.AsyncCallback", "__version__": 0,
            "__data__": {"path": "m.f", "kwargs": {"text": "hi"}}});
        let alert = |reference: Value, interval: Value| {
            let value =
                json!({"name": "n", "reference": reference, "interval": interval, "callback": callback});
            DeadlineAlert::from_serialized(&value)
        };
        let ten_minutes = json!({"__classname__": "datetime.timedelta", "__version__": 2, "__data__": 600.0});
        let queued = alert(
            json!({"reference_type": "DagRunQueuedAtDeadline"}),
            ten_minutes.clone(),
        )
        .expect("one");
        assert_eq!(queued.reference, DeadlineReference::QueuedAt);
        assert_eq!(queued.interval, DeadlineInterval::Fixed(Duration::minutes(10)));
        assert_eq!(queued.callback["path"], "m.f");
        let fixed = json!({"reference_type": "FixedDatetimeDeadline", "datetime": 1746316800.0});
        let variable = json!({"__classname__": "airflow.sdk.definitions.deadline.VariableInterval", "__version__": 0, "__data__": {"key": "k"}});
        let fixed = alert(fixed, variable).expect("one");
        assert_eq!(fixed.interval, DeadlineInterval::Variable("k".to_owned()));
        let average = json!({"reference_type": "AverageRuntimeDeadline", "max_runs": 5, "min_runs": 2});
        let average = alert(average, ten_minutes.clone()).expect("one");
        assert_eq!(
            average.reference,
            DeadlineReference::AverageRuntime { most: 5, least: 2 }
        );
        let mine = json!({"reference_type": "Mine", "__class_path": "m.Mine"});
        let own = alert(mine.clone(), ten_minutes).expect("one");
        assert_eq!(own.reference, DeadlineReference::Foreign(mine));
    }
}
