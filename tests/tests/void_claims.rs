//! A worker that is stopped between its claim and the start of the task, for longer than its lease: others have the task by
//! then, so it must not start it when it goes on.

use harness::{Cluster, Engine, IMAGE, Kubernetes, Process, eventually, wait_until};
use nix::sys::signal::Signal;
use serde_json::json;
use std::path::{Path, PathBuf};
use std::time::Duration;

const PATIENCE: Duration = Duration::from_secs(90);

/// Tasks without retries of their own that write down who started them.
fn dags(witness: &Path) -> String {
    format!(
        "from airflow.sdk import DAG, task\nfrom airflow.providers.standard.operators.bash import BashOperator\n\
         with DAG('void_bash', schedule=None):\n\
         \x20   BashOperator(task_id='t', bash_command='echo {{{{ run_id }}}} $UPDRAFT_WORKER_NAME >> {w}')\n\
         with DAG('void_python', schedule=None):\n\
         \x20   @task\n    def t(run_id=None):\n\
         \x20       import os\n\
         \x20       with open('{w}', 'a') as out: print(run_id, os.environ['UPDRAFT_WORKER_NAME'], file=out)\n    t()\n",
        w = witness.display()
    )
}

/// A trigger that writes down which worker runs it, and a task that waits for it.
const TRIGGER: &str = r#"
import os
from airflow.triggers.base import BaseTrigger, TriggerEvent

class Note(BaseTrigger):
    def __init__(self, path, run_id):
        super().__init__()
        self.path, self.run_id = path, run_id

    def serialize(self):
        return "void_trigger.Note", {"path": self.path, "run_id": self.run_id}

    async def run(self):
        with open(self.path, "a") as out:
            print(self.run_id, os.environ["UPDRAFT_WORKER_NAME"], file=out)
        yield TriggerEvent("seen")
"#;

const WAITING: &str = r#"
from airflow.sdk import DAG, BaseOperator
from void_trigger import Note

class Wait(BaseOperator):
    def execute(self, context):
        self.defer(trigger=Note("WITNESS", context["run_id"]), method_name="go_on")

    def go_on(self, context, event):
        return event

with DAG("void_trigger", schedule=None):
    Wait(task_id="t")
"#;

const CONTAINER: &str = r#"
from airflow.sdk import DAG
from airflow.providers.docker.operators.docker import DockerOperator
with DAG("void_docker", schedule=None):
    DockerOperator(task_id="t", image="IMAGE", command="true", auto_remove="never", mount_tmp_dir=False)
"#;

const POD: &str = r#"
import json
from airflow.sdk import DAG
from airflow.providers.cncf.kubernetes.operators.pod import KubernetesPodOperator
with DAG("void_pod", schedule=None):
    KubernetesPodOperator(task_id="t", config_file="CONFIG", cluster_context="here", namespace="work", image="busybox",
                          annotations={"script": json.dumps({"lines": ["it ran"]})})
"#;

/// Who called the callback is in the environment of the DAG processor.
const CALLED: &str = r#"
import os
from airflow.sdk import DAG
from airflow.providers.standard.operators.empty import EmptyOperator

def note(context):
    with open("WITNESS", "a") as out:
        print(context["run_id"], os.environ["WHO"], file=out)

with DAG("void_callback", schedule=None, on_success_callback=note):
    EmptyOperator(task_id="t")
"#;

struct Scene {
    cluster: Cluster,
    witness: PathBuf,
}

impl Scene {
    fn set() -> Option<Self> {
        let engine = Engine::find();
        let mut cluster = Cluster::start_and(|installation| {
            // The first task that a worker claims is to be the test's own.
            installation.set("AIRFLOW__CORE__LOAD_EXAMPLES", "False");
            // Before anything is started: plugins are looked for once.
            let plugins = installation.path().join("plugins");
            std::fs::create_dir_all(&plugins).expect("a folder");
            std::fs::write(plugins.join("void_trigger.py"), TRIGGER).expect("a module");
            if let Some(engine) = &engine {
                installation.set("DOCKER_HOST", engine.address());
            }
        })?;
        let witness = cluster.installation.path().join("starts");
        let waiting = WAITING.replace("WITNESS", &witness.to_string_lossy());
        cluster.installation.dag("waiting.py", &waiting);
        cluster
            .installation
            .dag("container.py", &CONTAINER.replace("IMAGE", IMAGE));
        cluster.installation.dag("void.py", &dags(&witness));
        cluster.api.wait_for_dag("void_trigger");
        cluster.api.wait_for_dag("void_bash");
        cluster.api.wait_for_dag("void_python");
        cluster.kill("worker-1");
        cluster.kill("worker-2");
        Some(Self { cluster, witness })
    }

    /// The workers that started the run's task, in order.
    fn starts(&self, run_id: &str) -> Vec<String> {
        let text = std::fs::read_to_string(&self.witness).unwrap_or_default();
        let mine = text
            .lines()
            .filter_map(|line| line.strip_prefix(&format!("{run_id} ")));
        mine.map(|name| name.rsplit(['@', ':']).next().unwrap_or(name).to_owned())
            .collect()
    }

    fn worker(&self, name: &str, more: &[(&str, &str)]) -> Process {
        let named = [("AIRFLOW__UPDRAFT__WORKER_NAME", name)];
        let environment = [named.as_slice(), more].concat();
        self.cluster
            .installation
            .start("updraft-worker", &[], &environment)
    }

    fn trigger(&self, dag_id: &str, name: &str) -> String {
        let body = json!({"logical_date": null, "dag_run_id": format!("{dag_id}-{name}")});
        self.cluster.api.trigger(dag_id, &body)
    }

    /// The first worker is stopped already, with a claim in its hands: another takes the task over, then the first goes on.
    fn take_over_and_go_on(&self, first: &Process, dag_id: &str, run_id: &str) {
        let second = self.worker("two", &[]);
        eventually("the task is started by the other worker", PATIENCE, || match self
            .starts(run_id)
            .as_slice()
        {
            [only] if only == "two" => Ok(()),
            others => Err(format!("{others:?}")),
        });
        assert_eq!(self.cluster.api.wait_for_end(dag_id, run_id), "success");
        first.signal(Signal::SIGCONT);
        wait_until("the first worker begins a new life", PATIENCE, || {
            first.output().contains("registering anew")
        });
        // It works again, which it does only after it has dealt with what it held.
        drop(second);
        let after = self.trigger(dag_id, &format!("after-{run_id}"));
        assert_eq!(self.cluster.api.wait_for_end(dag_id, &after), "success");
        assert_eq!(
            self.starts(run_id),
            ["two"],
            "{dag_id} {run_id}: {}",
            first.output()
        );
    }
}

#[test]
fn a_worker_that_was_stopped_before_it_started_a_task_never_starts_it() {
    let Some(scene) = Scene::set() else { return };
    for (dag_id, point) in [
        ("void_bash", "claimed"),
        ("void_bash", "bash"),
        ("void_python", "claimed"),
        ("void_python", "python-fork"),
        ("void_python", "python-forked"),
        ("void_trigger", "triggers-fork"),
    ] {
        let stopped = scene
            .cluster
            .installation
            .path()
            .join(format!("{dag_id}-{point}"));
        let at = format!("{point}:{}", stopped.display());
        let first = scene.worker("one", &[("UPDRAFT_TEST_STOP_AT", &at)]);
        let run_id = scene.trigger(dag_id, point);
        wait_until("the worker is stopped", PATIENCE, || stopped.exists());
        scene.take_over_and_go_on(&first, dag_id, &run_id);
    }
}

#[test]
fn a_worker_that_was_stopped_while_its_python_started_never_starts_the_task() {
    let Some(scene) = Scene::set() else { return };
    // An interpreter that takes its time.
    let folder = scene.cluster.installation.path().join("slow");
    std::fs::create_dir(&folder).expect("a folder");
    std::fs::write(folder.join("sitecustomize.py"), "import time; time.sleep(4)").expect("a file");
    let path = folder.to_string_lossy().into_owned();
    let first = scene.worker("one", &[("PYTHONPATH", &path)]);
    let run_id = scene.trigger("void_python", "slow");
    wait_until("the task is claimed", PATIENCE, || {
        scene.cluster.api.tasks("void_python", &run_id)[0]["state"] == json!("running")
    });
    first.signal(Signal::SIGSTOP);
    assert!(!first.output().contains("Python is ready"), "{}", first.output());
    scene.take_over_and_go_on(&first, "void_python", &run_id);
}

#[test]
fn a_worker_that_was_stopped_before_it_made_a_container_never_starts_it() {
    let Some(engine) = Engine::find() else { return };
    let Some(scene) = Scene::set() else { return };
    scene.cluster.api.wait_for_dag("void_docker");
    for point in ["docker", "docker-start"] {
        let stopped = scene.cluster.installation.path().join(point);
        let at = format!("{point}:{}", stopped.display());
        let first = scene.worker("one", &[("UPDRAFT_TEST_STOP_AT", &at)]);
        // Of a name of its own, by which its containers are found.
        let run_id = scene.trigger("void_docker", &uuid::Uuid::new_v4().simple().to_string());
        wait_until("the worker is stopped", PATIENCE, || stopped.exists());
        let second = scene.worker("two", &[]);
        assert_eq!(scene.cluster.api.wait_for_end("void_docker", &run_id), "success");
        first.signal(Signal::SIGCONT);
        wait_until("the first worker begins a new life", PATIENCE, || {
            first.output().contains("registering anew")
        });
        drop(second);
        let after = scene.trigger("void_bash", &format!("after-{point}"));
        assert_eq!(scene.cluster.api.wait_for_end("void_bash", &after), "success");
        let label = format!("label=updraft.dag_run_id={run_id}");
        let all = engine.run(&["ps", "--all", "--quiet", "--filter", &label]);
        let mut started = 0;
        for container in all.lines() {
            // One that was made and never started has the zero of Go's clock here.
            let at = engine.run(&["inspect", "--format", "{{.State.StartedAt}}", container]);
            started += usize::from(!at.starts_with("0001"));
            engine.run(&["rm", "--force", container]);
        }
        assert_eq!(started, 1, "{point}: {all}\n{}", first.output());
    }
}

#[test]
fn a_worker_that_was_stopped_before_it_made_a_pod_never_makes_it() {
    let Some(scene) = Scene::set() else { return };
    let kubernetes = Kubernetes::start();
    let config = scene.cluster.installation.path().join("kubeconfig");
    std::fs::write(&config, kubernetes.kubeconfig()).expect("a kubeconfig");
    let text = POD.replace("CONFIG", &config.to_string_lossy());
    scene.cluster.installation.dag("pod.py", &text);
    scene.cluster.api.wait_for_dag("void_pod");
    let stopped = scene.cluster.installation.path().join("stopped");
    let at = format!("pod:{}", stopped.display());
    let first = scene.worker("one", &[("UPDRAFT_TEST_STOP_AT", &at)]);
    let run_id = scene.trigger("void_pod", "pod");
    wait_until("the worker is stopped", PATIENCE, || stopped.exists());
    let second = scene.worker("two", &[]);
    assert_eq!(scene.cluster.api.wait_for_end("void_pod", &run_id), "success");
    first.signal(Signal::SIGCONT);
    wait_until("the first worker begins a new life", PATIENCE, || {
        first.output().contains("registering anew")
    });
    drop(second);
    let after = scene.trigger("void_bash", "after-pod");
    assert_eq!(scene.cluster.api.wait_for_end("void_bash", &after), "success");
    let history = kubernetes.history();
    let made = history.iter().filter(|line| line.starts_with("create ")).count();
    assert_eq!(made, 1, "{history:?}\n{}", first.output());
}

#[test]
fn a_dag_processor_that_was_stopped_before_it_called_a_callback_never_calls_it() {
    let begin = |installation: &mut harness::Installation| {
        installation.set("AIRFLOW__CORE__LOAD_EXAMPLES", "False");
        // A callback is held for that long, and half a minute.
        installation.set("AIRFLOW__DAG_PROCESSOR__DAG_FILE_PROCESSOR_TIMEOUT", "10");
    };
    let Some(mut cluster) = Cluster::start_and(begin) else {
        return;
    };
    let witness = cluster.installation.path().join("calls");
    let text = CALLED.replace("WITNESS", &witness.to_string_lossy());
    cluster.installation.dag("called.py", &text);
    cluster.api.wait_for_dag("void_callback");
    cluster.kill("dag-processor");
    let stopped = cluster.installation.path().join("stopped");
    let at = format!("callback:{}", stopped.display());
    let processor = |who: &str, more: &[(&str, &str)]| {
        let environment = [&[("WHO", who)], more].concat();
        cluster
            .installation
            .start("updraft-dag-processor", &[], &environment)
    };
    let first = processor("one", &[("UPDRAFT_TEST_STOP_AT", &at)]);
    let trigger = |name: &str| {
        let body = json!({"logical_date": null, "dag_run_id": name});
        cluster.api.trigger("void_callback", &body)
    };
    trigger("called");
    wait_until("the DAG processor is stopped", PATIENCE, || stopped.exists());
    let second = processor("two", &[]);
    let called_by = |name: &str| -> Vec<String> {
        let text = std::fs::read_to_string(&witness).unwrap_or_default();
        let mine = text.lines().filter_map(|line| line.strip_prefix(name));
        mine.map(|who| who.trim().to_owned()).collect()
    };
    eventually("the other calls it", PATIENCE, || match called_by("called ") {
        who if who == ["two"] => Ok(()),
        who => Err(format!("{who:?}")),
    });
    drop(second);
    first.signal(Signal::SIGCONT);
    // It works on, and deals with one after the other.
    trigger("next");
    eventually("the first one calls the next", PATIENCE, || {
        match called_by("next ") {
            who if who == ["one"] => Ok(()),
            who => Err(format!("{who:?}\n{}", first.output())),
        }
    });
    assert_eq!(called_by("called "), ["two"], "{}", first.output());
}
