//! Partitions: schedules whose runs are about one, and runs that updates of partitions start.

use harness::{Api, Installation, Process, eventually};
use serde_json::{Value, json};
use std::time::Duration;

const PATIENCE: Duration = Duration::from_secs(60);

const DAGS: &str = r#"
from airflow.sdk import (
    DAG, Asset, CronPartitionTimetable, DayWindow, FanOutMapper, FixedKeyMapper, IdentityMapper, MinimumCount,
    PartitionedAssetTimetable, PartitionedAtRuntime, RollupMapper, SegmentWindow, StartOfDayMapper, StartOfMonthMapper,
    WaitForAll, task,
)
from airflow.providers.standard.operators.bash import BashOperator
from pendulum import datetime

daily, region, slow = Asset("daily"), Asset("region"), Asset("slow")

with DAG("produce", schedule=CronPartitionTimetable("0 0 * * *", timezone="Asia/Taipei", key_format="%Y-%m-%d"),
         start_date=datetime(2026, 1, 1), end_date=datetime(2026, 1, 2, 20), catchup=True, max_active_runs=1) as produce:
    BashOperator(task_id="bash", bash_command="echo key {{ partition_key }} date {{ partition_date }}", outlets=[daily])
    @task
    def read(partition_key=None, partition_date=None, dag_run=None, **context):
        return [partition_key, partition_date.isoformat(), dag_run.partition_key, "logical_date" in context]
    read()

with DAG("before", schedule=CronPartitionTimetable("@daily", timezone="UTC", run_offset=-1, key_format="%Y/%m/%d"),
         start_date=datetime(2026, 1, 1), end_date=datetime(2026, 1, 1), catchup=True):
    BashOperator(task_id="t", bash_command="true")

with DAG("same", schedule=PartitionedAssetTimetable(assets=daily)):
    @task
    def read(partition_key=None, triggering_asset_events=None):
        event, = triggering_asset_events[daily]
        return [partition_key, event.partition_key]
    read()

with DAG("whole", schedule=[daily]):
    BashOperator(task_id="t", bash_command="true")

with DAG("months", schedule=PartitionedAssetTimetable(
        assets=daily, default_partition_mapper=StartOfMonthMapper(input_format="%Y-%m-%d"))):
    BashOperator(task_id="t", bash_command="true")

with DAG("regions", schedule=PartitionedAtRuntime()):
    @task(outlets=[region])
    def make(outlet_events=None):
        outlet_events[region].add_partitions(["us", "eu"])
    make()

with DAG("rolled", schedule=PartitionedAssetTimetable(assets=region & slow, partition_mapper_config={
        region: RollupMapper(upstream_mapper=FixedKeyMapper("all"), window=SegmentWindow(["us", "eu", "asia"]),
                             wait_policy=MinimumCount(2))})):
    BashOperator(task_id="t", bash_command="echo {{ partition_key }}")

with DAG("hours", schedule=PartitionedAssetTimetable(assets=slow, default_partition_mapper=FanOutMapper(
        upstream_mapper=StartOfDayMapper(input_format="%Y-%m-%d"), window=DayWindow()))):
    BashOperator(task_id="t", bash_command="true")
"#;

fn server() -> Option<(Installation, Process, Api)> {
    let installation = Installation::new(&harness::python()?);
    installation.dag("partitions.py", DAGS);
    let process = installation.start("updraft", &["standalone"], &[]);
    let api = installation.api();
    api.wait_for_dag("hours");
    Some((installation, process, api))
}

fn runs(api: &Api, dag_id: &str, more: &str) -> Vec<Value> {
    let page = api.get(&format!(
        "/api/v2/dags/{dag_id}/dagRuns?order_by=partition_key{more}"
    ));
    page["dag_runs"].as_array().cloned().unwrap_or_default()
}

fn wait_for_runs(api: &Api, dag_id: &str, count: usize) -> Vec<Value> {
    eventually(&format!("{count} runs of {dag_id}"), PATIENCE, || {
        let found = runs(api, dag_id, "");
        let ended = found.iter().filter(|run| run["state"] == "success").count();
        if found.len() == count && ended == count {
            return Ok(found);
        }
        Err(format!("{found:?}"))
    })
}

fn keys(runs: &[Value]) -> Vec<&str> {
    runs.iter()
        .map(|run| run["partition_key"].as_str().unwrap_or("none"))
        .collect()
}

fn returned(api: &Api, dag_id: &str, run: &Value, task_id: &str) -> Value {
    let run_id = run["dag_run_id"].as_str().unwrap_or_default().replace('+', "%2B");
    let path = format!(
        "/api/v2/dags/{dag_id}/dagRuns/{run_id}/taskInstances/{task_id}/xcomEntries/return_value?deserialize=true"
    );
    api.get(&path)["value"].clone()
}

fn post(api: &Api, path: &str, body: &Value) -> (u16, Value) {
    api.call("POST", path, Some(body)).expect("an answer")
}

#[test]
fn a_schedule_makes_runs_about_partitions_and_these_start_others() {
    let Some((installation, _process, api)) = server() else {
        return;
    };
    let made = wait_for_runs(&api, "produce", 2);
    assert_eq!(keys(&made), ["2026-01-02", "2026-01-03"]);
    let first = &made[0];
    assert_eq!(
        first["partition_date"], "2026-01-01T16:00:00Z",
        "midnight in Taipei"
    );
    assert_eq!(first["run_after"], "2026-01-01T16:00:00Z");
    assert_eq!(first["logical_date"], Value::Null);
    assert_eq!(first["data_interval_start"], Value::Null);
    let run_id = first["dag_run_id"].as_str().expect("a name");
    assert!(
        run_id.starts_with("scheduled__2026-01-01T16:00:00+00:00__2026-01-02__"),
        "{run_id}"
    );
    assert_eq!(
        returned(&api, "produce", first, "read"),
        json!(["2026-01-02", "2026-01-01T16:00:00+00:00", "2026-01-02", false])
    );
    let log = api.log("produce", run_id, "bash", 1).join("\n");
    assert!(
        log.contains("key 2026-01-02 date 2026-01-01 16:00:00+00:00"),
        "{log}"
    );
    let dag = api.get("/api/v2/dags/produce");
    assert_eq!(dag["timetable_partitioned"], true);
    assert_eq!(dag["next_dagrun_logical_date"], Value::Null);

    let before = wait_for_runs(&api, "before", 1);
    assert_eq!(keys(&before), ["2025/12/31"]);
    let name = before[0]["dag_run_id"].as_str().expect("a name");
    assert!(
        name.contains("__2025_12_31__"),
        "what a run id may not have is left out: {name}"
    );

    let same = wait_for_runs(&api, "same", 2);
    assert_eq!(keys(&same), ["2026-01-02", "2026-01-03"]);
    assert_eq!(same[0]["run_type"], "asset_triggered");
    assert_eq!(same[0]["partition_date"], "2026-01-01T16:00:00Z", "carried over");
    assert_eq!(
        returned(&api, "same", &same[0], "read"),
        json!(["2026-01-02", "2026-01-02"])
    );

    // One run or two: updates that come before the run is made belong to it.
    let months = eventually("a run about the month", PATIENCE, || {
        let found = runs(&api, "months", "");
        match found.len() {
            0 => Err("none".to_owned()),
            _ => Ok(found),
        }
    });
    assert!(keys(&months).iter().all(|key| *key == "2026-01"), "{months:?}");
    assert_eq!(months[0]["partition_date"], "2026-01-01T00:00:00Z");
    assert!(
        runs(&api, "whole", "").is_empty(),
        "an update of one partition is none of the whole"
    );

    let dated = runs(&api, "produce", "&partition_date_gte=2026-01-03");
    assert_eq!(keys(&dated), ["2026-01-03"], "days are those of Taipei");
    assert_eq!(
        keys(&runs(&api, "produce", "&partition_key_pattern=01-02")),
        ["2026-01-02"]
    );

    // The partitions run again, and then are about nothing any more.
    let window = json!({"dry_run": false, "partition_date_start": "2026-01-02T00:00:00Z", "partition_date_end": "2026-01-02T00:00:00Z"});
    let (status, cleared) = post(&api, "/api/v2/dags/produce/clearDagRuns", &window);
    assert_eq!((status, &cleared["total_entries"]), (200, &json!(1)), "{cleared}");
    assert_eq!(api.wait_for_end("produce", run_id), "success");
    assert_eq!(
        wait_for_runs(&api, "same", 3).len(),
        3,
        "the partition was updated once more"
    );
    let (status, refused) = post(
        &api,
        "/api/v2/dags/produce/clearDagRuns",
        &json!({"dry_run": false}),
    );
    assert_eq!(status, 422, "{refused}");
    let (status, tried) = post(
        &api,
        "/api/v2/dags/same/clearPartitions",
        &json!({"partition_key": "2026-01-02"}),
    );
    assert_eq!(
        (status, tried),
        (
            200,
            json!({"dag_runs_cleared": 2, "task_instances_cleared": 0, "dry_run": true})
        )
    );
    let (done, said) = installation.run(
        "updraft",
        &["partitions", "clear", "-d", "same", "-k", "2026-01-02"],
    );
    assert!(
        done && said.contains("Cleared partition fields on 2 DagRun(s)."),
        "{said}"
    );
    assert_eq!(runs(&api, "same", "&partition_key_pattern=01-02").len(), 0);
}

#[test]
fn a_rollup_waits_for_its_keys_and_a_day_becomes_its_hours() {
    let Some((_installation, _process, api)) = server() else {
        return;
    };
    let run_id = api.trigger("regions", &json!({"logical_date": null, "partition_key": "mine"}));
    assert_eq!(api.wait_for_end("regions", &run_id), "success");
    let slow = api.get("/api/v2/assets?name_pattern=slow")["assets"][0]["id"].clone();
    let update = |key: &str| {
        let (status, said) = post(
            &api,
            "/api/v2/assets/events",
            &json!({"asset_id": slow, "partition_key": key}),
        );
        assert_eq!(status, 200, "{said}");
    };
    update("2026-05-10");
    let hours = wait_for_runs(&api, "hours", 24);
    assert_eq!(hours[23]["partition_key"], "2026-05-10T23");
    assert_eq!(hours[23]["partition_date"], "2026-05-10T23:00:00Z");
    assert!(runs(&api, "rolled", "").is_empty(), "slow has not come for all");
    update("all");
    let rolled = wait_for_runs(&api, "rolled", 1);
    assert_eq!(rolled[0]["partition_key"], "all");
    let run = rolled[0]["dag_run_id"]
        .as_str()
        .expect("a name")
        .replace('+', "%2B");
    let events = api.get(&format!("/api/v2/dags/rolled/dagRuns/{run}/upstreamAssetEvents"));
    assert_eq!(events["total_entries"], 3, "{events}");
    let mut seen: Vec<&str> = events["asset_events"]
        .as_array()
        .expect("events")
        .iter()
        .filter_map(|event| event["partition_key"].as_str())
        .collect();
    seen.sort_unstable();
    assert_eq!(seen, ["all", "eu", "us"]);
}

#[test]
fn partitions_are_asked_for_by_hand_and_backfilled() {
    let Some((_installation, _process, api)) = server() else {
        return;
    };
    let trigger = |dag_id: &str, key: &str| {
        let body = json!({"logical_date": null, "partition_key": key});
        post(&api, &format!("/api/v2/dags/{dag_id}/dagRuns"), &body)
    };
    let (status, made) = trigger("produce", "2025-06-01");
    assert_eq!(
        (status, &made["partition_key"]),
        (200, &json!("2025-06-01")),
        "{made}"
    );
    let (status, refused) = trigger("produce", "June");
    assert_eq!(status, 400);
    assert_eq!(
        refused["detail"],
        "Partition key 'June' does not match the timetable's key_format '%Y-%m-%d': time data 'June' does not match format '%Y-%m-%d'"
    );
    let (status, refused) = trigger("whole", "x");
    assert_eq!(status, 400);
    assert_eq!(
        refused["detail"],
        "Dag 'whole' is not a partitioned Dag and does not accept a partition_key."
    );
    let (status, _) = trigger("months", "2026-07");
    assert_eq!(status, 200);
    let july = runs(&api, "months", "&partition_key_pattern=2026-07");
    assert_eq!(july[0]["partition_date"], "2026-07-01T00:00:00Z");

    let range = json!({"dag_id": "produce", "from_date": "2025-12-30T00:00:00Z", "to_date": "2026-01-01T00:00:00Z", "max_active_runs": 2});
    let (_, tried) = post(&api, "/api/v2/backfills/dry_run", &range);
    assert_eq!(
        tried["backfills"][0],
        json!({"logical_date": null, "partition_key": "2025-12-30", "partition_date": "2025-12-29T16:00:00Z"})
    );
    let (status, made) = post(&api, "/api/v2/backfills", &range);
    assert_eq!(status, 200, "{made}");
    let made = wait_for_runs(&api, "produce", 6);
    let of_backfill: Vec<&str> = made
        .iter()
        .filter(|run| run["run_type"] == "backfill")
        .map(|run| run["partition_key"].as_str().unwrap_or_default())
        .collect();
    assert_eq!(of_backfill, ["2025-12-30", "2025-12-31", "2026-01-01"]);
}

const OWN: &str = r#"
from datetime import datetime, timezone
from airflow.partition_mappers.base import PartitionMapper
from airflow.partition_mappers.window import Window
from airflow.plugins_manager import AirflowPlugin

class Twice(PartitionMapper):
    def to_downstream(self, key):
        if key == "bad":
            raise ValueError("there is no such key")
        return [key.upper(), key.upper() + "2"]

    def to_partition_date(self, key):
        return datetime(2026, 1, 2, tzinfo=timezone.utc)

class First(PartitionMapper):
    def to_downstream(self, key):
        return key.split("-")[0]

class Pair(Window):
    def to_upstream(self, whole):
        return [whole + "-a", whole + "-b"]

class OwnPartitions(AirflowPlugin):
    name = "own_partitions"
    partition_mappers = [Twice, First]
    windows = [Pair]
"#;

const OWN_DAGS: &str = r#"
from airflow.sdk import DAG, Asset, PartitionedAssetTimetable, RollupMapper
from airflow.providers.standard.operators.bash import BashOperator
from own_partitions import First, Pair, Twice

own = Asset("own")

with DAG("twice", schedule=PartitionedAssetTimetable(assets=own, default_partition_mapper=Twice())):
    BashOperator(task_id="t", bash_command="true")

with DAG("pairs", schedule=PartitionedAssetTimetable(
        assets=own, default_partition_mapper=RollupMapper(upstream_mapper=First(), window=Pair()))):
    BashOperator(task_id="t", bash_command="true")
"#;

#[test]
fn mappers_and_windows_of_plugins_are_asked() {
    let Some(python) = harness::python() else { return };
    let installation = Installation::new(&python);
    let plugins = installation.path().join("plugins");
    std::fs::create_dir_all(&plugins).expect("a folder");
    std::fs::write(plugins.join("own_partitions.py"), OWN).expect("a plugin");
    installation.dag("own.py", OWN_DAGS);
    let process = installation.start("updraft", &["standalone"], &[]);
    let api = installation.api();
    api.wait_for_dag("pairs");
    let own = api.get("/api/v2/assets?name_pattern=own")["assets"][0]["id"].clone();
    let update = |key: &str| {
        let body = json!({"asset_id": own, "partition_key": key});
        let (status, said) = post(&api, "/api/v2/assets/events", &body);
        assert_eq!(status, 200, "{said}");
    };
    update("bad");
    update("x-a");
    let twice = wait_for_runs(&api, "twice", 2);
    assert_eq!(keys(&twice), ["X-A", "X-A2"]);
    assert_eq!(twice[0]["partition_date"], "2026-01-02T00:00:00Z");
    eventually("a key that cannot be mapped is told", PATIENCE, || {
        let output = process.output();
        let told = output.contains("cannot be mapped: ValueError: there is no such key");
        if told { Ok(()) } else { Err(output) }
    });
    assert!(runs(&api, "pairs", "").is_empty(), "half of the pair has come");
    update("x-b");
    let pairs = wait_for_runs(&api, "pairs", 1);
    assert_eq!(keys(&pairs), ["x"]);
    assert_eq!(wait_for_runs(&api, "twice", 4).len(), 4);
}
