//! What Airflow's task runner writes to the log around an operator, and what it makes of the operator's result.

use super::Settings;
use crate::log::TryLog;
use crate::run::{End, Facts, fields};
use model::python_text;
use proto::v1::{Ending, XCom};
use serde_json::{Value, json};

pub(super) async fn begins(log: &TryLog) {
    log.record("info", "task", "::group::Pre Execute").await;
    log.record("info", "task", "::endgroup::").await;
}

pub(super) async fn ended(log: &TryLog) {
    log.record("info", "task", "::endgroup::").await;
}

pub(super) async fn skipped(log: &TryLog, reason: &str) -> End {
    log.record("info", "task", "::group::Post Execute").await;
    let more = fields([("reason", reason.into())]);
    log.record_with("info", "task", "Skipping task.", more).await;
    End::of(Ending::Skipped)
}

/// The operator raised an exception of this kind. `cause` says what the exception does not.
pub(super) async fn failed(facts: &Facts, log: &TryLog, kind: &str, text: &str, cause: &str) -> End {
    let detail = json!([{
        "exc_type": kind, "exc_value": text, "exc_notes": [], "syntax_error": null, "is_cause": false, "frames": [],
        "is_group": false, "exceptions": [],
    }]);
    let more = fields([("error_detail", detail)]);
    log.record_with("error", "task", "Task failed with exception", more)
        .await;
    log.record("info", "task", "::group::Post Execute").await;
    let mut end = End::failure(facts, cause);
    end.exit_cause = end.exit_cause.filter(|cause| !cause.is_empty());
    end
}

/// The operator has run as long as its `execution_timeout` lets it, and is about to be stopped.
pub(super) async fn times_out(log: &TryLog) {
    let pid = fields([("pid", std::process::id().into())]);
    log.record_with("error", "task", "Process timed out", pid).await;
}

/// The operator was stopped because it ran longer than its `execution_timeout`.
pub(super) async fn timed_out(facts: &Facts, log: &TryLog) -> End {
    // As in Airflow it is named after the process that watches it.
    let text = format!("Timeout, PID: {}", std::process::id());
    failed(facts, log, "AirflowTaskTimeout", &text, "").await
}

/// The try is not wanted any more.
pub(super) fn stopped(facts: &Facts) -> End {
    End::failure(facts, "stopped: the task instance is not to run any more")
}

/// The operator returned this value; `push` says whether it becomes an XCom.
pub(super) async fn succeeded(log: &TryLog, value: Option<Value>, push: bool) -> End {
    log.record("info", "task", "::group::Post Execute").await;
    let mut end = End::of(Ending::Success);
    if let Some(value) = value.filter(|_| push) {
        log.record("info", "task", "Pushing xcom").await;
        end.xcoms.push(XCom {
            key: "return_value".to_owned(),
            value: value.to_string(),
            mapped_length: None,
        });
    }
    end
}

/// A rendered field as it is shown: secrets by their names are hidden, long texts cut, keys sorted.
pub(super) fn shown(settings: &Settings, value: &Value, name: &str) -> Value {
    let value = sorted(value);
    let length = python_text::str(&value).chars().count();
    let redacted = settings.names.redact(&value, Some(name));
    if i64::try_from(length).unwrap_or(i64::MAX) <= settings.field_length {
        redacted
    } else {
        shorten(&python_text::str(&redacted), settings.field_length).into()
    }
}

fn sorted(value: &Value) -> Value {
    match value {
        Value::Array(items) => items.iter().map(sorted).collect(),
        Value::Object(fields) => {
            let pairs = fields.iter().map(|(key, item)| (key.clone(), sorted(item)));
            let pairs: std::collections::BTreeMap<String, Value> = pairs.collect();
            Value::Object(pairs.into_iter().collect())
        }
        Value::Null | Value::Bool(_) | Value::Number(_) | Value::String(_) => value.clone(),
    }
}

/// `truncate_rendered_value` of Airflow.
fn shorten(text: &str, length: i64) -> String {
    const HEAD: &str = "Truncated. You can change this behaviour in [core]max_templated_field_length. ";
    const END: &str = "...";
    /// Fewer characters of the text itself are not worth it.
    const LEAST: usize = 7;
    if length <= 0 {
        return String::new();
    }
    let room = usize::try_from(length).unwrap_or(usize::MAX);
    let room = room.saturating_sub(HEAD.len() + END.len());
    if room < LEAST {
        return format!("{HEAD}{END}");
    }
    let kept: String = text.chars().take(room).collect();
    format!("{HEAD}{}{END}", python_text::rstrip(&kept))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shown_with(length: &str, value: &Value, name: &str) -> Value {
        let env = [
            ("AIRFLOW_HOME", "/nonexistent"),
            ("AIRFLOW__CORE__MAX_TEMPLATED_FIELD_LENGTH", length),
            ("AIRFLOW__CORE__SENSITIVE_VAR_CONN_NAMES", "pin"),
        ];
        let env = env.map(|(key, value)| (key.to_owned(), value.to_owned()));
        let raw = config::RawConfig::load_from(env.into_iter().collect()).unwrap();
        let settings = Settings::of(&config::Config::from_raw(&raw).unwrap());
        shown(&settings, value, name)
    }

    #[test]
    fn fields_are_cut_and_hidden_as_airflow_does() {
        let long = shown_with("4096", &"ü".repeat(5000).into(), "command");
        let cut = long.as_str().unwrap();
        assert!(cut.starts_with("Truncated. ") && cut.ends_with("ü...") && cut.chars().count() == 4096);
        assert_eq!(
            shown_with("4096", &"ü".repeat(4096).into(), "c"),
            "ü".repeat(4096)
        );
        let value = json!({"n": 1, "API_KEY": "abcdef", "my_pin": "1", "list": ["a"]});
        let hidden = json!({"API_KEY": "***", "list": ["a"], "my_pin": "***", "n": 1});
        assert_eq!(shown_with("4096", &value, "environment"), hidden);
        let head = "Truncated. You can change this behaviour in [core]max_templated_field_length. ";
        assert_eq!(
            shown_with("95", &json!({"b": true, "a": "x".repeat(90)}), "c"),
            format!("{head}{{'a': 'xxxxxxx...")
        );
        assert_eq!(
            shown_with("87", &json!("x".repeat(90)), "c"),
            format!("{head}...")
        );
        assert_eq!(shown_with("0", &json!("x"), "c"), "");
    }
}
