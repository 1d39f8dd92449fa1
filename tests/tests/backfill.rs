//! Runs for the past, and runs that are run again.

use harness::{Api, Installation, Process, eventually};
use serde_json::{Value, json};
use std::time::Duration;

const PATIENCE: Duration = Duration::from_secs(60);

const DAGS: &str = r#"
from datetime import datetime
from airflow.sdk import DAG, TaskGroup, task
from airflow.providers.standard.operators.bash import BashOperator

with DAG("daily", schedule="@daily", start_date=datetime(2030, 1, 1), catchup=False, params={"word": "none"}):
    BashOperator(task_id="a", bash_command="echo {{ ds }} {{ params.word }} >> PATH/order; test -e PATH/gate || sleep 0.3")
    BashOperator(task_id="b", bash_command="test ! -e PATH/broken")

with DAG("chain", schedule="@daily", start_date=datetime(2030, 1, 1), catchup=False):
    first = BashOperator(task_id="first", bash_command="true")
    second = BashOperator(task_id="second", bash_command="test ! -e PATH/broken")
    third = BashOperator(task_id="third", bash_command="true")
    beside = BashOperator(task_id="beside", bash_command="true")
    first >> second >> third

with DAG("grouped", schedule=None):
    with TaskGroup("pair") as pair:
        BashOperator(task_id="one", bash_command="test ! -e PATH/broken") >> BashOperator(task_id="two", bash_command="true")
    pair >> BashOperator(task_id="last", bash_command="true")

with DAG("mapped", schedule=None):
    @task
    def gen():
        return list(range(int(open("PATH/length").read())))
    @task
    def each(n):
        return n
    @task
    def all_of(values):
        return sum(values)
    many = each.expand(n=gen())
    each.override(task_id="again").expand(n=many)
    all_of(many)

with DAG("scheduled_only", schedule="@daily", start_date=datetime(2030, 1, 1), allowed_run_types=["scheduled"]):
    BashOperator(task_id="t", bash_command="true")
"#;

fn server() -> Option<(Installation, Process, Api)> {
    let installation = Installation::new(&harness::python()?);
    let path = installation.path().to_string_lossy().into_owned();
    installation.dag("past.py", &DAGS.replace("PATH", &path));
    let process = installation.start("updraft", &["standalone"], &[]);
    let api = installation.api();
    api.wait_for_dag("daily");
    Some((installation, process, api))
}

fn post(api: &Api, path: &str, body: &Value) -> (u16, Value) {
    api.call("POST", path, Some(body)).expect("an answer")
}

fn range(more: Value) -> Value {
    let mut body =
        json!({"dag_id": "daily", "from_date": "2024-03-01T00:00:00Z", "to_date": "2024-03-04T00:00:00Z"});
    for (key, value) in more.as_object().into_iter().flatten() {
        body[key] = value.clone();
    }
    body
}

fn wait_until_complete(api: &Api, backfill: &Value) -> Value {
    let path = format!("/api/v2/backfills/{}", backfill["id"]);
    eventually("the backfill is complete", PATIENCE, || match api.get(&path) {
        done if !done["completed_at"].is_null() => Ok(done),
        open => Err(open.to_string()),
    })
}

fn runs(api: &Api, dag_id: &str) -> Vec<Value> {
    let page = api.get(&format!("/api/v2/dags/{dag_id}/dagRuns?order_by=logical_date"));
    page["dag_runs"].as_array().cloned().unwrap_or_default()
}

fn order(installation: &Installation) -> Vec<String> {
    let text = std::fs::read_to_string(installation.path().join("order")).unwrap_or_default();
    text.lines().map(str::to_owned).collect()
}

#[test]
fn a_backfill_runs_its_dates_in_order_under_its_own_limit() {
    let Some((installation, _process, api)) = server() else {
        return;
    };
    let wish = range(json!({"max_active_runs": 1, "run_backwards": true, "dag_run_conf": {"word": "mine"}}));
    let (status, tried) = post(&api, "/api/v2/backfills/dry_run", &wish);
    assert_eq!((status, &tried["total_entries"]), (200, &json!(4)), "{tried}");
    assert_eq!(tried["backfills"][0]["logical_date"], "2024-03-04T00:00:00Z");
    let (status, made) = post(&api, "/api/v2/backfills", &wish);
    assert_eq!(status, 200, "{made}");
    let (status, _) = post(&api, "/api/v2/backfills", &wish);
    assert_eq!(status, 409, "one at a time");
    wait_until_complete(&api, &made);
    let expected: Vec<String> = (1..=4).rev().map(|day| format!("2024-03-0{day} mine")).collect();
    assert_eq!(order(&installation), expected);
    for run in runs(&api, "daily") {
        assert_eq!(
            (&run["run_type"], &run["triggered_by"]),
            (&json!("backfill"), &json!("backfill"))
        );
        assert!(
            run["dag_run_id"]
                .as_str()
                .unwrap_or_default()
                .starts_with("backfill__2024-03-0"),
            "{run}"
        );
        assert_eq!(run["state"], "success");
    }
}

#[test]
fn dates_that_have_a_run_are_left_alone_or_run_again_as_asked() {
    let Some((installation, _process, api)) = server() else {
        return;
    };
    let broken = installation.path().join("broken");
    std::fs::write(&broken, "").expect("a sign");
    let (_, made) = post(
        &api,
        "/api/v2/backfills",
        &range(json!({"to_date": "2024-03-02T00:00:00Z"})),
    );
    wait_until_complete(&api, &made);
    assert!(runs(&api, "daily").iter().all(|run| run["state"] == "failed"));
    std::fs::remove_file(&broken).expect("gone");
    let (_, made) = post(&api, "/api/v2/backfills", &range(json!({})));
    wait_until_complete(&api, &made);
    let states: Vec<Value> = runs(&api, "daily")
        .iter()
        .map(|run| run["state"].clone())
        .collect();
    assert_eq!(states, ["failed", "failed", "success", "success"]);
    let again = range(json!({"reprocess_behavior": "failed"}));
    let (_, tried) = post(&api, "/api/v2/backfills/dry_run", &again);
    assert_eq!(tried["total_entries"], 2, "{tried}");
    let (_, made) = post(&api, "/api/v2/backfills", &again);
    wait_until_complete(&api, &made);
    let states: Vec<Value> = runs(&api, "daily")
        .iter()
        .map(|run| run["state"].clone())
        .collect();
    assert_eq!(states, ["success", "success", "success", "success"]);
    let tasks = api.tasks(
        "daily",
        runs(&api, "daily")[0]["dag_run_id"].as_str().unwrap_or_default(),
    );
    assert!(tasks.iter().all(|task| task["try_number"] == 2), "{tasks:?}");
}

#[test]
fn a_backfill_can_be_paused_and_cancelled() {
    let Some((installation, _process, api)) = server() else {
        return;
    };
    let wish = range(json!({"max_active_runs": 1, "to_date": "2024-03-20T00:00:00Z"}));
    let (_, made) = post(&api, "/api/v2/backfills", &wish);
    let path = format!("/api/v2/backfills/{}", made["id"]);
    let (status, paused) = api
        .call("PUT", &format!("{path}/pause"), None)
        .expect("an answer");
    assert_eq!((status, &paused["is_paused"]), (200, &json!(true)));
    eventually("nothing runs", PATIENCE, || {
        let busy = runs(&api, "daily")
            .iter()
            .filter(|run| run["state"] == "running")
            .count();
        if busy == 0 { Ok(()) } else { Err(busy.to_string()) }
    });
    let done = order(&installation).len();
    assert!(done < 20, "{done}");
    api.call("PUT", &format!("{path}/unpause"), None)
        .expect("an answer");
    eventually("it goes on", PATIENCE, || {
        if order(&installation).len() > done {
            Ok(())
        } else {
            Err(String::new())
        }
    });
    let (status, _) = api
        .call("PUT", &format!("{path}/cancel"), None)
        .expect("an answer");
    assert_eq!(status, 200);
    let (status, _) = api
        .call("PUT", &format!("{path}/cancel"), None)
        .expect("an answer");
    assert_eq!(status, 409);
    assert!(runs(&api, "daily").iter().all(|run| run["state"] != "queued"));
    let (ok, listed) = installation.run(
        "updraft",
        &[
            "backfill",
            "create",
            "--dag-id",
            "daily",
            "--from-date",
            "2024-04-01",
            "--to-date",
            "2024-04-02",
            "--dry-run",
        ],
    );
    assert!(ok && listed.contains("2024-04-02T00:00:00Z"), "{listed}");
}

#[test]
fn clearing_reaches_relatives_and_other_dates_and_marking_resumes_what_failed() {
    let Some((installation, _process, api)) = server() else {
        return;
    };
    let broken = installation.path().join("broken");
    std::fs::write(&broken, "").expect("a sign");
    let wish =
        json!({"dag_id": "chain", "from_date": "2024-03-01T00:00:00Z", "to_date": "2024-03-03T00:00:00Z"});
    let (_, made) = post(&api, "/api/v2/backfills", &wish);
    wait_until_complete(&api, &made);
    let ids: Vec<String> = runs(&api, "chain")
        .iter()
        .map(|run| run["dag_run_id"].as_str().unwrap_or_default().to_owned())
        .collect();
    let clear = |more: Value| {
        let mut body =
            json!({"dry_run": true, "only_failed": false, "task_ids": ["second"], "dag_run_id": ids[1]});
        for (key, value) in more.as_object().into_iter().flatten() {
            body[key] = value.clone();
        }
        let (status, found) = post(&api, "/api/v2/dags/chain/clearTaskInstances", &body);
        assert_eq!(status, 200, "{found}");
        found["total_entries"].clone()
    };
    assert_eq!(clear(json!({})), 1);
    assert_eq!(clear(json!({"include_upstream": true})), 2);
    assert_eq!(
        clear(json!({"include_upstream": true, "include_downstream": true})),
        3
    );
    assert_eq!(clear(json!({"include_past": true})), 2);
    assert_eq!(clear(json!({"include_past": true, "include_future": true})), 3);
    assert_eq!(clear(json!({"only_failed": true, "include_downstream": true})), 2);

    // Marked as done by hand: what waited behind it goes on by itself.
    let run = ids[0].replace('+', "%2B");
    let path = format!("/api/v2/dags/chain/dagRuns/{run}/taskInstances/second");
    let body = json!({"new_state": "success"});
    let (status, _) = api.call("PATCH", &path, Some(&body)).expect("an answer");
    assert_eq!(status, 200);
    assert_eq!(api.wait_for_end("chain", &ids[0]), "success");

    // Of the other two the failed ones run again, all at once.
    std::fs::remove_file(&broken).expect("gone");
    assert_eq!(
        clear(
            json!({"dry_run": false, "include_future": true, "include_downstream": true, "only_failed": true})
        ),
        4
    );
    for id in &ids[1..] {
        assert_eq!(api.wait_for_end("chain", id), "success");
        let tries: Vec<Value> = api
            .tasks("chain", id)
            .iter()
            .map(|task| task["try_number"].clone())
            .collect();
        assert_eq!(tries.iter().filter(|tries| **tries == 1).count(), 3, "{tries:?}");
    }
    let body = json!({"new_state": "failed", "include_downstream": true, "include_past": true});
    let path = format!(
        "/api/v2/dags/chain/dagRuns/{}/taskInstances/first",
        ids[2].replace('+', "%2B")
    );
    let (status, _) = api.call("PATCH", &path, Some(&body)).expect("an answer");
    assert_eq!(status, 200);
    for id in &ids {
        let failed = api
            .tasks("chain", id)
            .iter()
            .filter(|task| task["state"] == "failed")
            .count();
        assert_eq!(failed, 3, "{id}");
    }
}

#[test]
fn a_task_group_is_marked_as_a_whole_and_what_waited_behind_it_goes_on() {
    let Some((installation, _process, api)) = server() else {
        return;
    };
    std::fs::write(installation.path().join("broken"), "").expect("a sign");
    let run_id = api.trigger("grouped", &json!({"logical_date": null}));
    assert_eq!(api.wait_for_end("grouped", &run_id), "failed");
    let run = format!("/api/v2/dags/grouped/dagRuns/{}", run_id.replace('+', "%2B"));
    let patch = |path: &str, body: &Value| {
        let path = format!("{run}/{path}");
        api.call("PATCH", &path, Some(body)).expect("an answer")
    };
    let ids = |found: &Value| -> Vec<Value> {
        let tis = found["task_instances"].as_array().expect("instances");
        tis.iter().map(|ti| ti["task_id"].clone()).collect()
    };
    let done = json!({"new_state": "success"});
    let (status, tried) = patch("taskGroupInstances/pair/dry_run", &done);
    assert_eq!(status, 200, "{tried}");
    assert_eq!(ids(&tried), ["pair.one", "pair.two"]);
    let (_, tried) = patch(
        "taskInstances/pair.one/dry_run",
        &json!({"new_state": "success", "include_downstream": true}),
    );
    assert_eq!(ids(&tried).len(), 3, "{tried}");
    let (_, tried) = patch(
        "taskInstances/pair.one/-1/dry_run",
        &json!({"new_state": "failed"}),
    );
    assert_eq!(ids(&tried), Vec::<Value>::new(), "it has failed already");
    assert!(
        api.tasks("grouped", &run_id)
            .iter()
            .all(|ti| ti["state"] != "success"),
        "nothing is marked by trying"
    );

    let (status, missing) = patch("taskGroupInstances/nobody", &done);
    assert_eq!(status, 404);
    assert_eq!(
        missing["detail"],
        "Task group 'nobody' not found in DAG 'grouped'"
    );
    let (status, marked) = patch(
        "taskGroupInstances/pair",
        &json!({"new_state": "success", "note": "by hand"}),
    );
    assert_eq!(status, 200, "{marked}");
    assert_eq!(marked["task_instances"][0]["note"], "by hand");
    assert_eq!(marked["task_instances"][1]["state"], "success");
    assert_eq!(api.wait_for_end("grouped", &run_id), "success");
    let (status, again) = patch("taskGroupInstances/pair", &done);
    assert_eq!(status, 409);
    assert_eq!(
        again["detail"],
        "All task instances in the group are already in success state"
    );
}

#[test]
fn a_cleared_mapped_task_has_as_many_instances_as_it_maps_over_now() {
    let Some((installation, _process, api)) = server() else {
        return;
    };
    let length = |length: u32| {
        std::fs::write(installation.path().join("length"), length.to_string()).expect("a length");
    };
    let states = |run_id: &str| -> Vec<String> {
        let shown = |ti: &Value| {
            let word = |key: &str| ti[key].as_str().unwrap_or_default().to_owned();
            format!(
                "{}[{}] {} {}",
                word("task_id"),
                ti["map_index"],
                word("state"),
                ti["try_number"]
            )
        };
        let mut states: Vec<String> = api.tasks("mapped", run_id).iter().map(shown).collect();
        states.sort();
        states
    };
    length(2);
    let run_id = api.trigger("mapped", &json!({"logical_date": null}));
    assert_eq!(api.wait_for_end("mapped", &run_id), "success");
    let clear = || {
        let path = format!("/api/v2/dags/mapped/dagRuns/{}/clear", run_id.replace('+', "%2B"));
        let (status, said) = post(&api, &path, &json!({"dry_run": false}));
        assert_eq!(status, 200, "{said}");
        assert_eq!(api.wait_for_end("mapped", &run_id), "success");
    };
    length(3);
    clear();
    assert_eq!(
        states(&run_id),
        [
            "again[0] success 2",
            "again[1] success 2",
            "again[2] success 1",
            "all_of[-1] success 2",
            "each[0] success 2",
            "each[1] success 2",
            "each[2] success 1",
            "gen[-1] success 2",
        ]
    );
    length(1);
    clear();
    assert_eq!(
        states(&run_id),
        [
            "again[0] success 3",
            "again[1] removed 2",
            "again[2] removed 1",
            "all_of[-1] success 3",
            "each[0] success 3",
            "each[1] removed 2",
            "each[2] removed 1",
            "gen[-1] success 3",
        ]
    );
}

#[test]
fn a_dag_allows_only_the_runs_that_it_names() {
    let Some((_installation, _process, api)) = server() else {
        return;
    };
    api.wait_for_dag("scheduled_only");
    let body = json!({"logical_date": null});
    let (status, answer) = post(&api, "/api/v2/dags/scheduled_only/dagRuns", &body);
    assert_eq!(status, 400);
    assert_eq!(
        answer["detail"],
        "Dag with dag_id: 'scheduled_only' does not allow manual runs"
    );
    let shown = api.get("/api/v2/dags/scheduled_only");
    assert_eq!(shown["allowed_run_types"], json!(["scheduled"]));
}
