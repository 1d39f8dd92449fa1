//! Task instances.

use super::access::Caller;
use super::body::Body;
use super::dags::when;
use super::error::{ApiError, ApiResult};
use super::query::{Query, listing, path_number};
use super::runs::References;
use crate::App;
use axum::Json;
use axum::body::Bytes;
use axum::extract::{Path, State};
use axum::http::HeaderMap;
use broker::Hint;
use chrono::Utc;
use identity::Role;
use model::task_instance::StateName;
use model::{DagId, DagRunKey, MapIndex, RunId, TaskId, TaskInstanceId, Timestamp};
use serde_json::{Value, json};
use std::collections::HashMap;
use store::StoreError;
use store::repo::{Condition, HistoryRecord, TaskInstanceRecord};

/// Milliseconds, as the real server keeps durations.
fn seconds(duration: Option<f64>) -> Value {
    duration.map_or(Value::Null, |duration| json!((duration * 1e6).round() / 1e6))
}

fn label(ti: &TaskInstanceRecord) -> Value {
    match &ti.rendered_map_index {
        Some(label) => json!(label),
        None if ti.map_index.0 >= 0 => json!(ti.map_index.to_string()),
        None => Value::Null,
    }
}

/// What a page of task instances refers to.
struct Page {
    references: References,
    dates: HashMap<DagRunKey, (Option<Timestamp>, Timestamp)>,
    rendered: HashMap<TaskInstanceId, Value>,
}

impl Page {
    async fn of(app: &App, tis: &[TaskInstanceRecord]) -> Result<Self, StoreError> {
        let mut keys: Vec<DagRunKey> = tis.iter().map(|ti| ti.run_key).collect();
        keys.sort_unstable();
        keys.dedup();
        let ids: Vec<TaskInstanceId> = tis.iter().map(|ti| ti.id).collect();
        let mut db = app.store.reader().await?;
        let dates = db
            .run_dates(&keys)
            .await?
            .into_iter()
            .map(|(key, date, after)| (key, (date, after)))
            .collect();
        let rendered = db.rendered_fields(&ids).await?;
        let rendered = rendered
            .into_iter()
            .map(|(id, text)| (id, serde_json::from_str(&text).unwrap_or_default()))
            .collect();
        Ok(Self {
            references: References::default(),
            dates,
            rendered,
        })
    }

    /// `TaskInstanceResponse`
    async fn response(&mut self, app: &App, ti: &TaskInstanceRecord) -> Result<Value, StoreError> {
        let (logical_date, run_after) = self
            .dates
            .get(&ti.run_key)
            .copied()
            .map_or((None, None), |(d, a)| (d, Some(a)));
        let version = self.references.version(app, &ti.dag_id, ti.version_id).await?;
        Ok(json!({
            "id": ti.id,
            "task_id": ti.task_id,
            "dag_id": ti.dag_id,
            "dag_run_id": ti.run_id,
            "map_index": ti.map_index,
            "logical_date": when(logical_date),
            "run_after": when(run_after),
            "start_date": when(ti.start_date),
            "end_date": when(ti.end_date),
            "duration": seconds(ti.duration()),
            "state": ti.state.rest_word(),
            "try_number": ti.try_number,
            "max_tries": ti.max_tries,
            "task_display_name": ti.task_id,
            "dag_display_name": self.references.display_name(app, &ti.dag_id).await?,
            "hostname": ti.hostname.as_deref().unwrap_or(""),
            "unixname": ti.unixname,
            "pool": ti.pool,
            "pool_slots": ti.pool_slots,
            "queue": ti.queue,
            "priority_weight": ti.priority_weight,
            "operator": ti.operator,
            "operator_name": ti.operator_name,
            "queued_when": when(ti.queued_at),
            "scheduled_when": when(ti.scheduled_at),
            "pid": ti.pid,
            "executor": null,
            "executor_config": "{}",
            "note": ti.note,
            "rendered_map_index": label(ti),
            "rendered_fields": self.rendered.get(&ti.id).cloned().unwrap_or_else(|| json!({})),
            "trigger": null,
            "triggerer_job": null,
            "dag_version": version,
        }))
    }
}

async fn envelope(app: &App, tis: &[TaskInstanceRecord], total: i64) -> ApiResult {
    let mut page = Page::of(app, tis).await?;
    let mut out = Vec::with_capacity(tis.len());
    for ti in tis {
        out.push(page.response(app, ti).await?);
    }
    Ok(Json(json!({
        "task_instances": out, "total_entries": total, "total_entries_limit": null, "next_cursor": null,
        "previous_cursor": null,
    })))
}

fn column(name: &str) -> Option<&'static str> {
    Some(match name {
        "id" => "id",
        "state" => "state",
        "duration" => "end_date - start_date",
        "start_date" => "start_date",
        "end_date" => "end_date",
        "map_index" => "map_index",
        "try_number" => "try_number",
        "run_after" | "logical_date" | "data_interval_start" | "data_interval_end" => "run_key",
        "rendered_map_index" => "rendered_map_index",
        "operator" => "operator",
        _ => return None,
    })
}

fn check_states(query: &Query) -> ApiResult<Vec<&str>> {
    let mut words = Vec::new();
    for word in query.all("state") {
        let word = if word == "no_status" { "none" } else { word };
        if word.parse::<StateName>().is_err() {
            let text = "Invalid value for state. Valid values are removed, scheduled, queued, running, success, restarting, \
                        failed, up_for_retry, up_for_reschedule, upstream_failed, skipped, deferred, awaiting_input";
            return Err(ApiError::invalid_text(text));
        }
        words.push(word);
    }
    Ok(words)
}

pub(crate) async fn list(
    State(app): State<App>,
    caller: Caller,
    Path((dag_id, run_id)): Path<(DagId, RunId)>,
    mut query: Query,
) -> ApiResult {
    caller.must_be(Role::Viewer)?;
    let page = query.page(&app)?;
    let states = check_states(&query)?;
    let mut conditions = Vec::new();
    if !states.is_empty() {
        conditions.push(Condition::In(
            "state",
            states.into_iter().map(Into::into).collect(),
        ));
    }
    for key in ["start_date", "end_date"] {
        if let Some(column) = column(key) {
            query.range(key, column, &mut conditions);
        }
    }
    query.range("updated_at", "updated_at", &mut conditions);
    query.checked()?;
    query.one_of("pool", "pool", &mut conditions);
    query.one_of("queue", "queue", &mut conditions);
    query.one_of("operator", "operator", &mut conditions);
    query.pattern("task_display_name", "task_id", &mut conditions);
    query.pattern("dag_id", "dag_id", &mut conditions);
    query.pattern("run_id", "run_id", &mut conditions);
    for (key, column) in [("map_index", "map_index"), ("try_number", "try_number")] {
        let numbers: Vec<i64> = query
            .all(key)
            .iter()
            .filter_map(|text| text.parse().ok())
            .collect();
        if !numbers.is_empty() {
            conditions.push(Condition::In(
                column,
                numbers.into_iter().map(Into::into).collect(),
            ));
        }
    }
    if let Some(task_id) = query.text("task_id").filter(|text| !text.is_empty()) {
        conditions.push(Condition::Is("task_id", task_id.into()));
    }
    let order = query.order(&column, "map_index", "id")?;
    match (dag_id.as_str(), run_id.as_str()) {
        ("~", "~") => {}
        ("~", _) => {
            return Err(ApiError::bad_request(
                "dag_id is required when dag_run_id is specified",
            ));
        }
        (_, "~") => {
            super::dags::find(&app, &dag_id).await?;
            conditions.push(Condition::Is("dag_id", (&dag_id).into()));
        }
        _ => {
            let run = app.store.reader().await?.run(&dag_id, &run_id).await?;
            let missing = || {
                ApiError::not_found(format!(
                    "DagRun with dag_id: `{dag_id}` and run_id: `{run_id}` was not found"
                ))
            };
            conditions.push(Condition::Is("run_key", run.ok_or_else(missing)?.key.into()));
        }
    }
    let (tis, total) = app
        .store
        .reader()
        .await?
        .task_instances(&listing(conditions, order, page))
        .await?;
    envelope(&app, &tis, total).await
}

/// Names a task instance in a path.
pub(crate) type TaskPath = (DagId, RunId, TaskId);

async fn all_of_task(app: &App, (dag_id, run_id, task_id): &TaskPath) -> ApiResult<Vec<TaskInstanceRecord>> {
    let mut db = app.store.reader().await?;
    let Some(run) = db.run(dag_id, run_id).await? else {
        return Ok(Vec::new());
    };
    let conditions = vec![
        Condition::Is("run_key", run.key.into()),
        Condition::Is("task_id", task_id.into()),
    ];
    let order = vec![store::repo::Order {
        column: "map_index",
        descending: false,
    }];
    Ok(db
        .task_instances(&listing(conditions, order, (10_000, 0)))
        .await?
        .0)
}

pub(crate) async fn show(State(app): State<App>, caller: Caller, Path(path): Path<TaskPath>) -> ApiResult {
    caller.must_be(Role::Viewer)?;
    let tis = all_of_task(&app, &path).await?;
    let (dag_id, run_id, task_id) = &path;
    match tis.first() {
        None => Err(ApiError::not_found(format!(
            "The Task Instance with dag_id: `{dag_id}`, run_id: `{run_id}` and task_id: `{task_id}` was not found"
        ))),
        Some(ti) if ti.map_index.0 >= 0 => Err(ApiError::not_found(
            "Task instance is mapped, add the map_index value to the URL",
        )),
        Some(ti) => Ok(Json(Page::of(&app, &tis).await?.response(&app, ti).await?)),
    }
}

pub(crate) async fn show_mapped(
    State(app): State<App>,
    caller: Caller,
    Path((dag_id, run_id, task_id, index)): Path<(DagId, RunId, TaskId, String)>,
) -> ApiResult {
    caller.must_be(Role::Viewer)?;
    let number = path_number("map_index", &index, i64::MIN)?;
    let map_index = MapIndex(i32::try_from(number).unwrap_or(i32::MAX));
    let ti = app
        .store
        .reader()
        .await?
        .task_instance(&dag_id, &run_id, &task_id, map_index)
        .await?;
    let missing = || {
        ApiError::not_found(format!(
            "The Mapped Task Instance with dag_id: `{dag_id}`, run_id: `{run_id}`, task_id: `{task_id}`, and map_index: `{number}` was not found"
        ))
    };
    let ti = ti.ok_or_else(missing)?;
    Ok(Json(
        Page::of(&app, std::slice::from_ref(&ti))
            .await?
            .response(&app, &ti)
            .await?,
    ))
}

pub(crate) async fn list_mapped(
    State(app): State<App>,
    caller: Caller,
    Path(path): Path<TaskPath>,
) -> ApiResult {
    caller.must_be(Role::Viewer)?;
    let dag = super::dags::find(&app, &path.0).await?;
    let graph = super::dags::graph(&app, &dag).await?;
    match graph.dag.task(&path.2) {
        None => return Err(ApiError::not_found(format!("Task id {} not found", path.2))),
        Some(task) if !task.is_mapped => {
            return Err(ApiError::not_found(format!("Task id {} is not mapped", path.2)));
        }
        Some(_) => {}
    }
    let tis: Vec<TaskInstanceRecord> = all_of_task(&app, &path)
        .await?
        .into_iter()
        .filter(|ti| ti.map_index.0 >= 0)
        .collect();
    let total = i64::try_from(tis.len()).unwrap_or(i64::MAX);
    envelope(&app, &tis, total).await
}

/// `TaskInstanceHistoryResponse` of a try.
async fn try_response(
    app: &App,
    ti: &TaskInstanceRecord,
    past: Option<&HistoryRecord>,
) -> Result<Value, StoreError> {
    let mut references = References::default();
    let current = HistoryRecord {
        try_number: ti.try_number.0,
        state: ti.state.as_str().to_owned(),
        start_date: ti.start_date,
        end_date: ti.end_date,
        queued_at: ti.queued_at,
        scheduled_at: ti.scheduled_at,
        hostname: ti.hostname.clone(),
        unixname: ti.unixname.clone(),
        pid: ti.pid,
        max_tries: ti.max_tries,
        exit_cause: None,
    };
    let one = past.unwrap_or(&current);
    let duration = one
        .start_date
        .zip(one.end_date)
        .map(|(start, end)| (end - start).as_seconds_f64());
    Ok(json!({
        "task_id": ti.task_id,
        "dag_id": ti.dag_id,
        "dag_run_id": ti.run_id,
        "map_index": ti.map_index,
        "start_date": when(one.start_date),
        "end_date": when(one.end_date),
        "duration": seconds(duration),
        "state": Some(&one.state).filter(|state| *state != "none"),
        "try_number": one.try_number,
        "max_tries": one.max_tries,
        "task_display_name": ti.task_id,
        "dag_display_name": references.display_name(app, &ti.dag_id).await?,
        "hostname": one.hostname.as_deref().unwrap_or(""),
        "unixname": one.unixname,
        "pool": ti.pool,
        "pool_slots": ti.pool_slots,
        "queue": ti.queue,
        "priority_weight": ti.priority_weight,
        "operator": ti.operator,
        "operator_name": ti.operator_name,
        "queued_when": when(one.queued_at),
        "scheduled_when": when(one.scheduled_at),
        "pid": one.pid,
        "executor": null,
        "executor_config": "{}",
        "dag_version": references.version(app, &ti.dag_id, ti.version_id).await?,
    }))
}

async fn tries_of(
    app: &App,
    path: &TaskPath,
    map_index: MapIndex,
) -> ApiResult<(TaskInstanceRecord, Vec<HistoryRecord>)> {
    let (dag_id, run_id, task_id) = path;
    let mut db = app.store.reader().await?;
    let ti = db.task_instance(dag_id, run_id, task_id, map_index).await?;
    let missing = || {
        ApiError::not_found(format!(
            "The Task Instance with dag_id: `{dag_id}`, run_id: `{run_id}`, task_id: `{task_id}` and map_index: `{map_index}` was not found"
        ))
    };
    let ti = ti.ok_or_else(missing)?;
    let history = db.history(ti.id).await?;
    Ok((ti, history))
}

async fn tries_page(app: &App, path: &TaskPath, map_index: MapIndex) -> ApiResult {
    let (ti, history) = tries_of(app, path, map_index).await?;
    let mut out = Vec::new();
    for past in &history {
        out.push(try_response(app, &ti, Some(past)).await?);
    }
    if history.iter().all(|past| past.try_number != ti.try_number.0) {
        out.push(try_response(app, &ti, None).await?);
    }
    Ok(Json(json!({"task_instances": out, "total_entries": out.len()})))
}

pub(crate) async fn tries(
    State(app): State<App>,
    caller: Caller,
    Path(path): Path<TaskPath>,
    mut query: Query,
) -> ApiResult {
    caller.must_be(Role::Viewer)?;
    let index = query.number("map_index", -1, -1)?;
    tries_page(&app, &path, MapIndex(i32::try_from(index).unwrap_or(i32::MAX))).await
}

pub(crate) async fn mapped_tries(
    State(app): State<App>,
    caller: Caller,
    Path((dag_id, run_id, task_id, index)): Path<(DagId, RunId, TaskId, String)>,
) -> ApiResult {
    caller.must_be(Role::Viewer)?;
    let index = path_number("map_index", &index, i64::MIN)?;
    tries_page(
        &app,
        &(dag_id, run_id, task_id),
        MapIndex(i32::try_from(index).unwrap_or(i32::MAX)),
    )
    .await
}

pub(crate) async fn one_try(
    State(app): State<App>,
    caller: Caller,
    Path((dag_id, run_id, task_id, number)): Path<(DagId, RunId, TaskId, String)>,
    mut query: Query,
) -> ApiResult {
    caller.must_be(Role::Viewer)?;
    let number = path_number("task_try_number", &number, i64::MIN)?;
    let index = query.number("map_index", -1, -1)?;
    let map_index = MapIndex(i32::try_from(index).unwrap_or(i32::MAX));
    let missing = || {
        ApiError::not_found(format!(
            "The Task Instance with dag_id: `{dag_id}`, run_id: `{run_id}`, task_id: `{task_id}`, try_number: `{number}` and map_index: `{index}` was not found"
        ))
    };
    let path = (dag_id.clone(), run_id.clone(), task_id.clone());
    let (ti, history) = tries_of(&app, &path, map_index).await.map_err(|_| missing())?;
    if let Some(past) = history.iter().find(|past| i64::from(past.try_number) == number) {
        return Ok(Json(try_response(&app, &ti, Some(past)).await?));
    }
    if i64::from(ti.try_number.0) == number {
        return Ok(Json(try_response(&app, &ti, None).await?));
    }
    Err(missing())
}

/// Sets the outcome of a task instance.
pub(crate) async fn patch(
    State(app): State<App>,
    caller: Caller,
    Path(path): Path<TaskPath>,
    headers: HeaderMap,
    bytes: Bytes,
) -> ApiResult {
    caller.must_be(Role::User)?;
    let mut body = Body::read(&headers, &bytes)?;
    let word = body.text("new_state", 50);
    for key in [
        "include_upstream",
        "include_downstream",
        "include_future",
        "include_past",
    ] {
        body.boolean(key, Some(false));
    }
    body.text("note", 1000);
    let to = match word.as_deref() {
        None => None,
        Some("success") => Some(StateName::Success),
        Some("failed") => Some(StateName::Failed),
        Some("skipped") => Some(StateName::Skipped),
        Some(other) => {
            body.refuse(&format!(
                "'{other}' is not one of ['success', 'failed', 'skipped']"
            ));
            None
        }
    };
    body.finish()?;
    let tis = all_of_task(&app, &path).await?;
    if tis.is_empty() {
        return Err(ApiError::not_found(format!(
            "Task '{}' not found in Dag '{}'",
            path.2, path.0
        )));
    }
    if let Some(to) = to {
        if tis.iter().all(|ti| ti.state == to) {
            return Err(ApiError::conflict(format!(
                "Task id {} is already in {to} state",
                path.2
            )));
        }
        let now = Utc::now();
        for ti in tis.iter().filter(|ti| ti.state != to) {
            store::transact!(app.store, "mark task", |tx| tx
                .mark_task_instance(ti, to, now)
                .await)?;
            app.broker.hint(Hint::Run(ti.run_key)).await;
        }
    }
    let tis = all_of_task(&app, &path).await?;
    let total = i64::try_from(tis.len()).unwrap_or(i64::MAX);
    envelope(&app, &tis, total).await
}

/// Clears task instances of one run, so that they run again.
pub(crate) async fn clear(
    State(app): State<App>,
    caller: Caller,
    Path(dag_id): Path<DagId>,
    headers: HeaderMap,
    bytes: Bytes,
) -> ApiResult {
    caller.must_be(Role::User)?;
    let mut body = Body::read(&headers, &bytes)?;
    let dry_run = body.boolean("dry_run", Some(true));
    let only_failed = body.boolean("only_failed", Some(true));
    let only_running = body.boolean("only_running", Some(false));
    let reset_runs = body.boolean("reset_dag_runs", Some(true));
    let task_ids = body
        .has("task_ids")
        .then(|| body.any("task_ids"))
        .filter(|ids| !ids.is_null());
    let run_id = body.text("dag_run_id", 250);
    let downstream = body.boolean("include_downstream", Some(false));
    body.finish()?;
    let run_id = RunId::new(run_id.ok_or_else(|| ApiError::bad_request("dag_run_id is required"))?);
    let dag = super::dags::find(&app, &dag_id).await?;
    let graph = super::dags::graph(&app, &dag).await?;
    let run = app.store.reader().await?.run(&dag_id, &run_id).await?;
    let run =
        run.ok_or_else(|| ApiError::not_found(format!("Dag Run id {run_id} not found in dag {dag_id}")))?;
    let wanted = task_ids.map(|ids| chosen_tasks(&graph.dag, &ids, downstream));
    let tis = app.store.reader().await?.task_instances_of(run.key).await?;
    let fits = |ti: &&TaskInstanceRecord| {
        let failed = matches!(ti.state, StateName::Failed | StateName::UpstreamFailed);
        let chosen = wanted.as_ref().is_none_or(|wanted| wanted.contains(&ti.task_id));
        chosen && (!only_failed || failed) && (!only_running || ti.state == StateName::Running)
    };
    let tis: Vec<TaskInstanceRecord> = tis.iter().filter(fits).cloned().collect();
    if !dry_run && !tis.is_empty() {
        let now = Utc::now();
        store::transact!(app.store, "clear tasks", |tx| {
            for ti in &tis {
                let retries = graph.dag.task(&ti.task_id).map_or(0, |task| task.retries);
                tx.clear_task_instance(ti, retries, now).await?;
            }
            if reset_runs && run.state.is_finished() {
                tx.mark_run(run.key, model::dag_run::DagRunState::Queued, now)
                    .await?;
            }
            Ok(())
        })?;
        app.broker.hint(Hint::Run(run.key)).await;
        app.broker.hint(Hint::Dag(dag_id.clone())).await;
    }
    let mut page = Page::of(&app, &tis).await?;
    let mut out = Vec::with_capacity(tis.len());
    for ti in &tis {
        out.push(page.response(&app, ti).await?);
    }
    Ok(Json(json!({"task_instances": out, "total_entries": out.len()})))
}

/// The tasks named in a request, as names or `[name, map index]`, with everything after them if asked for.
fn chosen_tasks(dag: &model::dag::Dag, ids: &Value, downstream: bool) -> Vec<TaskId> {
    let name = |id: &Value| id.as_str().or_else(|| id.get(0)?.as_str()).map(TaskId::new);
    let mut chosen: Vec<TaskId> = ids.as_array().into_iter().flatten().filter_map(name).collect();
    let mut next = 0;
    while let (true, Some(task)) = (downstream, chosen.get(next).and_then(|id| dag.task(id))) {
        next += 1;
        for after in &task.downstream {
            let id = &dag.tasks[*after].task_id;
            if !chosen.contains(id) {
                chosen.push(id.clone());
            }
        }
    }
    chosen
}
