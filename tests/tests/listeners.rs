//! Listeners of plugins.

use harness::{Api, Installation, Process, eventually};
use serde_json::{Value, json};
use std::path::PathBuf;
use std::time::Duration;

const PATIENCE: Duration = Duration::from_secs(60);

/// An installation with this plugin, which writes lines of JSON to the file that is returned.
fn listening(plugin: &str) -> Option<(Installation, PathBuf)> {
    let installation = Installation::new(&harness::python()?);
    let witness = installation.path().join("witness");
    let plugins = installation.path().join("plugins");
    std::fs::create_dir_all(&plugins).expect("a folder");
    let plugin = plugin.replace("WITNESS", &witness.to_string_lossy());
    std::fs::write(plugins.join("own_listeners.py"), plugin).expect("a plugin");
    Some((installation, witness))
}

const LISTENER: &str = r#"
import json
from airflow.listeners import hookimpl
from airflow.plugins_manager import AirflowPlugin

def write(hook, dag_run, msg):
    with open("WITNESS", "a") as out:
        dag = dag_run.dag and sorted(dag_run.dag.task_dict)
        out.write(json.dumps([hook, dag_run.dag_id, dag_run.run_id, dag_run.state, dag_run.conf, msg, dag]) + "\n")

class Hears:
    @hookimpl
    def on_dag_run_running(self, dag_run, msg):
        write("running", dag_run, msg)

    @hookimpl
    def on_dag_run_success(self, dag_run, msg):
        write("success", dag_run, msg)

    @hookimpl
    def on_dag_run_failed(self, dag_run, msg):
        write("failed", dag_run, msg)

class OwnListeners(AirflowPlugin):
    name = "own_listeners"
    listeners = [Hears()]
"#;

const HEARD: &str = r#"
from airflow.sdk import DAG
from airflow.providers.standard.operators.bash import BashOperator

for name, command in (("good", "true"), ("bad", "false"), ("stuck", "sleep 600")):
    with DAG(name, schedule=None):
        BashOperator(task_id="t", bash_command=command)
"#;

#[test]
fn listeners_of_plugins_hear_of_runs() {
    let Some((installation, witness)) = listening(LISTENER) else {
        return;
    };
    installation.dag("heard.py", HEARD);
    let process = installation.start("updraft", &["standalone"], &[]);
    let api = installation.api();
    for dag in ["good", "bad", "stuck"] {
        api.wait_for_dag(dag);
        let body = json!({"logical_date": null, "dag_run_id": format!("of_{dag}"), "conf": {"n": 1}});
        api.trigger(dag, &body);
    }
    let lines = |count: usize| {
        eventually(&format!("{count} are heard"), PATIENCE, || {
            let text = std::fs::read_to_string(&witness).unwrap_or_default();
            let mut lines: Vec<String> = text.lines().map(str::to_owned).collect();
            lines.sort();
            match lines.len() == count {
                true => Ok(lines),
                false => Err(format!("{lines:?} {}", process.output())),
            }
        })
    };
    assert_eq!(
        lines(5),
        [
            r#"["failed", "bad", "of_bad", "failed", {"n": 1}, "task_failure", ["t"]]"#,
            r#"["running", "bad", "of_bad", "running", {"n": 1}, "started", ["t"]]"#,
            r#"["running", "good", "of_good", "running", {"n": 1}, "started", ["t"]]"#,
            r#"["running", "stuck", "of_stuck", "running", {"n": 1}, "started", ["t"]]"#,
            r#"["success", "good", "of_good", "success", {"n": 1}, "success", ["t"]]"#,
        ]
    );
    let path = "/api/v2/dags/stuck/dagRuns/of_stuck";
    let (status, _) = api
        .call("PATCH", path, Some(&json!({"state": "failed"})))
        .expect("an answer");
    assert_eq!(status, 200);
    let by_hand = r#"["failed", "stuck", "of_stuck", "failed", {"n": 1}, "Dag Run's state was manually set to `failed`.", ["t"]]"#;
    assert!(lines(6).iter().any(|line| line == by_hand), "{:?}", lines(6));
}

const ALL_ELSE: &str = r#"
import json
from airflow.listeners import hookimpl
from airflow.plugins_manager import AirflowPlugin

def write(*words):
    with open("WITNESS", "a") as out:
        out.write(json.dumps(words) + "\n")

def of_asset(asset):
    return [asset.name, asset.uri, asset.group, asset.extra]

def of_task(ti, previous):
    task = getattr(ti, "task", None)
    return [ti.dag_run.run_id, ti.task_id, ti.state, previous and ti.try_number, previous, ti.operator, task and task.task_type]

class Hears:
    @hookimpl
    def on_starting(self, component):
        if kind := getattr(component, "job_type", None):
            write("starting", kind)

    @hookimpl
    def before_stopping(self, component):
        if kind := getattr(component, "job_type", None):
            write("stopping", kind)

    @hookimpl
    def on_task_instance_success(self, previous_state, task_instance):
        write("succeeded", *of_task(task_instance, previous_state))

    @hookimpl
    def on_task_instance_failed(self, previous_state, task_instance, error):
        write("failed", *of_task(task_instance, previous_state), "lost" if error.startswith("worker_") else error)

    @hookimpl
    def on_asset_created(self, asset):
        write("asset", *of_asset(asset))

    @hookimpl
    def on_asset_alias_created(self, asset_alias):
        write("alias", asset_alias.name, asset_alias.group)

    @hookimpl
    def on_asset_changed(self, asset):
        write("changed", *of_asset(asset))

    @hookimpl
    def on_asset_event_emitted(self, asset_event):
        aliases = [alias.name for alias in asset_event.source_aliases]
        write("event", asset_event.asset.name, asset_event.extra, asset_event.source_dag_id, asset_event.source_task_id, asset_event.source_run_id, asset_event.source_map_index, aliases, asset_event.partition_key)
        raise ValueError("a listener's own mistake")

    @hookimpl
    def on_new_dag_import_error(self, filename, stacktrace):
        write("new error", filename.rsplit("/", 1)[1], [word for word in ("nothing_there", "not_there_either") if word in stacktrace])

    @hookimpl
    def on_existing_dag_import_error(self, filename, stacktrace):
        write("old error", filename.rsplit("/", 1)[1], [word for word in ("nothing_there", "not_there_either") if word in stacktrace])

class OwnListeners(AirflowPlugin):
    name = "own_listeners"
    listeners = [Hears()]
"#;

const EVENTS: &str = r#"
from airflow.providers.standard.operators.bash import BashOperator
from airflow.sdk import DAG, Asset, AssetAlias, task

with DAG("updates", schedule=None):
    @task(outlets=[Asset("own", "s3://bucket/own", group="g", extra={"a": 1}), AssetAlias("other_name", group="h")])
    def update(*, outlet_events):
        outlet_events[AssetAlias("other_name")].add(Asset("late", "s3://bucket/late"), extra={"rows": 3})
    update()

with DAG("stuck", schedule=None):
    BashOperator(task_id="waits", bash_command="sleep 600", retries=1)
"#;

/// Waits until all of these lines are there, in whatever order.
fn heard(witness: &PathBuf, process: &Process, wanted: &[Value]) {
    eventually("listeners hear of it", PATIENCE, || {
        let text = std::fs::read_to_string(witness).unwrap_or_default();
        let lines: Vec<Value> = text
            .lines()
            .filter_map(|line| serde_json::from_str(line).ok())
            .collect();
        let missing: Vec<&Value> = wanted.iter().filter(|line| !lines.contains(line)).collect();
        match missing.is_empty() {
            true => Ok(()),
            false => Err(format!("{missing:?} is not among {text}\n{}", process.output())),
        }
    });
}

fn mark(api: &Api, state: &str) {
    let path = "/api/v2/dags/stuck/dagRuns/r/taskInstances/waits";
    let body = json!({"new_state": state});
    let (status, answer) = api.call("PATCH", path, Some(&body)).expect("an answer");
    assert_eq!(status, 200, "{answer}");
}

#[test]
fn listeners_of_plugins_hear_of_all_that_happens_outside_tasks() {
    let Some((installation, witness)) = listening(ALL_ELSE) else {
        return;
    };
    installation.dag("events.py", EVENTS);
    installation.dag("broken.py", "from airflow.sdk import DAG\nimport nothing_there\n");
    let mut process = installation.start("updraft", &["standalone"], &[]);
    let api = installation.api();
    for dag in ["updates", "stuck"] {
        api.wait_for_dag(dag);
        api.trigger(dag, &json!({"logical_date": null, "dag_run_id": "r"}));
    }
    let own = json!({"a": 1});
    heard(
        &witness,
        &process,
        &[
            json!(["starting", "SchedulerJob"]),
            json!(["starting", "DagProcessorJob"]),
            json!(["new error", "broken.py", ["nothing_there"]]),
            json!(["asset", "own", "s3://bucket/own", "g", own]),
            json!(["alias", "other_name", "h"]),
            json!(["asset", "late", "s3://bucket/late", "asset", {}]),
            json!(["changed", "own", "s3://bucket/own", "g", own]),
            json!(["changed", "late", "s3://bucket/late", "asset", {}]),
            json!(["event", "own", {}, "updates", "update", "r", -1, [], null]),
            json!(["event", "late", {"rows": 3}, "updates", "update", "r", -1, ["other_name"], null]),
        ],
    );
    installation.dag(
        "broken.py",
        "from airflow.sdk import DAG\nimport not_there_either\n",
    );
    heard(
        &witness,
        &process,
        &[json!(["old error", "broken.py", ["not_there_either"]])],
    );
    process.kill();
    let process = installation.start("updraft", &["standalone"], &[]);
    let kind = "BashOperator";
    let lost = ["failed", "r", "waits", "up_for_retry"];
    let told = |error: &str| {
        json!([
            lost[0], lost[1], lost[2], lost[3], 1, "running", kind, kind, error
        ])
    };
    heard(&witness, &process, &[told("lost")]);
    let api = installation.api();
    mark(&api, "failed");
    let by_hand = "TaskInstance's state was manually set to `failed`.";
    let marked = json!(["failed", "r", "waits", "failed", null, null, kind, kind, by_hand]);
    heard(&witness, &process, &[marked]);
    mark(&api, "success");
    let marked = json!(["succeeded", "r", "waits", "success", null, null, kind, kind]);
    heard(&witness, &process, &[marked]);
    process.signal(nix::sys::signal::Signal::SIGTERM);
    let mut process = process;
    assert!(process.wait(PATIENCE), "it ends");
    let process = installation.start("updraft", &["standalone"], &[]);
    heard(
        &witness,
        &process,
        &[
            json!(["stopping", "SchedulerJob"]),
            json!(["stopping", "DagProcessorJob"]),
        ],
    );
    let text = std::fs::read_to_string(&witness).expect("lines");
    let events = text.lines().filter(|line| line.starts_with("[\"event\"")).count();
    assert_eq!(
        events, 2,
        "a listener's mistake is no reason to call it again: {text}"
    );
}
