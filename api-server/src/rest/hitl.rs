//! Questions that tasks ask people.

use super::access::Caller;
use super::body::Body;
use super::error::{ApiError, ApiResult};
use super::pattern::{Pattern, Pipe};
use super::query::{Query, listing, path_number};
use super::reply::Json;
use super::tasks::{map_index, responses};
use crate::App;
use axum::body::Bytes;
use axum::extract::{Path, State};
use axum::http::HeaderMap;
use broker::Hint;
use chrono::Utc;
use identity::Role;
use model::human_input::{Responder, Response};
use model::time::rest_format;
use model::{DagId, RunId, TaskId, TryNumber};
use serde_json::{Map, Value, json};
use store::Tx;
use store::repo::{Condition, HitlRecord, TaskInstanceRecord};

type Named = (DagId, RunId, TaskId, String);

fn shown_params(params: &Map<String, Value>) -> Value {
    let is_param = |value: &Value| {
        ["description", "schema", "value"]
            .iter()
            .all(|key| value.get(key).is_some())
    };
    let shown = |value: &Value| {
        if is_param(value) {
            value.clone()
        } else {
            json!({"value": value, "description": null, "schema": {}})
        }
    };
    Value::Object(
        params
            .iter()
            .map(|(key, value)| (key.clone(), shown(value)))
            .collect(),
    )
}

/// `HITLDetail`
fn response(detail: &HitlRecord, task_instance: Value) -> Value {
    json!({
        "options": detail.options, "subject": detail.subject, "body": detail.body, "defaults": detail.defaults,
        "multiple": detail.multiple, "params": shown_params(&detail.params), "assigned_users": detail.assignees,
        "created_at": rest_format(detail.created_at), "responded_by_user": detail.responded_by,
        "responded_at": detail.responded_at.map(rest_format), "chosen_options": detail.chosen_options,
        "params_input": detail.params_input, "response_received": detail.responded_at.is_some(),
        "task_instance": task_instance,
    })
}

async fn instance(db: &mut Tx, named: &Named) -> ApiResult<TaskInstanceRecord> {
    let (dag_id, run_id, task_id, index) = named;
    let number = path_number("map_index", index, i64::MIN)?;
    let found = db
        .task_instance(dag_id, run_id, task_id, map_index(number))
        .await?;
    found.ok_or_else(|| {
        ApiError::not_found(format!(
            "The Task Instance with dag_id: `{dag_id}`, run_id: `{run_id}`, task_id: `{task_id}` and map_index: `{number}` was not found"
        ))
    })
}

async fn question(db: &mut Tx, ti: &TaskInstanceRecord, try_number: TryNumber) -> ApiResult<HitlRecord> {
    let found = db.hitl(ti.id, try_number).await?;
    found.ok_or_else(|| {
        ApiError::not_found(format!(
            "Human-in-the-loop detail does not exist for Task Instance with id {}",
            ti.id
        ))
    })
}

async fn task_of(app: &App, ti: &TaskInstanceRecord) -> ApiResult<Value> {
    let shown = responses(app, std::slice::from_ref(ti)).await?;
    Ok(shown.into_iter().next().unwrap_or_default())
}

pub(crate) async fn show(State(app): State<App>, caller: Caller, Path(named): Path<Named>) -> ApiResult {
    caller.must_be(Role::Viewer)?;
    let mut db = app.store.reader().await?;
    let ti = instance(&mut db, &named).await?;
    let detail = question(&mut db, &ti, ti.try_number).await?;
    drop(db);
    Ok(Json(response(&detail, task_of(&app, &ti).await?)))
}

pub(crate) async fn show_try(
    State(app): State<App>,
    caller: Caller,
    Path((dag_id, run_id, task_id, index, number)): Path<(DagId, RunId, TaskId, String, String)>,
) -> ApiResult {
    caller.must_be(Role::Viewer)?;
    let number = u32::try_from(path_number("try_number", &number, 0)?).unwrap_or(u32::MAX);
    let mut db = app.store.reader().await?;
    let ti = instance(&mut db, &(dag_id, run_id, task_id, index)).await?;
    let detail = question(&mut db, &ti, TryNumber(number)).await?;
    drop(db);
    Ok(Json(response(&detail, task_of(&app, &ti).await?)))
}

/// Checks an answer against its question, and the one who gives it.
fn check(caller: &Caller, detail: &HitlRecord, chosen: &[String]) -> ApiResult<()> {
    let name = &caller.name;
    let may = |user: &Value| user.get("id").and_then(Value::as_str) == Some(name);
    if !detail.assignees.is_empty() && !detail.assignees.iter().any(may) {
        return Err(ApiError::detail(
            axum::http::StatusCode::FORBIDDEN,
            format!("User={name} (id={name}) is not a respondent for the task."),
        ));
    }
    let list = |mut words: Vec<&String>| {
        words.sort();
        let words: Vec<String> = words.iter().map(|word| format!("'{word}'")).collect();
        format!("[{}]", words.join(", "))
    };
    let invalid: Vec<&String> = chosen
        .iter()
        .filter(|option| !detail.options.contains(option))
        .collect();
    if !invalid.is_empty() {
        let allowed = list(detail.options.iter().collect());
        return Err(ApiError::bad_request(format!(
            "Invalid options {}; allowed options are {allowed}.",
            list(invalid)
        )));
    }
    if !detail.multiple && chosen.len() > 1 {
        return Err(ApiError::bad_request(
            "Multiple options chosen but this Human-in-the-loop task accepts only a single option.",
        ));
    }
    Ok(())
}

pub(crate) async fn answer(
    State(app): State<App>,
    caller: Caller,
    Path(named): Path<Named>,
    headers: HeaderMap,
    bytes: Bytes,
) -> ApiResult {
    caller.must_be(Role::User)?;
    let mut body = Body::read(&headers, &bytes)?;
    let chosen = body.list("chosen_options");
    let params = body.object("params_input");
    if chosen.is_empty() && body.had("chosen_options") {
        let text = "List should have at least 1 item after validation, not 0";
        body.refuse_value("chosen_options", text, "[]");
    }
    body.finish()?;
    let chosen: Vec<String> = chosen
        .iter()
        .filter_map(|option| option.as_str().map(str::to_owned))
        .collect();
    let mut db = app.store.reader().await?;
    let ti = instance(&mut db, &named).await?;
    let detail = question(&mut db, &ti, ti.try_number).await?;
    drop(db);
    let taken = || {
        ApiError::conflict(format!(
            "Human-in-the-loop detail has already been updated for Task Instance with id {} and is not allowed to write again.",
            ti.id
        ))
    };
    if detail.responded_at.is_some() {
        return Err(taken());
    }
    check(&caller, &detail, &chosen)?;
    let now = Utc::now();
    let answer = Response {
        by: Some(Responder {
            id: caller.name.clone(),
            name: caller.name.clone(),
        }),
        at: now,
        chosen,
        params: params.as_object().cloned().unwrap_or_default(),
        timed_out: false,
    };
    let noted = store::transact!(app.store, "answer a task's question", |tx| tx
        .answer_person(ti.id, ti.try_number, &answer, now)
        .await)?;
    if !noted {
        return Err(taken());
    }
    app.broker.hint(Hint::Run(ti.run_key));
    Ok(Json(json!({
        "responded_by": {"id": caller.name, "name": caller.name}, "responded_at": rest_format(now),
        "chosen_options": answer.chosen, "params_input": answer.params,
    })))
}

pub(crate) async fn list(
    State(app): State<App>,
    caller: Caller,
    Path((dag_id, run_id)): Path<(DagId, RunId)>,
    mut query: Query,
) -> ApiResult {
    caller.must_be(Role::Viewer)?;
    let page = query.page(&app)?;
    let mut conditions = Vec::new();
    query.range("created_at", "created_at", &mut conditions);
    let answered = query.boolean("response_received");
    query.checked()?;
    for (key, column) in [("subject_search", "subject"), ("body_search", "body")] {
        if let Some(text) = query.text(key) {
            conditions.push(Pattern::read(text, Pipe::Or).condition(column));
        }
    }
    query.one_of("responded_by_user_id", "responded_by", &mut conditions);
    query.one_of("responded_by_user_name", "responded_by", &mut conditions);
    if let Some(answered) = answered {
        let none = Condition::IsNull("responded_at");
        conditions.push(if answered {
            Condition::Not(Box::new(none))
        } else {
            none
        });
    }
    let mut of_task = Vec::new();
    for (column, value) in [("dag_id", dag_id.as_str()), ("run_id", run_id.as_str())] {
        if value != "~" {
            of_task.push(Condition::Is(column, value.into()));
        }
    }
    query.pattern("dag_id", "dag_id", &mut of_task);
    query.pattern("task_id", "task_id", &mut of_task);
    query.one_of("task_id", "task_id", &mut of_task);
    query.one_of("state", "state", &mut of_task);
    if query.text("map_index").is_some() {
        let index = query.number("map_index", -1, i64::MIN)?;
        of_task.push(Condition::Is("map_index", index.into()));
    }
    let through = "SELECT id FROM task_instance WHERE";
    conditions.extend(
        of_task
            .into_iter()
            .map(|inner| Condition::Through("ti_id", through, Box::new(inner))),
    );
    let known = |name: &str| match name {
        "ti_id" => Some("ti_id"),
        "subject" => Some("subject"),
        "responded_at" => Some("responded_at"),
        "created_at" => Some("created_at"),
        "dag_id" => Some("(SELECT t.dag_id FROM task_instance t WHERE t.id = ti_id)"),
        "run_id" => Some("(SELECT t.run_id FROM task_instance t WHERE t.id = ti_id)"),
        "task_id" | "task_display_name" => Some("(SELECT t.task_id FROM task_instance t WHERE t.id = ti_id)"),
        "rendered_map_index" => Some("(SELECT t.rendered_map_index FROM task_instance t WHERE t.id = ti_id)"),
        "map_index" => Some("(SELECT t.map_index FROM task_instance t WHERE t.id = ti_id)"),
        "task_instance_operator" => Some("(SELECT t.operator FROM task_instance t WHERE t.id = ti_id)"),
        "task_instance_state" => Some("(SELECT t.state FROM task_instance t WHERE t.id = ti_id)"),
        "run_after" => Some("(SELECT r.run_after FROM dag_run r WHERE r.id = run_key)"),
        "responded_by_user_id" | "responded_by_user_name" => Some("responded_by"),
        _ => None,
    };
    let order = query.order(&known, "ti_id", "try_number")?;
    let mut db = app.store.lister().await?;
    let (details, total) = db.hitls(&listing(conditions, order, page)).await?;
    let mut out = Vec::with_capacity(details.len());
    for detail in &details {
        if let Some(ti) = db.task_instance_by_id(detail.task_instance).await? {
            out.push(response(detail, task_of(&app, &ti).await?));
        }
    }
    Ok(Json(json!({"hitl_details": out, "total_entries": total})))
}
