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
        "from airflow.operators.subdag_operator import SubDagOperator\n",
    );
    let gone = installation.path().join("dags/gone.py");
    let (ok, text) = installation.run("updraft", &["dags", "upgrade-check", &gone.to_string_lossy()]);
    assert!(!ok && text.contains("subdag_operator"), "{text}");
}
