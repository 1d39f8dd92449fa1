//! Long lines of output and long records stay whole, and params may have schemas within schemas.

use harness::Installation;
use serde_json::{Value, json};

const LONG: &str = r#"
import logging
from airflow.sdk import DAG, task
from airflow.providers.standard.operators.bash import BashOperator

with DAG("long", schedule=None):
    BashOperator(task_id="json", bash_command="printf '['; seq -s ', ' 1 30000 | tr -d '\\n'; printf ']'")
    @task
    def record(): logging.getLogger("mine").warning("ü" * 600_000)
    @task
    def exception(): raise ValueError("z" * 100_000)
    record()
    exception()
"#;

#[test]
fn a_long_last_line_is_the_xcom_and_a_long_record_keeps_its_level_and_its_exception() {
    let Some(python) = harness::python() else { return };
    let installation = Installation::new(&python);
    installation.dag("long.py", LONG);
    let process = installation.start("updraft", &["standalone"], &[]);
    let api = installation.api();
    api.wait_for_dag("long");
    api.trigger("long", &json!({"logical_date": null, "dag_run_id": "one"}));
    let state = api.wait_for_end("long", "one");
    assert_eq!(state, "failed", "{}", process.output());
    let path = "/api/v2/dags/long/dagRuns/one/taskInstances";
    let value = &api.get(&format!("{path}/json/xcomEntries/return_value"))["value"];
    let numbers: Vec<u32> = serde_json::from_str(value.as_str().expect("a text")).expect("a list");
    assert_eq!(numbers, (1..=30_000).collect::<Vec<_>>());
    let record_of = |task: &str, level: &str| {
        let log = api.get(&format!("{path}/{task}/logs/1"));
        let records = log["content"].as_array().cloned().unwrap_or_default();
        records
            .into_iter()
            .find(|record| record["level"] == level)
            .unwrap_or_else(|| panic!("{log}"))
    };
    let warning = record_of("record", "warning");
    assert_eq!(warning["logger"], "mine");
    assert_eq!(warning["event"], "ü".repeat(600_000));
    let error = record_of("exception", "error");
    assert_eq!(error["error_detail"][0]["exc_type"], "ValueError");
    assert_eq!(error["error_detail"][0]["exc_value"], "z".repeat(100_000));
}

const NESTED: &str = r#"
from airflow.sdk import DAG, Param
from airflow.providers.standard.operators.bash import BashOperator

params = {
    "one": Param("x", oneOf=[{"type": "string"}, {"type": "integer"}]),
    "items": Param([1], type="array", items={"type": "integer"}),
    "object": Param({"a": 1}, type="object", properties={"a": {"type": "integer"}}, required=["a"]),
}
with DAG("nested", schedule=None, params=params):
    BashOperator(task_id="b", bash_command="echo '{{ params.one }} {{ params['items'] }} {{ params.object.a }}'")
"#;

#[test]
fn a_dag_whose_params_have_schemas_within_schemas_takes_what_they_take() {
    let Some(python) = harness::python() else { return };
    let installation = Installation::new(&python);
    installation.dag("nested.py", NESTED);
    let process = installation.start("updraft", &["standalone"], &[]);
    let api = installation.api();
    api.wait_for_dag("nested");
    let run = |run_id: &str, conf: Value| {
        let body = json!({"logical_date": null, "dag_run_id": run_id, "conf": conf});
        let answer = api.call("POST", "/api/v2/dags/nested/dagRuns", Some(&body));
        answer.expect("an answer")
    };
    for (run_id, conf, printed) in [
        ("defaults", json!({}), "x [1] 1"),
        (
            "given",
            json!({"one": 7, "items": [], "object": {"a": 2}}),
            "7 [] 2",
        ),
    ] {
        let (status, answer) = run(run_id, conf);
        assert_eq!(status, 200, "{answer}");
        let state = api.wait_for_end("nested", run_id);
        assert_eq!(state, "success", "{}", process.output());
        let path = format!("/api/v2/dags/nested/dagRuns/{run_id}/taskInstances/b/xcomEntries/return_value");
        assert_eq!(api.get(&path)["value"], printed);
    }
    for (name, value) in [
        ("one", json!(1.5)),
        ("items", json!(["x"])),
        ("object", json!({"b": 1})),
    ] {
        let (status, answer) = run("refused", json!({name: value}));
        assert_eq!(status, 400, "{name}: {answer}");
    }
    let shown = api.get("/api/v2/dags/nested/details");
    assert_eq!(
        shown["params"]["one"]["schema"]["oneOf"],
        json!([{"type": "string"}, {"type": "integer"}])
    );
}
