//! Params with schemas, and runs that set them.

use super::cases::usual_params;
use crate::lots::Lots;
use serde_json::{Map, Value, json};

/// Params with schemas of a DAG and of its task, and a run that sets some.
pub(super) fn of_params(lots: &mut Lots) -> Value {
    const SCHEMAS: [(&str, &str, &str); 9] = [
        ("1", r#"{"type": "integer", "minimum": 0}"#, "-1"),
        (
            "\"x\"",
            r#"{"oneOf": [{"type": "string"}, {"type": "integer"}]}"#,
            "1.5",
        ),
        (
            "\"x\"",
            r#"{"anyOf": [{"type": "string"}, {"type": "array", "items": {"type": "integer"}}]}"#,
            "[1, 2]",
        ),
        (
            "[1]",
            r#"{"type": "array", "items": {"type": "integer"}}"#,
            "[\"a\"]",
        ),
        (
            "{\"a\": 1}",
            r#"{"type": "object", "properties": {"a": {"type": "integer"}}, "required": ["a"]}"#,
            "{\"b\": 1}",
        ),
        ("\"a\"", r#"{"enum": ["a", "b"]}"#, "\"c\""),
        ("null", r#"{"type": ["null", "string"]}"#, "\"set\""),
        ("2.0", r#"{"type": "number", "maximum": 3}"#, "3"),
        (
            "\"2025-01-01\"",
            r#"{"type": "string", "format": "date"}"#,
            "\"soon\"",
        ),
    ];
    let read = |text: &str| serde_json::from_str::<Value>(text).unwrap_or_default();
    let (mut params, mut of_task, mut conf) = (usual_params(), json!({}), json!({}));
    for name in ["p", "q", "n"] {
        let (default, schema, other) = lots.one(&SCHEMAS);
        if lots.below(2) == 0 {
            let owner = if lots.below(3) == 0 {
                &mut of_task
            } else {
                &mut params
            };
            owner[name] = json!({"default": read(default), "schema": read(schema)});
        }
        if lots.below(3) == 0 {
            conf[name] = read(if lots.below(2) == 0 { other } else { default });
        }
    }
    for (name, value) in [
        ("f", json!(1e16)),
        ("free", json!({"x": [1.0, null, "ü'"]})),
        ("s", json!(true)),
    ] {
        if lots.below(3) == 0 {
            conf[name] = value;
        }
    }
    json!({
        "bash_command": ": {{ params }} {{ params.n }} {{ params.p | default('-') }} {{ dag_run.conf }}",
        "params": params, "task_params": of_task, "conf": conf,
    })
}

/// A random value of JSON.
fn value(lots: &mut Lots, depth: u32) -> Value {
    let texts = [
        "",
        "a",
        "b",
        "ab",
        "2025-01-01",
        "x@y",
        "10:00:00",
        "Grüße",
        "a\nb",
        "it's",
        "null",
        "1",
    ];
    match lots.below(if depth == 0 { 7 } else { 9 }) {
        0 => Value::Null,
        1 => json!(lots.below(2) == 0),
        2 => json!(*lots.one(&[0_i64, 1, 2, 3, -1, 10, 255, 9_007_199_254_740_993])),
        3 => json!(*lots.one(&[0.0, 1.0, 1.5, -2.25, 1e16, 0.1])),
        4..=6 => json!(*lots.one(&texts)),
        7 => (0..lots.below(4)).map(|_| value(lots, depth - 1)).collect(),
        _ => {
            let fields = (0..lots.below(3))
                .map(|_| ((*lots.one(&["a", "b", "c"])).to_owned(), value(lots, depth - 1)));
            fields.collect::<Map<_, _>>().into()
        }
    }
}

/// A random schema.
fn schema(lots: &mut Lots, depth: u32) -> Value {
    let mut all = Map::new();
    for _ in 0..=lots.below(2) {
        let (key, rule) = rule(lots, depth);
        all.insert(key.to_owned(), rule);
    }
    all.into()
}

fn rule(lots: &mut Lots, depth: u32) -> (&'static str, Value) {
    const TYPES: [&str; 7] = [
        "string", "integer", "number", "boolean", "null", "array", "object",
    ];
    let several = |lots: &mut Lots| -> Value {
        (0..=lots.below(2))
            .map(|_| schema(lots, depth.saturating_sub(1)))
            .collect()
    };
    match lots.below(if depth == 0 { 16 } else { 24 }) {
        0..=3 => ("type", json!(*lots.one(&TYPES))),
        4 => ("type", json!([*lots.one(&TYPES), "null"])),
        5 => ("minLength", json!(lots.below(3))),
        6 => ("maxLength", json!(lots.below(4))),
        7 => (
            "pattern",
            json!(*lots.one(&["^a", "b$", "^[a-z]+$", "\\\\d{4}", "x|y", "^$"])),
        ),
        8 => ("enum", (0..=lots.below(3)).map(|_| value(lots, 1)).collect()),
        9 => ("const", value(lots, 1)),
        10 => ("minimum", json!(*lots.one(&[0.0, 1.0, 1.5]))),
        11 => ("maximum", json!(*lots.one(&[0, 3, 255]))),
        12 => ("exclusiveMinimum", json!(lots.below(3))),
        13 => ("multipleOf", json!(*lots.one(&[2.0, 0.5, 3.0]))),
        14 => (
            "format",
            json!(*lots.one(&[
                "date",
                "date-time",
                "email",
                "time",
                "uri",
                "ipv4",
                "uuid",
                "regex",
                "x"
            ])),
        ),
        15 => ("uniqueItems", json!(true)),
        16 => ("items", schema(lots, depth - 1)),
        17 => ("minItems", json!(lots.below(3))),
        18 => ("maxItems", json!(lots.below(3))),
        19 => {
            let fields = ["a", "b"].map(|name| (name.to_owned(), schema(lots, depth - 1)));
            ("properties", fields.into_iter().collect::<Map<_, _>>().into())
        }
        20 => ("required", json!([*lots.one(&["a", "b"])])),
        21 => ("additionalProperties", json!(false)),
        22 => (*lots.one(&["oneOf", "anyOf", "allOf"]), several(lots)),
        _ => ("not", schema(lots, depth - 1)),
    }
}

/// A run with a conf, which Airflow takes or refuses by the schemas of the DAG's params.
pub(super) fn of_trigger(lots: &mut Lots) -> Value {
    let (mut params, mut conf) = (Map::new(), Map::new());
    for name in ["a", "b"].iter().take(1 + lots.below(2)) {
        let schema = schema(lots, 2);
        let default = value(lots, 2);
        params.insert((*name).to_owned(), json!({"default": default, "schema": schema}));
        if lots.below(3) > 0 {
            conf.insert((*name).to_owned(), value(lots, 2));
        }
    }
    json!({"kind": "trigger", "bash_command": "true", "params": params, "conf": conf})
}
