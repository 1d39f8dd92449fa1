//! Cluster policies, and weight rules of plugins.

use harness::{Api, Installation, eventually};
use serde_json::json;
use std::time::Duration;

const PATIENCE: Duration = Duration::from_secs(60);

const POLICIES: &str = r#"
from airflow.exceptions import AirflowClusterPolicyViolation

def task_policy(task):
    if task.task_id == "forbidden":
        raise AirflowClusterPolicyViolation("no task of that name here")
    task.retries = 7

def dag_policy(dag):
    dag.tags.add("seen")

def task_instance_mutation_hook(task_instance, dag_run=None):
    if task_instance.task_id == "strange":
        raise ValueError("this one cannot be mutated")
    if task_instance.task_id in ("routed", "mapped"):
        task_instance.pool = "side" if task_instance.map_index % 2 else "default_pool"
        task_instance.priority_weight = 40 + task_instance.try_number
        task_instance.queue = (dag_run and dag_run.conf or {}).get("queue", "default")
"#;

const PLUGIN: &str = r#"
from airflow.plugins_manager import AirflowPlugin
from airflow.task.priority_strategy import PriorityWeightStrategy

class ByName(PriorityWeightStrategy):
    def get_weight(self, ti):
        return {"light": 1, "heavy": 100, "middle": 50}[ti.task_id] + ti.try_number

class Own(AirflowPlugin):
    name = "own_weights"
    priority_weight_strategies = [ByName]
"#;

const DAGS: &str = r#"
from airflow.sdk import DAG
from airflow.providers.standard.operators.bash import BashOperator as Bash
from own_weights import ByName

with DAG("weighed", schedule=None, max_active_tasks=1):
    for name in ("light", "heavy", "middle"):
        Bash(task_id=name, bash_command=f"echo {name} >> PATH/order", weight_rule=ByName())

with DAG("routed", schedule=None):
    Bash(task_id="routed", bash_command="true")
    Bash.partial(task_id="mapped").expand(bash_command=["true", "true"])

with DAG("strange", schedule=None):
    Bash(task_id="strange", bash_command="true")
"#;

const FORBIDDEN: &str = r#"
from airflow.sdk import DAG
from airflow.providers.standard.operators.empty import EmptyOperator
with DAG("not_here", schedule=None):
    EmptyOperator(task_id="forbidden")
"#;

/// `task[index] pool weight queue` of each.
fn placed(api: &Api, dag_id: &str, run_id: &str) -> Vec<String> {
    let tasks = api.tasks(dag_id, run_id);
    let mut placed: Vec<String> = tasks
        .iter()
        .map(|ti| {
            let word = |key: &str| ti[key].as_str().unwrap_or_default().to_owned();
            let (index, weight) = (&ti["map_index"], &ti["priority_weight"]);
            format!(
                "{}[{index}] {} {weight} {}",
                word("task_id"),
                word("pool"),
                word("queue")
            )
        })
        .collect();
    placed.sort();
    placed
}

#[test]
fn cluster_policies_and_weight_rules_of_plugins_are_asked() {
    let Some(python) = harness::python() else { return };
    let installation = Installation::new(&python);
    let path = installation.path().to_string_lossy().into_owned();
    for (folder, name, text) in [
        ("config", "airflow_local_settings.py", POLICIES),
        ("plugins", "own_weights.py", PLUGIN),
    ] {
        let folder = installation.path().join(folder);
        std::fs::create_dir_all(&folder).expect("a folder");
        std::fs::write(folder.join(name), text).expect("a file");
    }
    installation.dag("dags.py", &DAGS.replace("PATH", &path));
    installation.dag("forbidden.py", FORBIDDEN);
    let process = installation.start("updraft", &["standalone"], &[]);
    let api = installation.api();
    let pool = json!({"name": "side", "slots": 4});
    assert_eq!(
        api.call("POST", "/api/v2/pools", Some(&pool))
            .expect("an answer")
            .0,
        201
    );
    api.wait_for_dag("weighed");

    let body = json!({"logical_date": null, "dag_run_id": "r"});
    api.trigger("weighed", &body);
    assert_eq!(api.wait_for_end("weighed", "r"), "success");
    let order = std::fs::read_to_string(installation.path().join("order")).expect("the order");
    assert_eq!(order, "heavy\nmiddle\nlight\n", "{}", process.output());
    let weights = [
        "heavy[-1] default_pool 100 default",
        "light[-1] default_pool 1 default",
        "middle[-1] default_pool 50 default",
    ];
    assert_eq!(placed(&api, "weighed", "r"), weights);
    let (_, answer) = api
        .call(
            "POST",
            "/api/v2/dags/weighed/dagRuns/r/clear",
            Some(&json!({"dry_run": false})),
        )
        .expect("an answer");
    assert_eq!(answer["state"], "queued", "{answer}");
    assert_eq!(api.wait_for_end("weighed", "r"), "success");
    assert_eq!(
        placed(&api, "weighed", "r")[0],
        "heavy[-1] default_pool 101 default"
    );

    let body = json!({"logical_date": null, "dag_run_id": "r", "conf": {"queue": "far"}});
    api.trigger("routed", &body);
    assert_eq!(api.wait_for_end("routed", "r"), "success");
    let routed = [
        "mapped[0] default_pool 40 far",
        "mapped[1] side 40 far",
        "routed[-1] side 40 far",
    ];
    assert_eq!(placed(&api, "routed", "r"), routed);
    assert_eq!(api.tasks("routed", "r")[0]["max_tries"], 7);
    assert_eq!(api.get("/api/v2/dags/routed")["tags"][0]["name"], "seen");

    let body = json!({"logical_date": null, "dag_run_id": "r"});
    api.trigger("strange", &body);
    assert_eq!(api.wait_for_end("strange", "r"), "success");
    let output = process.output();
    assert!(
        output.contains("ValueError: this one cannot be mutated"),
        "{output}"
    );

    eventually("the forbidden DAG is told", PATIENCE, || {
        let errors = api.get("/api/v2/importErrors");
        let text = errors["import_errors"][0]["stack_trace"]
            .as_str()
            .unwrap_or_default();
        match text.contains("no task of that name here") {
            true => Ok(()),
            false => Err(errors.to_string()),
        }
    });
}
