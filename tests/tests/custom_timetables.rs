//! Timetables of the user's own, from a plugin: their dates come from Python, by way of the DAG processor.

use harness::{Api, Installation, Process, eventually};
use serde_json::{Value, json};
use std::time::Duration;

const PATIENCE: Duration = Duration::from_secs(60);

const PLUGIN: &str = r#"
from datetime import timedelta
from pendulum import UTC, DateTime
from airflow.plugins_manager import AirflowPlugin
from airflow.timetables.base import DagRunInfo, DataInterval, Timetable

class EvenDays(Timetable):
    def __init__(self, hour):
        self.hour = hour

    def serialize(self):
        return {"hour": self.hour}

    @classmethod
    def deserialize(cls, data):
        return cls(data["hour"])

    def interval(self, day):
        start = DateTime(day.year, day.month, day.day, self.hour, tzinfo=UTC)
        return DataInterval(start, start + timedelta(hours=2))

    def infer_manual_data_interval(self, *, run_after):
        return self.interval(run_after)

    def next_dagrun_info(self, *, last_automated_data_interval, restriction):
        last = last_automated_data_interval
        day = last.start + timedelta(days=1) if last else restriction.earliest
        while day.day % 2:
            day += timedelta(days=1)
        span = self.interval(day)
        if restriction.latest and span.start > restriction.latest:
            return None
        return DagRunInfo(run_after=span.end + timedelta(hours=1), data_interval=span)

    def generate_run_id(self, *, run_type, run_after, data_interval, **extra):
        if data_interval is None:
            return f"{run_type}:at-{run_after.format('YYYYMMDD')}"
        return f"{run_type}:even-{data_interval.start.format('YYYYMMDD')}"

class Broken(Timetable):
    periodic = False

    def infer_manual_data_interval(self, *, run_after):
        raise ValueError("no such week")

    def next_dagrun_info(self, *, last_automated_data_interval, restriction):
        raise ValueError("no such week")

class Plugin(AirflowPlugin):
    name = "days"
    timetables = [EvenDays, Broken]
"#;

const DAGS: &str = r#"
from datetime import datetime
from airflow.sdk import DAG
from airflow.providers.standard.operators.bash import BashOperator
from days import Broken, EvenDays

with DAG("even", schedule=EvenDays(6), start_date=datetime(2024, 3, 1), end_date=datetime(2024, 3, 9), catchup=True):
    BashOperator(task_id="t", bash_command="true")

with DAG("broken", schedule=Broken(), start_date=datetime(2024, 3, 1), catchup=True):
    BashOperator(task_id="t", bash_command="true")
"#;

fn server() -> Option<(Installation, Process, Api)> {
    let installation = Installation::new(&harness::python()?);
    let plugins = installation.path().join("plugins");
    std::fs::create_dir_all(&plugins).expect("a folder for plugins");
    std::fs::write(plugins.join("days.py"), PLUGIN).expect("a plugin");
    installation.dag("days_dags.py", DAGS);
    let process = installation.start("updraft", &["standalone"], &[]);
    let api = installation.api();
    api.wait_for_dag("even");
    Some((installation, process, api))
}

fn trigger(api: &Api, dag_id: &str) -> (u16, Value) {
    let body = json!({"logical_date": "2024-05-05T12:00:00Z"});
    let path = format!("/api/v2/dags/{dag_id}/dagRuns");
    api.call("POST", &path, Some(&body)).expect("an answer")
}

#[test]
fn runs_follow_a_timetable_of_the_users_own() {
    let Some((_installation, _process, api)) = server() else {
        return;
    };
    let (status, _) = api
        .call("PATCH", "/api/v2/dags/even", Some(&json!({"is_paused": false})))
        .expect("an answer");
    assert_eq!(status, 200);
    let ended = eventually("the timetable's four runs succeed", PATIENCE, || {
        let path = "/api/v2/dags/even/dagRuns?order_by=logical_date&run_type=scheduled&state=success";
        let runs = api.get(path)["dag_runs"].as_array().cloned().unwrap_or_default();
        if runs.len() < 4 {
            return Err(format!("{} runs", runs.len()));
        }
        Ok(runs)
    });
    let told: Vec<[&str; 3]> = ended
        .iter()
        .map(|run| {
            ["data_interval_start", "data_interval_end", "run_after"]
                .map(|key| run[key].as_str().unwrap_or(""))
        })
        .collect();
    let expected = ["02", "04", "06", "08"]
        .map(|day| ["06", "08", "09"].map(|hour| format!("2024-03-{day}T{hour}:00:00Z")));
    assert_eq!(told, expected);
    let names: Vec<&Value> = ended.iter().map(|run| &run["dag_run_id"]).collect();
    assert_eq!(
        names[0], "scheduled:even-20240302",
        "the timetable names its runs: {names:?}"
    );
    eventually("there is no fifth date", PATIENCE, || {
        let dag = api.get("/api/v2/dags/even");
        match dag["next_dagrun_run_after"].is_null() {
            true => Ok(()),
            false => Err(dag.to_string()),
        }
    });
}

#[test]
fn a_run_by_hand_has_the_interval_that_the_timetable_says() {
    let Some((_installation, _process, api)) = server() else {
        return;
    };
    let (status, run) = trigger(&api, "even");
    assert_eq!(status, 200, "{run}");
    assert_eq!(run["data_interval_start"], "2024-05-05T06:00:00Z");
    assert_eq!(run["data_interval_end"], "2024-05-05T08:00:00Z");
    assert_eq!(run["dag_run_id"], "manual:even-20240505");
    let made = |body: Value| {
        let (status, run) = api
            .call("POST", "/api/v2/dags/even/dagRuns", Some(&body))
            .expect("an answer");
        assert_eq!(status, 200, "{run}");
        run
    };
    let undated = made(json!({"logical_date": null, "run_after": "2024-06-07T00:00:00Z"}));
    assert_eq!(undated["dag_run_id"], "manual:at-20240607");
    let given = made(json!({
        "logical_date": "2024-07-01T00:00:00Z", "data_interval_start": "2024-07-02T00:00:00Z",
        "data_interval_end": "2024-07-03T00:00:00Z",
    }));
    assert_eq!(given["dag_run_id"], "manual:even-20240702");
    assert_eq!(given["data_interval_end"], "2024-07-03T00:00:00Z");
    let (status, refusal) = trigger(&api, "broken");
    assert_eq!(status, 400, "{refusal}");
    assert!(refusal.to_string().contains("no such week"), "{refusal}");
}

#[test]
fn a_backfill_has_the_dates_that_the_timetable_says() {
    let Some((_installation, _process, api)) = server() else {
        return;
    };
    let post = |dag_id: &str, more: &str| {
        let body =
            json!({"dag_id": dag_id, "from_date": "2024-05-01T00:00:00Z", "to_date": "2024-05-06T12:00:00Z"});
        let path = format!("/api/v2/backfills{more}");
        api.call("POST", &path, Some(&body)).expect("an answer")
    };
    let (status, tried) = post("even", "/dry_run");
    assert_eq!(status, 200, "{tried}");
    let dates: Vec<&Value> = tried["backfills"]
        .as_array()
        .expect("dates")
        .iter()
        .map(|date| &date["logical_date"])
        .collect();
    assert_eq!(
        dates,
        [
            "2024-05-02T06:00:00Z",
            "2024-05-04T06:00:00Z",
            "2024-05-06T06:00:00Z"
        ]
    );
    let (status, made) = post("even", "");
    assert_eq!(status, 200, "{made}");
    eventually("its three runs succeed", PATIENCE, || {
        let page = api.get("/api/v2/dags/even/dagRuns?run_type=backfill&state=success");
        match page["total_entries"].as_u64() {
            Some(3) => Ok(()),
            _ => Err(page.to_string()),
        }
    });
    let (status, refused) = post("broken", "/dry_run");
    assert_eq!(status, 422, "{refused}");
    assert!(refused.to_string().contains("non-periodic schedule"), "{refused}");
}
