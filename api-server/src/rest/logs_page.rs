//! Logs of task instances.

use super::access::Caller;
use super::error::{ApiError, ApiResult};
use super::query::{Query, path_number};
use crate::App;
use crate::logs::LogName;
use axum::Json;
use axum::extract::{Path, State};
use axum::http::{HeaderMap, HeaderName, StatusCode, header};
use axum::response::{IntoResponse, Response};
use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use chrono::Utc;
use identity::Role;
use model::task_instance::StateName;
use model::time::rest_format;
use model::{DagId, MapIndex, RunId, TaskId};
use serde_json::{Map, Value, json};
use store::repo::TaskInstanceRecord;

fn bad_token() -> ApiError {
    ApiError::bad_request("Bad Signature. Please use only the tokens provided by the API.")
}

fn read_token(token: &str) -> ApiResult<u64> {
    let bytes = URL_SAFE_NO_PAD.decode(token).map_err(|_| bad_token())?;
    let text = String::from_utf8(bytes).map_err(|_| bad_token())?;
    text.strip_prefix("offset:")
        .and_then(|offset| offset.parse().ok())
        .ok_or_else(bad_token)
}

/// Only these words; anything after them is ignored, as in the real server.
fn wants_lines(headers: &HeaderMap) -> ApiResult<bool> {
    let accept = headers
        .get(header::ACCEPT)
        .and_then(|value| value.to_str().ok())
        .unwrap_or("*/*")
        .trim();
    if accept.starts_with("application/x-ndjson") {
        return Ok(true);
    }
    if accept.is_empty() || accept.starts_with("*/*") || accept.starts_with("application/json") {
        return Ok(false);
    }
    let text = "Only application/json or application/x-ndjson is supported";
    Err(ApiError::detail(StatusCode::NOT_ACCEPTABLE, text))
}

/// A record of a log: `timestamp` and `event` come first.
fn record(line: &str) -> Value {
    let Ok(Value::Object(mut fields)) = serde_json::from_str::<Value>(line) else {
        return json!({"timestamp": null, "event": line});
    };
    let mut out = Map::new();
    out.insert(
        "timestamp".to_owned(),
        fields.shift_remove("timestamp").unwrap_or(Value::Null),
    );
    out.insert(
        "event".to_owned(),
        fields.shift_remove("event").unwrap_or_default(),
    );
    out.extend(fields);
    Value::Object(out)
}

/// What stands where there is no log, because the task never ran.
fn never_ran(ti: &TaskInstanceRecord) -> Vec<Value> {
    let text = match ti.state {
        StateName::Skipped => "Task was skipped — no logs available.",
        StateName::UpstreamFailed => "Task did not run because upstream task(s) failed.",
        StateName::NoStatus
        | StateName::Scheduled
        | StateName::Queued
        | StateName::Running
        | StateName::Restarting
        | StateName::Success
        | StateName::Failed
        | StateName::UpForRetry
        | StateName::UpForReschedule
        | StateName::Deferred
        | StateName::AwaitingInput
        | StateName::Removed => ti
            .exit_cause
            .as_deref()
            .unwrap_or("No logs available for this task."),
    };
    let at = ti.end_date.unwrap_or_else(Utc::now);
    vec![
        json!({"timestamp": null, "event": "::group::Log message source details"}),
        json!({"timestamp": null, "event": "::endgroup::"}),
        json!({"timestamp": rest_format(at), "event": text}),
    ]
}

pub(crate) async fn show(
    State(app): State<App>,
    caller: Caller,
    Path((dag_id, run_id, task_id, number)): Path<(DagId, RunId, TaskId, String)>,
    mut query: Query,
    headers: HeaderMap,
) -> ApiResult<Response> {
    caller.must_be(Role::Viewer)?;
    let number = path_number("try_number", &number, 0)?;
    let index = query.number("map_index", -1, -1)?;
    let as_lines = wants_lines(&headers)?;
    let offset = query
        .text("token")
        .filter(|token| !token.is_empty())
        .map(read_token)
        .transpose()?;
    let map_index = MapIndex(i32::try_from(index).unwrap_or(i32::MAX));
    let mut db = app.store.reader().await?;
    let missing = || ApiError::not_found("TaskInstance not found");
    let ti = db
        .task_instance(&dag_id, &run_id, &task_id, map_index)
        .await?
        .ok_or_else(missing)?;
    let is_current = i64::from(ti.try_number.0) == number;
    if !is_current
        && !db
            .history(ti.id)
            .await?
            .iter()
            .any(|past| i64::from(past.try_number) == number)
    {
        return Err(missing());
    }
    drop(db);
    let goes_on = is_current
        && matches!(
            ti.state,
            StateName::Running | StateName::Deferred | StateName::Restarting
        );
    let mut content = Vec::new();
    let mut end = 0;
    let mut more = false;
    if ti.try_number.0 == 0 {
        content = never_ran(&ti);
    } else {
        let name = LogName {
            dag_id,
            run_id,
            task_id,
            map_index,
            try_number: u32::try_from(number).unwrap_or(0),
        };
        if offset.is_none() {
            let path = app.logs.path(&name).to_string_lossy().into_owned();
            for event in ["::group::Log message source details", &path, "::endgroup::"] {
                content.push(json!({"timestamp": null, "event": event}));
            }
        }
        let logs = app.logs.clone();
        let from = offset.unwrap_or(0);
        let page = tokio::task::spawn_blocking(move || {
            let (bytes, end) = logs.read(&name, from)?;
            Ok::<_, std::io::Error>((bytes, end, logs.length(&name)))
        });
        let page = page
            .await
            .map_err(|error| std::io::Error::other(error.to_string()))
            .and_then(|page| page);
        let (bytes, read_to, length) = page.map_err(|error| {
            tracing::error!("a log cannot be read: {error}");
            ApiError::detail(StatusCode::INTERNAL_SERVER_ERROR, "The log cannot be read")
        })?;
        end = read_to;
        more = read_to < length && !bytes.is_empty();
        content.extend(String::from_utf8_lossy(&bytes).lines().map(record));
    }
    let token = (goes_on || more).then(|| URL_SAFE_NO_PAD.encode(format!("offset:{end}")));
    if as_lines {
        let mut body = String::new();
        for record in &content {
            body.push_str(&record.to_string());
            body.push('\n');
        }
        let mut response = ([(header::CONTENT_TYPE, "application/x-ndjson")], body).into_response();
        if let Some(token) = token.and_then(|token| token.parse().ok()) {
            response
                .headers_mut()
                .insert(HeaderName::from_static("airflow-continuation-token"), token);
        }
        return Ok(response);
    }
    // Here the lines of the head have no timestamp at all.
    for record in &mut content {
        if let Some(fields) = record.as_object_mut()
            && fields.get("timestamp") == Some(&Value::Null)
            && fields
                .get("event")
                .and_then(Value::as_str)
                .is_some_and(|event| !event.is_empty())
            && fields.len() == 2
        {
            fields.shift_remove("timestamp");
        }
    }
    Ok(Json(json!({"content": content, "continuation_token": token})).into_response())
}
