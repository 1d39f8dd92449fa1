//! Tasks in pods, against an API server that misbehaves on demand.

use harness::{Api, Cluster, Installation, Kubernetes, Process, eventually};
use serde_json::{Value, json};
use std::time::Duration;

const PATIENCE: Duration = Duration::from_secs(90);

const HEAD: &str = r#"
import json
from airflow.sdk import DAG
from airflow.providers.cncf.kubernetes.operators.pod import KubernetesPodOperator
from kubernetes.client import models as k8s

class Twin(KubernetesPodOperator):
    pass

def script(**what):
    return {"script": json.dumps(what)}

HERE = dict(config_file="CONFIG", cluster_context="here", namespace="work", image="busybox:{{ dag.dag_id }}")
"#;

/// Each task twice: natively, and as a subclass, which runs in Python.
const TWINS: &str = r#"
CASES = {
    "plain": dict(annotations=script(lines=["one", "ERROR: two", "grüße 世界"]), name="My_Pod", cmds=["sh", "-c"], arguments=["echo {{ run_id }}"],
                  env_vars={"WHO": "{{ dag.dag_id }}"}, labels={"team": "{{ dag.dag_id }}"},
                  volumes=[k8s.V1Volume(name="v", persistent_volume_claim=k8s.V1PersistentVolumeClaimVolumeSource(claim_name="c-{{ dag.dag_id }}"))],
                  volume_mounts=[k8s.V1VolumeMount(name="v", mount_path="/data", sub_path="{{ run_id }}")]),
    "fails": dict(annotations=script(lines=["before"], exit=3, message="said at the end"), on_finish_action="keep_pod", log_pod_spec_on_failure=False),
    "memory": dict(annotations=script(exit=137, reason="OOMKilled"), log_pod_spec_on_failure=False),
    "skips": dict(annotations=script(exit=9), skip_on_exit_code=9),
    "value": dict(annotations=script(lines=["x"], xcom={"answer": 42}), do_xcom_push=True),
    "empty": dict(annotations=script(), do_xcom_push=True, container_name_log_prefix_enabled=False),
    "full": dict(annotations=script(lines=["x"]), full_pod_spec=k8s.V1Pod(metadata=k8s.V1ObjectMeta(labels={"from": "full"}),
                 spec=k8s.V1PodSpec(node_selector={"disk": "ssd"}, containers=[k8s.V1Container(name="base", image="other", working_dir="/w")]))),
}

with DAG("pods", schedule=None, max_active_tasks=4) as dag:
    for kind, prefix in ((KubernetesPodOperator, "native"), (Twin, "python")):
        for name, arguments in CASES.items():
            kind(task_id=f"{prefix}_{name}", **{"on_finish_action": "keep_pod", **HERE, **arguments})
"#;

struct World {
    kubernetes: Kubernetes,
    api: Api,
    process: Process,
    _installation: Installation,
}

fn world(dag: &str) -> Option<World> {
    let python = harness::python()?;
    let kubernetes = Kubernetes::start();
    let installation = Installation::new(&python);
    write_dag(&installation, &kubernetes, dag);
    let process = installation.start("updraft", &["standalone"], &[]);
    let api = installation.api();
    Some(World {
        kubernetes,
        api,
        process,
        _installation: installation,
    })
}

fn write_dag(installation: &Installation, kubernetes: &Kubernetes, dag: &str) {
    let config = installation.path().join("kubeconfig");
    std::fs::write(&config, kubernetes.kubeconfig()).expect("a kubeconfig");
    let text = format!("{HEAD}{dag}").replace("CONFIG", &config.to_string_lossy());
    installation.dag("pods.py", &text);
}

fn start_run(api: &Api, run_id: &str) {
    api.wait_for_dag("pods");
    api.trigger("pods", &json!({"logical_date": null, "dag_run_id": run_id}));
}

/// What a user sees of a task, without what only a Python process says of itself, and without the random part of names.
fn seen(world: &World, run_id: &str, task: &str) -> Value {
    let api = &world.api;
    let path = format!("/api/v2/dags/pods/dagRuns/{run_id}/taskInstances/{task}");
    let found = api.get(&path);
    let value = api.call("GET", &format!("{path}/xcomEntries/return_value"), None);
    let pod = api.get(&format!("{path}/xcomEntries/pod_name"))["value"]
        .as_str()
        .expect("a pod's name")
        .to_owned();
    let plain = |text: &str| {
        text.replace(&pod, "POD")
            .replace("native_", "")
            .replace("python_", "")
    };
    let log: Vec<String> = api
        .log("pods", run_id, task, 1)
        .iter()
        .filter(|line| {
            // How a start is told depends on the moment of each look; the texts of Python's own are its own.
            let own = [
                "Worker startup",
                "Task instance startup",
                "DAG bundles loaded",
                "Filling up the DagBag",
                "Building pod",
                "/",
                "Pod POD has phase",
                "Running command",
                "The xcom sidecar",
                "Checking if xcom",
                "Container 'base' completed",
                "Waiting 120s",
                "container base ",
                "Primary kill",
                "Pod has reached",
            ];
            let line = plain(line);
            !own.iter().any(|text| line.starts_with(text))
                && !line.contains("/logs/dag_id=")
                && !line.contains("has phase Running")
        })
        .map(|line| plain(line).trim_end().to_owned())
        .collect();
    let manifest = world
        .kubernetes
        .pods()
        .into_iter()
        .find(|found| found["metadata"]["name"] == pod.as_str());
    let mut manifest = manifest.unwrap_or_default();
    manifest["metadata"]["resourceVersion"] = Value::Null;
    manifest["metadata"]["creationTimestamp"] = Value::Null;
    manifest["status"] = Value::Null;
    let text = plain(&manifest.to_string())
        .replace("native-", "")
        .replace("python-", "");
    // Their hash is that of the name that has been replaced.
    let manifest: Value = serde_json::from_str(&text).expect("a pod");
    json!({
        "state": found["state"], "fields": plain(&found["rendered_fields"].to_string()), "log": log, "pod": manifest,
        "xcom": value.ok().filter(|(status, _)| *status == 200).map(|(_, entry)| entry["value"].clone()),
    })
}

#[test]
fn a_pod_runs_the_same_natively_and_in_python() {
    let Some(world) = world(TWINS) else { return };
    start_run(&world.api, "twins");
    assert_eq!(world.api.wait_for_end("pods", "twins"), "failed");
    for name in ["plain", "fails", "memory", "skips", "value", "empty", "full"] {
        let native = seen(&world, "twins", &format!("native_{name}"));
        let python = seen(&world, "twins", &format!("python_{name}"));
        for key in ["state", "xcom", "fields", "pod", "log"] {
            assert_eq!(native[key], python[key], "{name} {key}");
        }
    }
    let log = |task: &str| world.api.log("pods", "twins", task, 1).join("\n");
    assert!(
        log("native_memory").contains("ran out of memory"),
        "{}",
        log("native_memory")
    );
    assert!(log("native_fails").contains("container base ended with exit code 3"));
    assert!(
        !log("native_plain").contains("Filling up the DagBag"),
        "it ran in Python"
    );
    assert_eq!(
        seen(&world, "twins", "native_value")["xcom"],
        json!({"answer": 42})
    );
}

const HARD: &str = r#"
with DAG("pods", schedule=None) as dag:
    KubernetesPodOperator(task_id="hard", annotations=script(lines=[f"line {n}" for n in range(40)]), **HERE)
"#;

#[test]
fn failures_of_the_api_server_are_lived_through_without_losing_a_line() {
    let Some(world) = world(HARD) else { return };
    world.kubernetes.fail("POST", "/pods", 500, 2);
    world.kubernetes.fail("GET", "watch=", 503, 1);
    world.kubernetes.fail("GET", "/log", 500, 1);
    world.kubernetes.fail("GET", "/pods/", 429, 1);
    world.kubernetes.fail("GET", "/pods/", 409, 1);
    world.kubernetes.fail("DELETE", "/pods/", 500, 1);
    world.kubernetes.cut_log(25);
    world.kubernetes.cut_log(7);
    start_run(&world.api, "hard");
    eventually("the pod runs", PATIENCE, || match world.kubernetes.pods() {
        pods if pods.iter().any(|pod| pod["status"]["phase"] == "Running") => Ok(()),
        pods => Err(format!("{pods:?}")),
    });
    world.kubernetes.expire_watches();
    assert_eq!(
        world.api.wait_for_end("pods", "hard"),
        "success",
        "{}",
        world.process.output()
    );
    let log = world.api.log("pods", "hard", "hard", 1);
    let lines: Vec<&str> = log
        .iter()
        .filter_map(|line| line.strip_prefix("[base] line "))
        .collect();
    let expected: Vec<String> = (0..40).map(|n| n.to_string()).collect();
    assert_eq!(lines, expected);
    assert!(world.kubernetes.pods().is_empty());
    let made = world
        .kubernetes
        .history()
        .iter()
        .filter(|what| what.starts_with("create"))
        .count();
    assert_eq!(made, 1);
}

const PENDING: &str = r#"
with DAG("pods", schedule=None) as dag:
    KubernetesPodOperator(task_id="pending", annotations=script(pending="0/3 nodes are available: 3 Insufficient cpu."), schedule_timeout_seconds=2, **HERE)
"#;

#[test]
fn why_a_pod_is_pending_is_told() {
    let Some(world) = world(PENDING) else { return };
    start_run(&world.api, "pending");
    assert_eq!(world.api.wait_for_end("pods", "pending"), "failed");
    let log = world.api.log("pods", "pending", "pending", 1).join("\n");
    for text in [
        "The Pod is pending: Unschedulable: 0/3 nodes are available: 3 Insufficient cpu.",
        "The Pod has an Event: 0/3 nodes are available: 3 Insufficient cpu. from None",
        "the pod was pending: Unschedulable: 0/3 nodes are available",
    ] {
        assert!(log.contains(text), "{text} is not in {log}");
    }
    assert!(world.kubernetes.pods().is_empty(), "the pod is not left behind");
}

const ENDLESS: &str = r#"
with DAG("pods", schedule=None) as dag:
    KubernetesPodOperator(task_id="endless", annotations=script(lines=["up"], until_deleted=True), **HERE)
"#;

#[test]
fn a_task_that_is_stopped_deletes_its_pod() {
    let Some(world) = world(ENDLESS) else { return };
    start_run(&world.api, "stopped");
    eventually("the pod runs", PATIENCE, || match world.kubernetes.pods() {
        pods if pods.iter().any(|pod| pod["status"]["phase"] == "Running") => Ok(()),
        pods => Err(format!("{pods:?}")),
    });
    let path = "/api/v2/dags/pods/dagRuns/stopped/taskInstances/endless";
    let (status, body) = world
        .api
        .call("PATCH", path, Some(&json!({"new_state": "failed"})))
        .expect("an answer");
    assert_eq!(status, 200, "{body}");
    eventually("the pod is gone", PATIENCE, || match world.kubernetes.pods() {
        pods if pods.is_empty() => Ok(()),
        pods => Err(format!("{pods:?}")),
    });
}

const LONG: &str = r#"
with DAG("pods", schedule=None) as dag:
    KubernetesPodOperator(task_id="long", annotations=script(lines=[f"line {n}" for n in range(400)]), **HERE)
"#;

#[test]
fn the_pod_of_a_killed_worker_is_followed_by_the_next_try_and_never_doubled() {
    let Some(mut cluster) = Cluster::start() else {
        return;
    };
    let kubernetes = Kubernetes::start();
    write_dag(&cluster.installation, &kubernetes, LONG);
    start_run(&cluster.api, "killed");
    eventually("the pod runs", PATIENCE, || match kubernetes.pods() {
        pods if pods.iter().any(|pod| pod["status"]["phase"] == "Running") => Ok(()),
        pods => Err(format!("{pods:?}")),
    });
    for role in ["worker-1", "worker-2"] {
        cluster.kill(role);
    }
    cluster.restart("worker-1");
    assert_eq!(cluster.api.wait_for_end("pods", "killed"), "success");
    let history = kubernetes.history();
    assert_eq!(
        history.iter().filter(|what| what.starts_with("create")).count(),
        1,
        "{history:?}"
    );
    let log = cluster.api.log("pods", "killed", "long", 2);
    assert!(
        log.iter().any(|line| line.starts_with("Reusing existing pod")),
        "{log:?}"
    );
    assert!(log.iter().any(|line| line == "[base] line 399"), "{log:?}");
}

#[test]
fn the_pod_file_of_a_course_runs_unmodified() {
    let (Some(seeds), Some(python)) = (harness::seeds(), harness::python()) else {
        return;
    };
    let kubernetes = Kubernetes::start();
    let mut installation = Installation::new(&python);
    let config = installation.path().join("kubeconfig");
    let text = kubernetes.kubeconfig().replace("\"here\"", "\"docker-desktop\"");
    std::fs::write(&config, text).expect("a kubeconfig");
    installation.set("KUBECONFIG", &config.to_string_lossy());
    for (name, value) in [
        ("USER", "me"),
        ("PASSWORD", "secret"),
        ("HOST", "http://movielens:5000"),
    ] {
        installation.set(&format!("MOVIELENS_{name}"), value);
    }
    let file = std::fs::read_to_string(seeds.join("02_kubernetes.py")).expect("the course file");
    installation.dag("02_kubernetes.py", &file);
    let _process = installation.start("updraft", &["standalone"], &[]);
    let api = installation.api();
    eventually("three days are done", PATIENCE, || {
        let (status, runs) = api
            .call("GET", "/api/v2/dags/02_kubernetes/dagRuns", None)
            .map_err(|error| error.to_string())?;
        let states: Vec<&str> = runs["dag_runs"]
            .as_array()
            .into_iter()
            .flatten()
            .filter_map(|run| run["state"].as_str())
            .collect();
        if status == 200 && states == ["success"; 3] {
            Ok(())
        } else {
            Err(format!(
                "{states:?} {} {:?}",
                api.get("/api/v2/importErrors"),
                kubernetes.history()
            ))
        }
    });
    // `is_delete_operator_pod=True` keeps its meaning.
    assert!(kubernetes.pods().is_empty());
    assert_eq!(
        kubernetes
            .history()
            .iter()
            .filter(|what| what.starts_with("create"))
            .count(),
        6
    );
}
