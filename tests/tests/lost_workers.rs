//! How soon what was lost runs again: Python tasks of a worker that was killed, whose next worker must be warm, and tasks whose
//! message was lost.

use broker::{Broker, RabbitBroker};
use harness::{Cluster, Process, eventually, wait_until};
use model::QueueName;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::json;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

const PATIENCE: Duration = Duration::from_secs(90);
/// Until all tasks of a killed worker run again; and what a machine that is busy with other things may take.
const BOUND: f64 = 5.0;
const BUSY: f64 = 15.0;
/// The same for a task whose message somebody took and forgot.
const STOLEN: f64 = 10.0;
const TASKS: usize = 4;
const ROUNDS: usize = 3;

/// Tasks whose first try never ends; each writes down when it began.
fn dags(witness: &Path) -> String {
    format!(
        "import time\nfrom airflow.sdk import DAG, task\n\
         with DAG('lives', schedule=None):\n\
         \x20   @task\n    def t(n, run_id=None, ti=None):\n\
         \x20       with open('{w}', 'a') as out: print(run_id, ti.try_number, n, time.time(), file=out)\n\
         \x20       while ti.try_number == 1: time.sleep(1)\n\
         \x20   t.expand(n=list(range({TASKS})))\n\
         from airflow.providers.standard.operators.bash import BashOperator\n\
         with DAG('stolen', schedule=None):\n\
         \x20   BashOperator(task_id='t', bash_command='touch {w}.stolen')\n",
        w = witness.display()
    )
}

struct Scene {
    cluster: Cluster,
    witness: PathBuf,
}

/// What dies with the worker.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Dies {
    /// Nothing; its watchdog deals with what it leaves behind.
    Alone,
    /// All that it had started but its watchdog.
    WithItsProcesses,
    /// Its watchdog, too, and it is started anew.
    WithItsWatchdog,
}

impl Scene {
    fn set() -> Option<Self> {
        let mut cluster = Cluster::start_and(|installation| {
            installation.set("AIRFLOW__CORE__LOAD_EXAMPLES", "False");
            // Nothing is found by a lease that runs out.
            installation.set("AIRFLOW__SCHEDULER__TASK_INSTANCE_HEARTBEAT_TIMEOUT", "300");
        })?;
        let witness = cluster.installation.path().join("begins");
        cluster.installation.dag("lives.py", &dags(&witness));
        cluster.api.wait_for_dag("lives");
        cluster.kill("worker-1");
        cluster.kill("worker-2");
        Some(Self { cluster, witness })
    }

    /// A worker with this name, ready to run Python.
    fn worker(&self, name: &str) -> Process {
        let named = [("AIRFLOW__UPDRAFT__WORKER_NAME", name)];
        let worker = self.cluster.installation.start("updraft-worker", &[], &named);
        wait_until("its Python is ready", PATIENCE, || {
            worker.output().contains("Python is ready")
        });
        worker
    }

    /// When the tasks of a run began in that try, in seconds since 1970.
    fn begins(&self, run_id: &str, try_number: u32) -> Vec<f64> {
        let text = std::fs::read_to_string(&self.witness).unwrap_or_default();
        let mine = format!("{run_id} {try_number} ");
        let mine = text.lines().filter_map(|line| line.strip_prefix(&mine));
        mine.filter_map(|line| line.split(' ').nth(1)?.parse().ok())
            .collect()
    }

    /// Kills a worker that runs tasks. Returns the seconds until all of them ran again.
    fn seconds_until_all_run_again(&self, dies: Dies, round: usize) -> f64 {
        let mut first = self.worker("one");
        let body = json!({"logical_date": null, "dag_run_id": format!("{dies:?}-{round}")});
        let run_id = self.cluster.api.trigger("lives", &body);
        wait_until("the tasks run", PATIENCE, || {
            self.begins(&run_id, 1).len() == TASKS
        });
        let second = self.worker("two");
        let watchdogs = first.children("--watchdog");
        let others: Vec<i32> = first
            .children("")
            .into_iter()
            .filter(|pid| !watchdogs.contains(pid))
            .collect();
        let begin = now();
        let more = match dies {
            Dies::Alone => &[][..],
            Dies::WithItsProcesses => &others,
            Dies::WithItsWatchdog => &watchdogs,
        };
        first.signal(Signal::SIGKILL);
        for pid in more {
            kill(Pid::from_raw(*pid), Signal::SIGKILL).ok();
        }
        first.kill();
        let back = (dies == Dies::WithItsWatchdog).then(|| {
            let named = [("AIRFLOW__UPDRAFT__WORKER_NAME", "one")];
            self.cluster.installation.start("updraft-worker", &[], &named)
        });
        let all = eventually("all run again", PATIENCE, || match self.begins(&run_id, 2) {
            all if all.len() == TASKS => Ok(all),
            some => Err(format!("{some:?}")),
        });
        assert_eq!(self.cluster.api.wait_for_end("lives", &run_id), "success");
        drop((second, back));
        all.into_iter().fold(0.0, f64::max) - begin
    }
}

fn now() -> f64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH);
    since.expect("a clock").as_secs_f64()
}

#[test]
fn python_tasks_of_a_killed_worker_run_again_within_seconds() {
    let Some(scene) = Scene::set() else { return };
    for dies in [Dies::Alone, Dies::WithItsProcesses, Dies::WithItsWatchdog] {
        let mut all: Vec<f64> = (0..ROUNDS)
            .map(|round| scene.seconds_until_all_run_again(dies, round))
            .collect();
        all.sort_by(f64::total_cmp);
        println!("{dies:?}: {all:.2?}");
        assert!(all[ROUNDS / 2] < BOUND, "{dies:?}: {all:?}");
        assert!(all[ROUNDS - 1] < BUSY, "{dies:?}: {all:?}");
    }
}

#[test]
fn a_task_whose_message_was_stolen_runs_within_seconds() {
    let (Some(scene), Some(url)) = (Scene::set(), harness::rabbitmq_url()) else {
        return;
    };
    let queue = &scene.cluster.installation.environment()["AIRFLOW__OPERATORS__DEFAULT_QUEUE"];
    let queue = QueueName::new(queue.as_str());
    let runtime = tokio::runtime::Runtime::new().expect("a runtime");
    let began = scene.witness.with_extension("stolen");
    let run = runtime.block_on(async {
        let thief = RabbitBroker::new(&url, "thief").expect("a broker");
        let mut deliveries = thief.consume(&queue, 1).await.expect("its messages");
        let body = json!({"logical_date": null, "dag_run_id": "stolen"});
        let run = scene.cluster.api.trigger("stolen", &body);
        let stolen = tokio::time::timeout(PATIENCE, deliveries.next()).await;
        stolen.expect("the message").ack().await;
        run
    });
    let begin = now();
    let _worker = scene.worker("one");
    wait_until("the task runs", PATIENCE, || began.exists());
    let seconds = now() - begin;
    println!("stolen: {seconds:.2}");
    assert!(seconds < STOLEN + BUSY, "{seconds}");
    assert_eq!(scene.cluster.api.wait_for_end("stolen", &run), "success");
}
