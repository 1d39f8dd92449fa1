//! The types of what tasks send, against the schema that the Task SDK itself publishes.

use anyhow::{Context, bail, ensure};
use python::messages::{FromTask, Question};
use serde_json::{Map, Value, json};
use std::process::Command;

/// Messages that go down to a child, or between a parser and us: no task sends them.
const NOT_FROM_TASKS: [&str; 14] = [
    "DagCallbackRequest",
    "DagFileParseRequest",
    "DRCount",
    "EmailRequest",
    "ErrorResponse",
    "GetHITLDetailResponse",
    "OKResponse",
    "SentFDs",
    "StartupDetails",
    "TaskBreadcrumbsResult",
    "TaskCallbackRequest",
    "TaskRescheduleStartDate",
    "TICount",
    "XComCountResponse",
];

fn schema() -> anyhow::Result<Option<Value>> {
    let Some(python) = harness::python() else {
        return Ok(None);
    };
    let program = "import airflow.sdk.execution_time.schema as s, pathlib; \
                   print(pathlib.Path(list(s.__path__)[0], 'schema.json').read_text())";
    let output = Command::new(python).args(["-c", program]).output()?;
    ensure!(
        output.status.success(),
        "{}",
        String::from_utf8_lossy(&output.stderr)
    );
    Ok(Some(serde_json::from_slice(&output.stdout)?))
}

/// A value that the schema allows, with every property or only those that must be there.
fn sample(of: &Value, definitions: &Map<String, Value>, whole: bool) -> anyhow::Result<Value> {
    if let Some(constant) = of.get("const") {
        return Ok(constant.clone());
    }
    if let Some(first) = of.pointer("/enum/0") {
        return Ok(first.clone());
    }
    if let Some(reference) = of.get("$ref").and_then(Value::as_str) {
        let name = reference.trim_start_matches("#/$defs/");
        let target = definitions
            .get(name)
            .with_context(|| format!("no definition {name}"))?;
        return sample(target, definitions, whole);
    }
    if let Some(first) = of.pointer("/anyOf/0").or_else(|| of.pointer("/oneOf/0")) {
        return sample(first, definitions, whole);
    }
    let text = match of["format"].as_str() {
        Some("date-time") => "2026-01-01T00:00:00Z",
        Some("uuid") => "01890a5d-ac96-774b-bcce-b302099a8057",
        _ => "text",
    };
    Ok(match of["type"].as_str() {
        Some("string") => json!(text),
        Some("integer") => json!(1),
        Some("number") => json!(1.5),
        Some("boolean") => json!(true),
        Some("array") => json!([]),
        Some("object") => object(of, definitions, whole)?,
        Some(other) => bail!("no sample for type {other}"),
        None => json!({"any": "thing"}),
    })
}

fn object(of: &Value, definitions: &Map<String, Value>, whole: bool) -> anyhow::Result<Value> {
    let must = |name: &String| {
        of["required"]
            .as_array()
            .is_some_and(|names| names.contains(&json!(name)))
    };
    let mut object = Map::new();
    for (name, property) in of["properties"].as_object().into_iter().flatten() {
        if whole || must(name) || name == "type" {
            object.insert(name.clone(), sample(property, definitions, whole)?);
        }
    }
    Ok(Value::Object(object))
}

fn is_reply(name: &str) -> bool {
    // The parser's result goes up, but from a parser, whose side is tested with real files.
    name.ends_with("Result") || NOT_FROM_TASKS.contains(&name)
}

#[test]
fn every_message_that_the_sdk_publishes_is_known_in_every_form() -> anyhow::Result<()> {
    let Some(schema) = schema()? else {
        eprintln!("skipped: no Python environment");
        return Ok(());
    };
    let definitions = schema["$defs"]
        .as_object()
        .context("the schema has no definitions")?;
    let mut known = 0;
    for (name, definition) in definitions {
        if definition["properties"]["type"]["const"] != json!(name) || is_reply(name) {
            continue;
        }
        for whole in [false, true] {
            let message = sample(definition, definitions, whole)?;
            let understood = serde_json::from_value::<FromTask>(message.clone()).is_ok()
                || serde_json::from_value::<Question>(message.clone()).is_ok();
            ensure!(understood, "{name} is not understood: {message}");
        }
        known += 1;
    }
    ensure!(known > 40, "only {known} messages found; has the schema moved?");
    Ok(())
}
