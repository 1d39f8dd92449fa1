//! Deadlines of runs: what is called when one is missed, and what is forgotten when it is kept.

use harness::{Installation, eventually};
use serde_json::{Value, json};
use std::time::Duration;

const PATIENCE: Duration = Duration::from_secs(60);

const DAGS: &str = r#"
import asyncio, json
from datetime import timedelta
from pendulum import datetime
from airflow.sdk import DAG, AsyncCallback, BaseNotifier, DeadlineAlert, DeadlineReference, SyncCallback
from airflow.sdk.definitions.deadline import VariableInterval
from airflow.providers.standard.operators.bash import BashOperator

def write(word, dag_run, deadline):
    with open("PATH/witness", "a") as out:
        out.write(json.dumps([word, dag_run["dag_run_id"], dag_run["state"], deadline["deadline_time"]]) + "\n")

async def told(word, wait, context):
    await asyncio.sleep(wait.total_seconds())
    write(word, **context)

def told_at_once(word, **kwargs):
    write(word, **kwargs["context"])

class Tells(BaseNotifier):
    def __init__(self, word):
        super().__init__()
        self.word = word

    def notify(self, context):
        write(self.word, **context)

def alert(reference, interval, word, name=None):
    return DeadlineAlert(reference, interval, AsyncCallback(told, {"word": word, "wait": timedelta(seconds=0.1)}), name=name)

with DAG("slow", schedule=None, deadline=[
    alert(DeadlineReference.DAGRUN_QUEUED_AT, timedelta(seconds=1), "queued", name="soon"),
    alert(DeadlineReference.DAGRUN_LOGICAL_DATE, timedelta(days=36500), "logical"),
    DeadlineAlert(DeadlineReference.FIXED_DATETIME(datetime(2025, 1, 1)), VariableInterval("limit"),
                  SyncCallback(told_at_once, {"word": "fixed"})),
    DeadlineAlert(DeadlineReference.FIXED_DATETIME(datetime(2025, 1, 1)), timedelta(0), SyncCallback(Tells, {"word": "notified"})),
    alert(DeadlineReference.AVERAGE_RUNTIME(max_runs=3, min_runs=1), timedelta(seconds=-1), "average"),
]):
    BashOperator(task_id="t", bash_command="until test -e PATH/go; do sleep 0.1; done")
"#;

#[test]
fn a_missed_deadline_is_told_once_and_a_kept_one_never() {
    let Some(python) = harness::python() else { return };
    let installation = Installation::new(&python);
    let path = installation.path().to_string_lossy().into_owned();
    installation.dag("slow.py", &DAGS.replace("PATH", &path));
    let process = installation.start("updraft", &["standalone"], &[]);
    let api = installation.api();
    let (status, _) = api
        .call(
            "POST",
            "/api/v2/variables",
            Some(&json!({"key": "limit", "value": "60"})),
        )
        .expect("an answer");
    assert_eq!(status, 201);
    api.wait_for_dag("slow");
    let lines = |count: usize| -> Vec<Value> {
        eventually(&format!("{count} callbacks"), PATIENCE, || {
            let text = std::fs::read_to_string(installation.path().join("witness")).unwrap_or_default();
            let lines: Vec<Value> = text
                .lines()
                .filter_map(|line| serde_json::from_str(line).ok())
                .collect();
            if lines.len() == count {
                return Ok(lines);
            }
            Err(format!("{lines:?} {}", process.output()))
        })
    };
    let words = |lines: &[Value]| -> Vec<String> {
        let mut words: Vec<String> = lines
            .iter()
            .map(|line| line[0].as_str().unwrap_or_default().to_owned())
            .collect();
        words.sort();
        words
    };
    api.trigger(
        "slow",
        &json!({"logical_date": "2026-01-01T00:00:00Z", "dag_run_id": "first"}),
    );
    let told = lines(3);
    assert_eq!(words(&told), ["fixed", "notified", "queued"]);
    assert!(
        told.iter().all(|line| line[1] == "first" && line[2] == "running"),
        "{told:?}"
    );
    let fixed = told.iter().find(|line| line[0] == "fixed").expect("it");
    assert_eq!(
        fixed[3], "2025-01-01T00:01:00Z",
        "a minute later, as the Variable says"
    );
    std::fs::write(installation.path().join("go"), "").expect("a sign");
    assert_eq!(api.wait_for_end("slow", "first"), "success");

    // Now there is a run to take the average of. The run ends at once: only what was missed before is told.
    api.trigger("slow", &json!({"logical_date": null, "dag_run_id": "second"}));
    assert_eq!(api.wait_for_end("slow", "second"), "success");
    let told = lines(5);
    assert_eq!(words(&told), ["fixed", "fixed", "notified", "notified", "queued"]);
    assert!(told[3..].iter().all(|line| line[1] == "second"), "{told:?}");
}

const OWN: &str = r#"
from datetime import timedelta
from airflow.plugins_manager import AirflowPlugin
from airflow.sdk.definitions.deadline import BaseDeadlineReference

class DayBefore(BaseDeadlineReference):
    required_kwargs = {"dag_id", "run_id"}

    def _evaluate_with(self, *, session, dag_id, run_id):
        from airflow.models import DagRun
        from sqlalchemy import select

        found = session.scalar(select(DagRun.logical_date).where(DagRun.dag_id == dag_id, DagRun.run_id == run_id))
        return found and found - timedelta(days=1)

    def serialize_reference(self):
        return {"reference_type": self.reference_name}

class Fails(DayBefore):
    def _evaluate_with(self, *, session, dag_id, run_id):
        raise ValueError("this one cannot say")

class OwnReferences(AirflowPlugin):
    name = "own_references"
    deadline_references = [DayBefore, Fails]
"#;

const OWN_DAG: &str = r#"
import json
from datetime import timedelta
from airflow.sdk import DAG, DeadlineAlert, SyncCallback
from airflow.sdk.definitions.deadline import VariableInterval
from airflow.providers.standard.operators.bash import BashOperator
from own_references import DayBefore, Fails

def write(word, context):
    with open("PATH/witness", "a") as out:
        out.write(json.dumps([word, context["dag_run"]["dag_run_id"], context["deadline"]["deadline_time"]]) + "\n")

with DAG("own", schedule=None, deadline=[
    DeadlineAlert(Fails(), timedelta(0), SyncCallback(write, {"word": "fails"})),
    DeadlineAlert(DayBefore(), timedelta(hours=1), SyncCallback(write, {"word": "hour"})),
    DeadlineAlert(DayBefore(), VariableInterval("limit"), SyncCallback(write, {"word": "limit"})),
]):
    BashOperator(task_id="t", bash_command="sleep 600")
"#;

#[test]
fn references_of_plugins_are_asked() {
    let Some(python) = harness::python() else { return };
    let mut installation = Installation::new(&python);
    installation.set("AIRFLOW_VAR_LIMIT", "60");
    let path = installation.path().to_string_lossy().into_owned();
    let plugins = installation.path().join("plugins");
    std::fs::create_dir_all(&plugins).expect("a folder");
    std::fs::write(plugins.join("own_references.py"), OWN).expect("a plugin");
    installation.dag("own.py", &OWN_DAG.replace("PATH", &path));
    let process = installation.start("updraft", &["standalone"], &[]);
    let api = installation.api();
    api.wait_for_dag("own");
    let body = json!({"logical_date": "2026-01-02T00:00:00Z", "dag_run_id": "r"});
    api.trigger("own", &body);
    let mut lines = eventually("the missed deadlines are told", PATIENCE, || {
        let text = std::fs::read_to_string(installation.path().join("witness")).unwrap_or_default();
        let lines: Vec<String> = text.lines().map(str::to_owned).collect();
        match lines.len() {
            2 => Ok(lines),
            _ => Err(format!("{lines:?} {}", process.output())),
        }
    });
    lines.sort();
    let hour = r#"["hour", "r", "2026-01-01T01:00:00Z"]"#;
    assert_eq!(lines, [hour, r#"["limit", "r", "2026-01-01T00:01:00Z"]"#]);
    assert!(
        process.output().contains("ValueError: this one cannot say"),
        "{}",
        process.output()
    );
}
