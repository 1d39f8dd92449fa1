//! Logs of task instances.

use super::access::Caller;
use super::error::{ApiError, ApiResult};
use super::query::{Query, path_number};
use super::reply::Json;
use super::tasks::map_index;
use crate::App;
use crate::logs::LogName;
use axum::extract::{Path, State};
use axum::http::{HeaderMap, HeaderName, StatusCode, header};
use axum::response::{IntoResponse, Response};
use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use chrono::Utc;
use futures_util::StreamExt;
use futures_util::stream::{self, BoxStream};
use identity::Role;
use model::task_instance::StateName;
use model::time::rest_format;
use model::{DagId, RunId, TaskId};
use serde_json::{Map, Value, json};
use store::repo::{HistoryRecord, TaskInstanceRecord};

/// Bytes of a log that one JSON answer holds at most.
const PAGE: u64 = 2 << 20;
/// Bytes of a log that are in memory at once while it is sent as lines.
const PIECE: u64 = 256 << 10;

fn write_token(offset: u64) -> String {
    URL_SAFE_NO_PAD.encode(format!("offset:{offset}"))
}

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

/// Which part of which log is wanted.
struct Wanted {
    name: LogName,
    /// None for the beginning, which has a head.
    from: Option<u64>,
    /// Whether the log may still grow.
    goes_on: bool,
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
    let map_index = map_index(query.number("map_index", -1, -1)?);
    let as_lines = wants_lines(&headers)?;
    let from = query
        .text("token")
        .filter(|token| !token.is_empty())
        .map(read_token)
        .transpose()?;
    let mut db = app.store.reader().await?;
    let missing = || ApiError::not_found("TaskInstance not found");
    let ti = db
        .task_instance(&dag_id, &run_id, &task_id, map_index)
        .await?
        .ok_or_else(missing)?;
    let is_current = i64::from(ti.try_number.0) == number;
    let is_this = |past: &HistoryRecord| i64::from(past.try_number) == number;
    let past = match is_current {
        true => None,
        false => Some(
            db.history(ti.id)
                .await?
                .into_iter()
                .find(is_this)
                .ok_or_else(missing)?,
        ),
    };
    drop(db);
    let (cause, end_date) = match &past {
        Some(past) => (past.exit_cause.clone(), past.end_date),
        None => (ti.exit_cause.clone(), ti.end_date),
    };
    if ti.try_number.0 == 0 {
        let content = never_ran(&ti);
        return Ok(if as_lines {
            lines_response(at_once(&content), None)
        } else {
            page_response(content, None)
        });
    }
    let running = matches!(
        ti.state,
        StateName::Running | StateName::Deferred | StateName::Restarting
    );
    let wanted = Wanted {
        name: LogName {
            dag_id,
            run_id,
            task_id,
            map_index,
            try_number: u32::try_from(number).unwrap_or(0),
        },
        from,
        goes_on: is_current && running,
    };
    if wanted.from.is_none()
        && let Some((cause, at)) = cause.zip(end_date)
        && app.logs.length(&wanted.name) == 0
    {
        // Nobody ever ran it; what is known about that takes the place of its log.
        let mut content = head(&app, &wanted.name);
        content
            .push(json!({"timestamp": rest_format(at), "event": cause, "level": "error", "logger": "task"}));
        return Ok(if as_lines {
            lines_response(at_once(&content), None)
        } else {
            page_response(content, None)
        });
    }
    if as_lines {
        Ok(whole(&app, wanted))
    } else {
        page(&app, wanted).await
    }
}

/// The first lines of every log.
fn head(app: &App, name: &LogName) -> Vec<Value> {
    let path = app.logs.path(name).to_string_lossy().into_owned();
    ["::group::Log message source details", &path, "::endgroup::"]
        .map(|event| json!({"timestamp": null, "event": event}))
        .to_vec()
}

fn lines(content: &[Value]) -> String {
    content.iter().map(|record| format!("{record}\n")).collect()
}

fn records(bytes: &[u8]) -> Vec<Value> {
    String::from_utf8_lossy(bytes).lines().map(record).collect()
}

async fn read(app: &App, name: &LogName, from: u64, most: u64) -> std::io::Result<(Vec<u8>, u64)> {
    let (logs, name) = (app.logs.clone(), name.clone());
    tokio::task::spawn_blocking(move || logs.read(&name, from, most))
        .await
        .unwrap_or_else(|error| Err(std::io::Error::other(error.to_string())))
}

/// All that there is now, sent piece by piece.
fn whole(app: &App, wanted: Wanted) -> Response {
    let end = app.logs.whole_lines(&wanted.name);
    let token = wanted.goes_on.then(|| write_token(end));
    let begin = match wanted.from {
        None => lines(&head(app, &wanted.name)),
        Some(_) => String::new(),
    };
    let from = wanted.from.unwrap_or(0);
    let name = wanted.name;
    let rest = stream::unfold((app.clone(), name, from), move |(app, name, from)| async move {
        // Up to the end that the token names, even if the log has grown meanwhile.
        let most = PIECE.min(end.saturating_sub(from));
        if most == 0 {
            return None;
        }
        match read(&app, &name, from, most).await {
            Ok((bytes, _)) if bytes.is_empty() => None,
            Ok((bytes, next)) => Some((Ok(lines(&records(&bytes))), (app, name, next))),
            Err(error) => Some((Err(error), (app, name, end))),
        }
    });
    let begin = stream::iter([Ok::<_, std::io::Error>(begin)]);
    lines_response(begin.chain(rest).boxed(), token)
}

/// One page, and a token if there is more or may be.
async fn page(app: &App, wanted: Wanted) -> ApiResult<Response> {
    let mut content = match wanted.from {
        None => head(app, &wanted.name),
        Some(_) => Vec::new(),
    };
    let read = read(app, &wanted.name, wanted.from.unwrap_or(0), PAGE).await;
    let (bytes, end) = read.map_err(|error| {
        tracing::error!("a log cannot be read: {error}");
        ApiError::detail(StatusCode::INTERNAL_SERVER_ERROR, "The log cannot be read")
    })?;
    let more = end < app.logs.length(&wanted.name) && !bytes.is_empty();
    content.extend(records(&bytes));
    Ok(page_response(
        content,
        (wanted.goes_on || more).then(|| write_token(end)),
    ))
}

/// Lines that are there already.
fn at_once(content: &[Value]) -> BoxStream<'static, std::io::Result<String>> {
    stream::iter([Ok(lines(content))]).boxed()
}

fn lines_response(lines: BoxStream<'static, std::io::Result<String>>, token: Option<String>) -> Response {
    let mut response = super::lines::answer(lines);
    if let Some(token) = token.and_then(|token| token.parse().ok()) {
        response
            .headers_mut()
            .insert(HeaderName::from_static("airflow-continuation-token"), token);
    }
    response
}

fn page_response(mut content: Vec<Value>, token: Option<String>) -> Response {
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
    Json(json!({"content": content, "continuation_token": token})).into_response()
}
