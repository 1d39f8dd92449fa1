//! The end of a campaign: waiting until nothing happens any more, and reading what is left.

use super::checks::Ending;
use super::faults::World;
use super::load::INTERVAL;
use super::members::processes_of;
use crate::Api;
use std::collections::BTreeSet;
use std::time::{Duration, Instant};

/// How long everything may take to end beyond the time that a run takes.
pub(super) const SETTLE: Duration = Duration::from_secs(90);

/// What must be none in the end, and how it is counted.
const COUNTS: [(&str, &str); 6] = [
    (
        "runs that have not ended",
        "SELECT COUNT(*) FROM dag_run WHERE state IN ('queued', 'running')",
    ),
    (
        "task instances that have not ended",
        "SELECT COUNT(*) FROM task_instance WHERE state IS NULL OR state IN \
         ('none', 'scheduled', 'queued', 'running', 'restarting', 'deferred', 'up_for_retry', 'up_for_reschedule')",
    ),
    ("rows of the outbox", "SELECT COUNT(*) FROM outbox"),
    (
        "triggers that are waited for",
        "SELECT COUNT(*) FROM pending_trigger",
    ),
    (
        "callbacks that were not called",
        "SELECT COUNT(*) FROM run_callback",
    ),
    (
        "events of runs that nobody has read",
        "SELECT COUNT(*) FROM run_event",
    ),
];

/// Asks until the database answers.
fn patiently<T>(mut ask: impl FnMut() -> anyhow::Result<T>) -> anyhow::Result<T> {
    let begin = Instant::now();
    loop {
        match ask() {
            Err(_) if begin.elapsed() < Duration::from_secs(30) => {
                std::thread::sleep(Duration::from_millis(200));
            }
            other => return other,
        }
    }
}

/// Waits until everything has ended, or this much time has passed; how long it took.
pub(super) fn quiesce(world: &mut World, apis: &[Api; 2], patience: Duration) -> Duration {
    let begin = Instant::now();
    let body = serde_json::json!({"is_paused": true});
    let mut is_paused = false;
    while begin.elapsed() < patience {
        if !is_paused {
            let answer = apis[0].call("PATCH", "/api/v2/dags/chaos_clock", Some(&body));
            is_paused = matches!(answer, Ok((200, _)));
        }
        let left = COUNTS.iter().map(|(_, sql)| world.session.number(sql));
        let left: anyhow::Result<u64> = left.sum();
        if is_paused && left.is_ok_and(|left| left == 0) && occupied(apis) == 0 && processes(world) == 0 {
            break;
        }
        std::thread::sleep(Duration::from_millis(300));
    }
    begin.elapsed()
}

/// Slots of pools that are taken.
fn occupied(apis: &[Api; 2]) -> u64 {
    let Ok((200, body)) = apis[0].call("GET", "/api/v2/pools", None) else {
        return u64::MAX;
    };
    let pools = body["pools"].as_array().cloned().unwrap_or_default();
    pools
        .iter()
        .filter_map(|pool| pool["occupied_slots"].as_u64())
        .sum()
}

/// Processes of tasks that still run.
fn processes(world: &World) -> u64 {
    let of_a_task = |pid: &i32| {
        let environment = std::fs::read(format!("/proc/{pid}/environ")).unwrap_or_default();
        environment
            .split(|byte| *byte == 0)
            .any(|entry| entry.starts_with(b"AIRFLOW_CTX_DAG_RUN_ID="))
    };
    processes_of(&world.members.installation, "")
        .iter()
        .filter(|pid| of_a_task(pid))
        .count() as u64
}

/// Reads what is left.
///
/// # Errors
/// When the database cannot be asked.
pub(super) fn read(
    world: &mut World,
    apis: &[Api; 2],
    acknowledged: BTreeSet<String>,
) -> anyhow::Result<Ending> {
    let mut ending = Ending {
        acknowledged,
        silent: vec!["joins"],
        ..Ending::default()
    };
    let sql = "SELECT run_id, state FROM dag_run WHERE dag_id = 'chaos_load'";
    for row in patiently(|| world.session.query(sql))? {
        if let [run, state] = row.as_slice() {
            ending.runs.insert(run.clone(), state.clone());
        }
    }
    let sql = "SELECT run_id, task_id, map_index, COALESCE(state, 'none'), try_number FROM task_instance \
               WHERE dag_id = 'chaos_load'";
    for row in patiently(|| world.session.query(sql))? {
        if let [run, task, map_index, state, number] = row.as_slice() {
            let (map_index, number) = (map_index.parse()?, number.parse()?);
            ending
                .tasks
                .push((run.clone(), task.clone(), map_index, state.clone(), number));
        }
    }
    for (name, sql) in COUNTS {
        let count = patiently(|| world.session.number(sql))?;
        ending.counts.push((name.to_owned(), count));
    }
    ending
        .counts
        .push(("slots of pools that are taken".to_owned(), occupied(apis)));
    ending
        .counts
        .push(("processes of tasks".to_owned(), processes(world)));
    let sql = "SELECT r.run_id FROM dag_run r WHERE r.dag_id = 'chaos_load' AND r.state = 'success' AND 4 <> \
               (SELECT COUNT(*) FROM xcom x WHERE x.run_key = r.id AND x.xcom_key = 'return_value' AND x.task_id IN ('gives', 'maps'))";
    ending.without_xcom = patiently(|| world.session.column(sql))?;
    let sql = "SELECT logical_date DIV 1000000 FROM dag_run WHERE dag_id = 'chaos_clock' AND run_type = 'scheduled'";
    let dates = patiently(|| world.session.column(sql))?;
    ending.dates = (
        dates.iter().filter_map(|date| date.parse().ok()).collect(),
        INTERVAL,
    );
    Ok(ending)
}
