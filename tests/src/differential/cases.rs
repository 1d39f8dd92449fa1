//! Cases: listed by hand, or generated from a seed.

use super::expressions::template;
use crate::lots::Lots;
use anyhow::Context;
use serde_json::{Map, Value, json};

/// One task and the run that it is in.
#[derive(Debug, Clone)]
pub struct Case {
    /// The name of a listed case, or the number of a generated one.
    pub name: String,
    /// What it is, as `python_side.py` reads it.
    pub body: Value,
}

/// The cases of `tests/differential/listed.json`.
///
/// # Errors
/// When the file is no list of cases.
pub fn listed() -> anyhow::Result<Vec<Case>> {
    let cases: Map<String, Value> = serde_json::from_str(include_str!("../../differential/listed.json"))
        .context("tests/differential/listed.json")?;
    Ok(cases.into_iter().map(|(name, body)| case(name, body)).collect())
}

fn case(name: String, mut body: Value) -> Case {
    body["dag_id"] = json!(format!("case_{name}"));
    Case { name, body }
}

/// The generated case of this number.
pub fn generated(seed: u64, number: u64) -> Case {
    let mut lots = Lots::new(seed.wrapping_mul(1_000_003).wrapping_add(number));
    let body = match lots.below(20) {
        0..=11 => of_template(&mut lots),
        12..=14 => of_output(&mut lots),
        15 | 16 => of_environment(&mut lots),
        17 | 18 => of_params(&mut lots),
        _ => of_exit(&mut lots),
    };
    case(number.to_string(), body)
}

fn usual_params() -> Value {
    json!({
        "n": 3, "f": 2.5, "s": "a-b c", "u": "Grüße", "t": true, "z": null, "l": [1, "x", 2.5, null, "it's"],
        "d": {"k": "v", "n": [1], "b": false}, "e": "",
    })
}

fn of_template(lots: &mut Lots) -> Value {
    // What it prints is seen in the rendered fields and in the log; nothing needs to be run for that.
    json!({
        "bash_command": format!(": <<'XEOF'\n{}", template(lots)),
        "params": usual_params(), "conf": {"c": "blue", "l": [1.0, true]},
        "try_number": 1 + lots.below(3), "run_id": lots.one(&["r", "manual__2025-03-01T16:30:00+00:00"]),
        "logical_date": lots.one(&["2025-03-01T16:30:00Z", "2024-12-31T23:59:59.123456Z", "2025-03-30T00:30:00Z"]),
    })
}

fn of_output(lots: &mut Lots) -> Value {
    const PIECES: [&str; 22] = [
        "\\n",
        "\\n\\n",
        "\\r\\n",
        "\\r",
        " ",
        "\\t",
        "a",
        "b c",
        "Grüße",
        "漢字",
        "😀",
        "\\377",
        "\\303",
        "\\342\\202",
        "\\355\\240\\200",
        "\\034",
        "\\302\\205",
        "\\302\\240",
        "\\033[31mred\\033[0m",
        "\\001",
        "%%",
        "::group::x",
    ];
    let mut commands = Vec::new();
    for _ in 0..=lots.below(4) {
        let length = lots.one(&[10_usize, 65_534, 65_535, 65_536, 65_537, 131_072, 200_000]);
        commands.push(match lots.below(8) {
            0 => format!("head -c {length} /dev/zero | tr '\\0' x"),
            1 => format!("yes ü | head -n {} | tr -d '\\n'", length / 2),
            2 => "echo err >&2".to_owned(),
            _ => {
                let text: String = (0..=lots.below(6)).map(|_| *lots.one(&PIECES)).collect();
                format!("printf '{text}'")
            }
        });
    }
    json!({"bash_command": commands.join("; "), "do_xcom_push": lots.below(8) > 0})
}

fn of_environment(lots: &mut Lots) -> Value {
    let mut env = Map::new();
    for name in [
        "A",
        "B_1",
        "PATH",
        "LC_ALL",
        "AIRFLOW_CTX_DAG_ID",
        "api_key",
        "X.Y",
    ] {
        if lots.below(3) == 0 {
            let value = match lots.below(3) {
                0 => template(lots),
                _ => (*lots.one(&["", "x", "a b", "{{ ds }}", "1=2", "Grüße\n", "/usr/bin:/bin"])).to_owned(),
            };
            env.insert(name.to_owned(), value.into());
        }
    }
    let append = lots.below(2) == 0;
    let show = if append {
        "echo \"$A|$B_1|$AIRFLOW_CTX_DAG_ID|$AIRFLOW_CTX_TRY_NUMBER|$api_key\""
    } else {
        "export -p | grep -v -e OLDPWD -e PWD -e SHLVL -e UPDRAFT"
    };
    let mut body = json!({
        "bash_command": format!("{show}; pwd | sed s/airflowtmp.*/TMP/"), "env": env, "append_env": append,
        "params": usual_params(), "conf": {"c": "blue", "l": []},
        "owner": lots.one(&["airflow", "me"]),
    });
    if lots.below(3) == 0 {
        body["cwd"] = (*lots.one(&[
            "/",
            "/tmp",
            "/nonexistent",
            "/etc/hosts",
            "{{ params.s }}",
            "",
            "tmp",
        ]))
        .into();
    }
    body
}

fn of_params(lots: &mut Lots) -> Value {
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

fn of_exit(lots: &mut Lots) -> Value {
    let codes = [
        json!(99),
        json!(null),
        json!(0),
        json!([]),
        json!([0]),
        json!([1, 2]),
        json!([-15, 143]),
        json!(["1"]),
        json!([1.0]),
        json!([true]),
        json!({"kind": "set", "items": [3, 99]}),
        json!({"kind": "tuple", "items": [99, 1]}),
        json!({"kind": "range", "items": [1, 4]}),
    ];
    let ends = [
        "exit 0",
        "exit 1",
        "exit 2",
        "exit 3",
        "exit 99",
        "exit 127",
        "exit 143",
        "exit 255",
        "exit 256",
        "false",
        "kill -TERM $$",
        "kill -KILL $$",
        "kill -HUP $$",
        "nosuchcommand",
        "if",
        "false | true",
        "set -e; false; echo on",
        "exec 1>&- 2>&-; exit 4",
    ];
    let mut body = json!({"bash_command": format!("echo out; {}", lots.one(&ends))});
    if lots.below(2) == 0 {
        body["skip_on_exit_code"] = lots.one(&codes).clone();
    }
    body
}
