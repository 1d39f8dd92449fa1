//! What a task's process is told first.

use serde_json::{Value, json};
use std::collections::BTreeMap;

/// Facts that make up `StartupDetails`.
#[derive(Debug, Clone)]
#[expect(missing_docs, reason = "the names are those of the schema")]
pub struct Startup {
    pub ti_id: String,
    pub task_id: String,
    pub dag_id: String,
    pub run_id: String,
    pub try_number: u32,
    pub dag_version_id: String,
    pub map_index: i32,
    pub queue: String,
    pub dag_rel_path: String,
    pub bundle_name: String,
    pub bundle_version: Option<String>,
    pub start_date: String,
    pub max_tries: u32,
    pub should_retry: bool,
    pub task_reschedule_count: u32,
    pub first_start: Option<String>,
    pub next_method: Option<String>,
    pub next_kwargs: Option<Value>,
    pub trace_context: Option<BTreeMap<String, String>>,
    pub dag_run: Value,
    pub xcom_keys_to_clear: Vec<String>,
}

impl Startup {
    /// The message. Absent optional parts are left out: the SDK's models forbid what they do not know.
    pub fn message(&self) -> Value {
        let mut context = json!({
            "dag_run": self.dag_run,
            "max_tries": self.max_tries,
            "should_retry": self.should_retry,
            "task_reschedule_count": self.task_reschedule_count,
            "xcom_keys_to_clear": self.xcom_keys_to_clear,
        });
        if let (Some(method), Some(fields)) = (&self.next_method, context.as_object_mut()) {
            fields.insert("next_method".to_owned(), method.as_str().into());
            fields.insert(
                "next_kwargs".to_owned(),
                self.next_kwargs.clone().unwrap_or_else(|| json!({})),
            );
            fields.insert("start_date".to_owned(), self.start_date.as_str().into());
        }
        json!({
            "type": "StartupDetails",
            "dag_rel_path": self.dag_rel_path,
            "bundle_info": {"name": self.bundle_name, "version": self.bundle_version},
            "start_date": self.start_date,
            "sentry_integration": "",
            "ti": {
                "id": self.ti_id, "task_id": self.task_id, "dag_id": self.dag_id, "run_id": self.run_id,
                "try_number": self.try_number, "dag_version_id": self.dag_version_id, "map_index": self.map_index,
                "hostname": null, "context_carrier": self.trace_context, "queue": self.queue,
            },
            "ti_context": context,
        })
    }
}
