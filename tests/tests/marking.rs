//! Runs that people mark.

use harness::{Installation, eventually};
use serde_json::json;
use std::time::Duration;

const PATIENCE: Duration = Duration::from_secs(60);

const CLEANS: &str = r#"
from airflow.providers.standard.operators.bash import BashOperator
from airflow.sdk import DAG

with DAG("cleans", schedule=None):
    make = BashOperator(task_id="make", bash_command="true").as_setup()
    work = BashOperator(task_id="work", bash_command="sleep 600")
    clean = BashOperator(task_id="clean", bash_command="touch CLEANED").as_teardown(setups=make)
    make >> work >> clean
"#;

#[test]
fn a_run_that_is_marked_still_cleans_up_and_what_is_cleared_is_set_up_again() {
    let Some(python) = harness::python() else { return };
    let installation = Installation::new(&python);
    let cleaned = installation.path().join("cleaned");
    installation.dag(
        "cleans.py",
        &CLEANS.replace("CLEANED", &cleaned.to_string_lossy()),
    );
    let process = installation.start("updraft", &["standalone"], &[]);
    let api = installation.api();
    api.wait_for_dag("cleans");
    api.trigger("cleans", &json!({"logical_date": null, "dag_run_id": "r"}));
    let state = |task: &str| {
        let path = format!("/api/v2/dags/cleans/dagRuns/r/taskInstances/{task}");
        api.get(&path)["state"].as_str().unwrap_or("none").to_owned()
    };
    eventually("the work begins", PATIENCE, || match state("work").as_str() {
        "running" => Ok(()),
        other => Err(format!("{other} {}", process.output())),
    });
    let path = "/api/v2/dags/cleans/dagRuns/r";
    let (status, answer) = api
        .call("PATCH", path, Some(&json!({"state": "failed"})))
        .expect("an answer");
    assert_eq!(status, 200, "{answer}");
    assert_eq!(api.wait_for_end("cleans", "r"), "failed");
    let states = ["make", "work", "clean"].map(state);
    assert_eq!(states, ["success", "failed", "success"]);
    assert!(cleaned.exists(), "the teardown ran");
    let body = json!({"task_ids": ["work"], "dag_run_id": "r", "dry_run": true, "only_failed": false});
    let (status, tried) = api
        .call("POST", "/api/v2/dags/cleans/clearTaskInstances", Some(&body))
        .expect("an answer");
    assert_eq!(status, 200, "{tried}");
    let mut names: Vec<&str> = tried["task_instances"]
        .as_array()
        .into_iter()
        .flatten()
        .filter_map(|ti| ti["task_id"].as_str())
        .collect();
    names.sort_unstable();
    assert_eq!(names, ["clean", "make", "work"]);
}
