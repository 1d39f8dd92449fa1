//! Callbacks of DAGs.

use harness::{Installation, eventually};
use serde_json::json;
use std::time::Duration;

const PATIENCE: Duration = Duration::from_secs(60);

const CALLS: &str = r#"
import json, time
from datetime import timedelta
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

with DAG("late", schedule=None, dagrun_timeout=timedelta(seconds=2), on_failure_callback=lambda context: write(context, "late")):
    @task
    def quick():
        return 1
    @task
    def slow():
        time.sleep(600)
    quick() >> slow()
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
    for dag in ["good", "bad", "late"] {
        api.wait_for_dag(dag);
        api.trigger(
            dag,
            &json!({"logical_date": null, "dag_run_id": format!("of_{dag}"), "conf": {"n": 1}}),
        );
    }
    let mut lines = eventually("all are called", PATIENCE, || {
        let text = std::fs::read_to_string(&witness).unwrap_or_default();
        let lines: Vec<String> = text.lines().map(str::to_owned).collect();
        if lines.len() == 3 {
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
            r#"["late", "of_late", "timed_out", "slow", "{'n': 1}", "hello"]"#,
        ]
    );
    // One that goes wrong is told, and keeps nobody else from being called.
    assert!(
        process.output().contains("ValueError: as it should"),
        "{}",
        process.output()
    );
}

const LOST: &str = r#"
import json, time
from airflow.sdk import DAG, task

def write(context, word):
    with open("WITNESS", "a") as out:
        ti = context["ti"]
        out.write(json.dumps([word, ti.task_id, ti.try_number, context["run_id"]]) + "\n")

with DAG("lost", schedule=None):
    @task(email="ops@example.org", on_failure_callback=lambda context: write(context, "failure"), on_retry_callback=lambda context: write(context, "retry"))
    def waits(ti=None):
        if ti.try_number == 1:
            write({"ti": ti, "run_id": "r"}, "starts")
            time.sleep(600)
    waits()
"#;

const MAIL: &str = r#"
import json

def send(to, subject, html_content, **kwargs):
    with open("WITNESS", "a") as out:
        out.write(json.dumps(["mail", to, subject.split()[:2]]) + "\n")
"#;

const MAILED: &str = r#"["mail", "ops@example.org", ["Airflow", "alert:"]]"#;

/// What a task's callbacks wrote after its process and everything around it was killed, and how its run ended.
fn callbacks_of_a_lost_task(retries: &str) -> Option<(Vec<String>, String)> {
    let mut installation = Installation::new(&harness::python()?);
    installation.set("AIRFLOW__UPDRAFT__INFRA_RETRIES", retries);
    let witness = installation.path().join("witness");
    let plugins = installation.path().join("plugins");
    std::fs::create_dir_all(&plugins).expect("a folder");
    std::fs::write(
        plugins.join("own_mail.py"),
        MAIL.replace("WITNESS", &witness.to_string_lossy()),
    )
    .expect("a module");
    installation.set("AIRFLOW__EMAIL__EMAIL_BACKEND", "own_mail.send");
    installation.dag("lost.py", &LOST.replace("WITNESS", &witness.to_string_lossy()));
    let lines = |count: usize, what: &str| {
        eventually(what, PATIENCE, || {
            let text = std::fs::read_to_string(&witness).unwrap_or_default();
            let lines: Vec<String> = text.lines().map(str::to_owned).collect();
            if lines.len() >= count {
                Ok(lines)
            } else {
                Err(text)
            }
        })
    };
    let mut process = installation.start("updraft", &["standalone"], &[]);
    let api = installation.api();
    api.wait_for_dag("lost");
    api.trigger("lost", &json!({"logical_date": null, "dag_run_id": "r"}));
    lines(1, "the task runs");
    process.kill();
    let _again = installation.start("updraft", &["standalone"], &[]);
    let mut lines = lines(3, "its callback is called and its e-mail sent");
    lines.remove(0);
    lines.sort();
    let end = installation.api().wait_for_end("lost", "r");
    Some((lines, end))
}

#[test]
fn a_lost_task_that_fails_by_it_has_its_failure_callback_called() {
    let Some((lines, end)) = callbacks_of_a_lost_task("0") else {
        return;
    };
    assert_eq!(lines, [r#"["failure", "waits", 1, "r"]"#, MAILED]);
    assert_eq!(end, "failed");
}

#[test]
fn a_lost_task_that_is_tried_again_has_its_retry_callback_called() {
    let Some((lines, end)) = callbacks_of_a_lost_task("1") else {
        return;
    };
    assert_eq!(lines, [MAILED, r#"["retry", "waits", 1, "r"]"#]);
    assert_eq!(end, "success");
}
