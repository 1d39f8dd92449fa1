//! What user code may do to its own process and to those that it starts.

use harness::{Api, Installation, Process, eventually};
use serde_json::json;
use std::time::{Duration, Instant};

const PATIENCE: Duration = Duration::from_secs(60);

const DAGS: &str = r#"
import multiprocessing, os, signal, subprocess, time
from datetime import timedelta
from airflow.sdk import DAG, task
from airflow.providers.standard.operators.bash import BashOperator

def square(x):
    return x * x

with DAG("crash", schedule=None):
    @task
    def crash():
        import ctypes
        ctypes.string_at(0)
    crash()

with DAG("pools", schedule=None, max_active_tasks=4):
    @task(execution_timeout=timedelta(seconds=60))
    def pool(n):
        with multiprocessing.Pool(2) as pool:
            return pool.map(square, range(5))
    pool.expand(n=list(range(20)))

with DAG("handlers", schedule=None):
    @task
    def handlers():
        # The task itself keeps its handler; what it forks has the default, but for a handler of its own.
        assert signal.getsignal(signal.SIGTERM).__qualname__.endswith("_on_term")
        read, write = os.pipe()
        if os.fork() == 0:
            os.write(write, b"d" if signal.getsignal(signal.SIGTERM) == signal.SIG_DFL else b"n")
            os._exit(0)
        assert os.read(read, 1) == b"d"
        def own(*_): pass
        signal.signal(signal.SIGTERM, own)
        if os.fork() == 0:
            os.write(write, b"o" if signal.getsignal(signal.SIGTERM) is own else b"n")
            os._exit(0)
        assert os.read(read, 1) == b"o"
    handlers()

with DAG("orphans", schedule=None):
    @task
    def python():
        if os.fork() == 0:
            if os.fork() == 0:
                os.execvp("sleep", ["sleep", "6"])
            os._exit(0)
        os.wait()
        subprocess.Popen(["sh", "-c", "sleep 6 & sleep 6 &"])
    python() >> BashOperator(task_id="bash", bash_command="setsid sleep 6 > /dev/null 2>&1 & sleep 6 > /dev/null 2>&1 & true")
"#;

fn start() -> Option<(Installation, Process, Api)> {
    start_by("updraft", &["standalone"])
}

fn start_by(program: &str, arguments: &[&str]) -> Option<(Installation, Process, Api)> {
    let installation = Installation::new(&harness::python()?);
    installation.dag("processes.py", DAGS);
    let process = installation.start(program, arguments, &[]);
    let api = installation.api();
    api.wait_for_dag("orphans");
    Some((installation, process, api))
}

fn run(api: &Api, dag_id: &str) -> String {
    let run_id = api.trigger(dag_id, &json!({"logical_date": null, "dag_run_id": "r"}));
    api.wait_for_end(dag_id, &run_id)
}

#[test]
fn a_crash_ends_the_task_at_once_and_shows_where_it_was() {
    let Some((_installation, _process, api)) = start() else {
        return;
    };
    let begin = Instant::now();
    assert_eq!(run(&api, "crash"), "failed");
    assert!(begin.elapsed() < Duration::from_secs(20), "{:?}", begin.elapsed());
    let log = api.log("crash", "r", "crash", 1).join("\n");
    for expected in [
        "SIGSEGV",
        "Fatal Python error: Segmentation fault",
        "in crash",
        "ctypes",
    ] {
        assert!(log.contains(expected), "{expected} is not in\n{log}");
    }
}

#[test]
fn processes_that_a_task_forks_can_be_ended() {
    let Some((_installation, process, api)) = start() else {
        return;
    };
    assert_eq!(run(&api, "handlers"), "success", "{}", process.output());
    assert_eq!(run(&api, "pools"), "success", "{:?}", api.tasks("pools", "r"));
}

#[test]
fn orphans_of_tasks_are_reaped() {
    let Some((_installation, process, api)) = start() else {
        return;
    };
    assert_eq!(run(&api, "orphans"), "success", "{}", process.output());
    let sleeping = |what: &str| process.children(what).len();
    eventually(
        "the worker has adopted the orphans",
        PATIENCE,
        || match sleeping("sleep") {
            count if count < 5 => Err(format!("{count} of 5")),
            _ => Ok(()),
        },
    );
    eventually(
        "no orphan is left, not even as a zombie",
        PATIENCE,
        || match process.zombies().as_slice() {
            [] if sleeping("sleep") == 0 => Ok(()),
            left => Err(format!("{left:?}, {} alive", sleeping("sleep"))),
        },
    );
}

/// The states of the children of a process, those with that name, as `ps` writes them.
fn children_of(pid: i32, name: &str) -> Vec<char> {
    let entries = std::fs::read_dir("/proc").into_iter().flatten().flatten();
    let stats = entries.filter_map(|entry| std::fs::read_to_string(entry.path().join("stat")).ok());
    stats
        .filter_map(|stat| {
            let (head, facts) = stat.rsplit_once(") ")?;
            let mut facts = facts.split(' ');
            let state = facts.next()?.chars().next()?;
            let is_child = facts.next()? == pid.to_string();
            (is_child && head.ends_with(&format!("({name}"))).then_some(state)
        })
        .collect()
}

#[test]
fn a_worker_that_is_the_first_process_of_a_container_reaps_orphans() {
    if !nix::unistd::geteuid().is_root() {
        return;
    }
    let updraft = Installation::program("updraft");
    let updraft = updraft.to_string_lossy();
    let arguments = [
        "--pid",
        "--fork",
        "--mount-proc",
        "--kill-child",
        &updraft,
        "standalone",
    ];
    let Some((_installation, process, api)) = start_by("/usr/bin/unshare", &arguments) else {
        return;
    };
    let first = process.children("standalone")[0];
    let status = std::fs::read_to_string(format!("/proc/{first}/status")).unwrap_or_default();
    let inner = status.lines().find(|line| line.starts_with("NSpid:"));
    assert!(inner.is_some_and(|line| line.ends_with("\t1")), "{status}");
    assert_eq!(run(&api, "orphans"), "success", "{}", process.output());
    let sleeping = || children_of(first, "sleep");
    eventually("the orphans are its own", PATIENCE, || match sleeping().len() {
        5 => Ok(()),
        count => Err(format!("{count} of 5")),
    });
    eventually(
        "no orphan is left, not even as a zombie",
        PATIENCE,
        || match sleeping().as_slice() {
            [] => Ok(()),
            left => Err(format!("{left:?}")),
        },
    );
    assert!(children_of(first, "sh").is_empty() && children_of(first, "bash").is_empty());
}
