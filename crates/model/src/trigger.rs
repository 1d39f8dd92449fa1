//! Triggers that need no Python: those that fire at a time.

use crate::Timestamp;
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
            let error = Map::from_iter([("error".to_owned(), TIMEOUT.into())]);
            return Some(Self {
                until,
                next: Some((FAIL.to_owned(), error)),
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
