//! Params of a DAG against what a run was given.

use jsonschema::ValidationError;
use model::json::with_floats;
use model::python_text::{repr, repr_text};
use model::serialized::{decode, is_not_set, unmarked};
use serde_json::{Map, Value, json};

/// A param as the serialized DAG or task declares it, without the serializer's marks.
struct Param<'a> {
    name: &'a str,
    /// None where the author gave none: whoever triggers must.
    default: Option<Value>,
    schema: Value,
    description: Value,
}

impl Param<'_> {
    /// What is wrong with a value for it, in Airflow's words.
    fn check(&self, value: &Value) -> Result<(), String> {
        if self.schema.as_object().is_none_or(Map::is_empty) {
            return Ok(());
        }
        let validator = with_formats()
            .build(&self.schema)
            .map_err(|error| format!("its schema is no JSON schema: {error}"))?;
        validator
            .validate(&with_floats(value))
            .map_err(|error| in_pythons_words(&error, &self.schema))
    }
}

/// The params of a serialized DAG or task: a list of pairs of a name and a marked param.
fn declared(params: Option<&Value>) -> impl Iterator<Item = Param<'_>> {
    let items = params.map(unmarked).and_then(Value::as_array);
    items.into_iter().flatten().filter_map(|item| {
        let [Value::String(name), body] = unmarked(item).as_array()?.as_slice() else {
            return None;
        };
        let body = unmarked(body);
        let field = |key: &str| body.get(key).filter(|value| !is_not_set(value));
        Some(Param {
            name,
            default: field("default").map(decode),
            schema: field("schema").map_or_else(|| json!({}), decode),
            description: field("description").map_or(Value::Null, decode),
        })
    })
}

/// Params as the details of a DAG or a task show them. A default that its own schema refuses is shown as none, as Airflow
/// does.
pub(crate) fn shown(params: Option<&Value>, source: &Value) -> Value {
    let entry = |param: Param<'_>| {
        let value = param.default.as_ref().filter(|value| param.check(value).is_ok());
        let body = json!({
            "value": value, "schema": param.schema, "description": param.description, "source": source,
        });
        (param.name.to_owned(), body)
    };
    declared(params).map(entry).collect::<Map<_, _>>().into()
}

/// Checks the params of a serialized DAG with a run's conf over their defaults. The text says what is wrong, in Airflow's
/// words (`SerializedParamsDict.validate`).
///
/// # Errors
/// When a value does not fit the schema of its param, or a param has no value.
pub fn check(dag: &Value, conf: &Map<String, Value>) -> Result<(), String> {
    for param in declared(dag.get("params")) {
        let checked = match conf.get(param.name).or(param.default.as_ref()) {
            Some(value) => param.check(value),
            None => Err("No value passed".to_owned()),
        };
        checked.map_err(|why| format!("Invalid input for param {}: {why}", param.name))?;
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
        repr_text(keyword),
        subscripts(within),
        repr(part).0,
        subscripts(&error.instance_path().to_string()),
        repr(error.instance()).0,
    )
}

/// `/a/0` as `['a'][0]`
fn subscripts(pointer: &str) -> String {
    let part = |part: &str| match part.parse::<u64>() {
        Ok(number) => format!("[{number}]"),
        Err(_) => format!("[{}]", repr_text(part)),
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

    /// Params as Airflow's own serializer wrote them, of a DAG and of a task.
    fn serialized() -> Value {
        serde_json::from_str(include_str!("params/serialized.json")).unwrap()
    }

    #[test]
    fn schemas_within_schemas_are_read_as_they_were_written() {
        let dag = serialized();
        let with = |name: &str, value: Value| {
            let mut conf = Map::from_iter([("need".to_owned(), json!("given"))]);
            conf.insert(name.to_owned(), value);
            check(&dag, &conf)
        };
        assert_eq!(with("need", json!("x")), Ok(()));
        for (name, good, bad) in [
            ("one", json!(3), json!(1.5)),
            ("any", json!("y"), json!([1])),
            ("all", json!(3), json!(2)),
            ("list", json!([]), json!(["x"])),
            ("object", json!({"a": 2, "b": null}), json!({"a": "x"})),
            ("object", json!({"a": 2, "b": "y"}), json!({"b": "y"})),
            ("object", json!({"a": 2}), json!({"a": 1, "b": 3})),
            ("pair", json!(["b", 2]), json!([2, "b"])),
            ("chosen", json!("a"), json!("c")),
            ("maybe", json!("x"), json!(1)),
            ("not", json!({}), json!("text")),
        ] {
            assert_eq!(with(name, good), Ok(()), "{name}");
            let refused = with(name, bad).unwrap_err();
            assert!(
                refused.starts_with(&format!("Invalid input for param {name}: ")),
                "{refused}"
            );
            assert!(!refused.contains("__var"), "{refused}");
        }
    }

    #[test]
    fn details_show_params_without_a_mark() {
        let shown = shown(serialized().get("params"), &Value::Null);
        assert_eq!(shown["object"]["value"], json!({"a": 1, "__type": "mine"}));
        let properties = json!({"a": {"type": "integer"}, "b": {"enum": [null, "y"]}});
        assert_eq!(shown["object"]["schema"]["properties"], properties);
        assert_eq!(
            shown["deep"]["value"],
            json!({"x": [{"y": {"z": [1, {"w": null}]}}]})
        );
        assert_eq!(shown["need"]["value"], Value::Null);
        assert_eq!(shown["list"]["description"], "numbers");
        let task = super::shown(serialized().get("task"), &json!("task"));
        assert_eq!(
            task["own"]["schema"]["additionalProperties"],
            json!({"type": "integer"})
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
