//! Every wait is explained: over the API, and on the command line.

use harness::{Api, Installation, eventually};
use serde_json::json;
use std::time::Duration;

const PATIENCE: Duration = Duration::from_secs(60);

const WAITS: &str = r#"
from datetime import timedelta
from airflow.sdk import DAG, BaseOperator
from airflow.providers.standard.operators.bash import BashOperator
from airflow.providers.standard.operators.empty import EmptyOperator
from airflow.providers.standard.triggers.temporal import TimeDeltaTrigger

class Deferring(BaseOperator):
    def execute(self, context):
        self.defer(trigger=TimeDeltaTrigger(timedelta(hours=1)), method_name="go_on")

with DAG("waits", schedule=None, max_active_tasks=2, max_active_runs=1) as dag:
    slow = BashOperator(task_id="slow", bash_command="sleep 600", priority_weight=9)
    slow >> EmptyOperator(task_id="after")
    BashOperator(task_id="fails", bash_command="exit 1", retries=1, retry_delay=timedelta(hours=1), priority_weight=8)
    Deferring(task_id="deferring", priority_weight=7)
    BashOperator(task_id="steady", bash_command="sleep 600", priority_weight=6)
    BashOperator(task_id="pooled", bash_command="true", pool="small", pool_slots=2, priority_weight=6)
    BashOperator(task_id="lost", bash_command="true", pool="nowhere", priority_weight=5)
    BashOperator(task_id="crowded", bash_command="true", priority_weight=1)

with DAG("wide", schedule=None) as wide:
    BashOperator(task_id="t", bash_command="true", pool="small", pool_slots=2)

with DAG("past", schedule=None) as past:
    BashOperator(task_id="patient", bash_command="true", wait_for_downstream=True) >> BashOperator(
        task_id="breaks", bash_command="{{ dag_run.conf.get('command', 'true') }}"
    )
    BashOperator(task_id="strict", bash_command="true", depends_on_past=True)

with DAG("crossed", schedule=None, max_active_runs=1) as crossed:
    BashOperator(task_id="t", bash_command="{{ dag_run.conf.get('command', 'true') }}", depends_on_past=True)
"#;

fn said(api: &Api, dag_id: &str, run_id: &str, task: &str) -> String {
    let path = format!("/api/v2/dags/{dag_id}/dagRuns/{run_id}/taskInstances/{task}/dependencies");
    api.get(&path)["explanation"]
        .as_str()
        .unwrap_or_default()
        .to_owned()
}

fn is_explained(api: &Api, run_id: &str, task: &str, reason: &str) {
    eventually(&format!("{task} is explained"), PATIENCE, || {
        match said(api, "waits", run_id, task) {
            text if text.contains(reason) => Ok(()),
            text => Err(format!("{text} {:?}", api.tasks("waits", run_id))),
        }
    });
}

#[test]
fn whatever_waits_says_for_what() {
    let Some(python) = harness::python() else { return };
    let installation = Installation::new(&python);
    let _process = installation.start("updraft", &["standalone"], &[]);
    let api = installation.api();
    let (status, body) = api
        .call(
            "POST",
            "/api/v2/pools",
            Some(&json!({"name": "small", "slots": 1})),
        )
        .expect("an answer");
    assert_eq!(status, 201, "{body}");
    installation.dag("waits.py", WAITS);
    api.wait_for_dag("waits");
    api.trigger("waits", &json!({"logical_date": null, "dag_run_id": "first"}));
    api.trigger("waits", &json!({"logical_date": null, "dag_run_id": "second"}));
    let told = [
        ("after", "its trigger rule all_success waits for slow (running)"),
        ("fails", "its next try is due at "),
        ("deferring", "its trigger fires at "),
        ("pooled", "it needs 2 slots, and pool small has 1 in all"),
        ("lost", "there is no pool nowhere"),
        ("crowded", "max_active_tasks: 2 of 2 are taken by slow, steady"),
    ];
    for (task, reason) in told {
        is_explained(&api, "first", task, reason);
    }
    is_explained(
        &api,
        "second",
        "slow",
        "max_active_runs 1 of 1 are taken by first",
    );
    assert_eq!(
        said(&api, "waits", "first", "slow"),
        "",
        "what runs does not wait"
    );
    let list = api.get("/api/v2/dags/waits/dagRuns/first/taskInstances/after/dependencies");
    assert_eq!(list["dependencies"][0]["name"], "Trigger Rule");
    let (ok, text) = installation.run("updraft", &["tasks", "explain", "waits", "first", "after"]);
    assert!(ok, "{text}");
    assert!(
        text.contains("after is not started: its trigger rule all_success waits for slow (running)"),
        "{text}"
    );
    let (ok, text) = installation.run("updraft", &["tasks", "failed-deps", "waits", "after", "first"]);
    assert!(
        ok && text.contains("\nTrigger Rule: its trigger rule all_success waits for slow"),
        "{text}"
    );
    // A pool that is made larger is looked at again at once.
    api.trigger("wide", &json!({"logical_date": null, "dag_run_id": "r"}));
    eventually("wide waits", PATIENCE, || match said(&api, "wide", "r", "t") {
        text if text.contains("pool small has 1 in all") => Ok(()),
        text => Err(text),
    });
    let larger = json!({"name": "small", "slots": 2, "include_deferred": false});
    let (status, body) = api
        .call("PATCH", "/api/v2/pools/small", Some(&larger))
        .expect("an answer");
    assert_eq!(status, 200, "{body}");
    eventually("wide runs", Duration::from_secs(15), || {
        match api.run_state("wide", "r").as_deref() {
            Some("success") => Ok(()),
            other => Err(format!("{other:?} {}", said(&api, "wide", "r", "t"))),
        }
    });
    is_explained(
        &api,
        "first",
        "pooled",
        "max_active_tasks: 2 of 2 are taken by slow, steady",
    );
    let pause = json!({"is_paused": true});
    api.call("PATCH", "/api/v2/dags/waits", Some(&pause))
        .expect("an answer");
    is_explained(&api, "second", "slow", "the DAG is paused");
    let (status, body) = api
        .call(
            "GET",
            "/api/v2/dags/waits/dagRuns/first/taskInstances/nothing/dependencies",
            None,
        )
        .expect("an answer");
    assert_eq!(status, 404, "{body}");
}

#[test]
fn a_task_waits_for_what_follows_it_in_the_run_before() {
    let Some(python) = harness::python() else { return };
    let installation = Installation::new(&python);
    installation.dag("waits.py", WAITS);
    let _process = installation.start("updraft", &["standalone"], &[]);
    let api = installation.api();
    api.wait_for_dag("past");
    let run = |run_id: &str, date: &str, command: &str| {
        api.trigger(
            "past",
            &json!({"logical_date": date, "dag_run_id": run_id, "conf": {"command": command}}),
        );
    };
    run("first", "2024-01-01T00:00:00Z", "exit 1");
    assert_eq!(api.wait_for_end("past", "first"), "failed");
    run("second", "2024-01-02T00:00:00Z", "true");
    eventually("the second run's patient task waits", PATIENCE, || {
        match (
            said(&api, "past", "second", "patient"),
            api.get("/api/v2/dags/past/dagRuns/second/taskInstances/strict"),
        ) {
            (text, strict) if text.contains("wait_for_downstream") && strict["state"] == "success" => Ok(()),
            (text, strict) => Err(format!("{text} {strict}")),
        }
    });
    let body = json!({"new_state": "success"});
    let begin = std::time::Instant::now();
    let path = "/api/v2/dags/past/dagRuns/first/taskInstances/breaks";
    let (status, answer) = api.call("PATCH", path, Some(&body)).expect("an answer");
    assert_eq!(status, 200, "{answer}");
    assert_eq!(api.wait_for_end("past", "second"), "success");
    // The sweep alone would need a minute.
    assert!(begin.elapsed() < Duration::from_secs(20), "{:?}", begin.elapsed());
}

#[test]
fn a_run_that_waits_for_a_place_which_its_successor_holds_is_told_so() {
    let Some(python) = harness::python() else { return };
    let installation = Installation::new(&python);
    installation.dag("waits.py", WAITS);
    let _process = installation.start("updraft", &["standalone"], &[]);
    let api = installation.api();
    api.wait_for_dag("crossed");
    let run = |name: &str, day: u32, command: &str| {
        let date = format!("2025-01-{day:02}T00:00:00Z");
        let conf = json!({"command": command});
        api.trigger(
            "crossed",
            &json!({"logical_date": date, "dag_run_id": name, "conf": conf}),
        );
    };
    run("one", 1, "true");
    assert_eq!(api.wait_for_end("crossed", "one"), "success");
    run("two", 2, "false");
    assert_eq!(api.wait_for_end("crossed", "two"), "failed");
    run("three", 3, "true");
    eventually("three runs", PATIENCE, || {
        match api.run_state("crossed", "three") {
            Some(state) if state == "running" => Ok(()),
            other => Err(format!("{other:?}")),
        }
    });
    let clear = json!({"dry_run": false, "only_failed": true, "dag_run_id": "two"});
    let (status, body) = api
        .call("POST", "/api/v2/dags/crossed/clearTaskInstances", Some(&clear))
        .expect("an answer");
    assert_eq!(status, 200, "{body}");
    let told = |name: &str, reason: &str| {
        eventually(&format!("{name} is explained"), PATIENCE, || {
            match said(&api, "crossed", name, "t") {
                text if text.contains(reason) => Ok(()),
                text => Err(text),
            }
        });
    };
    told(
        "two",
        "three waits itself for the run before it by depends_on_past, so neither goes on",
    );
    told("two", "raise max_active_runs to 2");
    told("three", "the run before it, two, is queued");
}
