//! Tasks that hand themselves over to a trigger, and go on when it fires.

use harness::{Api, Installation, Process, eventually};
use serde_json::{Value, json};
use std::time::Duration;

const PATIENCE: Duration = Duration::from_secs(60);

const PLUGIN: &str = r#"
import asyncio
import os
from airflow.sdk import Variable
from airflow.triggers.base import BaseEventTrigger, BaseTrigger, TaskFailedEvent, TaskSkippedEvent, TaskSuccessEvent, TriggerEvent

class Watch(BaseTrigger):
    def __init__(self, path, what="fire"):
        super().__init__()
        self.path, self.what = path, what

    def serialize(self):
        return "own_triggers.Watch", {"path": self.path, "what": self.what}

    async def run(self):
        self.log.info("watching %s", self.path)
        while not os.path.exists(self.path):
            await asyncio.sleep(0.05)
        if self.what == "break":
            raise ValueError("the trigger broke")
        if self.what == "success":
            yield TaskSuccessEvent(xcoms={"left": [1, 2]})
        elif self.what == "skip":
            yield TaskSkippedEvent()
        elif self.what == "fail":
            yield TaskFailedEvent()
        elif self.what != "nothing":
            greeting = await asyncio.to_thread(Variable.get, "greeting", default="none")
            yield TriggerEvent({"path": self.path, "greeting": greeting})

class Tick(BaseEventTrigger):
    def __init__(self, path):
        super().__init__()
        self.path = path

    def serialize(self):
        return "own_triggers.Tick", {"path": self.path}

    async def run(self):
        while True:
            if os.path.exists(self.path):
                os.remove(self.path)
                yield TriggerEvent({"seen": True})
            await asyncio.sleep(0.05)
"#;

const DAGS: &str = r#"
from datetime import timedelta
from airflow.sdk import DAG, Asset, AssetWatcher, BaseOperator, task
from own_triggers import Tick, Watch
from airflow.providers.standard.operators.trigger_dagrun import TriggerDagRunOperator
from airflow.providers.standard.operators.bash import BashOperator
from airflow.providers.standard.sensors.date_time import DateTimeSensorAsync
from airflow.triggers.base import StartTriggerArgs

class Waits(BaseOperator):
    def __init__(self, what="fire", path="PATH/go", limit=None, **kwargs):
        super().__init__(**kwargs)
        self.what, self.path, self.limit = what, path, limit

    def execute(self, context):
        self.defer(trigger=Watch(path=self.path, what=self.what), method_name="resume", kwargs={"more": "kept"}, timeout=self.limit)

    def resume(self, context, event, more):
        return [event, more, context["ti"].try_number]

class Begins(BaseOperator):
    start_from_trigger = True
    template_fields = ("path",)

    def __init__(self, path="PATH/go", what="fire", limit=None, **kwargs):
        super().__init__(**kwargs)
        self.path = path
        self.start_trigger_args = StartTriggerArgs(
            trigger_cls="own_triggers.Watch", trigger_kwargs={"path": path, "what": what}, next_method="resume",
            next_kwargs={"more": timedelta(seconds=90)}, timeout=limit)

    def execute(self, context):
        raise AssertionError("no worker starts it")

    def resume(self, context, event, more):
        return [event["path"], more.total_seconds(), context["ti"].try_number]

with DAG("begins", schedule=None):
    Begins(task_id="fire", path="PATH/{{ params.word }}", params={"word": "go"})
    Begins(task_id="success", what="success")
    Begins(task_id="again", what="fail", retries=1, retry_delay=timedelta(seconds=0))
    Begins(task_id="late", path="PATH/never", limit=timedelta(seconds=1))
    DateTimeSensorAsync(task_id="moment", target_time="{{ dag_run.start_date }}", start_from_trigger=True, end_from_trigger=True)

with DAG("waits", schedule=None):
    for what in ("fire", "success", "skip", "fail", "break", "nothing"):
        Waits(task_id=what, what=what)
    Waits(task_id="late", path="PATH/never", limit=timedelta(seconds=1))
    Waits(task_id="again", what="fail", retries=1, retry_delay=timedelta(seconds=0))

with DAG("many", schedule=None, max_active_tasks=500):
    Waits.partial(task_id="one").expand(what=["fire"] * 200)

with DAG("inner", schedule=None):
    BashOperator(task_id="t", bash_command="sleep 1")

with DAG("outer", schedule=None):
    TriggerDagRunOperator(task_id="t", trigger_dag_id="inner", wait_for_completion=True, deferrable=True, poke_interval=1)

with DAG("watched", schedule=[Asset("ticks", watchers=[AssetWatcher(name="tick", trigger=Tick(path="PATH/tick"))])]):
    @task
    def read(triggering_asset_events=None):
        (event,), = triggering_asset_events.values()
        return event.extra
    read()
"#;

fn server() -> Option<(Installation, Process, Api)> {
    let installation = Installation::new(&harness::python()?);
    let plugins = installation.path().join("plugins");
    std::fs::create_dir_all(&plugins).expect("a folder");
    std::fs::write(plugins.join("own_triggers.py"), PLUGIN).expect("a plugin");
    let path = installation.path().to_string_lossy().into_owned();
    installation.dag("waits.py", &DAGS.replace("PATH", &path));
    let process = installation.start("updraft", &["standalone"], &[]);
    let api = installation.api();
    api.wait_for_dag("waits");
    Some((installation, process, api))
}

fn go(installation: &Installation) {
    std::fs::write(installation.path().join("go"), "").expect("a sign");
}

fn wait_for_state(api: &Api, dag_id: &str, run_id: &str, state: &str, count: usize) {
    let encoded = run_id.replace('+', "%2B");
    let path = format!("/api/v2/dags/{dag_id}/dagRuns/{encoded}/taskInstances?state={state}&limit=1");
    eventually(&format!("{count} tasks are {state}"), PATIENCE, || {
        match api.get(&path)["total_entries"].as_u64() {
            Some(found) if found == count as u64 => Ok(()),
            other => Err(format!("{other:?} {:?}", api.tasks(dag_id, run_id))),
        }
    });
}

fn returned(api: &Api, dag_id: &str, run_id: &str, task_id: &str, key: &str) -> Value {
    let run_id = run_id.replace('+', "%2B");
    let path = format!(
        "/api/v2/dags/{dag_id}/dagRuns/{run_id}/taskInstances/{task_id}/xcomEntries/{key}?deserialize=true"
    );
    api.get(&path)["value"].clone()
}

fn state_of<'a>(tasks: &'a [Value], task_id: &str) -> &'a Value {
    let found = tasks.iter().find(|task| task["task_id"] == task_id);
    found.map_or(&Value::Null, |task| &task["state"])
}

#[test]
fn a_task_begins_with_its_trigger_and_no_worker_starts_it() {
    let Some((installation, _process, api)) = server() else {
        return;
    };
    let run_id = api.trigger("begins", &json!({"logical_date": null}));
    let ended = |task: &Value, state: &str| task["task_id"] == "moment" && task["state"] == state;
    eventually("the moment has come", PATIENCE, || {
        let tasks = api.tasks("begins", &run_id);
        match tasks.iter().any(|task| ended(task, "success")) {
            true => Ok(()),
            false => Err(format!("{tasks:?}")),
        }
    });
    go(&installation);
    assert_eq!(api.wait_for_end("begins", &run_id), "failed");
    let tasks = api.tasks("begins", &run_id);
    for (task_id, state, tries) in [
        ("fire", "success", 1),
        ("success", "success", 1),
        ("again", "failed", 2),
        ("late", "failed", 1),
        ("moment", "success", 1),
    ] {
        let task = tasks.iter().find(|task| task["task_id"] == task_id).expect("it");
        assert_eq!(
            (&task["state"], &task["try_number"]),
            (&json!(state), &json!(tries)),
            "{task}"
        );
        assert!(
            task["duration"].as_f64().is_some_and(|duration| duration >= 0.0),
            "{task}"
        );
    }
    let path = installation.path().join("go").to_string_lossy().into_owned();
    let fire = returned(&api, "begins", &run_id, "fire", "return_value");
    assert_eq!(
        fire,
        json!([path, 90.0, 1]),
        "its path is rendered, its arguments are kept"
    );
    assert_eq!(
        returned(&api, "begins", &run_id, "success", "left"),
        json!([1, 2])
    );
    let log = api.log("begins", &run_id, "fire", 1).join("\n");
    assert!(log.contains("watching"), "{log}");
}

#[test]
fn a_deferred_task_goes_on_as_its_trigger_says() {
    let Some((installation, _process, api)) = server() else {
        return;
    };
    let body = json!({"key": "greeting", "value": "hello"});
    api.call("POST", "/api/v2/variables", Some(&body))
        .expect("an answer");
    let run_id = api.trigger("waits", &json!({"logical_date": null}));
    wait_for_state(&api, "waits", &run_id, "failed", 1);
    wait_for_state(&api, "waits", &run_id, "deferred", 7);
    let explained = api.get(&format!(
        "/api/v2/dags/waits/dagRuns/{}/taskInstances/fire/dependencies",
        run_id.replace('+', "%2B")
    ));
    let why = explained["explanation"].as_str().unwrap_or_default();
    assert!(why.contains("own_triggers.Watch"), "{explained}");
    let tasks = api.tasks("waits", &run_id);
    let fire = tasks.iter().find(|task| task["task_id"] == "fire").expect("it");
    assert_eq!(fire["trigger"]["classpath"], "own_triggers.Watch");
    assert_eq!(fire["trigger"]["kwargs"], "{}", "they may hold secrets");
    go(&installation);
    assert_eq!(api.wait_for_end("waits", &run_id), "failed");
    let tasks = api.tasks("waits", &run_id);
    for (task_id, state) in [
        ("fire", "success"),
        ("success", "success"),
        ("skip", "skipped"),
        ("fail", "failed"),
        ("break", "failed"),
        ("nothing", "failed"),
        ("late", "failed"),
        ("again", "failed"),
    ] {
        assert_eq!(state_of(&tasks, task_id), state, "{task_id}: {tasks:?}");
    }
    let again = tasks.iter().find(|task| task["task_id"] == "again");
    assert_eq!(again.map(|task| &task["try_number"]), Some(&json!(2)));
    let path = installation.path().join("go");
    assert_eq!(
        returned(&api, "waits", &run_id, "fire", "return_value"),
        json!([{"path": path.to_string_lossy(), "greeting": "hello"}, "kept", 1])
    );
    assert_eq!(returned(&api, "waits", &run_id, "success", "left"), json!([1, 2]));
    let log = |task_id: &str| {
        let run_id = run_id.replace('+', "%2B");
        api.get(&format!(
            "/api/v2/dags/waits/dagRuns/{run_id}/taskInstances/{task_id}/logs/1"
        ))
        .to_string()
    };
    assert!(log("fire").contains("watching"), "{}", log("fire"));
    assert!(log("break").contains("the trigger broke"), "{}", log("break"));
    assert!(log("late").contains("Trigger timeout"), "{}", log("late"));
}

#[test]
fn triggers_outlive_their_runner_and_the_whole_process() {
    let Some((installation, mut process, api)) = server() else {
        return;
    };
    let run_id = api.trigger("many", &json!({"logical_date": null}));
    wait_for_state(&api, "many", &run_id, "deferred", 200);
    process.kill();
    let _again = installation.start("updraft", &["standalone"], &[]);
    let api = installation.api();
    wait_for_state(&api, "many", &run_id, "deferred", 200);
    go(&installation);
    assert_eq!(api.wait_for_end("many", &run_id), "success");
    let path = format!(
        "/api/v2/dags/many/dagRuns/{}/taskInstances?limit=200",
        run_id.replace('+', "%2B")
    );
    let tasks = api.get(&path);
    for task in tasks["task_instances"].as_array().into_iter().flatten() {
        assert_eq!(
            (&task["state"], &task["try_number"]),
            (&json!("success"), &json!(1))
        );
    }
}

#[test]
fn a_run_is_waited_for_without_a_worker() {
    let Some((_installation, _process, api)) = server() else {
        return;
    };
    let run_id = api.trigger("outer", &json!({"logical_date": null}));
    wait_for_state(&api, "outer", &run_id, "deferred", 1);
    assert_eq!(api.wait_for_end("outer", &run_id), "success");
}

#[test]
fn a_cleared_task_leaves_its_trigger_behind() {
    let Some((installation, _process, api)) = server() else {
        return;
    };
    let run_id = api.trigger("waits", &json!({"logical_date": null}));
    wait_for_state(&api, "waits", &run_id, "deferred", 7);
    let body = json!({"dry_run": false, "task_ids": ["fire"], "dag_run_id": run_id, "only_failed": false});
    let (status, cleared) = api
        .call("POST", "/api/v2/dags/waits/clearTaskInstances", Some(&body))
        .expect("an answer");
    assert_eq!((status, &cleared["total_entries"]), (200, &json!(1)), "{cleared}");
    eventually("it waits again", PATIENCE, || {
        let tasks = api.tasks("waits", &run_id);
        let fire = tasks.iter().find(|task| task["task_id"] == "fire").cloned();
        match fire {
            Some(task) if task["state"] == "deferred" && task["try_number"] == 2 => Ok(()),
            other => Err(format!("{other:?}")),
        }
    });
    go(&installation);
    api.wait_for_end("waits", &run_id);
    let value = returned(&api, "waits", &run_id, "fire", "return_value");
    assert_eq!(value[2], 2, "only the new try's trigger counts: {value}");
}

#[test]
fn a_watcher_updates_its_asset() {
    let Some((installation, _process, api)) = server() else {
        return;
    };
    api.wait_for_dag("watched");
    for count in 1..=2 {
        std::fs::write(installation.path().join("tick"), "").expect("a tick");
        let run = eventually("the asset's DAG runs", PATIENCE, || {
            let page = api.get("/api/v2/dags/watched/dagRuns?order_by=-run_after&state=success");
            if page["total_entries"] == count {
                Ok(page["dag_runs"][0].clone())
            } else {
                Err(page.to_string())
            }
        });
        let run_id = run["dag_run_id"].as_str().unwrap_or_default();
        let seen = returned(&api, "watched", run_id, "read", "return_value");
        assert_eq!(seen, json!({"from_trigger": true, "payload": {"seen": true}}));
    }
}
