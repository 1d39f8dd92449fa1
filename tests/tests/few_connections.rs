//! A database that takes only a few connections, under load: no task fails by it.

use harness::{Cluster, CrowdedDatabase, wait_until};
use serde_json::json;
use std::time::Duration;

const PATIENCE: Duration = Duration::from_secs(120);
const TASKS: usize = 12;
/// How long there is room for a few connections only.
const CROWDED: Duration = Duration::from_secs(10);

/// Tasks without retries, which ask for one thing after the other as long as it takes.
const ASKING: &str = r#"
import time
from airflow.sdk import DAG, Variable, task
with DAG("asking", schedule=None):
    @task
    def ask(n):
        until = time.time() + 15
        while time.time() < until:
            Variable.set(f"asked_{n}", "yes")
            assert Variable.get(f"asked_{n}") == "yes"
            time.sleep(0.05)
        open(f"BEGAN.{n}", "w").close()
    @task
    def begin(n):
        open(f"BEGAN.begin.{n}", "w").close()
    begin.expand(n=list(range(TASKS)))
    ask.expand(n=list(range(TASKS)))
"#;

#[test]
fn no_task_fails_while_the_database_takes_only_a_few_connections() {
    let mut crowded = None;
    let complete = |installation: &mut harness::Installation| {
        installation.set("AIRFLOW__CORE__LOAD_EXAMPLES", "False");
        installation.set("AIRFLOW__SCHEDULER__TASK_INSTANCE_HEARTBEAT_TIMEOUT", "120");
        let name = "AIRFLOW__DATABASE__SQL_ALCHEMY_CONN";
        let url = installation.environment()[name].clone();
        let (head, rest) = url.split_once('@').expect("a user");
        let (server, database) = rest.split_once('/').expect("a database");
        let way = CrowdedDatabase::before(server);
        installation.set(name, &format!("{head}@{}/{database}", way.address()));
        crowded = Some(way);
    };
    let Some(cluster) = Cluster::start_and(complete) else {
        return;
    };
    let crowded = crowded.expect("it was made");
    let began = cluster.installation.path().join("asked");
    let text = ASKING
        .replace("TASKS", &TASKS.to_string())
        .replace("BEGAN", &began.to_string_lossy());
    cluster.installation.dag("asking.py", &text);
    cluster.api.wait_for_dag("asking");
    let run = cluster.api.trigger("asking", &json!({"logical_date": null}));
    wait_until("tasks run", PATIENCE, || began.with_extension("begin.0").exists());
    crowded.set_limit(3);
    // The time itself is what is tried here.
    std::thread::sleep(CROWDED);
    crowded.set_limit(usize::MAX);
    assert!(
        crowded.refused() > 10,
        "{} connections were refused",
        crowded.refused()
    );
    assert_eq!(cluster.api.wait_for_end("asking", &run), "success");
    let tasks = cluster.api.tasks("asking", &run);
    assert_eq!(tasks.len(), 2 * TASKS);
    for task in tasks {
        assert_eq!(task["try_number"], json!(1), "{task}");
    }
}
