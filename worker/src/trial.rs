//! Runs single native tasks without a worker around them, for tests that hold them against the same tasks in Python.

use crate::log::TryLog;
use crate::native::{self, Surroundings};
use crate::run::Facts;
use config::{Config, RawConfig};
use processes::lease::{BootInstant, Lease};
use proto::v1::StartTask;
use serde_json::{Map, Value, json};
use std::collections::BTreeMap;
use std::time::Duration;
use tokio_util::sync::CancellationToken;

/// Time between SIGTERM and SIGKILL for commands of trials.
const PATIENCE: Duration = Duration::from_secs(5);
/// The lease of each trial.
const LEASE: Duration = Duration::from_secs(3600);

/// Runs tasks as a worker with certain options would.
pub struct Trials {
    settings: native::Settings,
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
        })
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
            marks: Vec::new(),
            patience: Box::new(|| PATIENCE),
        };
        let end = match native::run_alone(&surroundings, &facts, task, &log, &CancellationToken::new()).await
        {
            Some(end) => end,
            None => return json!({"declined": "it needs a worker"}),
        };
        let read = |text: &str| serde_json::from_str(text).unwrap_or(Value::Null);
        let xcoms = end.xcoms.iter().map(|xcom| (xcom.key.clone(), read(&xcom.value)));
        let records = log.unsent();
        let records = records
            .split(|byte| *byte == b'\n')
            .filter(|line| !line.is_empty());
        json!({
            "state": end.ending.as_str_name(),
            "rendered": end.rendered_fields.as_deref().map_or(Value::Null, read),
            "xcoms": xcoms.collect::<Map<_, _>>(),
            "records": records.map(|line| serde_json::from_slice(line).unwrap_or(Value::Null)).collect::<Vec<_>>(),
        })
    }
}
