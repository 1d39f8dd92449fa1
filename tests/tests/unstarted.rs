//! What keeps a task from starting costs it no try: engines that are away, clusters that are full, workers that die first.

use harness::{
    Api, Cluster, Engine, IMAGE, Installation, Kubernetes, Process, SickEngine, Sickness, eventually,
    wait_until,
};
use serde_json::{Value, json};
use std::path::{Path, PathBuf};
use std::time::Duration;

const PATIENCE: Duration = Duration::from_secs(120);

const CONTAINER: &str = r#"
from airflow.sdk import DAG
from airflow.providers.docker.operators.docker import DockerOperator
with DAG("sick", schedule=None):
    DockerOperator(task_id="t", image="IMAGE", command="sh -c 'echo it ran; sleep 1'", auto_remove="force", mount_tmp_dir=False, timeout=2)
with DAG("impossible", schedule=None):
    DockerOperator(task_id="t", image="IMAGE", command="/absent", auto_remove="force", mount_tmp_dir=False, timeout=2)
"#;

fn only_task(api: &Api, dag_id: &str, run_id: &str) -> Value {
    api.tasks(dag_id, run_id).into_iter().next().unwrap_or_default()
}

#[test]
fn an_engine_that_is_away_hangs_or_fails_costs_no_try() {
    let (Some(engine), Some(python)) = (Engine::find(), harness::python()) else {
        return;
    };
    let mut installation = Installation::new(&python);
    let sick = SickEngine::start(installation.path(), engine.address());
    installation.set("DOCKER_HOST", &sick.address());
    installation.dag("sick.py", &CONTAINER.replace("IMAGE", IMAGE));
    let _process = installation.start("updraft", &["standalone"], &[]);
    let api = installation.api();
    api.wait_for_dag("sick");
    for sickness in [
        Sickness::Absent,
        Sickness::Hangs,
        Sickness::Fails,
        Sickness::CreatesNothing,
    ] {
        sick.set(sickness);
        let name = format!("{sickness:?}");
        let run = api.trigger("sick", &json!({"logical_date": null, "dag_run_id": name}));
        eventually("it is said why it has not started", PATIENCE, || {
            let path = format!("/api/v2/dags/sick/dagRuns/{run}/taskInstances/t/dependencies");
            let text = api.get(&path)["explanation"].to_string();
            match text.contains("it could not be started") {
                true => Ok(()),
                false => Err(text),
            }
        });
        sick.set(Sickness::None);
        assert_eq!(api.wait_for_end("sick", &run), "success", "{sickness:?}");
        assert_eq!(only_task(&api, "sick", &run)["try_number"], 1, "{sickness:?}");
        let log = api.log("sick", &run, "t", 1);
        let ran = log.iter().filter(|line| line.as_str() == "it ran").count();
        assert_eq!(ran, 1, "{sickness:?}: {log:?}");
    }
    // One that was started although nobody heard it is followed, not started again.
    sick.set(Sickness::LosesStarts);
    let run = api.trigger("sick", &json!({"logical_date": null, "dag_run_id": "heard"}));
    assert_eq!(
        api.wait_for_end("sick", &run),
        "success",
        "{:?}",
        api.log("sick", &run, "t", 1)
    );
    assert_eq!(only_task(&api, "sick", &run)["try_number"], 1);
    sick.set(Sickness::None);
    // What can never be started is the task's own failure.
    let run = api.trigger("impossible", &json!({"logical_date": null}));
    assert_eq!(api.wait_for_end("impossible", &run), "failed");
    let log = api.log("impossible", &run, "t", 1).join("\n");
    assert!(!log.contains("started again"), "{log}");
}

const POD: &str = r#"
import json
from airflow.sdk import DAG
from airflow.providers.cncf.kubernetes.operators.pod import KubernetesPodOperator
with DAG("full", schedule=None):
    KubernetesPodOperator(task_id="t", config_file="CONFIG", cluster_context="here", namespace="work", image="busybox",
                          annotations={"script": json.dumps({"lines": ["it ran"]})})
"#;

#[test]
fn a_cluster_that_is_full_or_away_costs_no_try() {
    let Some(python) = harness::python() else { return };
    let (kubernetes, installation) = (Kubernetes::start(), Installation::new(&python));
    let config = installation.path().join("kubeconfig");
    std::fs::write(&config, kubernetes.kubeconfig()).expect("a kubeconfig");
    installation.dag("full.py", &POD.replace("CONFIG", &config.to_string_lossy()));
    let _process = installation.start("updraft", &["standalone"], &[]);
    let api = installation.api();
    api.wait_for_dag("full");
    let quota =
        "pods \"t\" is forbidden: exceeded quota: compute, requested: pods=1, used: pods=9, limited: pods=9";
    kubernetes.fail_with("POST", "/pods", (403, quota), 1);
    let run = api.trigger("full", &json!({"logical_date": null, "dag_run_id": "quota"}));
    assert_eq!(api.wait_for_end("full", &run), "success");
    assert_eq!(only_task(&api, "full", &run)["try_number"], 1);
    // More than the calls that are made before a try is given back.
    kubernetes.fail("POST", "/pods", 500, 5);
    let run = api.trigger("full", &json!({"logical_date": null, "dag_run_id": "away"}));
    assert_eq!(api.wait_for_end("full", &run), "success");
    assert_eq!(only_task(&api, "full", &run)["try_number"], 1);
    let log = api.log("full", &run, "t", 1).join("\n");
    assert!(
        log.contains("could not be started, and is started again"),
        "{log}"
    );
    // What the cluster forbids for good is the task's own failure.
    kubernetes.fail_with("POST", "/pods", (403, "pods is forbidden: you may not"), 1);
    let run = api.trigger("full", &json!({"logical_date": null, "dag_run_id": "forbidden"}));
    assert_eq!(api.wait_for_end("full", &run), "failed");
}

/// Tasks without retries of their own, which write down that they began and that they ended.
fn dags(witness: &Path) -> String {
    format!(
        "from airflow.sdk import DAG, task\nfrom airflow.providers.standard.operators.bash import BashOperator\n\
         with DAG('dies_bash', schedule=None):\n\
         \x20   BashOperator(task_id='t', bash_command='echo {{{{ run_id }}}} >> {w}')\n\
         with DAG('dies_python', schedule=None):\n\
         \x20   @task\n    def t(run_id=None):\n\
         \x20       with open('{w}', 'a') as out: print(run_id, file=out)\n    t()\n",
        w = witness.display()
    )
}

struct Scene {
    cluster: Cluster,
    witness: PathBuf,
}

impl Scene {
    fn set() -> Option<Self> {
        let mut cluster = Cluster::start_and(|installation| {
            // The first task that a worker claims is to be the test's own.
            installation.set("AIRFLOW__CORE__LOAD_EXAMPLES", "False");
            // Nothing is found by a lease that runs out.
            installation.set("AIRFLOW__SCHEDULER__TASK_INSTANCE_HEARTBEAT_TIMEOUT", "300");
        })?;
        let witness = cluster.installation.path().join("runs");
        cluster.installation.dag("dies.py", &dags(&witness));
        cluster.api.wait_for_dag("dies_bash");
        cluster.api.wait_for_dag("dies_python");
        cluster.kill("worker-1");
        cluster.kill("worker-2");
        Some(Self { cluster, witness })
    }

    /// A worker that stops at a point, with the task of a new run.
    fn stopped_at(&self, dag_id: &str, point: &str) -> (Process, String) {
        let stopped = self.cluster.installation.path().join(format!("{dag_id}-{point}"));
        let at = format!("{point}:{}", stopped.display());
        let environment = [
            ("AIRFLOW__UPDRAFT__WORKER_NAME", "one"),
            ("UPDRAFT_TEST_STOP_AT", at.as_str()),
        ];
        let worker = self
            .cluster
            .installation
            .start("updraft-worker", &[], &environment);
        let body = json!({"logical_date": null, "dag_run_id": format!("{dag_id}-{point}")});
        let run_id = self.cluster.api.trigger(dag_id, &body);
        wait_until("the worker is stopped", PATIENCE, || stopped.exists());
        (worker, run_id)
    }

    fn another(&self) -> Process {
        let name = [("AIRFLOW__UPDRAFT__WORKER_NAME", "two")];
        self.cluster.installation.start("updraft-worker", &[], &name)
    }

    fn runs(&self, run_id: &str) -> usize {
        let text = std::fs::read_to_string(&self.witness).unwrap_or_default();
        text.lines().filter(|line| *line == run_id).count()
    }
}

#[test]
fn a_worker_that_dies_before_a_task_began_or_after_it_ended_costs_it_nothing() {
    let Some(scene) = Scene::set() else { return };
    for (dag_id, point) in [
        ("dies_bash", "claimed"),
        ("dies_bash", "bash"),
        ("dies_python", "python-fork"),
        ("dies_python", "python-forked"),
        ("dies_bash", "ended"),
        ("dies_python", "python-said"),
        ("dies_python", "ended"),
    ] {
        let (mut first, run_id) = scene.stopped_at(dag_id, point);
        first.kill();
        let second = scene.another();
        let state = scene.cluster.api.wait_for_end(dag_id, &run_id);
        drop(second);
        let task = only_task(&scene.cluster.api, dag_id, &run_id);
        assert_eq!(
            (state.as_str(), &task["try_number"], scene.runs(&run_id)),
            ("success", &json!(1), 1),
            "{dag_id} {point}: {task}"
        );
    }
}
