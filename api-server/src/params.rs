//! Params of a DAG against what a run was given.

use crate::python_repr::python_repr;
use jsonschema::ValidationError;
use serde_json::{Map, Value};

/// A param as the serialized DAG declares it.
struct Param<'a> {
    name: &'a str,
    /// None where the author gave none: whoever triggers must.
    default: Option<&'a Value>,
    schema: Option<&'a Value>,
}

/// Takes Airflow's wrapping of a value off.
fn plain(value: &Value) -> &Value {
    match (value.get("__type"), value.get("__var")) {
        (Some(_), Some(inner)) => inner,
        _ => value,
    }
}

fn declared(dag: &Value) -> impl Iterator<Item = Param<'_>> {
    let items = dag.get("params").map(plain).and_then(Value::as_array);
    items.into_iter().flatten().filter_map(|item| {
        let [Value::String(name), body] = item.as_array()?.as_slice() else {
            return None;
        };
        let body = plain(body);
        let is_set = |value: &&Value| value.get("__type").is_none_or(|kind| kind != "arg_not_set");
        Some(Param {
            name,
            default: body.get("default").filter(is_set).map(plain),
            schema: body.get("schema").map(plain),
        })
    })
}

/// Checks the params of a serialized DAG with a run's conf over their defaults. The text says what is wrong, in Airflow's
/// words (`SerializedParamsDict.validate`).
pub(crate) fn check(dag: &Value, conf: &Map<String, Value>) -> Result<(), String> {
    for param in declared(dag) {
        let wrong = |why: &str| Err(format!("Invalid input for param {}: {why}", param.name));
        let Some(value) = conf.get(param.name).or(param.default) else {
            return wrong("No value passed");
        };
        let Some(schema) = param
            .schema
            .filter(|schema| schema.as_object().is_some_and(|fields| !fields.is_empty()))
        else {
            continue;
        };
        match with_formats().build(schema) {
            Err(error) => return wrong(&format!("its schema is no JSON schema: {error}")),
            Ok(validator) => {
                if let Err(error) = validator.validate(value) {
                    return wrong(&in_pythons_words(&error, schema));
                }
            }
        }
    }
    Ok(())
}

/// The formats that Airflow's Python checks. Others need packages there that Airflow does not bring along.
fn with_formats() -> jsonschema::ValidationOptions<'static> {
    const UNCHECKED: [&str; 10] = [
        "date-time",
        "uri",
        "uri-reference",
        "uri-template",
        "iri",
        "iri-reference",
        "hostname",
        "idn-hostname",
        "json-pointer",
        "relative-json-pointer",
    ];
    let is_time = |text: &str| chrono::NaiveTime::parse_from_str(text, "%H:%M:%S").is_ok();
    let is_address = |text: &str| text.contains('@');
    let options = jsonschema::options()
        .should_validate_formats(true)
        .with_format("time", is_time)
        .with_format("email", is_address)
        .with_format("idn-email", is_address);
    UNCHECKED
        .into_iter()
        .fold(options, |options, name| options.with_format(name, |_: &str| true))
}

/// The text of Python's `jsonschema.ValidationError`.
fn in_pythons_words(error: &ValidationError<'_>, schema: &Value) -> String {
    let path = error.schema_path().to_string();
    let (within, keyword) = path.rsplit_once('/').unwrap_or(("", ""));
    let part = schema.pointer(within).unwrap_or(schema);
    format!(
        "{error}\n\nFailed validating {} in schema{}:\n    {}\n\nOn instance{}:\n    {}",
        python_repr(&keyword.into()).0,
        subscripts(within),
        python_repr(part).0,
        subscripts(&error.instance_path().to_string()),
        python_repr(error.instance()).0,
    )
}

/// `/a/0` as `['a'][0]`
fn subscripts(pointer: &str) -> String {
    let part = |part: &str| match part.parse::<u64>() {
        Ok(number) => format!("[{number}]"),
        Err(_) => format!("[{}]", python_repr(&part.into()).0),
    };
    pointer.split('/').skip(1).map(part).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn check_x(param: Value, conf: Value) -> Result<(), String> {
        let dag = json!({"params": [["x", {"__class": "airflow.sdk.definitions.param.Param", "default": param["default"],
                                           "schema": {"__type": "dict", "__var": param["schema"]}}]]});
        check(&dag, conf.as_object().unwrap())
    }

    #[test]
    fn conf_is_held_against_the_schema_of_each_param() {
        let param = json!({"default": 1, "schema": {"type": "integer", "minimum": 0, "maximum": 10}});
        assert_eq!(check_x(param.clone(), json!({})), Ok(()));
        assert_eq!(check_x(param.clone(), json!({"x": 5, "y": "anything"})), Ok(()));
        let refused = check_x(param, json!({"x": 99})).unwrap_err();
        assert_eq!(
            refused,
            "Invalid input for param x: 99 is greater than the maximum of 10\n\nFailed validating 'maximum' in schema:\n    \
             {'type': 'integer', 'minimum': 0, 'maximum': 10}\n\nOn instance:\n    99"
        );
    }

    #[test]
    fn formats_are_held_as_strictly_as_python_does() {
        let of = |format: &str, value: &str| {
            check_x(
                json!({"default": value, "schema": {"type": "string", "format": format}}),
                json!({}),
            )
            .is_ok()
        };
        assert!(of("time", "12:13:14") && !of("time", "12:13:14+00:00"));
        assert!(of("date", "2025-01-02") && !of("date", "2025-02-30"));
        assert!(of("date-time", "2025-01-02 10:00") && of("email", "me@here") && !of("email", "me"));
    }

    #[test]
    fn a_param_without_a_default_must_be_given() {
        let param = json!({"default": {"__type": "arg_not_set"}, "schema": {}});
        assert_eq!(
            check_x(param.clone(), json!({})).unwrap_err(),
            "Invalid input for param x: No value passed"
        );
        assert_eq!(check_x(param, json!({"x": null})), Ok(()));
    }
}
