//! What a DAG file says: whose a DAG is, templates in files, and files that were written for several Airflows.

use harness::{Api, Installation, Process, eventually};
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::time::Duration;

const PATIENCE: Duration = Duration::from_secs(60);
/// Begin of every file.
const HEAD: &str = "import os, pathlib
from airflow.sdk import DAG
from airflow.providers.standard.operators.bash import BashOperator as Bash
HERE = pathlib.Path(__file__).parent
";

fn server() -> Option<(Installation, Process, Api)> {
    let installation = Installation::new(&harness::python()?);
    let process = installation.start("updraft", &["standalone"], &[]);
    let api = installation.api();
    Some((installation, process, api))
}

/// A file with one DAG of its own name.
fn dag_file(name: &str, before: &str, command: &str) -> String {
    format!(
        "{HEAD}{before}\nwith DAG('{name}', schedule=None):\n    Bash(task_id='t', bash_command={command})\n"
    )
}

/// Path of the file that a DAG is in.
fn file_of(api: &Api, dag_id: &str) -> String {
    let dag = api.get(&format!("/api/v2/dags/{dag_id}"));
    dag["relative_fileloc"].as_str().unwrap_or_default().to_owned()
}

/// The files with import errors, and what these say.
fn errors(api: &Api) -> BTreeMap<String, String> {
    let all = api.get("/api/v2/importErrors");
    let facts = |error: &Value| {
        let text = |key: &str| error[key].as_str().unwrap_or_default().to_owned();
        (text("filename"), text("stack_trace"))
    };
    all["import_errors"]
        .as_array()
        .into_iter()
        .flatten()
        .map(facts)
        .collect()
}

#[test]
fn a_dag_is_of_the_file_that_made_it_and_of_the_first_of_several() {
    let Some((installation, _process, api)) = server() else {
        return;
    };
    installation.dag(
        "z_maker.py",
        &format!("{}BUCKET = 'b'\n", dag_file("made", "", "'true'")),
    );
    installation.dag(
        "a_importer.py",
        &dag_file("importer", "from z_maker import BUCKET", "'echo ' + BUCKET"),
    );
    // A function's DAGs are of the file that calls it.
    installation.dag(
        "factory.py",
        "def make(name):\n    from airflow.sdk import DAG\n    return DAG(name, schedule=None)\n",
    );
    installation.dag(
        "b_caller.py",
        "from factory import make\nfrom airflow.sdk import DAG\nmade = make('called')\n",
    );
    for (dag_id, file) in [
        ("made", "z_maker.py"),
        ("importer", "a_importer.py"),
        ("called", "b_caller.py"),
    ] {
        api.wait_for_dag(dag_id);
        assert_eq!(file_of(&api, dag_id), file);
    }
    // The later one by path comes first, and gives the DAG up; it has it again when the other is gone.
    installation.dag("m_second.py", &dag_file("twice", "", "'true'"));
    api.wait_for_dag("twice");
    installation.dag("c_first.py", &dag_file("twice", "", "'true'"));
    eventually("the first has the DAG", PATIENCE, || {
        let (file, errors) = (file_of(&api, "twice"), errors(&api));
        let told = errors
            .iter()
            .any(|(path, text)| path.ends_with("m_second.py") && text.contains("c_first.py"));
        if file == "c_first.py" && told && errors.len() == 1 {
            return Ok(());
        }
        Err(format!("{file} {errors:?}"))
    });
    installation.remove_dag("c_first.py");
    eventually("the second has it again", PATIENCE, || {
        let (file, errors) = (file_of(&api, "twice"), errors(&api));
        if file == "m_second.py" && errors.is_empty() {
            return Ok(());
        }
        Err(format!("{file} {errors:?}"))
    });
}

#[test]
fn a_template_in_a_file_is_read_when_the_task_runs() {
    let Some((installation, _process, api)) = server() else {
        return;
    };
    let dags = installation.path().join("dags");
    std::fs::write(dags.join("late.sh"), "echo early").expect("a file");
    let body = "with DAG('templates', schedule=None):
    write = Bash(task_id='write', bash_command='echo \"echo late {{ run_id }}\" > ' + str(HERE / 'late.sh') + ' && true')
    write >> Bash(task_id='read', bash_command='late.sh')
";
    installation.dag("templates.py", &format!("{HEAD}{body}"));
    api.wait_for_dag("templates");
    let run_id = api.trigger("templates", &json!({"logical_date": null}));
    assert_eq!(api.wait_for_end("templates", &run_id), "success");
    let xcom = api.get(&format!(
        "/api/v2/dags/templates/dagRuns/{}/taskInstances/read/xcomEntries/return_value",
        run_id.replace('+', "%2B").replace(':', "%3A")
    ));
    assert_eq!(xcom["value"], json!(format!("late {run_id}")));
}

#[test]
fn a_file_with_an_answer_to_what_airflow_3_raises_gives_it() {
    let Some((installation, _process, api)) = server() else {
        return;
    };
    let cases = [
        (
            "arguments",
            "try:\n    DAG('unused', schedule_interval='@daily', concurrency=3)\n    WHICH = 'old'\nexcept TypeError:\n    WHICH = 'new'",
        ),
        (
            "operator",
            "try:\n    Bash(task_id='u', bash_command='true', provide_context=True, xcom_push=True)\n    WHICH = 'old'\nexcept TypeError:\n    WHICH = 'new'",
        ),
        (
            "module",
            "try:\n    from airflow.operators.bash_operator import BashOperator\n    WHICH = 'old'\nexcept ImportError:\n    WHICH = 'new'",
        ),
        (
            "name",
            "try:\n    from airflow.utils.decorators import apply_defaults\n    WHICH = 'old'\nexcept (ValueError, ImportError):\n    WHICH = 'new'",
        ),
        (
            "function",
            "def find():\n    from airflow.operators.bash_operator import BashOperator\n    return 'old'\ntry:\n    WHICH = find()\nexcept ModuleNotFoundError:\n    WHICH = 'new'",
        ),
        (
            "suppressed",
            "import contextlib\nWHICH = 'new'\nwith contextlib.suppress(ImportError):\n    from airflow.operators.dummy import DummyOperator\n    WHICH = 'old'",
        ),
        // These handle nothing: the old meaning is all that there is.
        (
            "other",
            "try:\n    from airflow.operators.bash_operator import BashOperator\n    WHICH = 'old'\nexcept KeyError:\n    WHICH = 'new'",
        ),
        (
            "raising",
            "try:\n    from airflow.operators.bash_operator import BashOperator\n    WHICH = 'old'\nexcept ImportError:\n    print('no')\n    raise",
        ),
    ];
    for (name, code) in cases {
        let body = format!(
            "{HEAD}{code}\nwith DAG('{name}', schedule=None):\n    Bash(task_id=WHICH, bash_command='true')\n"
        );
        installation.dag(&format!("{name}.py"), &body);
    }
    for (name, _) in cases {
        api.wait_for_dag(name);
        let wanted = if ["other", "raising"].contains(&name) {
            "old"
        } else {
            "new"
        };
        let tasks = api.get(&format!("/api/v2/dags/{name}/tasks"));
        assert_eq!(tasks["tasks"][0]["task_id"], wanted, "{name}");
    }
}

/// `max_tries` of every task instance of the DAG's first run.
fn tries(api: &Api, dag_id: &str) -> BTreeMap<String, Value> {
    let all = api.get(&format!("/api/v2/dags/{dag_id}/dagRuns/~/taskInstances"));
    let facts = |ti: &Value| {
        let name = ti["task_id"].as_str().unwrap_or_default().to_owned();
        (name, ti["max_tries"].clone())
    };
    all["task_instances"]
        .as_array()
        .into_iter()
        .flatten()
        .map(facts)
        .collect()
}

#[test]
fn a_task_that_says_no_retries_has_none_whatever_the_installation_says() {
    let Some(python) = harness::python() else { return };
    let mut installation = Installation::new(&python);
    installation.set("AIRFLOW__CORE__DEFAULT_TASK_RETRIES", "2");
    let body = "from airflow.sdk import task
with DAG('no_retries', schedule=None) as dag:
    Bash(task_id='plain', bash_command='exit 1', retries=0)
    Bash.partial(task_id='mapped', retries=0).expand(bash_command=['exit 1'])
    @task(retries=0)
    def fail(n):
        raise ValueError(n)
    fail.override(task_id='taskflow')(1)
    fail.expand(n=[1])
    late = Bash(task_id='late', bash_command='exit 1')
    late.retries = 0
    Bash(task_id='usual', bash_command='true')
";
    installation.dag("no_retries.py", &format!("{HEAD}{body}"));
    let mut process = installation.start("updraft", &["standalone"], &[]);
    let api = installation.api();
    api.wait_for_dag("no_retries");
    let run_id = api.trigger("no_retries", &json!({"logical_date": null}));
    assert_eq!(api.wait_for_end("no_retries", &run_id), "failed");
    let found = tries(&api, "no_retries");
    for name in ["plain", "mapped", "taskflow", "fail", "late"] {
        assert_eq!(found[name], 0, "{name}: {found:?}");
    }
    assert_eq!(found["usual"], 2, "{found:?}");
    // Another default counts from the next start on, although no file changed.
    process.signal(nix::sys::signal::Signal::SIGTERM);
    assert!(process.wait(PATIENCE), "{}", process.output());
    installation.set("AIRFLOW__CORE__DEFAULT_TASK_RETRIES", "1");
    let _process = installation.start("updraft", &["standalone"], &[]);
    let api = installation.api();
    eventually("the file is parsed with the new default", PATIENCE, || {
        let task = api.get("/api/v2/dags/no_retries/tasks/usual");
        if task["retries"].as_f64() == Some(1.0) {
            Ok(())
        } else {
            Err(task["retries"].to_string())
        }
    });
}
