//! Records of a log: one JSON object each, of a size that readers can bear.

use super::lines::Line;
use chrono::Utc;
use serde_json::{Map, Value};

/// Bytes that one text of a record may have. A longer one is cut, which it then says.
const TEXT: usize = 8 << 20;

/// How severe a record is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Level {
    Debug,
    Info,
    Warning,
    Error,
    Critical,
}

impl Level {
    /// The level of this name, in upper or lower case; [`Level::Info`] for any other name.
    pub(crate) fn of(name: &str) -> Self {
        let is = |level: &str| name.eq_ignore_ascii_case(level);
        match () {
            () if is("debug") => Self::Debug,
            () if is("warning") => Self::Warning,
            () if is("error") => Self::Error,
            () if is("critical") => Self::Critical,
            () => Self::Info,
        }
    }
}

/// A record with these fields first, as Airflow orders them.
pub(super) fn new(level: &str, logger: &str, event: &str) -> Map<String, Value> {
    let mut record = Map::new();
    record.insert(
        "timestamp".to_owned(),
        model::time::rest_format(Utc::now()).into(),
    );
    record.insert("event".to_owned(), event.into());
    record.insert("level".to_owned(), level.into());
    record.insert("logger".to_owned(), logger.into());
    record
}

/// A record of the Task SDK, from the line that it wrote: `exception` is called `error_detail` in files.
pub(super) fn of_sdk(line: Line) -> Map<String, Value> {
    if line.left_out > 0 {
        return of_overlong(&line);
    }
    let Ok(Value::Object(mut fields)) = serde_json::from_slice(&line.bytes) else {
        return new("info", "task", &line.into_text());
    };
    let mut record = Map::new();
    for key in ["timestamp", "event", "level", "logger"] {
        if let Some(value) = fields.shift_remove(key) {
            record.insert(key.to_owned(), value);
        }
    }
    if let Some(exception) = fields.shift_remove("exception") {
        fields.insert("error_detail".to_owned(), exception);
    }
    record.extend(fields);
    record
}

/// A record that is too long to be read whole: its level and its logger are found at its beginning or at its end, and as
/// much of its text as there is.
fn of_overlong(line: &Line) -> Map<String, Value> {
    let head = String::from_utf8_lossy(&line.bytes);
    let tail = String::from_utf8_lossy(&line.tail);
    let find = |key: &str| {
        // Within a text of the record the quotes have a backslash before them.
        let mark = format!("\"{key}\":\"");
        let after = |text: &str, at: usize| {
            let value = &text[at + mark.len()..];
            value.find('"').map(|end| value[..end].to_owned())
        };
        let at_end = tail.rfind(&mark).and_then(|at| after(&tail, at));
        at_end.or_else(|| head.find(&mark).and_then(|at| after(&head, at)))
    };
    let level = find("level").unwrap_or_else(|| "info".to_owned());
    let logger = find("logger").unwrap_or_else(|| "task".to_owned());
    let mark = "\"event\":\"";
    let text = head.find(mark).map_or(&*head, |at| &head[at + mark.len()..]);
    let mut record = new(&level, &logger, &opened(text));
    shorten(record.get_mut("event"), line.left_out);
    record
}

/// A text of JSON that has lost its end, without the escapes.
fn opened(text: &str) -> String {
    let mut end = text.len().min(TEXT);
    while !text.is_char_boundary(end) {
        end -= 1;
    }
    // An escape that is cut in two is left out; none is longer than two of `\uXXXX`.
    for _ in 0..12 {
        if let Ok(whole) = serde_json::from_str(&format!("\"{}\"", &text[..end])) {
            return whole;
        }
        end = end.saturating_sub(1);
        while !text.is_char_boundary(end) {
            end -= 1;
        }
    }
    text[..end].to_owned()
}

/// Cuts every text of a record that is too long, at a character.
pub(super) fn bound(record: &mut Map<String, Value>) {
    fn visit(value: &mut Value) {
        match value {
            Value::String(text) if text.len() > TEXT => shorten(Some(value), 0),
            Value::Array(items) => items.iter_mut().for_each(visit),
            Value::Object(fields) => fields.values_mut().for_each(visit),
            Value::String(_) | Value::Null | Value::Bool(_) | Value::Number(_) => {}
        }
    }
    record.values_mut().for_each(visit);
}

fn shorten(value: Option<&mut Value>, left_out: u64) {
    let Some(Value::String(text)) = value else {
        return;
    };
    let mut end = text.len().min(TEXT);
    while !text.is_char_boundary(end) {
        end -= 1;
    }
    let left_out = left_out + (text.len() - end) as u64;
    text.truncate(end);
    text.push_str(&format!(" ... [{left_out} bytes more are left out]"));
}

#[cfg(test)]
mod tests {
    use super::super::lines::Lines;
    use super::*;
    use serde_json::json;

    fn read(text: &str) -> Map<String, Value> {
        let mut lines = Lines::default();
        lines.push(text.as_bytes());
        let mut record = of_sdk(lines.finish().unwrap());
        bound(&mut record);
        record
    }

    #[test]
    fn a_record_of_any_usual_size_is_kept_as_it_is() {
        let text = "ü".repeat(200_000);
        let detail = json!([{"exc_type": "ValueError", "exc_value": text}]);
        let line = json!({"event": text, "logger": "x", "exception": detail, "level": "error"}).to_string();
        let record = read(&line);
        assert_eq!(
            (&record["event"], &record["level"]),
            (&json!(text), &json!("error"))
        );
        assert_eq!(record["error_detail"], detail);
    }

    #[test]
    fn a_long_text_is_cut_at_a_character_and_says_so() {
        let text = format!("x{}", "ü".repeat(TEXT / 2 + 10));
        let record = read(&json!({"event": text, "level": "warning", "logger": "y"}).to_string());
        let event = record["event"].as_str().unwrap();
        assert!(event.ends_with("ü ... [22 bytes more are left out]"));
        assert_eq!(
            (&record["level"], &record["logger"]),
            (&json!("warning"), &json!("y"))
        );
    }

    #[test]
    fn an_endless_record_keeps_its_level_and_its_logger() {
        let text = "\"level\":\"debug\"\nü".repeat(2 << 20);
        for line in [
            json!({"timestamp": "t", "level": "error", "event": text, "logger": "a.b"}).to_string(),
            json!({"event": text, "logger": "a.b", "level": "error"}).to_string(),
        ] {
            let record = read(&line);
            assert_eq!(
                (&record["level"], &record["logger"]),
                (&json!("error"), &json!("a.b"))
            );
            let event = record["event"].as_str().unwrap();
            assert!(event.starts_with("\"level\":\"debug\"\nü\"level\"") && event.ends_with("are left out]"));
        }
    }
}
