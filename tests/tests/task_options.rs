//! Options of `airflow.cfg` mean the same for a task that runs natively and for one that runs in Python.

use harness::{Api, Installation, Process};
use serde_json::{Value, json};
use std::time::{Duration, Instant};

/// Two tasks that differ in where they run: the second has a callback, and so needs Python.
fn both_ways(name: &str, command: &str, env: &str) -> String {
    format!(
        "from airflow.sdk import DAG
from airflow.providers.standard.operators.bash import BashOperator as Bash
with DAG('{name}', schedule=None):
    more = dict(bash_command={command:?}, env={env}, append_env=True)
    Bash(task_id='natively', **more)
    Bash(task_id='in_python', on_success_callback=[print], on_failure_callback=[print], **more)
"
    )
}

/// Runs such a DAG with these options.
fn run(options: &[(&str, &str)], command: &str, env: &str) -> Option<(Installation, Process, Api, String)> {
    let mut installation = Installation::new(&harness::python()?);
    for (name, value) in options {
        installation.set(&format!("AIRFLOW__{name}"), value);
    }
    installation.dag("ways.py", &both_ways("ways", command, env));
    let process = installation.start("updraft", &["standalone"], &[]);
    let api = installation.api();
    api.wait_for_dag("ways");
    let run_id = api.trigger("ways", &json!({"logical_date": null}));
    api.wait_for_end("ways", &run_id);
    Some((installation, process, api, run_id))
}

fn task(api: &Api, run_id: &str, task_id: &str) -> Value {
    api.get(&format!(
        "/api/v2/dags/ways/dagRuns/{run_id}/taskInstances/{task_id}"
    ))
}

#[test]
fn the_default_time_limit_ends_tasks_of_both_ways() {
    let begin = Instant::now();
    let options = [("CORE__DEFAULT_TASK_EXECUTION_TIMEOUT", "2")];
    let Some((_installation, _process, api, run_id)) = run(&options, "sleep 300", "{}") else {
        return;
    };
    assert!(begin.elapsed() < Duration::from_secs(120));
    for way in ["natively", "in_python"] {
        let found = task(&api, &run_id, way);
        assert_eq!(found["state"], "failed", "{way}");
        assert!(
            found["duration"].as_f64().is_some_and(|seconds| seconds < 60.0),
            "{found}"
        );
    }
}

#[test]
fn secrets_lengths_and_owners_are_those_of_the_options_in_both_ways() {
    let options = [
        ("CORE__SENSITIVE_VAR_CONN_NAMES", "town"),
        ("CORE__MAX_TEMPLATED_FIELD_LENGTH", "100"),
        ("OPERATORS__DEFAULT_OWNER", "somebody"),
    ];
    let env = "{'TOWN': 'hidden', 'password': 'hidden', 'OTHER': 'shown'}";
    let command = format!("echo $AIRFLOW_CTX_DAG_OWNER # {}", "x".repeat(200));
    let Some((_installation, _process, api, run_id)) = run(&options, &command, env) else {
        return;
    };
    let [natively, in_python] = ["natively", "in_python"].map(|way| {
        let fields = task(&api, &run_id, way)["rendered_fields"].clone();
        let path = format!("/api/v2/dags/ways/dagRuns/{run_id}/taskInstances/{way}/xcomEntries/return_value");
        (fields, api.get(&path)["value"].clone())
    });
    assert_eq!(natively, in_python);
    assert_eq!(natively.1, "somebody");
    assert_eq!(
        natively.0["env"],
        json!({"TOWN": "***", "password": "***", "OTHER": "shown"})
    );
    let shown = natively.0["bash_command"].as_str().unwrap_or_default().to_owned();
    assert!(shown.starts_with("Truncated."), "{shown}");
}

#[test]
fn names_of_secrets_are_shown_in_both_ways_where_that_is_wanted() {
    let options = [("CORE__HIDE_SENSITIVE_VAR_CONN_FIELDS", "False")];
    let Some((_installation, _process, api, run_id)) = run(&options, "true", "{'password': 'p'}") else {
        return;
    };
    for way in ["natively", "in_python"] {
        assert_eq!(
            task(&api, &run_id, way)["rendered_fields"]["env"]["password"],
            "p",
            "{way}"
        );
    }
}

#[test]
fn records_below_the_level_are_in_neither_log() {
    let options = [("LOGGING__LOGGING_LEVEL", "ERROR")];
    let Some((_installation, _process, api, run_id)) = run(&options, "echo hello", "{}") else {
        return;
    };
    for way in ["natively", "in_python"] {
        let log = api.log("ways", &run_id, way, 1);
        assert!(!log.iter().any(|line| line.contains("hello")), "{way}: {log:?}");
    }
}
