//! Values as Python prints them, where Airflow's answers hold such text.

use serde_json::{Value, json};

/// Python's `repr()` of a JSON value, and the name of its class.
pub(crate) fn python_repr(value: &Value) -> (String, &'static str) {
    let inner = |value: &Value| python_repr(value).0;
    match value {
        Value::Null => ("None".to_owned(), "NoneType"),
        Value::Bool(true) => ("True".to_owned(), "bool"),
        Value::Bool(false) => ("False".to_owned(), "bool"),
        Value::Number(n) => (n.to_string(), if n.is_f64() { "float" } else { "int" }),
        Value::String(text) => {
            let quote = if text.contains('\'') && !text.contains('"') {
                '"'
            } else {
                '\''
            };
            let mut out = String::from(quote);
            for c in text.chars() {
                match c {
                    '\\' => out.push_str("\\\\"),
                    '\n' => out.push_str("\\n"),
                    '\r' => out.push_str("\\r"),
                    '\t' => out.push_str("\\t"),
                    c if c == quote => out.extend(['\\', c]),
                    c => out.push(c),
                }
            }
            out.push(quote);
            (out, "str")
        }
        Value::Array(items) => (
            format!("[{}]", items.iter().map(inner).collect::<Vec<_>>().join(", ")),
            "list",
        ),
        Value::Object(fields) => {
            let pair = |(key, value): (&String, &Value)| format!("{}: {}", inner(&json!(key)), inner(value));
            (
                format!("{{{}}}", fields.iter().map(pair).collect::<Vec<_>>().join(", ")),
                "dict",
            )
        }
    }
}
