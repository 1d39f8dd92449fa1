//! `updraft standalone` as a user meets it: DAG files in, states and logs out.

use harness::{Api, Installation, Process, eventually, seeds};
use serde_json::{Value, json};
use std::time::Duration;

const PATIENCE: Duration = Duration::from_secs(90);

fn standalone() -> Option<(Installation, Process, Api)> {
    let installation = Installation::new(&harness::python()?);
    let process = installation.start("updraft", &["standalone"], &[]);
    let api = installation.api();
    Some((installation, process, api))
}

fn states(tasks: &[Value]) -> Vec<String> {
    let mut states: Vec<String> = tasks
        .iter()
        .map(|ti| {
            format!(
                "{}={}",
                ti["task_id"].as_str().unwrap_or("?"),
                ti["state"].as_str().unwrap_or("none")
            )
        })
        .collect();
    states.sort();
    states
}

fn run(api: &Api, dag_id: &str, conf: Value) -> (String, String) {
    api.wait_for_dag(dag_id);
    let run_id = api.trigger(dag_id, &json!({"logical_date": null, "conf": conf}));
    let state = api.wait_for_end(dag_id, &run_id);
    (run_id, state)
}

#[test]
fn the_course_file_runs_unmodified() {
    let Some(seeds) = seeds() else {
        assert!(harness::python().is_some() || !harness::required());
        return; // Not on a user's machine.
    };
    let Some((installation, _process, api)) = standalone() else {
        return;
    };
    for file in ["utils/__init__.py", "utils/callbacks.py", "simple_dag.py"] {
        installation.dag(
            file,
            &std::fs::read_to_string(seeds.join(file)).unwrap_or_default(),
        );
    }
    api.wait_for_dag("simple_dag");
    let run_id = api.trigger("simple_dag", &json!({"logical_date": "2025-03-01T16:30:00Z"}));
    assert_eq!(api.wait_for_end("simple_dag", &run_id), "success");
    assert_eq!(
        states(&api.tasks("simple_dag", &run_id)),
        ["print_date=success", "print_with_loop=success", "sleep=success"]
    );
    let lines: Vec<String> = api
        .log("simple_dag", &run_id, "print_with_loop", 1)
        .into_iter()
        .filter(|line| line.starts_with("ds = ") || line.starts_with("macros.ds_add"))
        .collect();
    let expected: Vec<String> = (0..5)
        .flat_map(|i| {
            [
                "ds = 2025-03-02".to_owned(),
                format!("macros.ds_add(ds, {i}) = 2025-03-{:02}", 2 + i),
            ]
        })
        .collect();
    assert_eq!(lines, expected);
    for task in ["print_date", "sleep", "print_with_loop"] {
        let log = api.log("simple_dag", &run_id, task, 1);
        let callbacks = log
            .iter()
            .filter(|line| line.as_str() == format!("success_callback {task}"))
            .count();
        assert_eq!(callbacks, 1, "{log:#?}");
    }
}

#[test]
fn our_examples_run_by_themselves() {
    let Some(python) = harness::python() else { return };
    let mut installation = Installation::new(&python);
    installation.set("AIRFLOW__CORE__LOAD_EXAMPLES", "True");
    let process = installation.start("updraft", &["standalone"], &[]);
    let api = installation.api();
    assert!(
        process.output().contains("Password for user 'admin':"),
        "{}",
        process.output()
    );
    for dag_id in ["example_bash", "example_taskflow", "example_branches_and_retries"] {
        eventually(&format!("{dag_id} succeeds"), PATIENCE, || {
            let (_, runs) = api
                .call("GET", &format!("/api/v2/dags/{dag_id}/dagRuns"), None)
                .map_err(|e| e.to_string())?;
            match runs["dag_runs"][0]["state"].as_str() {
                Some("success") => Ok(()),
                other => Err(format!("{other:?}")),
            }
        });
    }
    let (ok, text) = installation.run("updraft", &["dags", "list", "-o", "json"]);
    assert!(ok && text.contains("example_taskflow"), "{text}");
}

const PYTHON_DAG: &str = r#"
import time
from datetime import datetime, timedelta
from airflow.sdk import DAG, Variable, task
from airflow.providers.standard.operators.bash import BashOperator
from airflow.exceptions import AirflowSkipException

def told(context):
    print("callback", context["ti"].task_id, context["ti"].try_number)

with DAG("py", schedule=None, start_date=datetime(2025, 1, 1)):
    @task
    def give():
        Variable.set("from_task", "42")
        return {"a": [1, 2]}

    @task
    def take(value):
        assert value == {"a": [1, 2]}, value
        print("variable", Variable.get("from_task"))

    @task(retries=1, retry_delay=timedelta(seconds=0), on_failure_callback=told, on_retry_callback=told)
    def fails():
        raise ValueError("boom")

    @task
    def skips():
        raise AirflowSkipException("not today")

    @task(execution_timeout=timedelta(seconds=1))
    def too_slow():
        time.sleep(60)

    @task
    def dies():
        import os, signal
        os.kill(os.getpid(), signal.SIGKILL)

    @task
    def leaves():
        import os
        os._exit(0)

    take(give())
    fails(); skips(); too_slow(); dies(); leaves()
    BashOperator(task_id="after", bash_command="exit 7") << skips.override(task_id="other")()
"#;

#[test]
fn python_tasks_end_as_they_should() {
    let Some((installation, _process, api)) = standalone() else {
        return;
    };
    installation.dag("py.py", PYTHON_DAG);
    let (run_id, state) = run(&api, "py", json!({}));
    assert_eq!(state, "failed");
    assert_eq!(
        states(&api.tasks("py", &run_id)),
        [
            "after=skipped",
            "dies=failed",
            "fails=failed",
            "give=success",
            "leaves=success",
            "other=skipped",
            "skips=skipped",
            "take=success",
            "too_slow=failed",
        ]
    );
    let has = |task: &str, number: u32, text: &str| {
        let log = api.log("py", &run_id, task, number);
        assert!(
            log.iter().any(|line| line.contains(text)),
            "{task} {number}: {text:?} is not in {log:#?}"
        );
    };
    has("take", 1, "variable 42");
    has("fails", 1, "Task failed with exception");
    has("fails", 1, "callback fails 1");
    has("fails", 2, "callback fails 2");
    has("skips", 1, "Skipping task.");
    has("dies", 1, "SIGKILL");
    has("leaves", 1, "exit code 0 before the task said how it ended");
    let xcom = api.get(&format!(
        "/api/v2/dags/py/dagRuns/{}/taskInstances/give/xcomEntries/return_value",
        run_id.replace('+', "%2B").replace(':', "%3A")
    ));
    assert_eq!(xcom["value"], json!({"a": [1, 2]}));
}

#[test]
fn bad_files_harm_only_themselves() {
    let Some(python) = harness::python() else { return };
    let mut installation = Installation::new(&python);
    installation.set("AIRFLOW__CORE__DAGBAG_IMPORT_TIMEOUT", "3");
    installation.set("AIRFLOW__DAG_PROCESSOR__DAG_FILE_PROCESSOR_TIMEOUT", "6");
    let head = "from airflow.sdk import DAG\n# a dag for airflow\n";
    let bad = [
        ("syntax.py", format!("{head}def (:\n"), "SyntaxError"),
        ("endless.py", format!("{head}while True: pass\n"), "timeout"),
        (
            "stubborn.py",
            format!("{head}import signal\nsignal.setitimer(signal.ITIMER_REAL, 0)\nwhile True: pass\n"),
            "dag_file_processor_timeout",
        ),
        (
            "leaves.py",
            format!("{head}import os\nos._exit(0)\n"),
            "exit code 0",
        ),
        (
            "greedy.py",
            format!("{head}x = bytearray(1_000_000_000)\n"),
            "dag_file_memory_mb",
        ),
        (
            "circle.py",
            format!(
                "{head}from airflow.providers.standard.operators.empty import EmptyOperator\nwith DAG('circle', schedule=None):\n    a, b = EmptyOperator(task_id='a'), EmptyOperator(task_id='b')\n    a >> b >> a\n"
            ),
            "ycle",
        ),
        (
            "schedule.py",
            format!("{head}with DAG('odd', schedule='61 * * * *'): pass\n"),
            "61",
        ),
    ];
    for (name, text, _) in &bad {
        installation.dag(name, text);
    }
    installation.dag(
        "good.py",
        "from airflow.sdk import DAG\nfrom airflow.providers.standard.operators.bash import BashOperator\nwith DAG('good', schedule=None):\n    BashOperator(task_id='t', bash_command='echo fine')\n",
    );
    let _process = installation.start("updraft", &["standalone"], &[]);
    let api = installation.api();
    let (_, state) = run(&api, "good", json!({}));
    assert_eq!(state, "success");
    for (name, _, expected) in &bad {
        eventually(&format!("{name} has its import error"), PATIENCE, || {
            let errors = api.get("/api/v2/importErrors?limit=100");
            let found = errors["import_errors"]
                .as_array()
                .into_iter()
                .flatten()
                .find(|error| error["filename"] == json!(name));
            let trace = found
                .and_then(|error| error["stack_trace"].as_str())
                .unwrap_or_default();
            if trace.contains(expected) {
                Ok(())
            } else {
                Err(format!("{trace:?} in {errors}"))
            }
        });
    }
    // Mended, it is an error no more; deleted, the DAG is gone.
    installation.dag("syntax.py", "# nothing\n");
    eventually("the error goes away", PATIENCE, || {
        let errors = api.get("/api/v2/importErrors?limit=100").to_string();
        if errors.contains("syntax.py") {
            Err(errors)
        } else {
            Ok(())
        }
    });
    installation.remove_dag("good.py");
    eventually("the DAG goes away", PATIENCE, || {
        let dags = api.get("/api/v2/dags").to_string();
        if dags.contains("\"good\"") {
            Err(dags)
        } else {
            Ok(())
        }
    });
}

#[test]
fn requests_that_make_no_sense_get_clear_answers() {
    let Some((installation, _process, api)) = standalone() else {
        return;
    };
    installation.dag(
        "ok.py",
        "from airflow.sdk import DAG\nfrom airflow.providers.standard.operators.bash import BashOperator\nwith DAG('ok', schedule=None):\n    BashOperator(task_id='t', bash_command='true')\n",
    );
    api.wait_for_dag("ok");
    let call =
        |method: &str, path: &str, body: Value| api.call(method, path, Some(&body)).expect("an answer");
    let runs = "/api/v2/dags/ok/dagRuns";
    let detail = |answer: &(u16, Value)| answer.1["detail"].to_string();

    let unknown = call("POST", "/api/v2/dags/nope/dagRuns", json!({"logical_date": null}));
    assert_eq!(
        (unknown.0, detail(&unknown).as_str()),
        (404, "\"Dag with dag_id: 'nope' not found\"")
    );
    let conf = call("POST", runs, json!({"logical_date": null, "conf": "x"}));
    assert_eq!(
        (conf.0, conf.1["detail"][0]["type"].as_str()),
        (422, Some("dict_type"))
    );
    assert_eq!(call("POST", runs, json!({})).0, 422);
    assert_eq!(
        call("POST", runs, json!({"logical_date": null, "extra": 1})).1["detail"][0]["type"],
        json!("extra_forbidden")
    );
    let name = json!({"logical_date": null, "dag_run_id": "once"});
    assert_eq!(call("POST", runs, name.clone()).0, 200);
    let twice = call("POST", runs, name);
    assert_eq!(
        (twice.0, twice.1["detail"]["reason"].as_str()),
        (409, Some("Unique constraint violation"))
    );
    assert_eq!(
        call(
            "POST",
            runs,
            json!({"logical_date": null, "dag_run_id": "../etc"})
        )
        .0,
        400
    );
    assert_eq!(
        api.raw("POST", runs, "{bad", "application/json")
            .expect("an answer")
            .0,
        422
    );

    let stranger = Api::new(installation.port);
    assert_eq!(
        stranger.call("GET", "/api/v2/dags", None).expect("an answer").0,
        401
    );
    assert_eq!(
        stranger
            .with_token("garbage")
            .call("GET", "/api/v2/dags", None)
            .expect("an answer")
            .0,
        403
    );
    assert!(stranger.login("admin", "wrong").is_err());
    assert_eq!(api.call("GET", "/api/v2/dags/", None).expect("an answer").0, 404);
}

#[test]
fn a_wrong_configuration_is_told_at_once() {
    let mut installation = Installation::new("/nonexistent/python");
    installation.set(
        "AIRFLOW__DATABASE__SQL_ALCHEMY_CONN",
        "postgresql://u:hunter2@h/d",
    );
    let (ok, text) = installation.run("updraft", &["standalone"]);
    assert!(
        !ok && text.contains("sql_alchemy_conn") && text.contains("sqlite:////"),
        "{text}"
    );
    assert!(!text.contains("hunter2"), "{text}");
    installation.set("AIRFLOW__DATABASE__SQL_ALCHEMY_CONN", "mysql://u:p@127.0.0.1:1/d");
    let (ok, text) = installation.run("updraft", &["db", "check"]);
    assert!(
        !ok && text.contains("cannot connect to MariaDB at 127.0.0.1:1"),
        "{text}"
    );
    installation.unset("AIRFLOW__DATABASE__SQL_ALCHEMY_CONN");
    let (ok, text) = installation.run("updraft", &["dags", "list"]);
    assert!(!ok && text.contains("updraft db migrate"), "{text}");
    let (ok, text) = installation.run("updraft", &["db", "migrate"]);
    assert!(ok, "{text}");
    installation.set("AIRFLOW__CORE__PARALLELISM", "many");
    let (ok, text) = installation.run("updraft", &["scheduler"]);
    assert!(!ok && text.contains("[core] parallelism is \"many\""), "{text}");
}

#[test]
fn a_python_without_the_sdk_is_told_and_the_rest_goes_on() {
    let installation = Installation::new("python3");
    installation.dag("x.py", "from airflow.sdk import DAG\n# dag\n");
    let process = installation.start("updraft", &["standalone"], &[]);
    let api = installation.api();
    eventually("the problem is told", PATIENCE, || {
        let output = process.output();
        let told = output.contains("cannot run DAGs") && output.contains("apache-airflow-task-sdk");
        if told { Ok(()) } else { Err(output) }
    });
    assert_eq!(
        api.get("/api/v2/monitor/health")["metadatabase"]["status"],
        json!("healthy")
    );
}

#[test]
fn killed_in_the_middle_it_goes_on_where_it_was() {
    let Some(python) = harness::python() else { return };
    let installation = Installation::new(&python);
    let witness = installation.path().join("witness");
    installation.dag(
        "chain.py",
        &format!(
            "from airflow.sdk import DAG\nfrom airflow.providers.standard.operators.bash import BashOperator\nwith DAG('chain', schedule=None) as dag:\n    last = None\n    for i in range(6):\n        t = BashOperator(task_id=f't{{i}}', bash_command='echo {{{{ ti.task_id }}}} {{{{ ti.try_number }}}} >> {}; sleep 0.4')\n        if last: last >> t\n        last = t\n",
            witness.display()
        ),
    );
    let mut process = installation.start("updraft", &["standalone"], &[]);
    let api = installation.api();
    api.wait_for_dag("chain");
    let run_id = api.trigger("chain", &json!({"logical_date": null}));
    eventually("the chain is under way", PATIENCE, || {
        let lines = std::fs::read_to_string(&witness)
            .unwrap_or_default()
            .lines()
            .count();
        if lines >= 2 {
            Ok(())
        } else {
            Err(lines.to_string())
        }
    });
    process.kill();
    let _again = installation.start("updraft", &["standalone"], &[]);
    let api = installation.api();
    assert_eq!(api.wait_for_end("chain", &run_id), "success");
    let text = std::fs::read_to_string(&witness).expect("the witness");
    let mut lines: Vec<&str> = text.lines().collect();
    let count = lines.len();
    lines.sort_unstable();
    lines.dedup();
    assert_eq!(lines.len(), count, "no try starts twice: {text}");
}

#[test]
fn a_run_goes_on_as_soon_as_the_one_before_lets_it() {
    let Some((installation, _process, api)) = standalone() else {
        return;
    };
    installation.dag(
        "chain.py",
        "from datetime import datetime, timedelta, timezone\nfrom airflow.sdk import DAG\n\
         from airflow.providers.standard.operators.bash import BashOperator\n\
         from airflow.providers.standard.operators.empty import EmptyOperator\n\
         start = (datetime.now(timezone.utc) - timedelta(days=6)).replace(hour=0, minute=0, second=0, microsecond=0)\n\
         with DAG('chain', schedule='@daily', start_date=start, catchup=True):\n\
         \x20   BashOperator(task_id='a', bash_command='sleep 0.2', depends_on_past=True, queue='elsewhere')\n\
         \x20   BashOperator(task_id='b', bash_command='sleep 0.2', max_active_tis_per_dag=1)\n\
         \x20   EmptyOperator(task_id='c')\n",
    );
    let begin = std::time::Instant::now();
    let runs = eventually("six runs have succeeded", PATIENCE, || {
        let (_, page) = api
            .call("GET", "/api/v2/dags/chain/dagRuns?state=success", None)
            .map_err(|error| error.to_string())?;
        if page["total_entries"].as_i64().unwrap_or(0) >= 6 {
            Ok(page)
        } else {
            Err(page["total_entries"].to_string())
        }
    });
    // The sweep alone would need a minute for each.
    assert!(begin.elapsed() < Duration::from_secs(40), "{:?}", begin.elapsed());
    let run_id = runs["dag_runs"][0]["dag_run_id"].as_str().expect("a run");
    for ti in api.tasks("chain", run_id) {
        if ti["task_id"] == json!("c") {
            assert_eq!(
                (&ti["duration"], &ti["start_date"]),
                (&json!(0.0), &ti["end_date"])
            );
        }
    }
}

#[test]
fn a_long_log_comes_whole_as_lines_and_in_pages_as_json() {
    let Some((installation, _process, api)) = standalone() else {
        return;
    };
    installation.dag(
        "long.py",
        "from airflow.sdk import DAG\nfrom airflow.providers.standard.operators.bash import BashOperator\n\
         with DAG('long', schedule=None):\n    BashOperator(task_id='t', bash_command='seq -f \"line %.0f of many, all of them the same\" 60000')\n",
    );
    api.wait_for_dag("long");
    let (run_id, state) = run(&api, "long", json!({}));
    assert_eq!(state, "success");
    let run_id = run_id.replace('+', "%2B").replace(':', "%3A");
    let path = format!("/api/v2/dags/long/dagRuns/{run_id}/taskInstances/t/logs/1");
    let headers = [
        ("Accept".to_owned(), "application/x-ndjson".to_owned()),
        ("Authorization".to_owned(), format!("Bearer {}", api.token())),
    ];
    let whole = api.exchange("GET", &path, &headers, "").expect("an answer").body;
    let count = |text: &str| text.matches(r#""event":"line "#).count();
    assert_eq!(count(&whole), 60_000);
    assert!(
        whole
            .lines()
            .all(|line| serde_json::from_str::<Value>(line).is_ok())
    );
    let (mut pages, mut lines, mut token) = (0, 0, String::new());
    loop {
        let page = api.get(&format!("{path}?token={token}"));
        pages += 1;
        lines += count(&page["content"].to_string());
        match page["continuation_token"].as_str() {
            Some(next) => next.clone_into(&mut token),
            None => break,
        }
    }
    assert_eq!(lines, 60_000);
    assert!(pages > 1, "a page is bounded");
}
