//! Callbacks of DAGs.

use harness::{Installation, eventually};
use serde_json::json;
use std::time::Duration;

const PATIENCE: Duration = Duration::from_secs(60);

const CALLS: &str = r#"
import json
from airflow.sdk import DAG, Variable, task

def write(context, word):
    with open("WITNESS", "a") as out:
        ti = context.get("ti")
        facts = [word, context["run_id"], context["reason"], ti and ti.task_id, str(context["dag_run"].conf), Variable.get("greeting", default="none")]
        out.write(json.dumps(facts) + "\n")

def breaks(context):
    raise ValueError("as it should")

with DAG("good", schedule=None, on_success_callback=[breaks, lambda context: write(context, "good")], on_failure_callback=lambda context: write(context, "wrong")):
    @task
    def fine():
        return 1
    fine()

with DAG("bad", schedule=None, on_failure_callback=lambda context: write(context, "bad")):
    @task
    def fails():
        raise ValueError("no")
    fails()
"#;

#[test]
fn callbacks_of_a_dag_are_called_when_its_runs_end() {
    let Some(python) = harness::python() else { return };
    let installation = Installation::new(&python);
    let witness = installation.path().join("witness");
    installation.dag("calls.py", &CALLS.replace("WITNESS", &witness.to_string_lossy()));
    let process = installation.start("updraft", &["standalone"], &[]);
    let api = installation.api();
    let body = json!({"key": "greeting", "value": "hello"});
    let (status, answer) = api
        .call("POST", "/api/v2/variables", Some(&body))
        .expect("an answer");
    assert_eq!(status, 201, "{answer}");
    for dag in ["good", "bad"] {
        api.wait_for_dag(dag);
        api.trigger(
            dag,
            &json!({"logical_date": null, "dag_run_id": format!("of_{dag}"), "conf": {"n": 1}}),
        );
    }
    let mut lines = eventually("both are called", PATIENCE, || {
        let text = std::fs::read_to_string(&witness).unwrap_or_default();
        let lines: Vec<String> = text.lines().map(str::to_owned).collect();
        if lines.len() == 2 {
            Ok(lines)
        } else {
            Err(format!("{lines:?} {}", process.output()))
        }
    });
    lines.sort();
    assert_eq!(
        lines,
        [
            r#"["bad", "of_bad", "task_failure", "fails", "{'n': 1}", "hello"]"#,
            r#"["good", "of_good", "success", "fine", "{'n': 1}", "hello"]"#,
        ]
    );
    // One that goes wrong is told, and keeps nobody else from being called.
    assert!(
        process.output().contains("ValueError: as it should"),
        "{}",
        process.output()
    );
}
