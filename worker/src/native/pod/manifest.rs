//! The pod as it is asked for: the parser's, with templates rendered, and with a name and labels of its own.

use crate::run::Facts;
use kubernetes::names::label_value;
use serde_json::{Map, Value};

/// On a pod whose end has been seen: no later try is to follow it.
pub(super) const CHECKED: &str = "already_checked";

/// Puts texts in the place of marks, wherever they are.
pub(super) fn substitute(value: &Value, texts: &[(String, String)]) -> Value {
    match value {
        Value::String(text) if text.contains("updraft-") => texts
            .iter()
            .fold(text.clone(), |text, (mark, with)| text.replace(mark, with))
            .into(),
        Value::Array(items) => items.iter().map(|item| substitute(item, texts)).collect(),
        Value::Object(fields) => fields
            .iter()
            .map(|(key, item)| (key.clone(), substitute(item, texts)))
            .collect::<Map<_, _>>()
            .into(),
        Value::String(_) | Value::Null | Value::Bool(_) | Value::Number(_) => value.clone(),
    }
}

/// Whether Airflow takes this as a name (`validate_key`).
pub(super) fn is_key(name: &str) -> bool {
    let allowed = |c: char| c.is_alphanumeric() || matches!(c, '-' | '_' | '.');
    name.chars().all(allowed) && !name.is_empty() && name.chars().count() <= 220
}

/// The labels that say whose a pod is. Without the try, they find it again in the next one.
pub(super) fn labels(facts: &Facts, with_try: bool) -> Vec<(&'static str, String)> {
    let mut labels = vec![
        ("dag_id", label_value(facts.ti("dag_id"))),
        ("task_id", label_value(facts.ti("task_id"))),
        ("run_id", label_value(facts.ti("run_id"))),
        ("kubernetes_pod_operator", "True".to_owned()),
    ];
    if with_try {
        labels.push(("try_number", facts.try_number().to_string()));
    }
    labels
}

/// What finds the pod of an earlier try that nobody has looked at since.
pub(super) fn selector(own: &Value, facts: &Facts) -> String {
    let mut all: std::collections::BTreeMap<String, String> = own
        .as_object()
        .into_iter()
        .flatten()
        .map(|(key, value)| (key.clone(), value.as_str().unwrap_or_default().to_owned()))
        .collect();
    for (key, value) in labels(facts, false) {
        all.insert(key.to_owned(), value);
    }
    let mut terms: Vec<String> = all.iter().map(|(key, value)| format!("{key}={value}")).collect();
    terms.push(format!("{CHECKED}!=True"));
    terms.push("!airflow-worker".to_owned());
    terms.join(",")
}

/// The pod without what its environment keeps secret, for the log.
pub(super) fn without_secrets(names: &sensitive::Names, pod: &Value) -> Value {
    match pod {
        Value::Array(items) => items.iter().map(|item| without_secrets(names, item)).collect(),
        Value::Object(fields) => {
            let name = fields.get("name").and_then(Value::as_str).unwrap_or_default();
            let is_secret = names.is_sensitive(name);
            let shown = fields.iter().map(|(key, item)| {
                let hidden = is_secret && key == "value";
                let item = if hidden {
                    "***".into()
                } else {
                    without_secrets(names, item)
                };
                (key.clone(), item)
            });
            shown.collect::<Map<_, _>>().into()
        }
        Value::String(_) | Value::Null | Value::Bool(_) | Value::Number(_) => pod.clone(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn marks_are_replaced_wherever_they_are() {
        let texts = [
            ("updraft-template-1-".to_owned(), "a".to_owned()),
            ("updraft-template-10-".to_owned(), "b".to_owned()),
        ];
        let value = json!({"x": ["updraft-template-1-", {"y": "to updraft-template-10-"}], "n": 1});
        assert_eq!(
            substitute(&value, &texts),
            json!({"x": ["a", {"y": "to b"}], "n": 1})
        );
    }

    #[test]
    fn secret_variables_are_not_shown() {
        let pod = json!({"env": [{"name": "API_KEY", "value": "abc"}, {"name": "PLAIN", "value": "abc"}]});
        assert_eq!(
            without_secrets(&sensitive::Names::default(), &pod),
            json!({"env": [{"name": "API_KEY", "value": "***"}, {"name": "PLAIN", "value": "abc"}]})
        );
    }
}
