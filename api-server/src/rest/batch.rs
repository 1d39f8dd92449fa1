//! `POST .../list`: filters in a body instead of a query.

use super::access::Caller;
use super::body::Body;
use super::cursor::Paging;
use super::error::ApiResult;
use super::query::{BOUNDS, micros, order_of};
use super::{runs, tasks};
use crate::App;
use axum::body::Bytes;
use axum::extract::{Path, State};
use axum::http::HeaderMap;
use identity::Role;
use model::{DagId, RunId};
use store::repo::{Condition, DURATION};
use store::sql::Value as Stored;

/// Entries of a page, unless the request says otherwise.
const PAGE: i64 = 100;

/// `KEY_gte` and so on, of instants.
fn instants(body: &mut Body, column: &'static str, conditions: &mut Vec<Condition>) {
    for (suffix, bound) in BOUNDS {
        if let Some(at) = body.instant(&format!("{column}_{suffix}"), false) {
            conditions.push(bound.of(column, column, at.into()));
        }
    }
}

fn durations(body: &mut Body, conditions: &mut Vec<Condition>) {
    for (suffix, bound) in BOUNDS {
        if let Some(seconds) = body.float(&format!("duration_{suffix}")) {
            conditions.push(bound.of("duration", DURATION, micros(seconds)));
        }
    }
}

/// "One of these texts", where the field is there.
fn one_of(body: &mut Body, key: &str, column: &'static str, conditions: &mut Vec<Condition>) {
    if let Some(texts) = body.texts(key) {
        let values = texts.into_iter().flatten().map(Stored::from).collect();
        conditions.push(Condition::In(column, values));
    }
}

/// `page_limit`, `page_offset` and `order_by`.
fn page(body: &mut Body, app: &App) -> (Paging, Option<String>) {
    let order = body.text("order_by", 250);
    let offset = body.integer("page_offset", Some(0), false).unwrap_or(0);
    let limit = body.integer("page_limit", Some(0), false).unwrap_or(PAGE);
    let positive = |number: i64| u64::try_from(number).unwrap_or(0);
    let limit = positive(limit).min(app.config.api.maximum_page_limit);
    (Paging::Offset(limit, positive(offset)), order)
}

/// `POST dags/~/dagRuns/list`
pub(crate) async fn dag_runs(
    State(app): State<App>,
    caller: Caller,
    Path(_all): Path<DagId>,
    headers: HeaderMap,
    bytes: Bytes,
) -> ApiResult {
    caller.must_be(Role::Viewer)?;
    let mut body = Body::read(&headers, &bytes)?;
    let (paging, order) = page(&mut body, &app);
    let mut conditions = Vec::new();
    one_of(&mut body, "dag_ids", "dag_id", &mut conditions);
    let states = body.texts("states");
    for column in ["run_after", "logical_date", "start_date", "end_date"] {
        instants(&mut body, column, &mut conditions);
    }
    durations(&mut body, &mut conditions);
    if let Some(text) = body.text("conf_contains", 1000) {
        conditions.push(Condition::Contains("conf", vec![text]));
    }
    body.finish()?;
    if let Some(states) = states {
        let states: Vec<String> = states.into_iter().flatten().collect();
        runs::check_states(states.iter().map(String::as_str))?;
        conditions.push(Condition::In(
            "state",
            states.into_iter().map(Stored::from).collect(),
        ));
    }
    let order = order_of(&Vec::from_iter(order.as_deref()), &runs::column, "id", "id")?;
    runs::collection(&app, conditions, &order, &paging).await
}

/// `POST dags/~/dagRuns/~/taskInstances/list`
pub(crate) async fn task_instances(
    State(app): State<App>,
    caller: Caller,
    Path(_all): Path<(DagId, RunId)>,
    headers: HeaderMap,
    bytes: Bytes,
) -> ApiResult {
    caller.must_be(Role::Viewer)?;
    let mut body = Body::read(&headers, &bytes)?;
    let mut conditions = Vec::new();
    for (key, column) in [
        ("dag_ids", "dag_id"),
        ("dag_run_ids", "run_id"),
        ("task_ids", "task_id"),
    ] {
        one_of(&mut body, key, column, &mut conditions);
    }
    let states = body.texts("state");
    for column in ["run_after", "logical_date"] {
        let mut of_run = Vec::new();
        instants(&mut body, column, &mut of_run);
        conditions.extend(of_run.into_iter().map(|inner| Condition::OfRun(Box::new(inner))));
    }
    for column in ["start_date", "end_date"] {
        instants(&mut body, column, &mut conditions);
    }
    durations(&mut body, &mut conditions);
    one_of(&mut body, "pool", "pool", &mut conditions);
    one_of(&mut body, "queue", "queue", &mut conditions);
    body.texts("executor");
    let (paging, order) = page(&mut body, &app);
    body.finish()?;
    if let Some(states) = states {
        let words: Vec<String> = states
            .into_iter()
            .map(|state| state.unwrap_or_else(|| "none".to_owned()))
            .collect();
        let states = tasks::check_states(words.iter().map(String::as_str))?;
        conditions.push(Condition::In(
            "state",
            states.into_iter().map(Stored::from).collect(),
        ));
    }
    let order = order_of(
        &Vec::from_iter(order.as_deref()),
        &tasks::column,
        "map_index",
        "id",
    )?;
    tasks::collection(&app, conditions, &order, &paging).await
}
