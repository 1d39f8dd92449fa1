//! Priority weights, where it matters: on workers that have more to do than slots.

use harness::{Installation, eventually};
use serde_json::json;
use std::time::Duration;

const PATIENCE: Duration = Duration::from_secs(60);

const DAGS: &str = r#"
from airflow.sdk import DAG
from airflow.providers.standard.operators.bash import BashOperator as Bash

with DAG("light", schedule=None):
    for n in range(12):
        Bash(task_id=f"t{n}", bash_command="echo light >> PATH/order; until test -e PATH/go; do sleep 0.05; done")

with DAG("heavy", schedule=None):
    Bash(task_id="t", bash_command="echo heavy >> PATH/order", priority_weight=50)
"#;

#[test]
fn a_heavy_task_goes_before_light_ones_that_wait_for_a_worker_already() {
    let Some(python) = harness::python() else { return };
    let mut installation = Installation::new(&python);
    installation.set("AIRFLOW__CELERY__WORKER_CONCURRENCY", "1");
    let path = installation.path().to_string_lossy().into_owned();
    installation.dag("dags.py", &DAGS.replace("PATH", &path));
    let _process = installation.start("updraft", &["standalone"], &[]);
    let api = installation.api();
    let body = json!({"logical_date": null, "dag_run_id": "r"});
    let in_state = |dag_id: &str, state: &str, count: usize| {
        eventually(&format!("{count} of {dag_id} are {state}"), PATIENCE, || {
            let tasks = api.tasks(dag_id, "r");
            match tasks.iter().filter(|ti| ti["state"] == state).count() {
                found if found == count => Ok(()),
                found => Err(format!("{found}")),
            }
        });
    };
    for dag_id in ["light", "heavy"] {
        api.wait_for_dag(dag_id);
    }
    api.trigger("light", &body);
    in_state("light", "running", 1);
    in_state("light", "queued", 11);
    api.trigger("heavy", &body);
    in_state("heavy", "queued", 1);
    std::fs::write(installation.path().join("go"), "").expect("a sign");
    assert_eq!(api.wait_for_end("heavy", "r"), "success");
    assert_eq!(api.wait_for_end("light", "r"), "success");
    let order = std::fs::read_to_string(installation.path().join("order")).expect("the order");
    let order: Vec<&str> = order.lines().collect();
    assert_eq!((order.len(), order[1]), (13, "heavy"), "{order:?}");
}
