//! The load: runs that are triggered all the time, so that a number of them is always in flight.

use super::checks::Rules;
use super::database::Session;
use super::members::Members;
use crate::Api;
use serde_json::json;
use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

const DAGS: &str = include_str!("../../chaos/chaos_load.py");
const TRIGGER: &str = include_str!("../../chaos/chaos_trigger.py");
/// How long a server may take to answer.
const ANSWER: Duration = Duration::from_secs(4);
/// Seconds between two runs of the DAG with a schedule.
pub(super) const INTERVAL: i64 = 10;
/// Slots of the pool `narrow`.
const SLOTS: usize = 3;

/// What the tasks of the load are like.
pub(super) const RULES: Rules = Rules {
    in_parts: &["waits", "naps", "sensor"],
    order: &[
        ("begin", "maps"),
        ("begin", "flaky"),
        ("begin", "long"),
        ("begin", "pooled"),
        ("begin", "waits"),
        ("begin", "naps"),
        ("begin", "sensor"),
        ("begin", "takes"),
        ("maps", "takes"),
        ("gives", "takes"),
        ("takes", "finish"),
        ("flaky", "finish"),
        ("long", "finish"),
        ("pooled", "finish"),
        ("waits", "finish"),
        ("naps", "finish"),
        ("sensor", "finish"),
        ("maps", "finish"),
    ],
    pooled: ("pooled", SLOTS),
};

/// How much.
#[derive(Debug, Clone, Copy)]
pub struct Amount {
    /// Runs in flight.
    pub runs: u64,
    /// Seconds that a run takes, about.
    pub pace: u64,
}

/// Writes the DAG files, before anything is started.
///
/// # Errors
/// When they cannot be written.
pub(super) fn write(members: &Members, amount: Amount) -> std::io::Result<PathBuf> {
    let home = members.installation.path();
    let folder = home.join("witness");
    std::fs::create_dir_all(&folder)?;
    std::fs::create_dir_all(home.join("plugins"))?;
    std::fs::write(home.join("plugins/chaos_trigger.py"), TRIGGER)?;
    let now = chrono::Utc::now().timestamp();
    let text = DAGS
        .replace("@FOLDER@", &folder.to_string_lossy())
        .replace("@PACE@", &amount.pace.to_string())
        .replace("@START@", &(now - now % INTERVAL).to_string())
        .replace("@INTERVAL@", &INTERVAL.to_string());
    members.installation.dag("chaos_load.py", &text);
    Ok(folder)
}

/// Makes what the load needs, once an API server answers.
///
/// # Errors
/// When it refuses.
pub(super) fn prepare(api: &Api) -> anyhow::Result<()> {
    let pool = json!({"name": "narrow", "slots": SLOTS, "description": "of the campaign"});
    let (status, body) = api.call("POST", "/api/v2/pools", Some(&pool))?;
    anyhow::ensure!(status == 201, "the pool cannot be made: {status} {body}");
    for dag_id in ["chaos_load", "chaos_clock", "chaos_probe"] {
        api.wait_for_dag(dag_id);
    }
    Ok(())
}

/// A trigger's answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Answered {
    /// The run is there.
    Accepted,
    /// Nobody knows.
    Unknown,
}

/// Triggers a run; a second trigger of the same run is told that it is there.
pub(super) fn trigger(api: &Api, dag_id: &str, run_id: &str) -> Answered {
    let body = json!({"logical_date": null, "dag_run_id": run_id});
    match api.call("POST", &format!("/api/v2/dags/{dag_id}/dagRuns"), Some(&body)) {
        Ok((200 | 409, _)) => Answered::Accepted,
        Ok(_) | Err(_) => Answered::Unknown,
    }
}

#[derive(Default)]
struct Shared {
    stop: AtomicBool,
    in_flight: AtomicU64,
    most: AtomicU64,
    acknowledged: Mutex<BTreeSet<String>>,
}

/// The load at work.
pub(super) struct Load {
    shared: Arc<Shared>,
    thread: Option<JoinHandle<()>>,
}

impl Load {
    /// Starts it.
    pub(super) fn start(apis: [Api; 2], url: &str, folder: &Path, amount: Amount) -> Self {
        let shared = Arc::new(Shared::default());
        let (own, session, folder) = (Arc::clone(&shared), Session::new(url), folder.to_owned());
        let apis = apis.map(|api| api.patient(ANSWER));
        let thread = std::thread::spawn(move || own.work(&apis, session, &folder, amount));
        Self {
            shared,
            thread: Some(thread),
        }
    }

    /// No more runs.
    pub(super) fn stop(&mut self) {
        self.shared.stop.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            thread.join().ok();
        }
    }

    /// Runs in flight now, and at most so far.
    pub(super) fn in_flight(&self) -> (u64, u64) {
        let read = |number: &AtomicU64| number.load(Ordering::Relaxed);
        (read(&self.shared.in_flight), read(&self.shared.most))
    }

    /// Runs whose trigger was acknowledged.
    pub(super) fn acknowledged(&self) -> BTreeSet<String> {
        let acknowledged = self.shared.acknowledged.lock();
        acknowledged.unwrap_or_else(PoisonError::into_inner).clone()
    }
}

impl Drop for Load {
    fn drop(&mut self) {
        self.stop();
    }
}

impl Shared {
    fn work(&self, apis: &[Api; 2], mut session: Session, folder: &Path, amount: Amount) {
        let pause = Duration::from_secs(amount.pace).div_f64(amount.runs.max(1) as f64);
        let mut looked = Instant::now() - Duration::from_secs(9);
        let mut next = Instant::now();
        let mut number = 0;
        while !self.stop.load(Ordering::Relaxed) {
            std::thread::sleep(Duration::from_millis(20));
            if looked.elapsed() > Duration::from_millis(700) {
                looked = Instant::now();
                let sql = "SELECT COUNT(*) FROM dag_run WHERE dag_id = 'chaos_load' AND state IN ('queued', 'running')";
                if let Ok(count) = session.number(sql) {
                    self.in_flight.store(count, Ordering::Relaxed);
                    self.most.fetch_max(count, Ordering::Relaxed);
                }
            }
            if Instant::now() < next || self.in_flight.load(Ordering::Relaxed) >= amount.runs {
                continue;
            }
            next = Instant::now() + pause;
            number += 1;
            self.one(apis, folder, number);
        }
    }

    /// Triggers one run until a server says that it is there, or the load is to stop.
    fn one(&self, apis: &[Api; 2], folder: &Path, number: usize) {
        let run_id = format!("r{number}");
        if std::fs::create_dir_all(folder.join(&run_id)).is_err() {
            return;
        }
        for attempt in number.. {
            if trigger(&apis[attempt % 2], "chaos_load", &run_id) == Answered::Accepted {
                let mut acknowledged = self.acknowledged.lock().unwrap_or_else(PoisonError::into_inner);
                acknowledged.insert(run_id);
                return;
            }
            if self.stop.load(Ordering::Relaxed) {
                return;
            }
            std::thread::sleep(Duration::from_millis(100));
        }
    }
}
