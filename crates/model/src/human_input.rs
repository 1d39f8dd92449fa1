//! What a task that asked a person goes on with.

use crate::Timestamp;
use serde_json::{Map, Value, json};

/// A person who can answer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Responder {
    /// Name to log in with.
    pub id: String,
    /// Name to show.
    pub name: String,
}

/// An answer.
#[derive(Debug, Clone, PartialEq)]
pub struct Response {
    /// Who answered; nobody where the defaults were taken.
    pub by: Option<Responder>,
    /// When.
    pub at: Timestamp,
    /// The options that were chosen.
    pub chosen: Vec<String>,
    /// What was filled in.
    pub params: Map<String, Value>,
    /// Whether the time for an answer was over.
    pub timed_out: bool,
}

impl Response {
    /// The event that the operator goes on with (`HITLDetail.as_resume_event_payload`), as the Task SDK serializes it.
    pub fn event(&self) -> Value {
        json!({
            "chosen_options": self.chosen, "params_input": self.params, "responded_at": sdk_datetime(self.at),
            "responded_by_user": self.by.as_ref().map(|by| json!({"id": by.id, "name": by.name})),
            "timedout": self.timed_out,
        })
    }
}

/// The event of a question that nobody answered in time and that has no defaults.
pub fn unanswered() -> Value {
    json!({
        "error": "The Human-in-the-loop response timeout has passed without a response.",
        "error_type": "timeout",
    })
}

/// What the defaults of a question fill in: the value of each parameter.
pub fn default_params(params: &Map<String, Value>) -> Map<String, Value> {
    let value = |param: &Value| param.get("value").unwrap_or(param).clone();
    params
        .iter()
        .map(|(key, param)| (key.clone(), value(param)))
        .collect()
}

/// A UTC `datetime` as the Task SDK serializes it.
fn sdk_datetime(at: Timestamp) -> Value {
    // Whole microseconds are far below 2^53.
    #[expect(
        clippy::cast_precision_loss,
        reason = "microseconds since 1970 are far below 2^53"
    )]
    let seconds = crate::time::to_micros(at) as f64 / 1e6;
    let zone = json!(["UTC", "pendulum.tz.timezone.Timezone", 1, true]);
    json!({"__classname__": "datetime.datetime", "__version__": 2, "__data__": {
        "timestamp": seconds, "tz": {"__classname__": "builtins.tuple", "__version__": 1, "__data__": zone},
    }})
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn defaults_are_the_values_of_params_whatever_their_form() {
        let params = json!({"a": {"value": 1, "schema": {}, "description": null}, "b": 2});
        let filled = default_params(params.as_object().unwrap());
        assert_eq!(Value::Object(filled), json!({"a": 1, "b": 2}));
    }

    #[test]
    fn the_event_is_what_the_sdk_reads() {
        let response = Response {
            by: None,
            at: crate::time::from_micros(1_500_000).unwrap(),
            chosen: vec!["yes".to_owned()],
            params: Map::new(),
            timed_out: true,
        };
        let event = response.event();
        assert_eq!(event["responded_at"]["__data__"]["timestamp"], 1.5);
        assert_eq!(
            (&event["timedout"], &event["responded_by_user"]),
            (&json!(true), &Value::Null)
        );
    }
}
