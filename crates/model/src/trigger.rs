//! Triggers: those that fire at a time, which need no Python, and what becomes of tasks when any other one fires.

use crate::Timestamp;
use crate::task_instance::Outcome;
use chrono::{DateTime, Duration, Utc};
use serde_json::{Map, Value};

/// What a task that was handed over to a time goes on with.
#[derive(Debug, Clone, PartialEq)]
pub struct Deferral {
    /// When it goes on.
    pub until: Timestamp,
    /// The method to go on with and its arguments; `None` when the task is done by then.
    pub next: Option<(String, Map<String, Value>)>,
}

/// `next_method` of a task whose trigger did not fire in time: the SDK fails it (`TRIGGER_FAIL_REPR`).
const FAIL: &str = "__fail__";
/// `TriggerFailureReason.TRIGGER_TIMEOUT`
const TIMEOUT: &str = "Trigger timeout";
/// `TriggerFailureReason.TRIGGER_FAILURE`
const FAILURE: &str = "Trigger failure";

/// What a task goes on with whose trigger does not fire in time: method and arguments.
pub fn timed_out() -> (String, Map<String, Value>) {
    let error = Map::from_iter([("error".to_owned(), TIMEOUT.into())]);
    (FAIL.to_owned(), error)
}

/// What came of a trigger.
#[derive(Debug, Clone, PartialEq)]
pub enum TriggerEvent {
    /// It fired, with this payload as the Task SDK serializes it.
    Fired(Value),
    /// It ended the task, which leaves these XComs behind (keys and JSON).
    Ended {
        /// How.
        outcome: Outcome,
        /// Keys and values.
        xcoms: Vec<(String, String)>,
    },
    /// It failed: the lines of a traceback.
    Failed(Vec<String>),
}

impl TriggerEvent {
    /// The method that the task goes on with and its arguments (JSON), where `next` is what it asked for.
    pub fn goes_on_with(&self, next: (Option<&str>, Option<&str>)) -> (String, String) {
        let (method, arguments) = next;
        let arguments = arguments.and_then(|text| serde_json::from_str::<Map<String, Value>>(text).ok());
        match self {
            Self::Fired(payload) => {
                let mut arguments = arguments.unwrap_or_default();
                arguments.insert("event".to_owned(), payload.clone());
                let method = method.unwrap_or("execute_complete").to_owned();
                (method, Value::Object(arguments).to_string())
            }
            Self::Failed(_) | Self::Ended { .. } => {
                let lines = match self {
                    Self::Failed(lines) => lines.as_slice(),
                    Self::Fired(_) | Self::Ended { .. } => &[],
                };
                let error = serde_json::json!({"error": FAILURE, "traceback": lines});
                (FAIL.to_owned(), error.to_string())
            }
        }
    }
}

/// The trigger that a task begins with: no worker starts it (`start_from_trigger`, `StartTriggerArgs`).
#[derive(Debug, Clone, PartialEq)]
pub struct StartTrigger {
    /// Import path of the trigger's class.
    pub classpath: String,
    /// Its arguments, as the triggerer reads them.
    pub kwargs: Value,
    /// The method to go on with.
    pub next_method: String,
    /// The arguments to go on with, as the Task SDK serializes them.
    pub next_kwargs: Map<String, Value>,
    /// How long the trigger may take.
    pub timeout: Option<Duration>,
}

impl StartTrigger {
    /// Reads what a serialized task has as `start_trigger_args`.
    pub fn from_serialized(value: &Value) -> Option<Self> {
        let text = |key: &str| value.get(key).and_then(Value::as_str).map(str::to_owned);
        let seconds = value.get("timeout").and_then(Value::as_f64);
        let next_kwargs = value.get("next_kwargs").map(for_sdk);
        Some(Self {
            classpath: text("trigger_cls")?,
            kwargs: value
                .get("trigger_kwargs")
                .filter(|kwargs| !kwargs.is_null())
                .cloned()
                .unwrap_or_else(|| serde_json::json!({})),
            next_method: text("next_method")?,
            next_kwargs: next_kwargs
                .and_then(|kwargs| kwargs.as_object().cloned())
                .unwrap_or_default(),
            timeout: seconds.map(|seconds| Duration::microseconds((seconds * 1e6) as i64)),
        })
    }
}

/// A value as serialized DAGs have it, in the form that the Task SDK reads.
fn for_sdk(value: &Value) -> Value {
    let sdk = |class: &str, version: u32, data: Value| serde_json::json!({"__classname__": class, "__version__": version, "__data__": data});
    let all = |value: &Value| -> Value { value.as_array().into_iter().flatten().map(for_sdk).collect() };
    let Some((kind, inner)) = value
        .get("__type")
        .and_then(Value::as_str)
        .zip(value.get("__var"))
    else {
        return match value {
            Value::Array(_) => all(value),
            Value::Object(fields) => fields
                .iter()
                .map(|(key, value)| (key.clone(), for_sdk(value)))
                .collect(),
            Value::Null | Value::Bool(_) | Value::Number(_) | Value::String(_) => value.clone(),
        };
    };
    match kind {
        "dict" => for_sdk(inner),
        "timedelta" => sdk("datetime.timedelta", 2, inner.clone()),
        "datetime" => {
            let zone = serde_json::json!(["UTC", "pendulum.tz.timezone.Timezone", 1, true]);
            sdk(
                "datetime.datetime",
                2,
                serde_json::json!({"timestamp": inner, "tz": zone}),
            )
        }
        "tuple" => sdk("builtins.tuple", 1, all(inner)),
        "set" => sdk("builtins.set", 1, all(inner)),
        _ => value.clone(),
    }
}

impl Deferral {
    /// Reads a deferral to `DateTimeTrigger`, which `TimeDeltaTrigger` becomes when it is serialized, too. `None` for
    /// every other trigger.
    ///
    /// The event is the moment itself, as the Task SDK has serialized it, but as a plain `datetime`: Airflow's loses
    /// pendulum's class on its way through the triggerer.
    pub fn to_time(
        classpath: &str,
        kwargs: &Value,
        (method, arguments): (&str, Option<&Value>),
        timeout: Option<Duration>,
        now: Timestamp,
    ) -> Option<Self> {
        if classpath != "airflow.providers.standard.triggers.temporal.DateTimeTrigger" {
            return None;
        }
        let moment = kwargs.get("moment")?;
        let fires_at = instant(moment)?;
        let ends = kwargs
            .get("end_from_trigger")
            .and_then(Value::as_bool)
            .unwrap_or(false);
        let gives_up_at = timeout.and_then(|timeout| now.checked_add_signed(timeout));
        if let Some(until) = gives_up_at.filter(|limit| *limit < fires_at) {
            return Some(Self {
                until,
                next: Some(timed_out()),
            });
        }
        let mut arguments = arguments.and_then(Value::as_object).cloned().unwrap_or_default();
        let mut event = moment.clone();
        event["__classname__"] = "datetime.datetime".into();
        arguments.insert("event".to_owned(), event);
        Some(Self {
            until: fires_at,
            next: (!ends).then(|| (method.to_owned(), arguments)),
        })
    }
}

/// A date and time as the Task SDK serializes it: seconds since 1970, with a zone that does not change the instant.
fn instant(value: &Value) -> Option<Timestamp> {
    let data = value.get("__data__")?;
    let seconds = data.get("timestamp").unwrap_or(data).as_f64()?;
    // Whole microseconds are far below 2^53.
    DateTime::<Utc>::from_timestamp_micros((seconds * 1e6).round() as i64)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::time::from_micros;
    use serde_json::json;

    const CLASS: &str = "airflow.providers.standard.triggers.temporal.DateTimeTrigger";

    fn kwargs(ends: bool) -> Value {
        json!({"end_from_trigger": ends, "moment": {"__classname__": "pendulum.datetime.DateTime", "__version__": 2,
               "__data__": {"timestamp": 100.5, "tz": ["UTC", "pendulum.tz.timezone.Timezone", 1, true]}}})
    }

    #[test]
    fn what_fired_goes_along_and_what_failed_fails_the_task() {
        let next = (Some("resume"), Some(r#"{"a": 1}"#));
        let fired = TriggerEvent::Fired(json!({"path": "/x"}));
        let (method, arguments) = fired.goes_on_with(next);
        let arguments: Value = serde_json::from_str(&arguments).unwrap();
        assert_eq!(
            (method.as_str(), arguments),
            ("resume", json!({"a": 1, "event": {"path": "/x"}}))
        );
        let failed = TriggerEvent::Failed(vec!["ValueError: no".to_owned()]);
        let (method, arguments) = failed.goes_on_with(next);
        assert_eq!(method, "__fail__");
        assert!(arguments.contains("Trigger failure") && arguments.contains("ValueError: no"));
    }

    #[test]
    fn a_time_goes_on_with_its_moment_as_the_event() {
        let now = from_micros(0).unwrap();
        let next = ("execute_complete", Some(&json!({"a": 1})));
        let read = |ends: bool, timeout| Deferral::to_time(CLASS, &kwargs(ends), next, timeout, now).unwrap();
        let plain = read(false, None);
        assert_eq!(plain.until, from_micros(100_500_000).unwrap());
        let (method, arguments) = plain.next.unwrap();
        assert_eq!(method, "execute_complete");
        assert_eq!(arguments["event"]["__classname__"], "datetime.datetime");
        assert_eq!(
            arguments["event"]["__data__"],
            kwargs(false)["moment"]["__data__"]
        );
        assert_eq!(arguments["a"], 1);
        assert_eq!(read(true, None).next, None);
        assert_eq!(read(false, Some(Duration::seconds(500))).until, plain.until);
        let late = read(false, Some(Duration::seconds(50)));
        assert_eq!(
            (late.until, late.next.unwrap().0.as_str()),
            (from_micros(50_000_000).unwrap(), "__fail__")
        );
        assert_eq!(
            Deferral::to_time("other.Trigger", &kwargs(false), next, None, now),
            None
        );
    }
}
