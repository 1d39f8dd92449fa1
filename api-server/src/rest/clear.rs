//! Clearing: task instances and whole runs run again.

use super::access::Caller;
use super::body::Body;
use super::error::{ApiError, ApiResult};
use super::runs::{self, References, RunChange};
use super::tasks::{envelope, responses};
use crate::App;
use axum::Json;
use axum::body::Bytes;
use axum::extract::{Path, State};
use axum::http::HeaderMap;
use broker::Hint;
use chrono::Utc;
use identity::Role;
use model::dag_run::DagRunState;
use model::task_instance::StateName;
use model::{DagId, RunId, TaskId};
use serde_json::{Value, json};
use store::repo::{RunRecord, TaskInstanceRecord};

fn has_failed(ti: &TaskInstanceRecord) -> bool {
    matches!(ti.state, StateName::Failed | StateName::UpstreamFailed)
}

/// Clears the instances of a run that fit; starts the run again if it had ended and `reset_run` says so. Returns what was
/// cleared, as it was.
async fn clear(
    app: &App,
    run: &RunRecord,
    fits: impl Fn(&TaskInstanceRecord) -> bool,
    reset_run: bool,
) -> ApiResult<Vec<TaskInstanceRecord>> {
    let dag = super::dags::find(app, &run.dag_id).await?;
    let graph = super::dags::graph(app, &dag).await?;
    let now = Utc::now();
    let cleared = store::transact!(app.store, "clear tasks", |tx| {
        let mut tis = tx.task_instances_of(run.key).await?;
        tis.retain(&fits);
        for ti in &tis {
            let retries = graph.dag.task(&ti.task_id).map_or(0, |task| task.retries);
            tx.clear_task_instance(ti, retries, now).await?;
        }
        let state = tx.run_by_key(run.key).await?.map(|run| run.state);
        if reset_run && !tis.is_empty() && state.is_some_and(DagRunState::is_finished) {
            tx.mark_run(run.key, DagRunState::Queued, now).await?;
        }
        Ok(tis)
    })?;
    app.broker.hint(Hint::Run(run.key)).await;
    app.broker.hint(Hint::Dag(run.dag_id.clone())).await;
    Ok(cleared)
}

/// The instances of a run that fit.
async fn preview(
    app: &App,
    run: &RunRecord,
    fits: impl Fn(&TaskInstanceRecord) -> bool,
) -> ApiResult<Vec<TaskInstanceRecord>> {
    let mut tis = app.store.reader().await?.task_instances_of(run.key).await?;
    tis.retain(fits);
    Ok(tis)
}

/// `POST clearTaskInstances`: of one run.
pub(crate) async fn clear_tasks(
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
    let dag = super::dags::find(&app, &dag_id).await?;
    let run_id = RunId::new(run_id.ok_or_else(|| ApiError::bad_request("dag_run_id is required"))?);
    let graph = super::dags::graph(&app, &dag).await?;
    let run = app.store.reader().await?.run(&dag_id, &run_id).await?;
    let run =
        run.ok_or_else(|| ApiError::not_found(format!("Dag Run id {run_id} not found in dag {dag_id}")))?;
    let wanted = task_ids.map(|ids| chosen_tasks(&graph.dag, &ids, downstream));
    let fits = |ti: &TaskInstanceRecord| {
        let chosen = wanted.as_ref().is_none_or(|wanted| wanted.contains(&ti.task_id));
        chosen && (!only_failed || has_failed(ti)) && (!only_running || ti.state == StateName::Running)
    };
    let tis = if dry_run {
        preview(&app, &run, fits).await?
    } else {
        clear(&app, &run, fits, reset_runs).await?
    };
    envelope(&app, &tis).await
}

/// `POST dagRuns/{id}/clear`: all of a run, or what failed in it.
pub(crate) async fn clear_run(
    State(app): State<App>,
    caller: Caller,
    Path((dag_id, run_id)): Path<(DagId, RunId)>,
    headers: HeaderMap,
    bytes: Bytes,
) -> ApiResult {
    caller.must_be(Role::User)?;
    let mut body = Body::read(&headers, &bytes)?;
    let dry_run = body.boolean("dry_run", Some(true));
    let only_failed = body.boolean("only_failed", Some(false));
    let only_new = body.boolean("only_new", Some(false));
    if body.has("run_on_latest_version") {
        body.any("run_on_latest_version");
    }
    let note = body.text("note", 1000);
    body.finish()?;
    let run = runs::find(&app, &dag_id, &run_id).await?;
    if only_new {
        let present = preview(&app, &run, |_| true).await?;
        return only_new_tasks(&app, &run, &present, dry_run).await;
    }
    let fits = |ti: &TaskInstanceRecord| !only_failed || has_failed(ti);
    if dry_run {
        let mut tis = preview(&app, &run, fits).await?;
        tis.sort_by_key(|ti| ti.id);
        let shown = responses(&app, &tis).await?;
        return Ok(Json(json!({"task_instances": shown, "total_entries": tis.len()})));
    }
    clear(&app, &run, fits, true).await?;
    if note.is_some() {
        let change = RunChange {
            state: None,
            note: Some(note.filter(|note| !note.is_empty())),
        };
        change.apply(&app, &run).await?;
    }
    let run = runs::find(&app, &dag_id, &run_id).await?;
    Ok(Json(
        runs::response(&app, &run, &mut References::default()).await?,
    ))
}

/// Tasks that the DAG's latest version has and the run has not. They can be named, but not yet added to a run.
async fn only_new_tasks(
    app: &App,
    run: &RunRecord,
    present: &[TaskInstanceRecord],
    dry_run: bool,
) -> ApiResult {
    if !dry_run {
        return Err(ApiError::bad_request(
            "only_new cannot be carried out; clear the run, or trigger a new one",
        ));
    }
    let dag = super::dags::find(app, &run.dag_id).await?;
    let graph = super::dags::graph(app, &dag).await?;
    let new: Vec<Value> = graph
        .dag
        .tasks
        .iter()
        .map(|task| &task.task_id)
        .filter(|id| present.iter().all(|ti| ti.task_id != **id))
        .map(|id| json!({"task_id": id, "task_display_name": id}))
        .collect();
    Ok(Json(json!({"task_instances": new, "total_entries": new.len()})))
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
