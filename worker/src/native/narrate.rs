//! What Airflow's task runner writes to the log around an operator, and what it makes of the operator's result.

use crate::log::TryLog;
use crate::run::{End, Facts, fields};
use proto::v1::{Ending, XCom};
use serde_json::{Value, json};

/// Rendered fields that are longer are cut (`[core] max_templated_field_length`).
const FIELD: usize = 4096;

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

/// The operator ran longer than its `execution_timeout`.
pub(super) async fn timed_out(facts: &Facts, log: &TryLog) -> End {
    log.record("error", "task", "Process timed out").await;
    End::failure(
        facts,
        "AirflowTaskTimeout: the task ran longer than its execution_timeout",
    )
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

/// A rendered field as it is shown: secrets by their names are hidden, long texts cut.
pub(super) fn shown(value: &Value, name: &str) -> Value {
    let value = redact(value, name);
    let text = match &value {
        Value::String(text) => text.clone(),
        Value::Array(_) | Value::Object(_) => value.to_string(),
        Value::Null | Value::Bool(_) | Value::Number(_) => return value,
    };
    if text.chars().count() <= FIELD {
        value
    } else {
        shorten(&text).into()
    }
}

fn redact(value: &Value, name: &str) -> Value {
    match value {
        Value::String(_) if crate::mask::is_sensitive(name) => "***".into(),
        Value::Array(items) => items.iter().map(|item| redact(item, name)).collect(),
        Value::Object(fields) => fields
            .iter()
            .map(|(key, item)| (key.clone(), redact(item, key)))
            .collect::<serde_json::Map<_, _>>()
            .into(),
        Value::String(_) | Value::Null | Value::Bool(_) | Value::Number(_) => value.clone(),
    }
}

fn shorten(text: &str) -> String {
    let head = "Truncated. You can change this behaviour in [core]max_templated_field_length. ";
    let kept: String = text.chars().take(FIELD - head.len() - 3).collect();
    format!("{head}{}...", kept.trim_end())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fields_are_cut_and_hidden_as_airflow_does() {
        let long = shown(&"x".repeat(5000).into(), "command");
        let cut = long.as_str().unwrap();
        assert!(cut.starts_with("Truncated. ") && cut.ends_with("...") && cut.len() <= FIELD);
        let value = json!({"API_KEY": "abcdef", "n": 1, "list": ["a"]});
        assert_eq!(
            shown(&value, "environment"),
            json!({"API_KEY": "***", "n": 1, "list": ["a"]})
        );
    }
}
