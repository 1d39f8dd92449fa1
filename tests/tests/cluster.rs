//! Separate processes over MariaDB and RabbitMQ, two of each that may be many, one of them killed.

use harness::{Api, Installation, Process, eventually};
use serde_json::json;
use std::collections::HashMap;
use std::path::PathBuf;
use std::time::Duration;

const PATIENCE: Duration = Duration::from_secs(120);
const RUNS: usize = 20;

struct Cluster {
    installation: Installation,
    processes: HashMap<&'static str, Process>,
    witness: PathBuf,
    api: Api,
}

fn start(installation: &Installation, role: &'static str) -> Process {
    match role {
        "worker-1" => installation.start("updraft-worker", &[], &[("AIRFLOW__UPDRAFT__WORKER_NAME", "one")]),
        "worker-2" => installation.start("updraft-worker", &[], &[("AIRFLOW__UPDRAFT__WORKER_NAME", "two")]),
        "scheduler-1" | "scheduler-2" => installation.start("updraft-scheduler", &[], &[]),
        "dag-processor" => installation.start("updraft-dag-processor", &[], &[]),
        _ => installation.start("updraft-api-server", &[], &[]),
    }
}

const ROLES: [&str; 6] = [
    "api-server",
    "scheduler-1",
    "scheduler-2",
    "dag-processor",
    "worker-1",
    "worker-2",
];

/// A diamond of four tasks; each writes a line when it starts and one when it ends.
fn diamond(witness: &std::path::Path) -> String {
    format!(
        "from airflow.sdk import DAG\nfrom airflow.providers.standard.operators.bash import BashOperator\n\
         with DAG('diamond', schedule=None, max_active_runs=100, max_active_tasks=100) as dag:\n\
         \x20   a, b, c, d = (BashOperator(task_id=x, bash_command='echo start {{{{ run_id }}}} {{{{ ti.task_id }}}} {{{{ ti.try_number }}}} >> {w}; sleep 0.3; echo end {{{{ run_id }}}} {{{{ ti.task_id }}}} {{{{ ti.try_number }}}} >> {w}') for x in 'abcd')\n\
         \x20   a >> [b, c] >> d\n",
        w = witness.display()
    )
}

fn cluster() -> Option<Cluster> {
    let (python, database, broker) = (
        harness::python()?,
        harness::mariadb_database()?,
        harness::rabbitmq_url()?,
    );
    let mut installation = Installation::new(&python);
    installation.set(
        "AIRFLOW__DATABASE__SQL_ALCHEMY_CONN",
        &database.replace("mysql://", "mysql+pymysql://"),
    );
    installation.set("AIRFLOW__CELERY__BROKER_URL", &broker);
    // Queues of its own, so that clusters beside it do not take its work.
    let queue = format!("c{}", uuid::Uuid::new_v4().simple());
    installation.set("AIRFLOW__OPERATORS__DEFAULT_QUEUE", &queue);
    installation.set("AIRFLOW__UPDRAFT__QUEUES", &format!("default,{queue}"));
    installation.set("AIRFLOW__SCHEDULER__TASK_INSTANCE_HEARTBEAT_TIMEOUT", "6");
    installation.set("AIRFLOW__CELERY__WORKER_CONCURRENCY", "8");
    installation.set("AIRFLOW__CORE__LOAD_EXAMPLES", "True");
    let (ok, text) = installation.run("updraft", &["db", "migrate"]);
    assert!(ok, "{text}");
    let witness = installation.path().join("witness");
    installation.dag("diamond.py", &diamond(&witness));
    let processes = ROLES
        .into_iter()
        .map(|role| (role, start(&installation, role)))
        .collect();
    let api = installation.api();
    eventually("the DAG is there", PATIENCE, || {
        let (status, body) = api
            .call("GET", "/api/v2/dags/diamond", None)
            .map_err(|error| error.to_string())?;
        if status == 200 {
            Ok(())
        } else {
            Err(body.to_string())
        }
    });
    Some(Cluster {
        installation,
        processes,
        witness,
        api,
    })
}

impl Cluster {
    fn trigger_runs(&self, name: &str) -> Vec<String> {
        (0..RUNS)
            .map(|n| {
                self.api.trigger(
                    "diamond",
                    &json!({"logical_date": null, "dag_run_id": format!("{name}-{n}")}),
                )
            })
            .collect()
    }

    fn witness(&self) -> String {
        std::fs::read_to_string(&self.witness).unwrap_or_default()
    }

    fn all_end_well(&self, runs: &[String]) {
        for run_id in runs {
            let state = eventually(&format!("run {run_id} ends"), PATIENCE, || {
                match self.api.run_state("diamond", run_id) {
                    Some(state) if state == "success" || state == "failed" => Ok(state),
                    other => Err(format!("{other:?}")),
                }
            });
            assert_eq!(state, "success", "{run_id}");
        }
    }

    /// No try started twice; a task's tries did not overlap; nothing started before what comes before it had ended.
    fn check_witness(&self, name: &str) {
        let text = self.witness();
        let mut started = HashMap::new();
        let mut ended = std::collections::HashSet::new();
        for line in text.lines().filter(|line| line.contains(&format!(" {name}-"))) {
            let parts: Vec<&str> = line.split(' ').collect();
            let [what, run, task, number] = parts.as_slice() else {
                panic!("{line}")
            };
            if *what == "end" {
                ended.insert((*run, *task));
                continue;
            }
            let count = started.entry((*run, *task, *number)).or_insert(0);
            *count += 1;
            assert_eq!(*count, 1, "a try started twice: {line}");
            let before: &[&str] = match *task {
                "a" => &[],
                "d" => &["b", "c"],
                _ => &["a"],
            };
            for earlier in before {
                assert!(
                    ended.contains(&(*run, *earlier)),
                    "{line}: {earlier} had not ended"
                );
            }
        }
        assert!(started.len() >= RUNS * 4);
    }

    fn kill_and_restart(&mut self, role: &'static str) {
        let name = format!("k-{role}");
        let runs = self.trigger_runs(&name);
        eventually("the runs are in flight", PATIENCE, || {
            let count = self
                .witness()
                .lines()
                .filter(|line| line.contains(&format!(" {name}-")))
                .count();
            if count >= 8 {
                Ok(())
            } else {
                Err(format!("{count} lines"))
            }
        });
        self.processes.get_mut(role).expect("the role").kill();
        let process = start(&self.installation, role);
        self.processes.insert(role, process);
        if role == "api-server" {
            self.api = self.installation.api();
        }
        self.all_end_well(&runs);
        self.check_witness(&name);
    }
}

#[test]
fn any_process_may_be_killed_while_runs_are_in_flight() {
    let Some(mut cluster) = cluster() else { return };
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
    let Some(mut cluster) = cluster() else { return };
    let runs = cluster.trigger_runs("lost");
    eventually("the runs are in flight", PATIENCE, || {
        let count = cluster.witness().lines().count();
        if count >= 4 {
            Ok(())
        } else {
            Err(format!("{count} lines"))
        }
    });
    cluster.processes.get_mut("worker-1").expect("a worker").kill();
    cluster.all_end_well(&runs);
    cluster.check_witness("lost");
}

#[test]
fn a_worker_drains_before_it_leaves() {
    let Some(mut cluster) = cluster() else { return };
    let runs = cluster.trigger_runs("drain");
    eventually("the runs are in flight", PATIENCE, || {
        let count = cluster.witness().lines().count();
        if count >= 4 {
            Ok(())
        } else {
            Err(format!("{count} lines"))
        }
    });
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
    let Some(cluster) = cluster() else { return };
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
    let Some(mut cluster) = cluster() else { return };
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
    eventually("the DAG is there", PATIENCE, || {
        match cluster.api.call("GET", "/api/v2/dags/asking", None) {
            Ok((200, _)) => Ok(()),
            other => Err(format!("{other:?}")),
        }
    });
    let run_id = cluster.api.trigger("asking", &json!({"logical_date": null}));
    harness::wait_until("the task asks", PATIENCE, || witness.exists());
    cluster.processes.get_mut("api-server").expect("the role").kill();
    let process = start(&cluster.installation, "api-server");
    cluster.processes.insert("api-server", process);
    cluster.api = cluster.installation.api();
    let state = eventually("the run ends", PATIENCE, || {
        match cluster.api.run_state("asking", &run_id) {
            Some(state) if state == "success" || state == "failed" => Ok(state),
            other => Err(format!("{other:?}")),
        }
    });
    let tasks = cluster.api.tasks("asking", &run_id);
    assert_eq!((state.as_str(), &tasks[0]["try_number"]), ("success", &json!(1)));
}
