//! Tasks that start a Python of their own, which talks to the supervisor, too.

use harness::Installation;
use serde_json::json;

const FILE: &str = r#"
import sys
from airflow.sdk import DAG
from airflow.providers.standard.operators.python import ExternalPythonOperator

def elsewhere(word):
    import logging
    from airflow.sdk import Variable
    print("printed", word)
    logging.getLogger("mine").warning("logged %s", word)
    return Variable.get("greeting") + "!"

with DAG("external", schedule=None):
    ExternalPythonOperator(task_id="elsewhere", python_callable=elsewhere, op_args=["{{ run_id }}"], python=sys.executable)
"#;

#[test]
fn a_python_that_a_task_starts_reaches_log_and_variables() {
    let Some(python) = harness::python() else { return };
    let installation = Installation::new(&python);
    installation.dag("external.py", FILE);
    let process = installation.start("updraft", &["standalone"], &[]);
    let api = installation.api();
    let body = json!({"key": "greeting", "value": "hello"});
    let (status, answer) = api
        .call("POST", "/api/v2/variables", Some(&body))
        .expect("an answer");
    assert_eq!(status, 201, "{answer}");
    api.wait_for_dag("external");
    api.trigger("external", &json!({"logical_date": null, "dag_run_id": "one"}));
    let state = api.wait_for_end("external", "one");
    let log = api.log("external", "one", "elsewhere", 1);
    assert_eq!(state, "success", "{log:?} {}", process.output());
    assert!(log.iter().any(|line| line.contains("printed one")), "{log:?}");
    assert!(log.iter().any(|line| line.contains("logged one")), "{log:?}");
    let path = "/api/v2/dags/external/dagRuns/one/taskInstances/elsewhere/xcomEntries/return_value";
    assert_eq!(api.get(path)["value"], "hello!");
}

const COMMAND: &str = r#"
from airflow.sdk import DAG
from airflow.providers.standard.operators.bash import BashOperator

class Own(BashOperator):
    """A class of its own runs in Python."""

with DAG("command", schedule=None):
    Own(task_id="reads", bash_command="cat; echo read")
"#;

#[test]
fn a_command_has_nothing_to_read_and_no_profile() {
    let Some(python) = harness::python() else { return };
    let mut installation = Installation::new(&python);
    let home = installation.path().to_path_buf();
    std::fs::write(home.join(".bashrc"), "echo profile").expect("a profile");
    installation.set("HOME", &home.to_string_lossy());
    installation.dag("command.py", COMMAND);
    let _process = installation.start("updraft", &["standalone"], &[]);
    let api = installation.api();
    api.wait_for_dag("command");
    api.trigger("command", &json!({"logical_date": null, "dag_run_id": "one"}));
    let state = api.wait_for_end("command", "one");
    let log = api.log("command", "one", "reads", 1);
    assert_eq!(state, "success", "{log:?}");
    let said = |word: &str| log.iter().any(|line| line.trim_end().ends_with(word));
    assert!(said("read") && !said("profile"), "{log:?}");
}
