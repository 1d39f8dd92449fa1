//! Tasks in pods of their own, whose processes run on this machine.

use harness::{Api, Cluster, Installation, Kubernetes, Process, eventually};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::{Value, json};
use std::time::{Duration, Instant};

const PATIENCE: Duration = Duration::from_secs(90);

/// Seconds that a pod that is told to go waits for its task: far more than one needs that ends by itself, and few enough
/// to wait for.
const GRACE: u64 = 8;

struct World {
    kubernetes: Kubernetes,
    api: Api,
    process: Process,
    _installation: Installation,
}

/// Lets an installation make pods here, from a template that says how.
fn equip(installation: &mut Installation, kubernetes: &Kubernetes) {
    let config = installation.path().join("kubeconfig");
    std::fs::write(&config, kubernetes.kubeconfig()).expect("a kubeconfig");
    let template = installation.path().join("template.yaml");
    let program = Installation::program("updraft");
    let text = format!(
        "metadata:\n  labels: {{tier: airflow}}\nspec:\n  containers:\n  - name: base\n    command: ['{}']\n    env:\n    - {{name: FROM, value: template}}\n    - {{name: AIRFLOW__UPDRAFT__DRAIN_GRACE, value: '{GRACE}'}}\n",
        program.display()
    );
    std::fs::write(&template, text).expect("a template");
    let options = [
        ("IN_CLUSTER", "False"),
        ("CONFIG_FILE", &config.to_string_lossy()),
        ("CLUSTER_CONTEXT", "here"),
        ("NAMESPACE", "work"),
        ("POD_TEMPLATE_FILE", &template.to_string_lossy()),
        ("WORKER_CONTAINER_REPOSITORY", "registry/updraft"),
        ("WORKER_CONTAINER_TAG", "1"),
    ];
    for (name, value) in options {
        installation.set(&format!("AIRFLOW__KUBERNETES_EXECUTOR__{name}"), value);
    }
    installation.set("AIRFLOW__CORE__EXECUTOR", "LocalExecutor,KubernetesExecutor");
    installation.set("AIRFLOW__SCHEDULER__TASK_QUEUED_TIMEOUT", "3");
    kubernetes.set_environment(installation.worker_environment());
}

fn world(dag: &str) -> Option<World> {
    let python = harness::python()?;
    let kubernetes = Kubernetes::start();
    let mut installation = Installation::new(&python);
    equip(&mut installation, &kubernetes);
    installation.dag("own.py", dag);
    let process = installation.start("updraft", &["standalone"], &[]);
    let api = installation.api();
    Some(World {
        kubernetes,
        api,
        process,
        _installation: installation,
    })
}

fn start_run(api: &Api) -> String {
    api.wait_for_dag("own");
    api.trigger("own", &json!({"logical_date": null}))
}

fn task(api: &Api, run_id: &str, task_id: &str) -> Value {
    api.get(&format!(
        "/api/v2/dags/own/dagRuns/{run_id}/taskInstances/{task_id}"
    ))
}

fn wait_for_no_pods(kubernetes: &Kubernetes) {
    eventually("the pods are gone", PATIENCE, || match kubernetes.pods() {
        pods if pods.is_empty() => Ok(()),
        pods => Err(format!("{pods:?}")),
    });
}

fn made(kubernetes: &Kubernetes) -> usize {
    kubernetes
        .history()
        .iter()
        .filter(|what| what.starts_with("create"))
        .count()
}

const OPERATORS: &str = r#"
from airflow.sdk import DAG, task
from airflow.providers.standard.operators.bash import BashOperator
from kubernetes.client import models as k8s

override = k8s.V1Pod(
    metadata=k8s.V1ObjectMeta(labels={"team": "data"}, annotations={"why": "big"}),
    spec=k8s.V1PodSpec(node_selector={"disk": "ssd"}, containers=[k8s.V1Container(name="base", image="mine:2", env=[k8s.V1EnvVar(name="MORE", value="over")])]),
)

with DAG("own", schedule=None, default_args={"executor": "KubernetesExecutor"}) as dag:
    bash = BashOperator(task_id="bash", bash_command="echo from $FROM, $MORE; echo $AIRFLOW_IS_K8S_EXECUTOR_POD", executor_config={"pod_override": override})
    here = BashOperator(task_id="here", bash_command="echo [$FROM]", executor="LocalExecutor")

    @task
    def python(given):
        import os
        print("in a pod:", os.environ["AIRFLOW_IS_K8S_EXECUTOR_POD"])
        return given + "!"

    @task(retries=0)
    def fails():
        raise ValueError("as it should")

    @task
    def each(n):
        return n * 2

    python(bash.output) >> fails()
    each.expand(n=[1, 2, 3])
    bash >> here
"#;

#[test]
fn any_task_runs_in_a_pod_of_its_own_as_template_and_override_say() {
    let Some(world) = world(OPERATORS) else { return };
    // What passes is waited for.
    world.kubernetes.fail("POST", "/pods", 500, 2);
    let run_id = start_run(&world.api);
    assert_eq!(
        world.api.wait_for_end("own", &run_id),
        "failed",
        "{}",
        world.process.output()
    );
    let state = |name: &str| task(&world.api, &run_id, name)["state"].clone();
    assert_eq!(
        [state("bash"), state("python"), state("here")],
        ["success", "success", "success"]
    );
    assert_eq!(state("fails"), "failed");
    assert_eq!(
        task(&world.api, &run_id, "bash")["executor"],
        "KubernetesExecutor"
    );
    let log = |name: &str| world.api.log("own", &run_id, name, 1);
    assert!(
        log("bash").contains(&"from template, over".to_owned()),
        "{:?}",
        log("bash")
    );
    assert!(log("here").contains(&"[]".to_owned()), "{:?}", log("here"));
    assert!(
        log("python").contains(&"in a pod: True".to_owned()),
        "{:?}",
        log("python")
    );
    let value = world.api.get(&format!(
        "/api/v2/dags/own/dagRuns/{run_id}/taskInstances/python/xcomEntries/return_value"
    ));
    assert_eq!(value["value"], "True!");
    // Pods of what went well are gone, the one of the failure stays to be looked at.
    let pods = eventually("the pods are cleared away", PATIENCE, || {
        match world.kubernetes.pods() {
            pods if pods.len() == 1 && pods[0]["metadata"]["labels"]["updraft/seen"] == "True" => Ok(pods),
            pods => Err(format!("{pods:#?}")),
        }
    });
    let labels = &pods[0]["metadata"]["labels"];
    assert_eq!(
        [
            &labels["task_id"],
            &labels["tier"],
            &labels["kubernetes_executor"]
        ],
        ["fails", "airflow", "True"]
    );
    assert_eq!(pods[0]["spec"]["containers"][0]["image"], "registry/updraft:1");
    assert_eq!(pods[0]["spec"]["restartPolicy"], "Never");
    let tasks = world.api.tasks("own", &run_id);
    assert_eq!(made(&world.kubernetes), 6, "{tasks:#?}");
}

const OVERRIDES: &str = r#"
import json
from datetime import timedelta
from airflow.sdk import DAG
from airflow.providers.standard.operators.bash import BashOperator
from kubernetes.client import models as k8s

def pod(**script):
    return {"pod_override": k8s.V1Pod(metadata=k8s.V1ObjectMeta(annotations={"script": json.dumps(script)}))}

with DAG("own", schedule=None, default_args={"executor": "KubernetesExecutor", "bash_command": "true"}) as dag:
    BashOperator(task_id="no_image", executor_config=pod(waiting="ErrImagePull"))
    BashOperator(task_id="no_node", executor_config=pod(pending="0/3 nodes are available: 3 Insufficient cpu."))
    BashOperator(task_id="no_start", executor_config=pod(exit=2), retries=1, retry_delay=timedelta(0))
    BashOperator(task_id="no_work", executor_config=pod(exit=0))
    BashOperator(task_id="no_pod", executor_config={"pod_override": k8s.V1Pod(spec=k8s.V1PodSpec(containers=[k8s.V1Container(name="base", env=[])], termination_grace_period_seconds="soon"))})
"#;

#[test]
fn a_pod_that_never_takes_its_task_fails_it_and_the_reason_is_told() {
    let Some(world) = world(OVERRIDES) else { return };
    let run_id = start_run(&world.api);
    assert_eq!(
        world.api.wait_for_end("own", &run_id),
        "failed",
        "{}",
        world.process.output()
    );
    let reasons = [
        (
            "no_image",
            1,
            "cannot start: container base waits, ErrImagePull: as the test wants it",
        ),
        (
            "no_node",
            1,
            "did not take the task within 3 s: Unschedulable: 0/3 nodes are available: 3 Insufficient cpu.",
        ),
        (
            "no_start",
            2,
            "ended before it took the task: container base ended with exit code 2",
        ),
        (
            "no_work",
            1,
            "ended before it took the task: container base ended with exit code 0",
        ),
        (
            "no_pod",
            1,
            "its pod cannot be made: template and pod_override make no valid pod",
        ),
    ];
    for (name, tries, reason) in reasons {
        let found = task(&world.api, &run_id, name);
        assert_eq!(
            (&found["state"], &found["try_number"]),
            (&json!("failed"), &json!(tries)),
            "{name}"
        );
        let log = world.api.log("own", &run_id, name, tries).join("\n");
        assert!(log.contains(reason), "{name}: {log}");
    }
    let left = world.kubernetes.pods();
    assert!(
        left.iter()
            .all(|pod| pod["metadata"]["labels"]["task_id"] == "no_start"),
        "only what ran and failed stays: {left:#?}"
    );
}

const LONG: &str = r#"
from airflow.sdk import DAG
from airflow.providers.standard.operators.bash import BashOperator

with DAG("own", schedule=None) as dag:
    BashOperator(task_id="long", bash_command="echo begun; while [ ! -e GO ]; do sleep 0.1; done; echo done", executor="KubernetesExecutor")
"#;

/// The task of [`LONG`], whose first try lasts until it is ended.
fn until_second_try() -> String {
    LONG.replace(
        "while [ ! -e GO ]; do sleep 0.1; done; ",
        "[ {{ ti.try_number }} = 2 ] || sleep 600;",
    )
}

fn running_pod(kubernetes: &Kubernetes, api: &Api, run_id: &str) -> Value {
    eventually("the task runs in its pod", PATIENCE, || {
        let pods = kubernetes.pods();
        let state = task(api, run_id, "long")["state"].clone();
        match pods.first() {
            Some(pod) if state == "running" => Ok(pod.clone()),
            _ => Err(format!("{state} {pods:?}")),
        }
    })
}

#[test]
fn a_pod_outlives_every_component_and_is_made_once() {
    let kubernetes = Kubernetes::start();
    let Some(mut cluster) = Cluster::start_and(|installation| equip(installation, &kubernetes)) else {
        return;
    };
    let go = cluster.installation.path().join("go");
    cluster
        .installation
        .dag("own.py", &LONG.replace("GO", &go.to_string_lossy()));
    let run_id = start_run(&cluster.api);
    running_pod(&kubernetes, &cluster.api, &run_id);
    for role in ["scheduler-1", "scheduler-2", "worker-1", "worker-2", "api-server"] {
        cluster.kill(role);
    }
    for role in ["scheduler-1", "api-server"] {
        cluster.restart(role);
    }
    std::fs::write(&go, "").expect("a sign");
    assert_eq!(cluster.api.wait_for_end("own", &run_id), "success");
    let found = task(&cluster.api, &run_id, "long");
    assert_eq!(found["try_number"], 1);
    assert_eq!(made(&kubernetes), 1, "{:?}", kubernetes.history());
    let log = cluster.api.log("own", &run_id, "long", 1);
    assert!(
        log.contains(&"begun".to_owned()) && log.contains(&"done".to_owned()),
        "{log:?}"
    );
    wait_for_no_pods(&kubernetes);
}

#[test]
fn a_pod_that_is_killed_is_followed_by_the_next_try_at_once() {
    let Some(world) = world(&until_second_try()) else {
        return;
    };
    let run_id = start_run(&world.api);
    let pod = running_pod(&world.kubernetes, &world.api, &run_id);
    let pid: i32 = pod["metadata"]["annotations"]["pid"]
        .as_str()
        .expect("a pid")
        .parse()
        .expect("a pid");
    kill(Pid::from_raw(pid), Signal::SIGKILL).expect("the process of the pod");
    assert_eq!(
        world.api.wait_for_end("own", &run_id),
        "success",
        "{}",
        world.process.output()
    );
    assert_eq!(task(&world.api, &run_id, "long")["try_number"], 2);
    assert_eq!(made(&world.kubernetes), 2);
}

#[test]
fn a_pod_that_is_told_to_go_lets_its_task_end_if_it_ends_soon() {
    let sign = tempfile::tempdir().expect("a folder");
    let go = sign.path().join("go");
    let Some(world) = world(&LONG.replace("GO", &go.to_string_lossy())) else {
        return;
    };
    let run_id = start_run(&world.api);
    let pod = running_pod(&world.kubernetes, &world.api, &run_id);
    world
        .kubernetes
        .take_away(pod["metadata"]["name"].as_str().expect("a name"));
    let begin = Instant::now();
    std::fs::write(&go, "").expect("a sign");
    assert_eq!(
        world.api.wait_for_end("own", &run_id),
        "success",
        "{}",
        world.process.output()
    );
    assert!(
        begin.elapsed().as_secs() < GRACE,
        "its end is seen while it is waited for"
    );
    assert_eq!(task(&world.api, &run_id, "long")["try_number"], 1);
    let log = world.api.log("own", &run_id, "long", 1);
    assert!(log.contains(&"done".to_owned()), "{log:?}");
}

#[test]
fn a_pod_that_is_told_to_go_gives_its_task_back_for_another_try() {
    let Some(world) = world(&until_second_try()) else {
        return;
    };
    let run_id = start_run(&world.api);
    let pod = running_pod(&world.kubernetes, &world.api, &run_id);
    world
        .kubernetes
        .take_away(pod["metadata"]["name"].as_str().expect("a name"));
    assert_eq!(
        world.api.wait_for_end("own", &run_id),
        "success",
        "{}",
        world.process.output()
    );
    assert_eq!(task(&world.api, &run_id, "long")["try_number"], 2);
    let log = world.api.log("own", &run_id, "long", 1);
    assert!(
        log.iter().any(|line| line.contains("tried again elsewhere")),
        "{log:?}"
    );
}

#[test]
fn the_pod_of_a_task_that_is_not_wanted_any_more_ends() {
    let Some(world) = world(&LONG.replace("GO", "/nowhere")) else {
        return;
    };
    let run_id = start_run(&world.api);
    running_pod(&world.kubernetes, &world.api, &run_id);
    let path = format!("/api/v2/dags/own/dagRuns/{run_id}/taskInstances/long");
    let (status, body) = world
        .api
        .call("PATCH", &path, Some(&json!({"new_state": "success"})))
        .expect("an answer");
    assert_eq!(status, 200, "{body}");
    wait_for_no_pods(&world.kubernetes);
}
