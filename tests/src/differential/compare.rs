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

/// Characters beyond which a text is compared by its beginning, its length and a sum of its bytes, so that what is recorded
/// stays small.
const LONG: usize = 2000;
/// Characters of such a text that are kept.
const BEGINNING: usize = 200;

/// What a user sees of a task that has ended.
#[derive(Debug, PartialEq)]
pub struct Outcome {
    state: Value,
    rendered: Value,
    xcoms: Value,
    /// Level, logger, text, and the exceptions, of each record.
    records: Vec<Value>,
    /// What records tell beside their text.
    extent: Value,
}

impl Outcome {
    /// Reads `state`, `rendered`, `xcoms` and `records`.
    pub fn read(value: &Value) -> Self {
        let records = || value["records"].as_array().into_iter().flatten();
        let has = |holds: fn(&Value) -> bool| records().any(holds);
        let is_recorded = records().any(Value::is_array);
        let extent = value.get("extent").cloned().unwrap_or_else(|| {
            if is_recorded {
                return Value::Null;
            }
            json!({
                "of the process": has(is_of_the_process), "frames": has(has_frames),
                "sources": has(|record| record.get("lineno").is_some()),
            })
        });
        Self {
            extent,
            state: value["state"].clone(),
            // A task whose templates cannot be rendered has no fields.
            rendered: match &value["rendered"] {
                Value::Null => json!({}),
                rendered => short(rendered),
            },
            xcoms: short(&value["xcoms"]),
            records: records()
                .filter_map(record)
                .map(|record| short(&record))
                .collect(),
        }
    }

    /// As it is recorded.
    pub fn to_json(&self) -> Value {
        json!({"state": self.state, "rendered": self.rendered, "xcoms": self.xcoms, "records": self.records, "extent": self.extent})
    }
}

/// A text without the number of the process that it names.
fn without_process(text: &str) -> String {
    match text.split_once("PID: ") {
        Some((before, after)) => {
            let after = after.trim_start_matches(|c: char| c.is_ascii_digit());
            format!("{before}PID: N{after}")
        }
        None => text.to_owned(),
    }
}

/// The value with long texts in short.
fn short(value: &Value) -> Value {
    match value {
        Value::String(text) if text.chars().count() > LONG => {
            // FNV-1a
            let sum = text.bytes().fold(0xcbf2_9ce4_8422_2325_u64, |sum, byte| {
                (sum ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3)
            });
            let beginning: String = text.chars().take(BEGINNING).collect();
            format!(
                "{beginning} ... ({} characters, {sum:016x})",
                text.chars().count()
            )
            .into()
        }
        Value::Array(items) => items.iter().map(short).collect(),
        Value::Object(fields) => fields
            .iter()
            .map(|(key, item)| (key.clone(), short(item)))
            .collect::<serde_json::Map<_, _>>()
            .into(),
        Value::Null | Value::Bool(_) | Value::Number(_) | Value::String(_) => value.clone(),
    }
}

/// Returns `true` for a record that only a process of its own has.
pub(super) fn is_of_the_process(record: &Value) -> bool {
    let event = record["event"].as_str().unwrap_or_default();
    OF_THE_PROCESS.iter().any(|start| event.starts_with(start))
}

/// Returns `true` if a record has a traceback that points at code.
fn has_frames(record: &Value) -> bool {
    let detail = record.get("error_detail").or_else(|| record.get("exception"));
    let mut errors = detail.and_then(Value::as_array).into_iter().flatten();
    errors.any(|error| {
        error["frames"]
            .as_array()
            .is_some_and(|frames| !frames.is_empty())
    })
}

/// What matters of a record; none for one that is only about a process of its own.
fn record(record: &Value) -> Option<Value> {
    if record.is_array() {
        return Some(record.clone());
    }
    let event = record["event"].as_str().unwrap_or_default();
    if is_of_the_process(record) || record["level"] == "debug" {
        return None;
    }
    let detail = record.get("error_detail").or_else(|| record.get("exception"));
    let errors: Vec<Value> = detail
        .and_then(Value::as_array)
        .into_iter()
        .flatten()
        .map(|error| {
            let text = error["exc_value"].as_str().map(without_process);
            json!([error["exc_type"], text])
        })
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
    /// The case that shows it.
    pub case: String,
    /// How the case is run again.
    pub replay: String,
    /// What it is that differs.
    pub what: String,
    sides: [(&'static str, Value); 2],
}

impl Difference {
    /// The two sides between which it is.
    pub fn between(&self) -> String {
        let [(left, _), (right, _)] = &self.sides;
        format!("{left}, {right}")
    }
}

impl fmt::Display for Difference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} ({}): {}", self.case, self.replay, self.what)?;
        for (name, value) in &self.sides {
            let text: String = value.to_string().chars().take(SHOWN).collect();
            write!(f, "\n    {name}: {text}")?;
        }
        Ok(())
    }
}

/// Everything that differs between two sides.
pub fn differences(
    (case, replay): (&str, &str),
    left: &'static str,
    expected: &Outcome,
    right: &'static str,
    found: &Outcome,
) -> Vec<Difference> {
    let mut all = Vec::new();
    let mut check = |what: String, expected: &Value, found: &Value| {
        if expected != found {
            all.push(Difference {
                case: case.to_owned(),
                replay: replay.to_owned(),
                what,
                sides: [(left, expected.clone()), (right, found.clone())],
            });
        }
    };
    check("state".to_owned(), &expected.state, &found.state);
    check("rendered fields".to_owned(), &expected.rendered, &found.rendered);
    check("XComs".to_owned(), &expected.xcoms, &found.xcoms);
    for what in ["of the process", "frames", "sources"] {
        let (expected, found) = (&expected.extent[what], &found.extent[what]);
        // Of some recorded answers it is not known.
        if !expected.is_null() && !found.is_null() {
            check(what.to_owned(), expected, found);
        }
    }
    for at in 0..expected.records.len().max(found.records.len()) {
        let of = |outcome: &Outcome| outcome.records.get(at).cloned().unwrap_or_default();
        check(format!("log record {at}"), &of(expected), &of(found));
    }
    all
}
