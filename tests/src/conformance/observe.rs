//! One run, as the REST API shows it, in a form that can be compared: a line for each fact.

use super::Side;
use serde_json::{Map, Value, json};
use std::collections::BTreeMap;

/// Facts by their path, such as `task extract[-1] / state`.
pub type Observed = BTreeMap<String, Value>;

const RUN: [&str; 8] = [
    "state",
    "run_type",
    "logical_date",
    "data_interval_start",
    "data_interval_end",
    "conf",
    "note",
    "triggered_by",
];
const TASK: [&str; 11] = [
    "state",
    "try_number",
    "max_tries",
    "operator_name",
    "pool",
    "pool_slots",
    "queue",
    "priority_weight",
    "rendered_map_index",
    "note",
    "executor",
];

/// What there is to see of a run now.
///
/// # Errors
/// When the API does not answer.
pub fn observe(side: &Side, dag_id: &str, run_id: &str) -> anyhow::Result<Observed> {
    let mut facts = Observed::new();
    let path = format!("/api/v2/dags/{dag_id}/dagRuns/{run_id}");
    let (status, run) = side.api.call("GET", &path, None)?;
    if status != 200 {
        facts.insert("run".to_owned(), json!(format!("{status} {run}")));
        return Ok(facts);
    }
    for key in RUN {
        facts.insert(format!("run / {key}"), run[key].clone());
    }
    let (_, tasks) = side
        .api
        .call("GET", &format!("{path}/taskInstances?limit=1000"), None)?;
    for task in tasks["task_instances"].as_array().into_iter().flatten() {
        let name = task["task_id"].as_str().unwrap_or_default();
        let index = task["map_index"].as_i64().unwrap_or(-1);
        let head = format!("task {name}[{index}]");
        for key in TASK {
            facts.insert(format!("{head} / {key}"), task[key].clone());
        }
        for (key, value) in task["rendered_fields"].as_object().into_iter().flatten() {
            facts.insert(format!("{head} / rendered {key}"), value.clone());
        }
        let base = format!("{path}/taskInstances/{name}/xcomEntries");
        for (key, value) in xcoms(side, &base, index)? {
            facts.insert(format!("{head} / xcom {key}"), value);
        }
    }
    let mask = Mask::of(side);
    Ok(facts
        .into_iter()
        .map(|(path, value)| (path, mask.apply(&value)))
        .collect())
}

/// What there is to see of all runs of a DAG that others started, in the order in which they were made.
///
/// # Errors
/// When the API does not answer.
pub fn observe_all(side: &Side, dag_id: &str) -> anyhow::Result<Observed> {
    let mut facts = Observed::new();
    for (number, run) in runs(side, dag_id)?.iter().enumerate() {
        let run_id = run["dag_run_id"].as_str().unwrap_or_default().replace('+', "%2B");
        for (path, value) in observe(side, dag_id, &run_id)? {
            facts.insert(format!("{number}: {path}"), value);
        }
        facts.insert(
            format!("{number}: run / partition_key"),
            run["partition_key"].clone(),
        );
    }
    Ok(facts)
}

/// All runs of a DAG, by partition and then in the order in which they were made.
///
/// # Errors
/// When the API does not answer.
pub fn runs(side: &Side, dag_id: &str) -> anyhow::Result<Vec<Value>> {
    let path = format!("/api/v2/dags/{dag_id}/dagRuns?order_by=id&limit=100");
    let (_, page) = side.api.call("GET", &path, None)?;
    let mut runs = page["dag_runs"].as_array().cloned().unwrap_or_default();
    runs.sort_by_key(|run| run["partition_key"].as_str().unwrap_or_default().to_owned());
    Ok(runs)
}

fn xcoms(side: &Side, base: &str, index: i64) -> anyhow::Result<Vec<(String, Value)>> {
    let (_, entries) = side
        .api
        .call("GET", &format!("{base}?map_index={index}&limit=200"), None)?;
    let mut found = Vec::new();
    for entry in entries["xcom_entries"].as_array().into_iter().flatten() {
        let key = entry["key"].as_str().unwrap_or_default();
        if entry["map_index"].as_i64() != Some(index) {
            continue;
        }
        let path = format!("{base}/{}?map_index={index}", key.replace('/', "%2F"));
        let (status, one) = side.api.call("GET", &path, None)?;
        let mut value = if status == 200 {
            one["value"].clone()
        } else {
            json!(format!("{status}"))
        };
        if key == "skipmixin_key" {
            // Written in the order of a Python set.
            for list in ["skipped", "followed"] {
                if let Some(names) = value[list].as_array_mut() {
                    names.sort_by_key(Value::to_string);
                }
            }
        }
        found.push((key.to_owned(), value));
    }
    Ok(found)
}

/// The end of a task's log, for people who look into a difference.
///
/// # Errors
/// When the API does not answer.
pub fn last_words(side: &Side, dag_id: &str, run_id: &str, task: &str) -> anyhow::Result<Vec<String>> {
    let (name, index) = task
        .trim_end_matches(']')
        .rsplit_once('[')
        .unwrap_or((task, "-1"));
    let path = format!("/api/v2/dags/{dag_id}/dagRuns/{run_id}/taskInstances/{name}");
    let (_, ti) = side.api.call("GET", &format!("{path}?map_index={index}"), None)?;
    let number = ti["try_number"].as_i64().unwrap_or(1).max(1);
    let (_, log) = side
        .api
        .call("GET", &format!("{path}/logs/{number}?map_index={index}"), None)?;
    let mut lines = Vec::new();
    for record in log["content"].as_array().into_iter().flatten() {
        let details = record["error_detail"].as_array().into_iter().flatten();
        let errors = details.map(|error| format!("{}: {}", error["exc_type"], error["exc_value"]));
        lines.push(record["event"].as_str().unwrap_or_default().to_owned());
        lines.extend(errors);
    }
    lines.retain(|line| !line.is_empty() && !line.starts_with("::"));
    Ok(lines.split_off(lines.len().saturating_sub(4)))
}

/// Takes out what must differ: homes, ports, the time of day, ids made at random.
struct Mask {
    home: String,
    day: String,
}

impl Mask {
    fn of(side: &Side) -> Self {
        Self {
            home: side.home.to_string_lossy().into_owned(),
            day: chrono::Utc::now().format("%Y-%m-%d").to_string(),
        }
    }

    fn apply(&self, value: &Value) -> Value {
        match value {
            Value::String(text) => self.text(text).into(),
            Value::Array(items) => items.iter().map(|item| self.apply(item)).collect(),
            Value::Object(fields) => fields
                .iter()
                .map(|(key, item)| (key.clone(), self.apply(item)))
                .collect::<Map<_, _>>()
                .into(),
            Value::Null | Value::Bool(_) | Value::Number(_) => value.clone(),
        }
    }

    fn text(&self, text: &str) -> String {
        let text = text.replace(&self.home, "HOME");
        let mut out = String::new();
        let mut rest = text.as_str();
        while let Some(at) = rest.find(&self.day) {
            out.push_str(&rest[..at]);
            out.push_str("TODAY");
            // The time that follows the day goes, too.
            let tail = &rest[at + self.day.len()..];
            let time = tail.find(|c: char| !(c.is_ascii_digit() || "T :.+-Z".contains(c)));
            rest = &tail[time.unwrap_or(tail.len())..];
        }
        out.push_str(rest);
        without_ids(&out)
    }
}

/// UUIDs become one word.
fn without_ids(text: &str) -> String {
    let shape = [8, 4, 4, 4, 12];
    let is_id = |word: &str| {
        let parts: Vec<&str> = word.split('-').collect();
        parts.len() == shape.len()
            && parts
                .iter()
                .zip(shape)
                .all(|(part, length)| part.len() == length && part.chars().all(|c| c.is_ascii_hexdigit()))
    };
    let is_part = |c: char| c.is_ascii_hexdigit() || c == '-';
    let mut out = String::new();
    let mut word = String::new();
    for c in text.chars().chain(['\0']) {
        if is_part(c) {
            word.push(c);
            continue;
        }
        out.push_str(if is_id(&word) { "ID" } else { &word });
        word.clear();
        out.push(c);
    }
    out.pop();
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_must_differ_is_masked_and_nothing_else() {
        let mask = Mask {
            home: "/tmp/home".to_owned(),
            day: "2025-03-04".to_owned(),
        };
        let text = "/tmp/home/x at 2025-03-04T10:11:12.5+00:00, for 2025-01-01 by 01a1ff3b-135f-720f-8864-f917addd7c64 of abc";
        assert_eq!(mask.text(text), "HOME/x at TODAY, for 2025-01-01 by ID of abc");
    }
}
