//! Assets: what tasks update starts the runs that wait for it, once for each update.

use harness::{Api, Installation, Process, eventually};
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::time::Duration;

const PATIENCE: Duration = Duration::from_secs(60);

const DAGS: &str = r#"
from airflow.sdk import DAG, Asset, AssetAlias, AssetOrTimeSchedule, CronTriggerTimetable, Metadata, asset, task
from airflow.providers.standard.operators.bash import BashOperator

raw = Asset(name="raw", uri="file:///raw", extra={"owner": "us", "password": "hidden"})
clean = Asset("clean")
late = AssetAlias("late")

with DAG("produce", schedule=None):
    @task(outlets=[raw])
    def make(outlet_events=None):
        outlet_events[raw].extra = {"rows": 3}
    @task(outlets=[late])
    def attach(outlet_events=None):
        outlet_events[late].add(Asset("found"), extra={"by": "alias"})
    BashOperator(task_id="bash", bash_command="true", outlets=[clean])
    make() >> attach()

with DAG("on_raw", schedule=[raw]):
    @task(inlets=[raw, late])
    def read(triggering_asset_events=None, inlet_events=None):
        event, = triggering_asset_events[raw]
        return [event.extra, event.source_dag_id, event.source_task_id, event.asset.extra,
                inlet_events[raw][-1].extra, len(inlet_events[late])]
    read()

with DAG("on_both", schedule=(raw & clean)):
    BashOperator(task_id="t", bash_command="true")

with DAG("on_alias", schedule=[late]):
    @task
    def read(triggering_asset_events=None):
        return [[asset.name, event.extra, [alias.name for alias in event.source_aliases]]
                for asset, events in triggering_asset_events.items() if isinstance(asset, Asset) for event in events]
    read()

with DAG("on_reference", schedule=[Asset.ref(name="clean")]):
    BashOperator(task_id="t", bash_command="true")

with DAG("or_time", schedule=AssetOrTimeSchedule(timetable=CronTriggerTimetable("0 0 1 1 *", timezone="UTC"), assets=[clean])):
    BashOperator(task_id="t", bash_command="true")

@asset(schedule=None)
def decorated(self, context):
    state = context["asset_state_store"]
    seen = state.get("seen") or 0
    state.set("seen", seen + 1)
    return seen
"#;

fn server() -> Option<(Installation, Process, Api)> {
    let installation = Installation::new(&harness::python()?);
    installation.dag("assets.py", DAGS);
    let process = installation.start("updraft", &["standalone"], &[]);
    let api = installation.api();
    api.wait_for_dag("decorated");
    Some((installation, process, api))
}

fn runs(api: &Api, dag_id: &str) -> Vec<Value> {
    let page = api.get(&format!("/api/v2/dags/{dag_id}/dagRuns?order_by=run_after"));
    page["dag_runs"].as_array().cloned().unwrap_or_default()
}

/// The one run of a DAG that assets started, once it has ended well.
fn started(api: &Api, dag_id: &str) -> String {
    let run = eventually(&format!("{dag_id} is started"), PATIENCE, || {
        match runs(api, dag_id).as_slice() {
            [run] => Ok(run.clone()),
            other => Err(format!("{other:?}")),
        }
    });
    assert_eq!(run["run_type"], "asset_triggered");
    assert_eq!(run["triggered_by"], "asset");
    assert_eq!(run["logical_date"], Value::Null);
    let run_id = run["dag_run_id"].as_str().unwrap_or_default().to_owned();
    assert!(
        run_id.starts_with(&format!(
            "asset_triggered__{}",
            run["run_after"]
                .as_str()
                .unwrap_or_default()
                .trim_end_matches('Z')
        )),
        "{run}"
    );
    assert_eq!(api.wait_for_end(dag_id, &run_id), "success");
    run_id
}

fn returned(api: &Api, dag_id: &str, run_id: &str, task_id: &str) -> Value {
    let run_id = run_id.replace('+', "%2B");
    let path = format!(
        "/api/v2/dags/{dag_id}/dagRuns/{run_id}/taskInstances/{task_id}/xcomEntries/return_value?deserialize=true"
    );
    api.get(&path)["value"].clone()
}

fn asset(api: &Api, name: &str) -> Value {
    let page = api.get(&format!("/api/v2/assets?name_pattern={name}"));
    page["assets"][0].clone()
}

#[test]
fn what_tasks_update_starts_the_runs_that_wait_for_it() {
    let Some((_installation, _process, api)) = server() else {
        return;
    };
    let made = api.trigger("produce", &json!({"logical_date": null}));
    assert_eq!(api.wait_for_end("produce", &made), "success");
    let run_id = started(&api, "on_raw");
    let seen = returned(&api, "on_raw", &run_id, "read");
    let said = json!({"rows": 3});
    let about = json!({"owner": "us", "password": "hidden"});
    let late = seen[5].clone();
    assert_eq!(seen, json!([said, "produce", "make", about, said, late]));
    started(&api, "on_both");
    started(&api, "on_reference");
    started(&api, "or_time");
    let run_id = started(&api, "on_alias");
    let seen = returned(&api, "on_alias", &run_id, "read");
    assert_eq!(seen, json!([["found", {"by": "alias"}, ["late"]]]));

    let raw = asset(&api, "raw");
    assert_eq!(raw["extra"], json!({"owner": "us", "password": "***"}));
    assert_eq!(raw["producing_tasks"][0]["task_id"], "make");
    assert_eq!(raw["scheduled_dags"].as_array().map(Vec::len), Some(2), "{raw}");
    assert_eq!(raw["consuming_tasks"][0]["dag_id"], "on_raw");
    let found = asset(&api, "found");
    assert_eq!(found["aliases"][0]["name"], "late");
    let path = format!("/api/v2/assets/events?asset_id={}", raw["id"]);
    let events = api.get(&path);
    assert_eq!(events["total_entries"], 1);
    let event = &events["asset_events"][0];
    assert_eq!(event["source_run_id"], made.as_str());
    let consumers: Vec<&str> = event["created_dagruns"]
        .as_array()
        .into_iter()
        .flatten()
        .filter_map(|run| run["dag_id"].as_str())
        .collect();
    assert_eq!(consumers.len(), 2, "{event}");
    let details = api.get("/api/v2/dags/on_both/details");
    assert_eq!(details["asset_expression"]["all"][1]["asset"]["name"], "clean");
}

#[test]
fn half_of_a_condition_waits_and_can_be_forgotten() {
    let Some((_installation, _process, api)) = server() else {
        return;
    };
    let raw = asset(&api, "raw")["id"].clone();
    let (status, event) = api
        .call(
            "POST",
            "/api/v2/assets/events",
            Some(&json!({"asset_id": raw, "extra": {"a": 1}})),
        )
        .expect("an answer");
    assert_eq!(
        (status, &event["extra"]),
        (200, &json!({"a": 1, "from_rest_api": true}))
    );
    let queue = "/api/v2/dags/on_both/assets/queuedEvents";
    let waiting = eventually("one asset waits", PATIENCE, || match api.get(queue) {
        page if page["total_entries"] == 1 => Ok(page),
        page => Err(page.to_string()),
    });
    assert_eq!(waiting["queued_events"][0]["asset_id"], raw);
    let (status, _) = api.call("DELETE", queue, None).expect("an answer");
    assert_eq!(status, 204);
    let (status, _) = api.call("DELETE", queue, None).expect("an answer");
    assert_eq!(status, 404);
    let clean = asset(&api, "clean")["id"].clone();
    let update = |id: &Value| {
        api.call("POST", "/api/v2/assets/events", Some(&json!({"asset_id": id})))
            .expect("an answer")
    };
    update(&clean);
    started(&api, "on_reference");
    assert_eq!(runs(&api, "on_both").len(), 0, "the first half was forgotten");
    update(&raw);
    let run_id = started(&api, "on_both");
    let path = format!(
        "/api/v2/dags/on_both/dagRuns/{}/upstreamAssetEvents",
        run_id.replace('+', "%2B")
    );
    let upstream = api.get(&path);
    let names: Vec<&Value> = upstream["asset_events"]
        .as_array()
        .into_iter()
        .flatten()
        .map(|event| &event["name"])
        .collect();
    assert_eq!(
        names,
        ["raw", "clean", "raw"],
        "what was forgotten goes along, and starts nothing"
    );
}

#[test]
fn every_update_is_consumed_exactly_once_while_others_come() {
    let Some((installation, _process, api)) = server() else {
        return;
    };
    installation.dag(
        "busy.py",
        "from airflow.sdk import DAG, Asset\n\
         from airflow.providers.standard.operators.bash import BashOperator\n\
         with DAG('busy', schedule=[Asset('ticks')], max_active_runs=1):\n\
         \x20   BashOperator(task_id='t', bash_command='sleep 0.05')\n",
    );
    api.wait_for_dag("busy");
    let ticks = asset(&api, "ticks")["id"].clone();
    for _ in 0..60 {
        let body = json!({"asset_id": ticks});
        let (status, _) = api
            .call("POST", "/api/v2/assets/events", Some(&body))
            .expect("an answer");
        assert_eq!(status, 200);
    }
    eventually("all runs have ended", PATIENCE, || {
        let queued = api.get("/api/v2/dags/busy/assets/queuedEvents");
        let open = runs(&api, "busy").iter().any(|run| run["state"] != "success");
        if queued["total_entries"] == 0 && !open {
            Ok(())
        } else {
            Err(queued.to_string())
        }
    });
    let page = api.get(&format!("/api/v2/assets/events?asset_id={ticks}&limit=100"));
    let mut counts = BTreeMap::new();
    for event in page["asset_events"].as_array().into_iter().flatten() {
        *counts
            .entry(event["created_dagruns"].as_array().map_or(0, Vec::len))
            .or_insert(0) += 1;
    }
    assert_eq!(counts, BTreeMap::from([(1, 60)]), "each in one run");
}

#[test]
fn an_asset_keeps_what_its_task_notes_and_is_made_on_demand() {
    let Some((installation, _process, api)) = server() else {
        return;
    };
    let id = asset(&api, "decorated")["id"].clone();
    for expected in 0..2 {
        let path = format!("/api/v2/assets/{id}/materialize");
        let (status, run) = api.call("POST", &path, Some(&json!({}))).expect("an answer");
        assert_eq!(status, 200, "{run}");
        assert_eq!(run["run_type"], "asset_materialization");
        let run_id = run["dag_run_id"].as_str().unwrap_or_default();
        assert_eq!(api.wait_for_end("decorated", run_id), "success");
        assert_eq!(returned(&api, "decorated", run_id, "decorated"), expected);
    }
    let kept = api.get(&format!("/api/v2/assets/{id}/state-store"));
    let seen = &kept["asset_state_store"][0];
    assert_eq!((&seen["key"], &seen["value"]), (&json!("seen"), &json!(2)));
    assert_eq!(seen["last_updated_by"]["task_id"], "decorated");
    let (_, listed) = installation.run("updraft", &["assets", "list", "--output", "json"]);
    assert!(listed.contains("file:///raw"), "{listed}");
    let (_, made) = installation.run(
        "updraft",
        &["assets", "materialize", "--name", "decorated", "-o", "json"],
    );
    assert!(made.contains("asset_materialization__"), "{made}");
}

#[test]
fn a_task_with_an_asset_whose_name_is_taken_fails_and_says_so() {
    let Some((installation, _process, api)) = server() else {
        return;
    };
    installation.dag(
        "taken.py",
        "from airflow.sdk import DAG, Asset, task\n\
         with DAG('taken', schedule=None):\n\
         \x20   @task(outlets=[Asset(name='raw', uri='file:///other')])\n    def t():\n        pass\n\
         \x20   t()\n",
    );
    api.wait_for_dag("taken");
    let run_id = api.trigger("taken", &json!({"logical_date": null}));
    assert_eq!(api.wait_for_end("taken", &run_id), "failed");
    let run_id = run_id.replace('+', "%2B");
    let path = format!("/api/v2/dags/taken/dagRuns/{run_id}/taskInstances/t/logs/1");
    let log = api.get(&path).to_string();
    assert!(
        log.contains("AirflowInactiveAssetInInletOrOutletException"),
        "{log}"
    );
}
