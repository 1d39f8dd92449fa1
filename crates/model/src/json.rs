//! JSON as Python reads and writes it: whole numbers of any size, floats by their `repr()`.
//!
//! [`serde_json::Value`] holds whole numbers of 64 bits and would turn larger ones into floats. Here a larger one is a
//! text that begins with a code point which Unicode leaves to programs ([`MARK`]), followed by the digits. So it passes
//! unchanged through everything that handles values (columns, messages between components), and becomes a number again
//! where a value leaves: [`write()`], [`dumps`], frames to Python. A text of a user's that begins with the mark gets
//! a second one on its way in, which is taken off on its way out.

use crate::python_text::repr_float;
use serde_json::{Map, Value};
use std::borrow::Cow;
use std::fmt::Write;

/// What a text begins with that stands for a whole number.
pub const MARK: char = '\u{fdd0}';
/// Bytes of `MARK`.
const MARK_BYTES: usize = MARK.len_utf8();
/// Digits of a whole number that always has room in 64 bits.
const SAFE_DIGITS: usize = 18;
/// Digits of a whole number that Python reads.
const MOST_DIGITS: usize = 4300;

/// What a text in a value stands for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Text<'a> {
    /// A text.
    Plain(&'a str),
    /// A whole number that has no room in 64 bits: its digits, after a `-` if it is negative.
    Integer(&'a str),
}

impl<'a> Text<'a> {
    /// Tells what a text in a value stands for.
    pub fn of(text: &'a str) -> Self {
        match text.strip_prefix(MARK) {
            Some(rest) if rest.starts_with(MARK) => Self::Plain(rest),
            Some(rest) if is_integer(rest) => Self::Integer(rest),
            _ => Self::Plain(text),
        }
    }
}

/// The text that the name of a field stands for.
pub fn key_text(key: &str) -> &str {
    match key.strip_prefix(MARK) {
        Some(rest) if rest.starts_with(MARK) => rest,
        _ => key,
    }
}

fn is_integer(text: &str) -> bool {
    let digits = text.strip_prefix('-').unwrap_or(text);
    !digits.is_empty() && digits.bytes().all(|byte| byte.is_ascii_digit())
}

/// A whole number as a value, from its digits in base ten.
pub fn integer(digits: &str) -> Value {
    if let Ok(n) = digits.parse::<i64>() {
        return n.into();
    }
    if let Ok(n) = digits.parse::<u64>() {
        return n.into();
    }
    Value::String(format!("{MARK}{digits}"))
}

/// A text as a value: with the mark doubled if it begins with one.
pub fn text(text: impl Into<String>) -> Value {
    let text = text.into();
    if text.starts_with(MARK) {
        return Value::String(format!("{MARK}{text}"));
    }
    Value::String(text)
}

/// Reads JSON that comes from people or from Python.
///
/// # Errors
/// When it is no JSON, a float in it is too large for 64 bits, or a whole number has more digits than Python reads (4,300).
pub fn read(json: &str) -> Result<Value, serde_json::Error> {
    match with_marks(json) {
        Cow::Borrowed(json) => serde_json::from_str(json),
        Cow::Owned(marked) => match serde_json::from_str(&marked) {
            // The place in the text is told of what came in.
            Err(_) => serde_json::from_str(json),
            read => read,
        },
    }
}

/// The JSON with large numbers as marked texts, and marks of others doubled. What is no JSON stays none.
fn with_marks(json: &str) -> Cow<'_, str> {
    let bytes = json.as_bytes();
    let (mut out, mut copied, mut at) = (String::new(), 0, 0);
    while at < bytes.len() {
        match bytes[at] {
            b'"' => {
                let begin = at + 1;
                if json[begin..].starts_with(MARK) || begins_with_escaped_mark(&json[begin..]) {
                    out.push_str(&json[copied..begin]);
                    out.push(MARK);
                    copied = begin;
                }
                at = end_of_text(bytes, begin);
            }
            b'-' | b'0'..=b'9' => {
                let begin = at;
                let part = |byte: &u8| matches!(byte, b'-' | b'+' | b'.' | b'e' | b'E' | b'0'..=b'9');
                at += bytes[at..].iter().take_while(|byte| part(byte)).count();
                let word = &json[begin..at];
                if word.len() > SAFE_DIGITS && is_plain(word) && is_large(word) {
                    out.push_str(&json[copied..begin]);
                    out.extend(['"', MARK]);
                    out.push_str(word);
                    out.push('"');
                    copied = at;
                }
            }
            _ => at += 1,
        }
    }
    if copied == 0 {
        return Cow::Borrowed(json);
    }
    out.push_str(&json[copied..]);
    Cow::Owned(out)
}

fn begins_with_escaped_mark(rest: &str) -> bool {
    rest.get(..6)
        .is_some_and(|escape| escape.eq_ignore_ascii_case("\\ufdd0"))
}

/// Where the text ends that begins there: after its closing quote.
fn end_of_text(bytes: &[u8], begin: usize) -> usize {
    let mut at = begin;
    while at < bytes.len() {
        match bytes[at] {
            b'"' => return at + 1,
            b'\\' => at += 2,
            _ => at += 1,
        }
    }
    at
}

/// Returns `true` if JSON takes this for a whole number: no zeros in front, no sign but a minus.
fn is_plain(word: &str) -> bool {
    is_integer(word) && !word.strip_prefix('-').unwrap_or(word).starts_with('0')
}

fn is_large(word: &str) -> bool {
    word.len() <= MOST_DIGITS && word.parse::<i64>().is_err() && word.parse::<u64>().is_err()
}

/// JSON as it is stored, as it is written for others.
pub fn outside(stored: &str) -> String {
    serde_json::from_str(stored).map_or_else(|_| stored.to_owned(), |value| write(&value))
}

/// How JSON is laid out.
#[derive(Clone, Copy)]
struct Layout {
    comma: &'static str,
    colon: &'static str,
    /// Blanks for each level; without it everything is on one line.
    indent: Option<usize>,
    ascii: bool,
}

/// JSON without blanks.
pub fn write(value: &Value) -> String {
    let mut out = String::new();
    let layout = Layout {
        comma: ",",
        colon: ":",
        indent: None,
        ascii: false,
    };
    layout.write(value, 0, &mut out);
    out
}

/// JSON over several lines, two blanks for each level, any letters.
pub fn write_pretty(value: &Value) -> String {
    let mut out = String::new();
    let layout = Layout {
        comma: ",",
        colon: ": ",
        indent: Some(2),
        ascii: false,
    };
    layout.write(value, 0, &mut out);
    out
}

/// Python's `json.dumps(value)`.
pub fn dumps(value: &Value) -> String {
    let mut out = String::new();
    let layout = Layout {
        comma: ", ",
        colon: ": ",
        indent: None,
        ascii: true,
    };
    layout.write(value, 0, &mut out);
    out
}

/// Python's `json.dumps(text)`.
pub fn dumps_text(text: &str) -> String {
    let mut out = String::with_capacity(text.len() + 2);
    write_text(text, true, &mut out);
    out
}

impl Layout {
    fn write(self, value: &Value, depth: usize, out: &mut String) {
        match value {
            Value::Null => out.push_str("null"),
            Value::Bool(truth) => out.push_str(if *truth { "true" } else { "false" }),
            Value::Number(n) => match n.as_f64() {
                Some(float) if n.is_f64() => out.push_str(&repr_float(float)),
                // Writing to a String cannot fail.
                _ => {
                    let _ = write!(out, "{n}");
                }
            },
            Value::String(text) => match Text::of(text) {
                Text::Plain(text) => write_text(text, self.ascii, out),
                Text::Integer(digits) => out.push_str(digits),
            },
            Value::Array(items) => {
                out.push('[');
                for (at, item) in items.iter().enumerate() {
                    self.begin_item(at, depth, out);
                    self.write(item, depth + 1, out);
                }
                self.end(items.is_empty(), depth, out);
                out.push(']');
            }
            Value::Object(fields) => self.write_object(fields, depth, out),
        }
    }

    fn write_object(self, fields: &Map<String, Value>, depth: usize, out: &mut String) {
        out.push('{');
        for (at, (key, item)) in fields.iter().enumerate() {
            self.begin_item(at, depth, out);
            write_text(key_text(key), self.ascii, out);
            out.push_str(self.colon);
            self.write(item, depth + 1, out);
        }
        self.end(fields.is_empty(), depth, out);
        out.push('}');
    }

    fn begin_item(self, at: usize, depth: usize, out: &mut String) {
        if at > 0 {
            out.push_str(self.comma);
        }
        if let Some(blanks) = self.indent {
            out.push('\n');
            out.extend(std::iter::repeat_n(' ', blanks * (depth + 1)));
        }
    }

    fn end(self, empty: bool, depth: usize, out: &mut String) {
        if let Some(blanks) = self.indent.filter(|_| !empty) {
            out.push('\n');
            out.extend(std::iter::repeat_n(' ', blanks * depth));
        }
    }
}

fn write_text(text: &str, ascii: bool, out: &mut String) {
    out.push('"');
    let mut plain = 0;
    for (at, c) in text.char_indices() {
        let escape = match c {
            '"' => "\\\"",
            '\\' => "\\\\",
            '\n' => "\\n",
            '\r' => "\\r",
            '\t' => "\\t",
            '\u{8}' => "\\b",
            '\u{c}' => "\\f",
            c if c < ' ' || (ascii && c > '~') => "",
            _ => continue,
        };
        out.push_str(&text[plain..at]);
        plain = at + c.len_utf8();
        if escape.is_empty() {
            for unit in c.encode_utf16(&mut [0; 2]) {
                // Writing to a String cannot fail.
                let _ = write!(out, "\\u{unit:04x}");
            }
        } else {
            out.push_str(escape);
        }
    }
    out.push_str(&text[plain..]);
    out.push('"');
}

/// The value with large numbers as the floats that are nearest, for whatever needs numbers that it can compute with.
pub fn with_floats(value: &Value) -> Value {
    match value {
        Value::String(text) => match Text::of(text) {
            Text::Plain(text) => text.into(),
            Text::Integer(digits) => digits.parse::<f64>().map_or(Value::Null, Value::from),
        },
        Value::Array(items) => items.iter().map(with_floats).collect(),
        Value::Object(fields) => Value::Object(
            fields
                .iter()
                .map(|(key, item)| (key.clone(), with_floats(item)))
                .collect(),
        ),
        Value::Null | Value::Bool(_) | Value::Number(_) => value.clone(),
    }
}

/// Returns `true` if there is a large number anywhere in the value.
pub fn has_large(value: &Value) -> bool {
    match value {
        Value::String(text) => text.len() > MARK_BYTES && matches!(Text::of(text), Text::Integer(_)),
        Value::Array(items) => items.iter().any(has_large),
        Value::Object(fields) => fields.values().any(has_large),
        Value::Null | Value::Bool(_) | Value::Number(_) => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use serde_json::json;

    const LARGE: &str = "123456789012345678901234567890";

    #[test]
    fn large_numbers_are_read_and_written_digit_by_digit() {
        for text in [
            LARGE.to_owned(),
            format!("-{LARGE}"),
            format!("{{\"a\":[{LARGE},1.5,\"{LARGE}\"],\"{LARGE}\":-{LARGE}}}"),
            "[18446744073709551615,18446744073709551616,-9223372036854775808,-9223372036854775809]"
                .to_owned(),
        ] {
            assert_eq!(write(&read(&text).unwrap()), text);
        }
        let value = read(&format!("[{LARGE}, 7]")).unwrap();
        assert!(has_large(&value) && !has_large(&json!([7, "7"])));
        assert_eq!(with_floats(&value), json!([1.234_567_890_123_456_8e29, 7]));
        assert_eq!(dumps(&value), format!("[{LARGE}, 7]"));
    }

    #[test]
    fn floats_and_texts_are_written_as_by_python() {
        let value = json!({"a": [1e16, 1.0, 1e-7, 0.1, -0.0], "b": "\u{e9}\u{1f600}\u{7f}\u{1}\u{8}\"\\/"});
        assert_eq!(
            dumps(&value),
            r#"{"a": [1e+16, 1.0, 1e-07, 0.1, -0.0], "b": "\u00e9\ud83d\ude00\u007f\u0001\b\"\\/"}"#
        );
        assert_eq!(
            write_pretty(&json!({"a": [], "b": [1, {}]})),
            "{\n  \"a\": [],\n  \"b\": [\n    1,\n    {}\n  ]\n}"
        );
    }

    #[test]
    fn what_is_no_json_is_refused_where_it_breaks() {
        for text in [
            "",
            "0123456789012345678901",
            "--12345678901234567890",
            "[1",
            "\"a",
            "\"\\",
            "1e400",
            &"9".repeat(4301),
        ] {
            assert!(read(text).is_err(), "{text}");
        }
        let error = read(&format!("[{LARGE}, oops]")).unwrap_err();
        assert_eq!(error.column(), LARGE.len() + 4);
    }

    #[test]
    fn texts_that_look_like_large_numbers_stay_texts() {
        for user in [
            format!("{MARK}{LARGE}"),
            format!("{MARK}"),
            format!("{MARK}{MARK}1"),
        ] {
            let json = serde_json::to_string(&json!([user, {user.clone(): user}])).unwrap();
            assert_eq!(write(&read(&json).unwrap()), json);
            assert!(!has_large(&read(&json).unwrap()));
            let escaped = json.replace(MARK, "\\uFDD0");
            assert_eq!(write(&read(&escaped).unwrap()), json);
        }
    }

    /// JSON as Python writes it.
    fn any_json() -> impl Strategy<Value = String> {
        let number = prop_oneof![
            "-?[1-9][0-9]{0,60}",
            any::<f64>()
                .prop_filter("JSON has no others", |n| n.is_finite())
                .prop_map(repr_float),
            Just("0".to_owned()),
        ];
        let leaf = prop_oneof![
            number,
            any::<String>().prop_map(|text| serde_json::to_string(&text).unwrap()),
            prop_oneof![Just("null"), Just("true"), Just("false")].prop_map(str::to_owned),
        ];
        leaf.prop_recursive(4, 40, 6, |inner| {
            let key = any::<String>().prop_map(|text| serde_json::to_string(&text).unwrap());
            prop_oneof![
                proptest::collection::vec(inner.clone(), 0..6)
                    .prop_map(|items| format!("[{}]", items.join(","))),
                proptest::collection::btree_map(key, inner, 0..6).prop_map(|fields| {
                    let fields: Vec<String> = fields.iter().map(|(k, v)| format!("{k}:{v}")).collect();
                    format!("{{{}}}", fields.join(","))
                }),
            ]
        })
    }

    proptest! {
        #[test]
        fn whatever_is_read_is_written_as_it_was(json in any_json()) {
            let value = read(&json).unwrap();
            prop_assert_eq!(&write(&value), &json);
            // Also through everything that handles values, and through Python's own form.
            let kept: Value = serde_json::from_str(&value.to_string()).unwrap();
            prop_assert_eq!(&write(&kept), &json);
            prop_assert_eq!(&write(&read(&dumps(&value)).unwrap()), &json);
            prop_assert_eq!(&write(&read(&write_pretty(&value)).unwrap()), &json);
        }
    }
}
