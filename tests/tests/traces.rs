//! Traces, as a collector sees them.

use harness::{Installation, eventually};
use std::time::Duration;

const PATIENCE: Duration = Duration::from_secs(60);

struct Span {
    trace: String,
    id: String,
    parent: String,
    name: String,
    task: String,
}

fn spans(text: &str) -> Vec<Span> {
    let lines = text.lines().filter_map(|line| line.strip_prefix("span "));
    lines
        .map(|line| {
            let mut parts = line.split(' ').map(str::to_owned);
            let mut next = || parts.next().unwrap_or_default();
            Span {
                trace: next(),
                id: next(),
                parent: next(),
                name: next(),
                task: next(),
            }
        })
        .collect()
}

#[test]
fn one_trace_follows_a_run_from_its_creation_to_each_tasks_exit() {
    let Some(python) = harness::python() else { return };
    let mut installation = Installation::new(&python);
    let program = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/traces/collector.py");
    let collector = installation.start(&python, &["-u", program], &[]);
    let port = eventually("the collector listens", PATIENCE, || {
        let output = collector.output();
        let port = output.lines().find_map(|line| line.strip_prefix("port "));
        port.map(str::to_owned).ok_or(output)
    });
    installation.set(
        "AIRFLOW__UPDRAFT__OTLP_ENDPOINT",
        &format!("http://127.0.0.1:{port}"),
    );
    installation.dag(
        "traced.py",
        "from airflow.sdk import DAG\nfrom airflow.providers.standard.operators.bash import BashOperator\n\
         with DAG('traced', schedule='@once', start_date=__import__('datetime').datetime(2025, 1, 1), is_paused_upon_creation=False):\n\
         \x20   BashOperator(task_id='one', bash_command='true') >> BashOperator(task_id='two', bash_command='true')\n",
    );
    let _process = installation.start("updraft", &["standalone"], &[]);
    eventually("the spans hang together", PATIENCE, || {
        let text = collector.output();
        let spans = spans(&text);
        let of = |name: &str, task: &str| spans.iter().find(|span| span.name == name && span.task == task);
        for task in ["one", "two"] {
            let run = of("task.run", task).ok_or_else(|| text.clone())?;
            let claim = of("task.claim", task).ok_or_else(|| text.clone())?;
            let root = of("dag_run.create", "").ok_or_else(|| text.clone())?;
            let chained = run.parent == claim.id && claim.parent == root.id && root.parent == "-";
            let one = run.trace == root.trace && claim.trace == root.trace;
            let dispatched = spans
                .iter()
                .any(|span| span.name == "task.dispatch" && span.parent == root.id);
            if !(chained && one && dispatched) {
                return Err(text);
            }
        }
        Ok(())
    });
}
