//! What a user sees of a task, and what of it differs.

use serde_json::{Value, json};
use std::fmt;

/// Characters of a value that a report shows.
const SHOWN: usize = 300;
/// Records that only a process of its own has: of how it loaded the DAG file.
const OF_THE_PROCESS: [&str; 3] = [
    "DAG bundles loaded",
    "Worker startup parse complete",
    "Filling up the DagBag",
];

/// What a user sees of a task that has ended.
#[derive(Debug, PartialEq)]
pub struct Outcome {
    state: Value,
    rendered: Value,
    xcoms: Value,
    /// Level, logger, text, and the exceptions, of each record.
    records: Vec<Value>,
}

impl Outcome {
    /// Reads `state`, `rendered`, `xcoms` and `records`.
    pub fn read(value: &Value) -> Self {
        let records = value["records"].as_array().into_iter().flatten();
        Self {
            state: value["state"].clone(),
            rendered: value["rendered"].clone(),
            xcoms: value["xcoms"].clone(),
            records: records.filter_map(record).collect(),
        }
    }

    /// As it is recorded.
    pub fn to_json(&self) -> Value {
        json!({"state": self.state, "rendered": self.rendered, "xcoms": self.xcoms, "records": self.records})
    }
}

/// What matters of a record; none for one that is only about a process of its own.
fn record(record: &Value) -> Option<Value> {
    if record.is_array() {
        return Some(record.clone());
    }
    let event = record["event"].as_str().unwrap_or_default();
    if OF_THE_PROCESS.iter().any(|start| event.starts_with(start)) || record["level"] == "debug" {
        return None;
    }
    let detail = record.get("error_detail").or_else(|| record.get("exception"));
    let errors: Vec<Value> = detail
        .and_then(Value::as_array)
        .into_iter()
        .flatten()
        .map(|error| json!([error["exc_type"], error["exc_value"]]))
        .collect();
    Some(json!([
        record["level"],
        record["logger"],
        event,
        record["reason"],
        errors
    ]))
}

/// One thing that differs.
#[derive(Debug)]
pub struct Difference {
    what: String,
    sides: [(&'static str, Value); 2],
}

impl fmt::Display for Difference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.what)?;
        for (name, value) in &self.sides {
            let text: String = value.to_string().chars().take(SHOWN).collect();
            write!(f, "\n    {name}: {text}")?;
        }
        Ok(())
    }
}

/// Everything that differs between two sides.
pub fn differences(
    left: &'static str,
    expected: &Outcome,
    right: &'static str,
    found: &Outcome,
) -> Vec<Difference> {
    let mut all = Vec::new();
    let mut check = |what: String, expected: &Value, found: &Value| {
        if expected != found {
            all.push(Difference {
                what,
                sides: [(left, expected.clone()), (right, found.clone())],
            });
        }
    };
    check("state".to_owned(), &expected.state, &found.state);
    check("rendered fields".to_owned(), &expected.rendered, &found.rendered);
    check("XComs".to_owned(), &expected.xcoms, &found.xcoms);
    for at in 0..expected.records.len().max(found.records.len()) {
        let of = |outcome: &Outcome| outcome.records.get(at).cloned().unwrap_or_default();
        check(format!("log record {at}"), &of(expected), &of(found));
    }
    all
}
