//! Separate processes over MariaDB and RabbitMQ, two of each that may be many, one of them killed.

use harness::{Cluster, ROLES, eventually};
use serde_json::json;
use std::time::Duration;

const PATIENCE: Duration = Duration::from_secs(120);

#[test]
fn any_process_may_be_killed_while_runs_are_in_flight() {
    let Some(mut cluster) = Cluster::start() else {
        return;
    };
    let runs = cluster.trigger_runs("calm");
    cluster.all_end_well(&runs);
    cluster.check_witness("calm");
    // Python tasks, mapped ones and retries among them.
    for dag_id in ["example_bash", "example_taskflow", "example_branches_and_retries"] {
        eventually(&format!("{dag_id} has run"), PATIENCE, || {
            let runs = cluster.api.get(&format!("/api/v2/dags/{dag_id}/dagRuns"));
            if runs["dag_runs"][0]["state"] == json!("success") {
                Ok(())
            } else {
                Err(runs.to_string())
            }
        });
    }
    for role in ROLES {
        cluster.kill_and_restart(role);
    }
}

#[test]
fn a_worker_that_never_comes_back_is_replaced_by_another() {
    let Some(mut cluster) = Cluster::start() else {
        return;
    };
    let runs = cluster.trigger_runs("lost");
    cluster.in_flight("lost");
    cluster.kill("worker-1");
    cluster.all_end_well(&runs);
    cluster.check_witness("lost");
}

#[test]
fn a_dead_workers_tasks_do_not_wait_for_its_lease() {
    let lease = ("AIRFLOW__SCHEDULER__TASK_INSTANCE_HEARTBEAT_TIMEOUT", "300");
    let Some(mut cluster) = Cluster::start_with(&[lease]) else {
        return;
    };
    let runs = cluster.trigger_runs("dead");
    cluster.in_flight("dead");
    cluster.kill("worker-1");
    cluster.all_end_well(&runs);
    cluster.check_witness("dead");
}

#[test]
fn a_worker_drains_before_it_leaves() {
    let Some(mut cluster) = Cluster::start() else {
        return;
    };
    let runs = cluster.trigger_runs("drain");
    cluster.in_flight("drain");
    let worker = cluster.processes.get_mut("worker-2").expect("a worker");
    worker.signal(nix::sys::signal::Signal::SIGTERM);
    assert!(worker.wait(Duration::from_secs(30)), "{}", worker.output());
    cluster.all_end_well(&runs);
    let lost = cluster
        .witness()
        .lines()
        .filter(|line| line.starts_with("start") && line.ends_with(" 2"))
        .count();
    assert_eq!(lost, 0, "a drained worker loses no try");
}

#[test]
fn a_killed_watchdog_gets_a_successor() {
    let Some(cluster) = Cluster::start() else { return };
    let watchdog = |cluster: &Cluster| cluster.processes["worker-1"].children("--watchdog");
    let first = eventually("the worker has a watchdog", PATIENCE, || {
        watchdog(&cluster).first().copied().ok_or_else(String::new)
    });
    let first = nix::unistd::Pid::from_raw(first);
    nix::sys::signal::kill(first, nix::sys::signal::Signal::SIGKILL).expect("it runs");
    eventually("there is another watchdog", PATIENCE, || {
        match watchdog(&cluster).as_slice() {
            [pid] if *pid != first.as_raw() => Ok(()),
            others => Err(format!("{others:?}")),
        }
    });
    let runs = cluster.trigger_runs("watched");
    cluster.all_end_well(&runs);
    cluster.check_witness("watched");
}

#[test]
fn no_python_task_fails_because_the_api_server_was_restarted() {
    let Some(mut cluster) = Cluster::start() else {
        return;
    };
    let witness = cluster.installation.path().join("asking");
    cluster.installation.dag(
        "asking.py",
        &format!(
            "import time\nfrom airflow.sdk import Variable, dag, task\n@dag(schedule=None)\ndef asking():\n\
             \x20   @task\n    def ask():\n        until = time.time() + 3\n        while time.time() < until:\n\
             \x20           Variable.set('asked', 'yes')\n            open('{}', 'a').close()\n    ask()\nasking()\n",
            witness.display()
        ),
    );
    cluster.api.wait_for_dag("asking");
    let run_id = cluster.api.trigger("asking", &json!({"logical_date": null}));
    harness::wait_until("the task asks", PATIENCE, || witness.exists());
    cluster.kill("api-server");
    cluster.restart("api-server");
    let state = cluster.api.wait_for_end("asking", &run_id);
    let tasks = cluster.api.tasks("asking", &run_id);
    assert_eq!((state.as_str(), &tasks[0]["try_number"]), ("success", &json!(1)));
}
