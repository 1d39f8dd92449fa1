//! DAG files of Airflow 1.10 and 2, unmodified.

use harness::{Api, Installation, eventually};
use serde_json::{Value, json};
use std::time::Duration;

const PATIENCE: Duration = Duration::from_secs(60);

const FILE: &str = r#"
import datetime as dt

from airflow import DAG
from airflow.operators.bash_operator import BashOperator
from airflow.operators.dummy_operator import DummyOperator
from airflow.operators.python_operator import PythonOperator
from airflow.utils.decorators import apply_defaults
from airflow.utils.trigger_rule import TriggerRule


class Shout(BashOperator):
    @apply_defaults
    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)


def tell(execution_date, next_ds, prev_execution_date, **context):
    print("told", execution_date.isoformat(), next_ds, prev_execution_date.isoformat(), context["tomorrow_ds_nodash"])
    print("ti", context["ti"].task_id)


with DAG(
    dag_id="old",
    start_date=dt.datetime(2019, 1, 1),
    end_date=dt.datetime(2019, 1, 3),
    schedule_interval="@daily",
    concurrency=4,
    default_view="graph",
    default_args={"provide_context": True, "owner": "me"},
) as dag:
    say = Shout(task_id="say", bash_command="echo from {{ ds }} to {{ next_ds }} after {{ prev_ds_nodash }} {{ yesterday_ds }}",
                task_concurrency=2)
    told = PythonOperator(task_id="told", python_callable=tell, provide_context=True)
    end = DummyOperator(task_id="end", trigger_rule="dummy")
    also = DummyOperator(task_id="also", trigger_rule=TriggerRule.NONE_FAILED_OR_SKIPPED)
    say >> told >> [end, also]
"#;

fn installation() -> Option<Installation> {
    let installation = Installation::new(&harness::python()?);
    installation.dag("old.py", FILE);
    Some(installation)
}

fn runs(api: &Api) -> Vec<Value> {
    let runs = api.get("/api/v2/dags/old/dagRuns?state=success&order_by=logical_date");
    runs["dag_runs"].as_array().cloned().unwrap_or_default()
}

#[test]
fn an_old_file_runs_with_its_old_meaning() {
    let Some(installation) = installation() else {
        return;
    };
    let _process = installation.start("updraft", &["standalone"], &[]);
    let api = installation.api();
    let runs = eventually("three days have been caught up with", PATIENCE, || {
        let (status, body) = api
            .call("GET", "/api/v2/dags/old/dagRuns", None)
            .map_err(|error| error.to_string())?;
        let runs = if status == 200 { runs(&api) } else { Vec::new() };
        if runs.len() == 3 {
            Ok(runs)
        } else {
            Err(body.to_string())
        }
    });
    let field = |name: &str| -> Vec<&str> {
        runs.iter()
            .map(|run| run[name].as_str().unwrap_or_default())
            .collect()
    };
    assert_eq!(
        field("logical_date"),
        [
            "2019-01-01T00:00:00Z",
            "2019-01-02T00:00:00Z",
            "2019-01-03T00:00:00Z"
        ]
    );
    assert_eq!(
        field("data_interval_end"),
        [
            "2019-01-02T00:00:00Z",
            "2019-01-03T00:00:00Z",
            "2019-01-04T00:00:00Z"
        ]
    );
    let run_id = runs[1]["dag_run_id"].as_str().unwrap_or_default();
    let has = |task: &str, text: &str| {
        let log = api.log("old", run_id, task, 1);
        assert!(
            log.iter().any(|line| line.contains(text)),
            "{text:?} is not in {log:#?}"
        );
    };
    has("say", "from 2019-01-02 to 2019-01-03 after 20190101 2019-01-01");
    has(
        "told",
        "told 2019-01-02T00:00:00+00:00 2019-01-03 2019-01-01T00:00:00+00:00 20190103",
    );
}

#[test]
fn the_upgrade_check_names_each_old_form_with_its_line_and_modern_form() {
    let Some(installation) = installation() else {
        return;
    };
    let file = installation.path().join("dags/old.py");
    let (ok, text) = installation.run(
        "updraft",
        &["dags", "upgrade-check", &file.to_string_lossy(), "-o", "json"],
    );
    assert!(ok, "{text}");
    let start = text.find("[{").expect("a list");
    let found: Vec<Value> =
        serde_json::from_str(text[start..].lines().next().unwrap_or_default()).expect("JSON");
    let line_of = |needle: &str| {
        FILE.lines()
            .position(|line| line.contains(needle))
            .map_or(0, |at| at + 1)
    };
    for (old, needle, modern) in [
        (
            "airflow.operators.dummy_operator.DummyOperator",
            "import DummyOperator",
            "from airflow.providers.standard.operators.empty import EmptyOperator",
        ),
        (
            "airflow.utils.decorators.apply_defaults",
            "@apply_defaults",
            "nothing: leave it out",
        ),
        (
            "trigger_rule='dummy'",
            "trigger_rule=\"dummy\"",
            "trigger_rule='always'",
        ),
    ] {
        let one = found.iter().find(|one| one["old"] == json!(old));
        let one = one.unwrap_or_else(|| panic!("{old} is not in {found:#?}"));
        assert_eq!(
            (&one["line"], &one["modern"]),
            (&json!(line_of(needle)), &json!(modern)),
            "{old}"
        );
        assert_eq!(
            one["file"],
            json!(file.canonicalize().expect("the file").to_string_lossy())
        );
    }
    for old in [
        "schedule_interval=",
        "concurrency=",
        "default_view=",
        "task_concurrency=",
        "provide_context=",
    ] {
        assert!(
            found.iter().any(|one| one["old"] == json!(old)),
            "{old} is not in {found:#?}"
        );
    }

    installation.dag(
        "gone.py",
        "from airflow.lineage.entities import File  # of a dag\n",
    );
    let gone = installation.path().join("dags/gone.py");
    let (ok, text) = installation.run("updraft", &["dags", "upgrade-check", &gone.to_string_lossy()]);
    assert!(!ok && text.contains("airflow.lineage"), "{text}");
}

const NESTED: &str = r#"
from datetime import datetime
from airflow import DAG
from airflow.contrib.kubernetes.volume import Volume
from airflow.contrib.kubernetes.volume_mount import VolumeMount
from airflow.contrib.operators.kubernetes_pod_operator import KubernetesPodOperator
from airflow.operators.bash_operator import BashOperator
from airflow.operators.docker_operator import DockerOperator
from airflow.operators.subdag_operator import SubDagOperator

ARGS = {"owner": "me", "start_date": datetime(2019, 1, 1)}


def section(parent, child):
    inner = DAG(dag_id=f"{parent}.{child}", default_args=ARGS, schedule_interval="@once")
    BashOperator(task_id="a", bash_command="echo a of {{ ds }}", dag=inner) >> BashOperator(task_id="b", bash_command="echo b", dag=inner)
    return inner


dag = DAG("nested", default_args=ARGS, schedule_interval="@once")
start = BashOperator(task_id="start", bash_command="echo start", dag=dag)
inner = SubDagOperator(task_id="section", subdag=section("nested", "section"), default_args=ARGS, dag=dag)
end = BashOperator(task_id="end", bash_command="echo end", dag=dag)
start >> inner >> end

with DAG("containers", default_args=ARGS, schedule_interval=None):
    DockerOperator(task_id="docker", image="i", volumes=["/a:/b:ro"], auto_remove=True)
    KubernetesPodOperator(task_id="pod", name="p", namespace="n", image="i", is_delete_operator_pod=False, image_pull_secrets="x,y",
                          volumes=[Volume("v", {"persistentVolumeClaim": {"claimName": "c"}})], volume_mounts=[VolumeMount("v", "/v")],
                          node_selectors={"disk": "ssd"}, resources={"request_cpu": "1", "limit_memory": "1Gi"})
"#;

#[test]
fn a_dag_within_a_dag_becomes_a_task_group_and_container_operators_keep_their_old_arguments() {
    let Some(python) = harness::python() else { return };
    let installation = Installation::new(&python);
    installation.dag("nested.py", NESTED);
    let _process = installation.start("updraft", &["standalone"], &[]);
    let api = installation.api();
    let run = eventually("the run is done", PATIENCE, || {
        let (_, body) = api
            .call("GET", "/api/v2/dags/nested/dagRuns?state=success", None)
            .map_err(|error| error.to_string())?;
        match body["dag_runs"][0]["dag_run_id"].as_str() {
            Some(run) => Ok(run.to_owned()),
            None => Err(format!("{body} {}", api.get("/api/v2/importErrors"))),
        }
    });
    let mut tasks: Vec<(String, String)> = api
        .tasks("nested", &run)
        .iter()
        .map(|task| {
            (
                task["start_date"].to_string(),
                task["task_id"].as_str().unwrap_or_default().to_owned(),
            )
        })
        .collect();
    tasks.sort();
    let order: Vec<&str> = tasks.iter().map(|(_, task)| task.as_str()).collect();
    assert_eq!(order, ["start", "section.a", "section.b", "end"]);
    let dags = api.get("/api/v2/dags")["total_entries"].clone();
    assert_eq!(dags, json!(2), "the inner DAG is none of its own");
    let file = installation.path().join("dags/nested.py");
    let (ok, text) = installation.run("updraft", &["dags", "upgrade-check", &file.to_string_lossy()]);
    assert!(ok, "{text}");
    for old in [
        "volumes=",
        "auto_remove=True",
        "SubDagOperator",
        "is_delete_operator_pod=",
        "node_selectors=",
        "resources=",
        "VolumeMount",
    ] {
        assert!(text.contains(old), "{old} is not in {text}");
    }
}

/// The idioms, and what Airflow 2.11 makes of them (`tests/old/record.py`).
const IDIOMS: &str = include_str!("../old/idioms.py");
const RECORDED: &str = include_str!("../old/recorded.json");

#[test]
fn old_files_have_the_runs_and_the_rendered_fields_of_airflow_2() {
    let Some(python) = harness::python() else { return };
    let installation = Installation::new(&python);
    installation.dag("idioms.py", IDIOMS);
    let _process = installation.start("updraft", &["standalone"], &[]);
    let api = installation.api();
    let recorded: Value = serde_json::from_str(RECORDED).expect("the record");
    for (dag_id, expected) in recorded.as_object().expect("DAGs by name") {
        let expected = expected.as_array().expect("runs");
        let runs = eventually(&format!("{dag_id} is done"), PATIENCE, || {
            let path = format!("/api/v2/dags/{dag_id}/dagRuns?state=success&order_by=logical_date");
            let (status, body) = api.call("GET", &path, None).map_err(|error| error.to_string())?;
            match body["dag_runs"].as_array() {
                Some(runs) if status == 200 && runs.len() == expected.len() => Ok(runs.clone()),
                _ => Err(format!("{body} {}", api.get("/api/v2/importErrors"))),
            }
        });
        for (run, expected) in runs.iter().zip(expected) {
            same_run(&api, dag_id, run, expected);
        }
        let (_, all) = api
            .call("GET", &format!("/api/v2/dags/{dag_id}/dagRuns"), None)
            .expect("an answer");
        assert_eq!(
            all["total_entries"],
            json!(expected.len()),
            "{dag_id} has no run more: {all}"
        );
    }
}

fn same_run(api: &Api, dag_id: &str, run: &Value, expected: &Value) {
    let instant = |value: &Value| {
        let text = value.as_str().unwrap_or_default();
        chrono::DateTime::parse_from_rfc3339(text).map_err(|error| format!("{text}: {error}"))
    };
    for date in ["logical_date", "data_interval_start", "data_interval_end"] {
        assert_eq!(instant(&run[date]), instant(&expected[date]), "{dag_id} {date}");
    }
    let run_id = run["dag_run_id"].as_str().unwrap_or_default();
    for task in api.tasks(dag_id, run_id) {
        let task_id = task["task_id"].as_str().unwrap_or_default();
        assert_eq!(
            task["rendered_fields"], expected["fields"][task_id],
            "{dag_id} {run_id} {task_id}"
        );
    }
}
