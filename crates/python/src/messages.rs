//! Messages of the supervisor schema (version 2026-06-16 of `airflow/sdk/execution_time/schema/schema.json`).
//!
//! A child's message is one of three: the end of the try, something that the supervisor itself deals with, or a question
//! that the control plane answers.

use serde::Deserialize;
use serde_json::{Value, json};

/// What the worker deals with itself.
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(tag = "type")]
#[expect(missing_docs, reason = "the names are those of the schema")]
pub enum FromTask {
    SucceedTask {
        end_date: String,
        #[serde(default)]
        rendered_map_index: Option<String>,
        #[serde(default)]
        task_outlets: Option<Vec<Value>>,
        #[serde(default)]
        outlet_events: Option<Vec<Value>>,
    },
    TaskState {
        state: String,
        #[serde(default)]
        end_date: Option<String>,
        #[serde(default)]
        rendered_map_index: Option<String>,
    },
    RetryTask {
        end_date: String,
        #[serde(default)]
        rendered_map_index: Option<String>,
        #[serde(default)]
        retry_delay_seconds: Option<f64>,
        #[serde(default)]
        retry_reason: Option<String>,
    },
    RescheduleTask {
        reschedule_date: String,
        end_date: String,
    },
    DeferTask {
        classpath: String,
        #[serde(default)]
        trigger_kwargs: Value,
        #[serde(default)]
        trigger_timeout: Option<Value>,
        #[serde(default)]
        queue: Option<String>,
        next_method: String,
        #[serde(default)]
        next_kwargs: Option<Value>,
    },
    AwaitInputTask {
        #[serde(default)]
        timeout: Option<Value>,
        next_method: String,
        #[serde(default)]
        next_kwargs: Option<Value>,
    },
    SetRenderedFields {
        rendered_fields: Value,
    },
    SetRenderedMapIndex {
        rendered_map_index: String,
    },
    MaskSecret {
        value: Value,
        #[serde(default)]
        name: Option<String>,
    },
    ResendLoggingFD,
}

/// What the control plane answers.
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(tag = "type")]
#[expect(missing_docs, reason = "the names are those of the schema")]
pub enum Question {
    /// From the worker itself, on behalf of a task that runs for a while.
    SetRenderedFields {
        rendered_fields: Value,
    },
    GetVariable {
        key: String,
    },
    GetVariableKeys {
        #[serde(default)]
        prefix: Option<String>,
        #[serde(default)]
        limit: Option<usize>,
        #[serde(default)]
        offset: Option<usize>,
    },
    PutVariable {
        key: String,
        #[serde(default)]
        value: Option<String>,
        #[serde(default)]
        description: Option<String>,
    },
    DeleteVariable {
        key: String,
    },
    GetConnection {
        conn_id: String,
    },
    GetXCom {
        key: String,
        dag_id: String,
        run_id: String,
        task_id: String,
        #[serde(default)]
        map_index: Option<i32>,
        #[serde(default)]
        include_prior_dates: bool,
    },
    SetXCom {
        key: String,
        #[serde(default)]
        value: Value,
        dag_id: String,
        run_id: String,
        task_id: String,
        #[serde(default)]
        map_index: Option<i32>,
        #[serde(default)]
        mapped_length: Option<i64>,
    },
    DeleteXCom {
        key: String,
        dag_id: String,
        run_id: String,
        task_id: String,
        #[serde(default)]
        map_index: Option<i32>,
    },
    GetXComCount {
        key: String,
        dag_id: String,
        run_id: String,
        task_id: String,
    },
    GetXComSequenceItem {
        key: String,
        dag_id: String,
        run_id: String,
        task_id: String,
        offset: i64,
    },
    GetXComSequenceSlice {
        key: String,
        dag_id: String,
        run_id: String,
        task_id: String,
        #[serde(default)]
        start: Option<i64>,
        #[serde(default)]
        stop: Option<i64>,
        #[serde(default)]
        step: Option<i64>,
    },
    GetTaskStateStore {
        key: String,
    },
    SetTaskStateStore {
        key: String,
        value: Value,
        #[serde(default)]
        expires_at: Option<String>,
    },
    DeleteTaskStateStore {
        key: String,
    },
    ClearTaskStateStore {},
    SkipDownstreamTasks {
        tasks: Vec<Value>,
    },
    TriggerDagRun {
        dag_id: String,
        run_id: String,
        #[serde(default)]
        logical_date: Option<String>,
        #[serde(default)]
        run_after: Option<String>,
        #[serde(default)]
        conf: Option<Value>,
        #[serde(default)]
        reset_dag_run: Option<bool>,
        #[serde(default)]
        note: Option<String>,
        #[serde(default)]
        partition_key: Option<String>,
    },
    GetDagRun {
        dag_id: String,
        run_id: String,
    },
    GetDagRunState {
        dag_id: String,
        run_id: String,
    },
    GetDag {
        dag_id: String,
    },
    GetDRCount {
        dag_id: String,
        #[serde(default)]
        logical_dates: Option<Vec<String>>,
        #[serde(default)]
        run_ids: Option<Vec<String>>,
        #[serde(default)]
        states: Option<Vec<String>>,
    },
    GetTICount {
        dag_id: String,
        #[serde(default)]
        map_index: Option<i32>,
        #[serde(default)]
        task_ids: Option<Vec<String>>,
        #[serde(default)]
        task_group_id: Option<String>,
        #[serde(default)]
        logical_dates: Option<Vec<String>>,
        #[serde(default)]
        run_ids: Option<Vec<String>>,
        #[serde(default)]
        states: Option<Vec<String>>,
    },
    GetTaskStates {
        dag_id: String,
        #[serde(default)]
        map_index: Option<i32>,
        #[serde(default)]
        task_ids: Option<Vec<String>>,
        #[serde(default)]
        task_group_id: Option<String>,
        #[serde(default)]
        logical_dates: Option<Vec<String>>,
        #[serde(default)]
        run_ids: Option<Vec<String>>,
    },
    GetTaskBreadcrumbs {
        dag_id: String,
        run_id: String,
    },
    GetPreviousDagRun {
        dag_id: String,
        logical_date: String,
        #[serde(default)]
        state: Option<String>,
    },
    GetPrevSuccessfulDagRun {},
    GetPreviousTI {
        dag_id: String,
        task_id: String,
        #[serde(default)]
        logical_date: Option<String>,
        #[serde(default)]
        map_index: Option<i32>,
        #[serde(default)]
        state: Option<String>,
    },
    GetTaskRescheduleStartDate {},
    ValidateInletsAndOutlets {},
    GetAssetByName {
        name: String,
    },
    GetAssetByUri {
        uri: String,
    },
    GetAssetsByAlias {
        alias_name: String,
    },
    GetAssetEventByAsset {
        #[serde(default)]
        name: Option<String>,
        #[serde(default)]
        uri: Option<String>,
        #[serde(flatten)]
        window: EventWindow,
    },
    GetAssetEventByAssetAlias {
        alias_name: String,
        #[serde(flatten)]
        window: EventWindow,
    },
    GetAssetStateStoreByName {
        name: String,
        key: String,
    },
    GetAssetStateStoreByUri {
        uri: String,
        key: String,
    },
    SetAssetStateStoreByName {
        name: String,
        key: String,
        value: Value,
    },
    SetAssetStateStoreByUri {
        uri: String,
        key: String,
        value: Value,
    },
    DeleteAssetStateStoreByName {
        name: String,
        key: String,
    },
    DeleteAssetStateStoreByUri {
        uri: String,
        key: String,
    },
    ClearAssetStateStoreByName {
        name: String,
    },
    ClearAssetStateStoreByUri {
        uri: String,
    },
    CreateHITLDetailPayload {
        options: Vec<String>,
        subject: String,
        #[serde(default)]
        body: Option<String>,
        #[serde(default)]
        defaults: Option<Vec<String>>,
        #[serde(default)]
        multiple: Option<bool>,
        #[serde(default)]
        params: Option<Value>,
        #[serde(default)]
        assigned_users: Option<Vec<Value>>,
    },
    UpdateHITLDetail {
        chosen_options: Vec<String>,
        #[serde(default)]
        params_input: Option<Value>,
    },
}

/// Which of the updates of an asset a task asks for.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[expect(missing_docs, reason = "the names are those of the schema")]
pub struct EventWindow {
    #[serde(default)]
    pub after: Option<String>,
    #[serde(default)]
    pub before: Option<String>,
    #[serde(default)]
    pub limit: Option<u32>,
    #[serde(default = "yes")]
    pub ascending: bool,
}

const fn yes() -> bool {
    true
}

/// A reply to a question: its body slot, or its error slot, or neither.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Answer {
    /// Goes into the body slot.
    pub body: Option<Value>,
    /// Goes into the error slot, which raises in the user's code.
    pub error: Option<Value>,
}

impl Answer {
    /// A plain acknowledgement.
    pub const fn done() -> Self {
        Self {
            body: None,
            error: None,
        }
    }

    /// A body of that type.
    pub fn of(kind: &str, mut fields: Value) -> Self {
        if let Some(fields) = fields.as_object_mut() {
            fields.insert("type".to_owned(), kind.into());
        }
        Self {
            body: Some(fields),
            error: None,
        }
    }

    /// `{"ok": true}`.
    pub fn ok() -> Self {
        Self::of("OKResponse", json!({"ok": true}))
    }

    /// "There is no such thing", in the body slot, where the SDK expects it.
    pub fn missing(error: &str, detail: Value) -> Self {
        Self::of("ErrorResponse", json!({"error": error, "detail": detail}))
    }

    /// An error that raises in the user's code.
    pub fn failure(status: u16, message: impl Into<String>) -> Self {
        let detail = json!({"status_code": status, "message": message.into()});
        let error = json!({"type": "ErrorResponse", "error": "API_SERVER_ERROR", "detail": detail});
        Self {
            body: None,
            error: Some(error),
        }
    }
}

/// A timedelta as pydantic writes it: seconds, or ISO 8601 such as `P1DT2H3.5S`.
pub fn timedelta(value: &Value) -> Option<chrono::Duration> {
    if let Some(seconds) = value.as_f64() {
        return Some(chrono::Duration::microseconds((seconds * 1e6) as i64));
    }
    let text = value.as_str()?;
    let (days, time) = text
        .strip_prefix('P')?
        .split_once('T')
        .unwrap_or((text.strip_prefix('P')?, ""));
    let mut seconds = days
        .strip_suffix('D')
        .map_or(Some(0.0), |days| Some(days.parse::<f64>().ok()? * 86_400.0))?;
    let mut number = String::new();
    for c in time.chars() {
        let unit = match c {
            'H' => 3600.0,
            'M' => 60.0,
            'S' => 1.0,
            other => {
                number.push(other);
                continue;
            }
        };
        seconds += number.parse::<f64>().ok()? * unit;
        number.clear();
    }
    Some(chrono::Duration::microseconds((seconds * 1e6) as i64))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn messages_are_told_apart_by_their_type() {
        let end: FromTask = serde_json::from_value(json!({
            "type": "RetryTask", "state": "up_for_retry", "end_date": "2025-01-01T00:00:00Z", "retry_delay_seconds": 2.5,
        }))
        .unwrap();
        assert!(matches!(
            end,
            FromTask::RetryTask {
                retry_delay_seconds: Some(_),
                ..
            }
        ));
        let question: Question = serde_json::from_value(json!({"type": "GetVariable", "key": "k"})).unwrap();
        assert_eq!(question, Question::GetVariable { key: "k".to_owned() });
        assert!(serde_json::from_value::<Question>(json!({"type": "GetNothing"})).is_err());
    }

    #[test]
    fn a_timedelta_is_read_as_pydantic_writes_it() {
        let micros = |value| timedelta(&value).and_then(|length| length.num_microseconds());
        assert_eq!(micros(json!(2.5)), Some(2_500_000));
        assert_eq!(micros(json!("PT1M0.5S")), Some(60_500_000));
        assert_eq!(micros(json!("P1DT2H")), Some(26 * 3_600_000_000));
        assert_eq!(micros(json!("P2D")), Some(48 * 3_600_000_000));
        assert_eq!(micros(json!("soon")), None);
    }
}
