//! Timetables as serialized DAGs have them.

use super::{
    CronExpression, CronPartition, Delta, PartitionedAssets, RunImmediately, Timetable, TimetableError, Zone,
};
use chrono::Duration;
use serde_json::Value;

impl Timetable {
    /// Reads the serialized form `{"__type": path, "__var": {...}}`.
    ///
    /// # Errors
    /// When a known timetable has parts that make no sense.
    pub fn from_serialized(value: &Value) -> Result<Self, TimetableError> {
        let class = value
            .get("__type")
            .and_then(Value::as_str)
            .ok_or_else(|| TimetableError::Malformed("`__type` is missing".to_owned()))?;
        let body = value.get("__var").unwrap_or(&Value::Null);
        let zone = || Zone::from_serialized(body.get("timezone"));
        let cron = |text: Option<&Value>| {
            let text = text.and_then(Value::as_str);
            CronExpression::parse(
                text.ok_or_else(|| TimetableError::Malformed("`expression` is missing".to_owned()))?,
            )
        };
        let name = class.strip_prefix("airflow.timetables.").unwrap_or(class);
        Ok(match name {
            "simple.NullTimetable" => Self::Null,
            "simple.PartitionedAtRuntime" => Self::PartitionedAtRuntime,
            "simple.PartitionedAssetTimetable" => {
                Self::PartitionedAssets(Box::new(PartitionedAssets::from_serialized(body)?))
            }
            "trigger.CronPartitionTimetable" => {
                let cron = cron(body.get("expression"))?;
                Self::CronPartition(Box::new(CronPartition::from_serialized(cron, zone()?, body)?))
            }
            "simple.OnceTimetable" => Self::Once,
            "simple.ContinuousTimetable" => Self::Continuous,
            "simple.AssetTriggeredTimetable" => Self::AssetTriggered,
            "assets.AssetOrTimeSchedule" => {
                let inner = body.get("timetable");
                let inner =
                    inner.ok_or_else(|| TimetableError::Malformed("`timetable` is missing".to_owned()))?;
                Self::AssetOrTime(Box::new(Self::from_serialized(inner)?))
            }
            "trigger.CronTriggerTimetable" => Self::CronTrigger {
                crons: vec![cron(body.get("expression"))?],
                zone: zone()?,
                interval: Delta::from_serialized(body.get("interval"))?,
                run_immediately: RunImmediately::from_serialized(body.get("run_immediately")),
            },
            "trigger.MultipleCronTriggerTimetable" => {
                let texts = body.get("expressions").and_then(Value::as_array);
                let texts =
                    texts.ok_or_else(|| TimetableError::Malformed("`expressions` is missing".to_owned()))?;
                Self::CronTrigger {
                    crons: texts
                        .iter()
                        .map(|text| cron(Some(text)))
                        .collect::<Result<_, _>>()?,
                    zone: zone()?,
                    interval: Delta::from_serialized(body.get("interval"))?,
                    run_immediately: RunImmediately::from_serialized(body.get("run_immediately")),
                }
            }
            "interval.CronDataIntervalTimetable" => Self::CronDataInterval {
                cron: Box::new(cron(body.get("expression"))?),
                zone: zone()?,
            },
            "trigger.DeltaTriggerTimetable" => Self::DeltaTrigger {
                delta: positive(Delta::from_serialized(body.get("delta"))?)?,
                interval: Delta::from_serialized(body.get("interval"))?,
            },
            "interval.DeltaDataIntervalTimetable" => Self::DeltaDataInterval {
                delta: positive(Delta::from_serialized(body.get("delta"))?)?,
            },
            "events.EventsTimetable" => events(body)?,
            _ => Self::Foreign {
                class: class.to_owned(),
            },
        })
    }
}

fn positive(delta: Delta) -> Result<Delta, TimetableError> {
    if delta.is_positive() {
        Ok(delta)
    } else {
        Err(TimetableError::Malformed(
            "schedule interval must be positive".to_owned(),
        ))
    }
}

fn events(body: &Value) -> Result<Timetable, TimetableError> {
    let texts = body.get("event_dates").and_then(Value::as_array);
    let texts = texts.ok_or_else(|| TimetableError::Malformed("`event_dates` is missing".to_owned()))?;
    let mut dates = Vec::new();
    for text in texts.iter().filter_map(Value::as_str) {
        let date = chrono::DateTime::parse_from_rfc3339(text)
            .map_err(|error| TimetableError::Malformed(format!("event date {text:?}: {error}")))?;
        dates.push(date.to_utc());
    }
    dates.sort_unstable();
    let restrict = body
        .get("restrict_to_events")
        .and_then(Value::as_bool)
        .unwrap_or(false);
    Ok(Timetable::Events { dates, restrict })
}

impl RunImmediately {
    pub(super) fn from_serialized(value: Option<&Value>) -> Self {
        match value {
            Some(Value::Bool(true)) => Self::Yes,
            Some(Value::Number(n)) => {
                Self::Within(Duration::microseconds((n.as_f64().unwrap_or(0.0) * 1e6) as i64))
            }
            None
            | Some(
                Value::Null | Value::Bool(false) | Value::String(_) | Value::Array(_) | Value::Object(_),
            ) => Self::IfRecent,
        }
    }
}
