//! Runs single native tasks without a worker around them, for tests that hold them against the same tasks in Python.

use crate::log::{Lines, TryLog};
use crate::native::{self, Surroundings};
use crate::run::Facts;
use config::{Config, RawConfig};
use processes::lease::{BootInstant, Lease};
use proto::v1::StartTask;
use python::frames::{FrameReader, Incoming};
use serde_json::{Map, Value, json};
use std::collections::BTreeMap;
use std::time::Duration;
use tokio_util::sync::CancellationToken;

/// Time between SIGTERM and SIGKILL for commands of trials.
const PATIENCE: Duration = Duration::from_secs(5);
/// Variables by which the watchdog would find the commands of a worker.
const MARKS: [&str; 2] = ["UPDRAFT_WORKER_LIFE", "UPDRAFT_WORKER_NAME"];
/// Bytes that a worker reads at once.
const PIECE: usize = 16 << 10;
/// The lease of each trial.
const LEASE: Duration = Duration::from_secs(3600);

/// Runs tasks as a worker with certain options would.
pub struct Trials {
    settings: native::Settings,
    max_message_bytes: usize,
}

impl Trials {
    /// Trials with the options that these variables set, as `AIRFLOW__SECTION__KEY`.
    ///
    /// # Errors
    /// When an option has a value that it cannot have.
    pub fn new(variables: BTreeMap<String, String>) -> Result<Self, config::ConfigError> {
        let config = Config::from_raw(&RawConfig::load_from(variables)?)?;
        Ok(Self {
            settings: native::Settings::of(&config),
            max_message_bytes: config.updraft.max_message_bytes,
        })
    }

    /// What a worker reads of a message that a task's process sent (a frame).
    ///
    /// # Errors
    /// When the worker does not take it; the text says why.
    pub async fn read_message(&self, mut frame: &[u8]) -> Result<Value, String> {
        let mut reader = FrameReader::new(self.max_message_bytes);
        match reader.next(&mut frame).await {
            Ok(Some(Incoming::Request(request))) => Ok(request.body),
            Ok(Some(Incoming::TooLarge { error, .. })) | Err(error) => Err(error.to_string()),
            Ok(None) => Err("it is empty".to_owned()),
        }
    }

    /// The records that the log of a task in Python has of what its process wrote for it.
    pub async fn read_records(&self, written: &[u8]) -> Vec<Value> {
        let log = TryLog::kept(self.settings.log_rules());
        let mut lines = Lines::default();
        for piece in written.chunks(PIECE) {
            for line in lines.push(piece) {
                log.sdk_record(line).await;
            }
        }
        records(&log)
    }

    /// Renders the templates of a task, given its `StartupDetails` and its side document.
    ///
    /// Returns `{"declined": why}` if it has to run in Python, else `rendered`, and `state`, `xcoms` and `records` as of a
    /// task that has only been rendered.
    pub fn render(&self, startup: Value, document: &Value) -> Value {
        let start = StartTask {
            startup: startup.to_string().into_bytes().into(),
            ..StartTask::default()
        };
        let Ok(lease) = Lease::new() else {
            return json!({"declined": "there is no memory for a lease"});
        };
        let facts = Facts::new(start, lease.permit());
        match native::prepare(&self.settings, &facts, document) {
            Ok(task) => {
                let rendered = task.rendered().and_then(|text| serde_json::from_str(text).ok());
                json!({"state": "rendered", "rendered": rendered.unwrap_or(Value::Null), "xcoms": {}, "records": []})
            }
            Err(why) => json!({"declined": why}),
        }
    }

    /// Runs a BashOperator, given its `StartupDetails`, its side document and its time limit in seconds (0 for none).
    ///
    /// Returns `{"declined": why}` if it has to run in Python, else `state`, `rendered`, `xcoms` by key, and `records`.
    pub async fn run(&self, startup: Value, document: &Value, time_limit: f64) -> Value {
        let start = StartTask {
            startup: startup.to_string().into_bytes().into(),
            native: document.to_string().into_bytes().into(),
            execution_timeout: time_limit,
            ..StartTask::default()
        };
        let Ok(lease) = Lease::new() else {
            return json!({"declined": "there is no memory for a lease"});
        };
        lease.begin(BootInstant::now().after(LEASE));
        let facts = Facts::new(start, lease.permit());
        let task = match native::prepare(&self.settings, &facts, document) {
            Ok(task) => task,
            Err(why) => return json!({"declined": why}),
        };
        let log = TryLog::kept(self.settings.log_rules());
        let surroundings = Surroundings {
            marks: MARKS.map(|mark| (mark.to_owned(), "trial".to_owned())).to_vec(),
            patience: Box::new(|| PATIENCE),
        };
        let end = match native::run_alone(&surroundings, &facts, task, &log, &CancellationToken::new()).await
        {
            Some(end) => end,
            None => return json!({"declined": "it needs a worker"}),
        };
        let read = |text: &str| serde_json::from_str(text).unwrap_or(Value::Null);
        let xcoms = end.xcoms.iter().map(|xcom| (xcom.key.clone(), read(&xcom.value)));
        json!({
            "state": end.ending.as_str_name(),
            "rendered": end.rendered_fields.as_deref().map_or(Value::Null, read),
            "xcoms": xcoms.collect::<Map<_, _>>(),
            "records": records(&log),
        })
    }
}

/// What is in a log.
fn records(log: &TryLog) -> Vec<Value> {
    let all = log.unsent();
    let lines = all.split(|byte| *byte == b'\n').filter(|line| !line.is_empty());
    lines
        .map(|line| serde_json::from_slice(line).unwrap_or(Value::Null))
        .collect()
}
