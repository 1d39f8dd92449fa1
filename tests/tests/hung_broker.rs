//! A broker that takes connections and never answers holds up neither requests nor plans.

use harness::{Installation, eventually, mariadb_database, python};
use serde_json::json;
use std::net::{TcpListener, TcpStream};
use std::time::{Duration, Instant};

const PATIENCE: Duration = Duration::from_secs(60);

const DAGS: &str = "from airflow.sdk import DAG
from airflow.providers.standard.operators.bash import BashOperator
from airflow.providers.standard.operators.empty import EmptyOperator
with DAG('handed_over', schedule=None, max_active_runs=100, max_active_tasks=100):
    BashOperator(task_id='a', bash_command='true')
with DAG('planned', schedule=None, max_active_runs=100):
    EmptyOperator(task_id='a') >> EmptyOperator(task_id='b') >> EmptyOperator(task_id='c')
";

/// Takes connections and keeps them, without a word.
fn silent() -> u16 {
    let listener = TcpListener::bind(("127.0.0.1", 0)).expect("a port");
    let port = listener.local_addr().expect("an address").port();
    std::thread::spawn(move || {
        let kept: Vec<TcpStream> = listener.incoming().flatten().collect();
        drop(kept);
    });
    port
}

#[test]
fn requests_and_plans_do_not_wait_for_a_broker_that_hangs() {
    let (Some(python), Some(database)) = (python(), mariadb_database()) else {
        return;
    };
    let mut installation = Installation::new(&python);
    let url = database.replace("mysql://", "mysql+pymysql://");
    installation.set("AIRFLOW__DATABASE__SQL_ALCHEMY_CONN", &url);
    let broker = format!("amqp://guest:guest@127.0.0.1:{}//", silent());
    installation.set("AIRFLOW__CELERY__BROKER_URL", &broker);
    let (ok, text) = installation.run("updraft", &["db", "migrate"]);
    assert!(ok, "{text}");
    installation.dag("two.py", DAGS);
    let _server = installation.start("updraft-api-server", &[], &[]);
    let _processor = installation.start("updraft-dag-processor", &[], &[]);
    let _scheduler = installation.start("updraft-scheduler", &[], &[]);
    let api = installation.api();
    api.wait_for_dag("planned");
    api.wait_for_dag("handed_over");

    let begin = Instant::now();
    for _ in 0..20 {
        api.trigger("handed_over", &json!({"logical_date": null}));
    }
    // One hint took two seconds when requests waited for them.
    assert!(begin.elapsed() < Duration::from_secs(10), "{:?}", begin.elapsed());

    eventually("the tasks are on their way", PATIENCE, || {
        let path = "/api/v2/dags/handed_over/dagRuns/~/taskInstances?state=queued";
        match api.get(path)["total_entries"].as_u64() {
            Some(20) => Ok(()),
            other => Err(format!("{other:?}")),
        }
    });
    let begin = Instant::now();
    let runs: Vec<String> = (0..5)
        .map(|_| api.trigger("planned", &json!({"logical_date": null})))
        .collect();
    for run in runs {
        assert_eq!(api.wait_for_end("planned", &run), "success");
    }
    // Each batch of messages keeps whoever publishes it for ten seconds.
    assert!(begin.elapsed() < Duration::from_secs(9), "{:?}", begin.elapsed());
}
