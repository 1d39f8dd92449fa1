//! Values as Python prints them, where Airflow's logs and answers hold such text.

use crate::json::{Text, key_text};
use fancy_regex::Regex;
use serde_json::{Number, Value};
use std::fmt::Write;
use std::sync::LazyLock;

/// Python's `repr()` of a JSON value, and the name of its class.
pub fn repr(value: &Value) -> (String, &'static str) {
    let inner = |value: &Value| repr(value).0;
    match value {
        Value::Null => ("None".to_owned(), "NoneType"),
        Value::Bool(true) => ("True".to_owned(), "bool"),
        Value::Bool(false) => ("False".to_owned(), "bool"),
        Value::Number(n) => (number(n), if n.is_f64() { "float" } else { "int" }),
        Value::String(text) => match Text::of(text) {
            Text::Plain(text) => (repr_text(text), "str"),
            Text::Integer(digits) => (digits.to_owned(), "int"),
        },
        Value::Array(items) => (
            format!("[{}]", items.iter().map(inner).collect::<Vec<_>>().join(", ")),
            "list",
        ),
        Value::Object(fields) => {
            let pair =
                |(key, value): (&String, &Value)| format!("{}: {}", repr_text(key_text(key)), inner(value));
            (
                format!("{{{}}}", fields.iter().map(pair).collect::<Vec<_>>().join(", ")),
                "dict",
            )
        }
    }
}

/// Python's `str()` of a JSON value: a text as it is, anything else as `repr()` shows it.
pub fn str(value: &Value) -> String {
    match value {
        Value::String(text) => match Text::of(text) {
            Text::Plain(text) | Text::Integer(text) => text.to_owned(),
        },
        other => repr(other).0,
    }
}

fn number(n: &Number) -> String {
    match n.as_f64() {
        Some(float) if n.is_f64() => repr_float(float),
        _ => n.to_string(),
    }
}

/// Python's `repr()` of a string.
pub fn repr_text(text: &str) -> String {
    let quote = if text.contains('\'') && !text.contains('"') {
        '"'
    } else {
        '\''
    };
    let mut out = String::with_capacity(text.len() + 2);
    out.push(quote);
    for c in text.chars() {
        match c {
            '\\' => out.push_str("\\\\"),
            '\n' => out.push_str("\\n"),
            '\r' => out.push_str("\\r"),
            '\t' => out.push_str("\\t"),
            c if c == quote => out.extend(['\\', c]),
            c if is_printable(c) => out.push(c),
            c => escape(&mut out, u32::from(c)),
        }
    }
    out.push(quote);
    out
}

fn escape(out: &mut String, code: u32) {
    // Writing to a String cannot fail.
    let _ = match code {
        0..=0xff => write!(out, "\\x{code:02x}"),
        0x100..=0xffff => write!(out, "\\u{code:04x}"),
        _ => write!(out, "\\U{code:08x}"),
    };
}

/// Returns `true` if `str.isprintable()` is true of a text of this character alone.
fn is_printable(c: char) -> bool {
    static HIDDEN: LazyLock<Option<Regex>> = LazyLock::new(|| Regex::new(r"[\p{C}\p{Z}]").ok());
    if c.is_ascii() {
        return (' '..='~').contains(&c);
    }
    let mut bytes = [0; 4];
    let text = c.encode_utf8(&mut bytes);
    HIDDEN
        .as_ref()
        .is_none_or(|hidden| !hidden.is_match(text).unwrap_or(false))
}

/// Python's `repr()` of a float, which is also its `str()`.
pub fn repr_float(value: f64) -> String {
    if value.is_nan() {
        return "nan".to_owned();
    }
    if value.is_infinite() {
        return if value > 0.0 { "inf" } else { "-inf" }.to_owned();
    }
    let shortest = format!("{value:e}");
    let (digits, exponent) = shortest.split_once('e').unwrap_or((&shortest, "0"));
    let exponent: i32 = exponent.parse().unwrap_or(0);
    if (-4..16).contains(&exponent) {
        let plain = value.to_string();
        return if plain.contains('.') {
            plain
        } else {
            format!("{plain}.0")
        };
    }
    let sign = if exponent < 0 { '-' } else { '+' };
    format!("{digits}e{sign}{:02}", exponent.abs())
}

/// Returns `true` if `str.isspace()` is true of a text of this character alone. Python counts four control characters
/// that Unicode does not.
pub fn is_space(c: char) -> bool {
    c.is_whitespace() || ('\u{1c}'..='\u{1f}').contains(&c)
}

/// Python's `str.rstrip()`.
pub fn rstrip(text: &str) -> &str {
    text.trim_end_matches(is_space)
}

/// Python's `bytes.decode("utf-8", errors="backslashreplace")`.
pub fn decode_with_backslashes(bytes: &[u8]) -> String {
    let mut out = String::with_capacity(bytes.len());
    for chunk in bytes.utf8_chunks() {
        out.push_str(chunk.valid());
        for byte in chunk.invalid() {
            escape(&mut out, u32::from(*byte));
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn texts_are_shown_as_python_shows_them() {
        for (text, shown) in [
            ("echo 'a'\n", r#""echo 'a'\n""#),
            ("a'b\"c\\", r#"'a\'b"c\\'"#),
            ("\u{1}\u{7f}\u{85}\u{a0}\t", r"'\x01\x7f\x85\xa0\t'"),
            ("ü 漢 😀", "'ü 漢 😀'"),
            (
                "\u{200b}\u{2028}\u{e000}\u{e0001}",
                r"'\u200b\u2028\ue000\U000e0001'",
            ),
        ] {
            assert_eq!(repr_text(text), shown);
        }
    }

    #[test]
    fn numbers_and_containers_are_shown_as_python_shows_them() {
        for (value, shown) in [
            (json!(1.0), "1.0"),
            (json!(-0.0), "-0.0"),
            (json!(0.1), "0.1"),
            (json!(1e15), "1000000000000000.0"),
            (json!(1e16), "1e+16"),
            (json!(1.5e300), "1.5e+300"),
            (json!(0.0001), "0.0001"),
            (json!(0.000_01), "1e-05"),
            (json!(12), "12"),
            (
                json!({"a": [true, null, "x", 2.5]}),
                "{'a': [True, None, 'x', 2.5]}",
            ),
        ] {
            assert_eq!(repr(&value).0, shown);
        }
        assert_eq!(str(&json!("x")), "x");
    }

    #[test]
    fn bytes_that_are_no_text_are_kept_as_escapes() {
        assert_eq!(decode_with_backslashes(b"a\xffb\xe2\x82"), r"a\xffb\xe2\x82");
        assert_eq!(decode_with_backslashes("ü".as_bytes()), "ü");
        assert_eq!(rstrip("a \u{1f}\r\n\u{85}"), "a");
    }
}
