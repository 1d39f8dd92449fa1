//! A cluster of separate processes over MariaDB and RabbitMQ, with a DAG whose tasks leave witness of their tries.

use crate::{Api, Installation, Process, eventually, parts};
use serde_json::json;
use std::collections::{HashMap, HashSet};
use std::path::{Path, PathBuf};
use std::time::Duration;

const PATIENCE: Duration = Duration::from_secs(120);
const RUNS: usize = 20;

/// The processes of a cluster.
pub const ROLES: [&str; 6] = [
    "api-server",
    "scheduler-1",
    "scheduler-2",
    "dag-processor",
    "worker-1",
    "worker-2",
];

/// Two schedulers, two workers, one of each other component, and a DAG `diamond` of four tasks.
pub struct Cluster {
    /// Its home and DAG files.
    pub installation: Installation,
    /// By role.
    pub processes: HashMap<&'static str, Process>,
    /// Its API, logged in.
    pub api: Api,
    witness: PathBuf,
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

/// A diamond of four tasks; each writes a line when it starts and one when it ends.
fn diamond(witness: &Path) -> String {
    format!(
        "from airflow.sdk import DAG\nfrom airflow.providers.standard.operators.bash import BashOperator\n\
         with DAG('diamond', schedule=None, max_active_runs=100, max_active_tasks=100) as dag:\n\
         \x20   a, b, c, d = (BashOperator(task_id=x, bash_command='echo start {{{{ run_id }}}} {{{{ ti.task_id }}}} {{{{ ti.try_number }}}} >> {w}; sleep 0.3; echo end {{{{ run_id }}}} {{{{ ti.task_id }}}} {{{{ ti.try_number }}}} >> {w}') for x in 'abcd')\n\
         \x20   a >> [b, c] >> d\n",
        w = witness.display()
    )
}

impl Cluster {
    /// Starts one, on a database and queues of its own; `None` where its parts are absent and not required.
    ///
    /// # Panics
    /// When it does not come up.
    pub fn start() -> Option<Self> {
        Self::start_with(&[])
    }

    /// Starts one with more of a configuration.
    ///
    /// # Panics
    /// When it does not come up.
    pub fn start_with(more: &[(&str, &str)]) -> Option<Self> {
        Self::start_and(|installation| {
            for (name, value) in more {
                installation.set(name, value);
            }
        })
    }

    /// Starts one, after its configuration has been completed.
    ///
    /// # Panics
    /// When it does not come up.
    pub fn start_and(complete: impl FnOnce(&mut Installation)) -> Option<Self> {
        let (python, database, broker) = (
            parts::python()?,
            parts::mariadb_database()?,
            parts::rabbitmq_url()?,
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
        complete(&mut installation);
        let (ok, text) = installation.run("updraft", &["db", "migrate"]);
        assert!(ok, "{text}");
        let witness = installation.path().join("witness");
        installation.dag("diamond.py", &diamond(&witness));
        let processes = ROLES
            .into_iter()
            .map(|role| (role, start(&installation, role)))
            .collect();
        let api = installation.api();
        api.wait_for_dag("diamond");
        Some(Self {
            installation,
            processes,
            witness,
            api,
        })
    }

    /// Twenty runs whose ids begin with `name`.
    pub fn trigger_runs(&self, name: &str) -> Vec<String> {
        (0..RUNS)
            .map(|n| {
                self.api.trigger(
                    "diamond",
                    &json!({"logical_date": null, "dag_run_id": format!("{name}-{n}")}),
                )
            })
            .collect()
    }

    /// What the tasks wrote: `start RUN TASK TRY` and `end RUN TASK TRY`.
    pub fn witness(&self) -> String {
        std::fs::read_to_string(&self.witness).unwrap_or_default()
    }

    /// Waits until these runs ended, with success.
    ///
    /// # Panics
    /// When one does not.
    pub fn all_end_well(&self, runs: &[String]) {
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

    /// No try started twice; nothing started before what comes before it had ended.
    ///
    /// # Panics
    /// When something did.
    pub fn check_witness(&self, name: &str) {
        let text = self.witness();
        let mut started = HashMap::new();
        let mut ended = HashSet::new();
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

    /// Kills a process while twenty runs are in flight and starts it again; all of them end well.
    ///
    /// # Panics
    /// When one does not.
    pub fn kill_and_restart(&mut self, role: &'static str) {
        let name = format!("k-{role}");
        let runs = self.trigger_runs(&name);
        self.in_flight(&name);
        self.kill(role);
        self.restart(role);
        self.all_end_well(&runs);
        self.check_witness(&name);
    }

    /// Waits until tasks of the runs of this name have written a few lines.
    ///
    /// # Panics
    /// When they do not.
    pub fn in_flight(&self, name: &str) {
        let mine = format!(" {name}-");
        eventually("the runs are in flight", PATIENCE, || {
            let count = self.witness().lines().filter(|line| line.contains(&mine)).count();
            if count >= 8 {
                Ok(())
            } else {
                Err(format!("{count} lines"))
            }
        });
    }

    /// `kill -9`
    ///
    /// # Panics
    /// When there is no such process.
    pub fn kill(&mut self, role: &str) {
        self.processes.get_mut(role).expect("the role").kill();
    }

    /// Starts a process that was killed.
    pub fn restart(&mut self, role: &'static str) {
        let process = start(&self.installation, role);
        self.processes.insert(role, process);
        if role == "api-server" {
            self.api = self.installation.api();
        }
    }
}
