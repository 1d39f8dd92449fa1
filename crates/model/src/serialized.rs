//! Values in Airflow's serialized documents, without the marks that its serializer leaves on everything that is not plain
//! JSON: `{"__type": "dict", "__var": {...}}` and the like, at any depth.

use crate::time::{from_micros, python_isoformat};
use serde_json::{Map, Value};

const TYPE: &str = "__type";
const VALUE: &str = "__var";

/// Takes the outermost mark off. What is within may be marked again: see [`decode`] for the whole value.
pub fn unmarked(value: &Value) -> &Value {
    value
        .get(VALUE)
        .filter(|_| value.get(TYPE).is_some())
        .unwrap_or(value)
}

/// Returns `true` if the serializer says that an argument was not given at all.
pub fn is_not_set(value: &Value) -> bool {
    value.get(TYPE).is_some_and(|kind| kind == "arg_not_set")
}

/// The value as JSON, without a mark anywhere. Tuples and sets become lists, instants become ISO 8601 text, lengths of time
/// become seconds, and anything else that JSON has no form for becomes what its mark holds.
pub fn decode(value: &Value) -> Value {
    match value {
        Value::Array(items) => items.iter().map(decode).collect(),
        Value::Object(fields) => match (fields.get(TYPE).and_then(Value::as_str), fields.get(VALUE)) {
            (Some(kind), inner) => decode_marked(kind, inner.unwrap_or(&Value::Null)),
            (None, _) => decode_each(fields),
        },
        Value::Null | Value::Bool(_) | Value::Number(_) | Value::String(_) => value.clone(),
    }
}

fn decode_marked(kind: &str, inner: &Value) -> Value {
    match (kind, inner) {
        // The keys of a dict are the user's: one that looks like a mark is none.
        ("dict", Value::Object(fields)) => decode_each(fields),
        ("arg_not_set", _) => Value::Null,
        ("datetime", Value::Number(seconds)) => seconds
            .as_f64()
            .and_then(|seconds| from_micros((seconds * 1e6).round() as i64))
            .map_or(Value::Null, |at| python_isoformat(at).into()),
        (_, inner) => decode(inner),
    }
}

fn decode_each(fields: &Map<String, Value>) -> Value {
    let entry = |(key, value): (&String, &Value)| (key.clone(), decode(value));
    fields.iter().map(entry).collect::<Map<_, _>>().into()
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn marks_are_taken_off_at_any_depth() {
        let marked = json!({"__type": "dict", "__var": {
            "oneOf": [{"__type": "dict", "__var": {"type": "string"}}, {"__type": "dict", "__var": {"const": {"__type": "tuple", "__var": [1, 2]}}}],
            "since": {"__type": "datetime", "__var": 1_740_787_200.5},
            "wait": {"__type": "timedelta", "__var": 90.0},
            "kinds": {"__type": "set", "__var": ["a", {"__type": "dict", "__var": {}}]},
            "none": {"__type": "arg_not_set", "__var": null},
        }});
        let expected = json!({
            "oneOf": [{"type": "string"}, {"const": [1, 2]}], "since": "2025-03-01T00:00:00.500000+00:00", "wait": 90.0,
            "kinds": ["a", {}], "none": null,
        });
        assert_eq!(decode(&marked), expected);
    }

    #[test]
    fn a_dict_of_the_user_may_have_keys_that_look_like_marks() {
        let users = json!({"__type": "tuple", "__var": [1]});
        let marked = json!({"__type": "dict", "__var": users});
        assert_eq!(decode(&marked), users);
    }
}
