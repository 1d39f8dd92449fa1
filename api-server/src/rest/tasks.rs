//! Task instances.

use super::access::Caller;
use super::cursor::Paging;
use super::dags::when;
use super::error::{ApiError, ApiResult};
use super::query::{Query, listing, path_number};
use super::reply::Json;
use super::runs::References;
use crate::App;
use axum::extract::{Path, State};
use identity::Role;
use model::task_instance::StateName;
use model::{DagId, DagRunKey, GroupId, MapIndex, RunId, TaskId, TaskInstanceId, Timestamp};
use serde_json::{Value, json};
use std::collections::HashMap;
use store::repo::{
    Condition, DURATION, INTERVAL_END, INTERVAL_START, LOGICAL_DATE, Order, Paged, RUN_AFTER,
    TaskInstanceRecord, TriggerRecord,
};
use store::{StoreError, Tx};

/// A number that a client gave as map index; too large a one names no instance.
pub(crate) fn map_index(number: i64) -> MapIndex {
    MapIndex(i32::try_from(number).unwrap_or(i32::MAX))
}

/// Seconds, to the microsecond.
pub(crate) fn seconds(duration: Option<f64>) -> Value {
    duration.map_or(Value::Null, |duration| json!((duration * 1e6).round() / 1e6))
}

fn label(ti: &TaskInstanceRecord) -> Value {
    match &ti.rendered_map_index {
        Some(label) => json!(label),
        None if ti.map_index.0 >= 0 => json!(ti.map_index.to_string()),
        None => Value::Null,
    }
}

/// `TriggerResponse`. Airflow has emptied `kwargs` since they may hold secrets.
fn trigger(trigger: &TriggerRecord) -> Value {
    json!({
        "id": trigger.id, "classpath": trigger.classpath, "kwargs": "{}",
        "created_date": when(Some(trigger.created_at)), "queue": trigger.queue, "triggerer_id": null,
    })
}

/// What a page of task instances refers to.
struct Page {
    references: References,
    dates: HashMap<DagRunKey, (Option<Timestamp>, Timestamp)>,
    rendered: HashMap<TaskInstanceId, Value>,
    triggers: HashMap<TaskInstanceId, TriggerRecord>,
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
        let deferred: Vec<TaskInstanceId> = tis
            .iter()
            .filter(|ti| ti.state == StateName::Deferred)
            .map(|ti| ti.id)
            .collect();
        let triggers = db.triggers_waited_for(&deferred).await?;
        let triggers = triggers
            .into_iter()
            .filter_map(|trigger| Some((trigger.task_instance?, trigger)))
            .collect();
        drop(db);
        let dag_ids = tis.iter().map(|ti| &ti.dag_id).collect();
        let versions = tis.iter().map(|ti| ti.version_id).collect();
        Ok(Self {
            references: References::of(app, dag_ids, versions).await?,
            dates,
            rendered,
            triggers,
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
            "executor": ti.executor.as_ref().map(model::ExecutorName::as_str),
            "executor_config": "{}",
            "note": ti.note,
            "rendered_map_index": label(ti),
            "rendered_fields": self.rendered.get(&ti.id).cloned().unwrap_or_else(|| json!({})),
            "trigger": self.triggers.get(&ti.id).map(trigger),
            "triggerer_job": null,
            "dag_version": version,
        }))
    }
}

/// Task instances in the REST form.
pub(crate) async fn responses(app: &App, tis: &[TaskInstanceRecord]) -> Result<Vec<Value>, StoreError> {
    let mut page = Page::of(app, tis).await?;
    let mut out = Vec::with_capacity(tis.len());
    for ti in tis {
        out.push(page.response(app, ti).await?);
    }
    Ok(out)
}

/// `TaskInstanceCollectionResponse` of all of these.
pub(crate) async fn envelope(app: &App, tis: &[TaskInstanceRecord]) -> ApiResult {
    let out = responses(app, tis).await?;
    Ok(Json(json!({
        "task_instances": out, "total_entries": tis.len(), "total_entries_limit": null, "next_cursor": null,
        "previous_cursor": null,
    })))
}

/// The column that a name in `order_by` stands for.
pub(crate) fn column(name: &str) -> Option<&'static str> {
    Some(match name {
        "id" => "id",
        "state" => "state",
        "duration" => DURATION,
        "start_date" => "start_date",
        "end_date" => "end_date",
        "map_index" => "map_index",
        "try_number" => "try_number",
        "run_after" => RUN_AFTER,
        "logical_date" => LOGICAL_DATE,
        "data_interval_start" => INTERVAL_START,
        "data_interval_end" => INTERVAL_END,
        "rendered_map_index" => "rendered_map_index",
        "operator" => "operator",
        _ => return None,
    })
}

/// States by their words, `no_status` among them.
pub(crate) fn check_states<'a>(words: impl IntoIterator<Item = &'a str>) -> ApiResult<Vec<&'a str>> {
    let mut states = Vec::new();
    for word in words {
        let word = if word == "no_status" { "none" } else { word };
        if word.parse::<StateName>().is_err() {
            let text = "Invalid value for state. Valid values are removed, scheduled, queued, running, success, restarting, \
                        failed, up_for_retry, up_for_reschedule, upstream_failed, skipped, deferred, awaiting_input";
            return Err(ApiError::invalid_text(text));
        }
        states.push(word);
    }
    Ok(states)
}

fn filters(query: &mut Query) -> ApiResult<Vec<Condition>> {
    let mut conditions = Vec::new();
    let states = check_states(query.all("state"))?;
    if !states.is_empty() {
        conditions.push(Condition::In(
            "state",
            states.into_iter().map(Into::into).collect(),
        ));
    }
    for column in ["start_date", "end_date", "updated_at"] {
        query.range(column, column, &mut conditions);
    }
    for column in ["run_after", "logical_date"] {
        query.range_of_run(column, &mut conditions);
    }
    query.duration(&mut conditions);
    query.checked()?;
    query.one_of("pool", "pool", &mut conditions);
    query.one_of("queue", "queue", &mut conditions);
    query.one_of("operator", "operator", &mut conditions);
    query.one_of("executor", "executor", &mut conditions);
    query.pattern("pool_name", "pool", &mut conditions);
    query.pattern("queue_name", "queue", &mut conditions);
    query.pattern("operator_name", "operator_name", &mut conditions);
    query.pattern("rendered_map_index", "rendered_map_index", &mut conditions);
    query.versions("version_number", &mut conditions);
    query.pattern("task_display_name", "task_id", &mut conditions);
    query.pattern("dag_id", "dag_id", &mut conditions);
    query.pattern("run_id", "run_id", &mut conditions);
    for column in ["map_index", "try_number"] {
        let numbers: Vec<i64> = query
            .all(column)
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
    Ok(conditions)
}

pub(crate) async fn list(
    State(app): State<App>,
    caller: Caller,
    Path((dag_id, run_id)): Path<(DagId, RunId)>,
    mut query: Query,
) -> ApiResult {
    caller.must_be(Role::Viewer)?;
    let mut conditions = filters(&mut query)?;
    let order = query.order(&column, "map_index", "id")?;
    let paging = Paging::read(&mut query, &app, &order)?;
    if let Some(group) = query.text("task_group_id").filter(|group| !group.is_empty()) {
        let dag = super::dags::find(&app, &dag_id).await?;
        let graph = super::dags::graph(&app, &dag).await?;
        let tasks = model::dag::tasks_of_group(&graph.document, &GroupId::new(group)).unwrap_or_default();
        let tasks = tasks.iter().map(Into::into).collect();
        conditions.push(Condition::In("task_id", tasks));
    }
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
    collection(&app, conditions, &order, &paging).await
}

/// `TaskInstanceCollectionResponse` of a page.
pub(crate) async fn collection(
    app: &App,
    conditions: Vec<Condition>,
    order: &[Order],
    paging: &Paging,
) -> ApiResult {
    let listing = paging.listing(conditions, order);
    let (mut tis, total) = app.store.lister().await?.task_instances(&listing).await?;
    let table = (Paged::TaskInstances, order);
    let mut page = paging
        .finish(app, table, (&mut tis, total), |ti| ti.id.into())
        .await?;
    page["task_instances"] = responses(app, &tis).await?.into();
    Ok(Json(page))
}

/// Names a task instance in a path.
pub(crate) type TaskPath = (DagId, RunId, TaskId);

/// The instances of a task in a run that `index` names, all of them without one, in the order of their map indexes.
pub(crate) async fn instances(
    db: &mut Tx,
    (dag_id, run_id, task_id): &TaskPath,
    index: Option<MapIndex>,
) -> Result<Vec<TaskInstanceRecord>, StoreError> {
    let Some(run) = db.run(dag_id, run_id).await? else {
        return Ok(Vec::new());
    };
    let mut conditions = vec![
        Condition::Is("run_key", run.key.into()),
        Condition::Is("task_id", task_id.into()),
    ];
    conditions.extend(index.map(|index| Condition::Is("map_index", index.into())));
    let order = vec![Order {
        column: "map_index",
        descending: false,
    }];
    Ok(db
        .task_instances(&listing(conditions, order, (10_000, 0)))
        .await?
        .0)
}

pub(super) async fn all_of_task(app: &App, path: &TaskPath) -> ApiResult<Vec<TaskInstanceRecord>> {
    let mut db = app.store.reader().await?;
    Ok(instances(&mut db, path, None).await?)
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
    let map_index = map_index(number);
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
    mut query: Query,
) -> ApiResult {
    caller.must_be(Role::Viewer)?;
    let mut conditions = filters(&mut query)?;
    let order = query.order(&column, "map_index", "id")?;
    let (limit, offset) = query.page(&app)?;
    let dag = super::dags::find(&app, &path.0).await?;
    let graph = super::dags::graph(&app, &dag).await?;
    match graph.dag.task(&path.2) {
        None => return Err(ApiError::not_found(format!("Task id {} not found", path.2))),
        Some(task) if !task.is_mapped => {
            return Err(ApiError::not_found(format!("Task id {} is not mapped", path.2)));
        }
        Some(_) => {}
    }
    let (dag_id, run_id, task_id) = &path;
    let Some(run) = app.store.reader().await?.run(dag_id, run_id).await? else {
        return envelope(&app, &[]).await;
    };
    conditions.extend([
        Condition::Is("run_key", run.key.into()),
        Condition::Is("task_id", task_id.into()),
        Condition::AtLeast("map_index", 0.into()),
    ]);
    collection(&app, conditions, &order, &Paging::Offset(limit, offset)).await
}
