//! Clearing: task instances run again.

use super::access::Caller;
use super::body::Body;
use super::error::{ApiError, ApiResult};
use super::tasks::{envelope, map_index};
use crate::App;
use crate::clearing::{self, ClearChoice, EndedRuns};
use axum::body::Bytes;
use axum::extract::{Path, State};
use axum::http::HeaderMap;
use broker::Hint;
use chrono::Utc;
use identity::Role;
use model::task_instance::StateName;
use model::{DagId, MapIndex, RunId, TaskId, Timestamp};
use serde_json::Value;
use store::repo::{RunRecord, TaskInstanceRecord};

/// Clears instances of any runs of a DAG, and tells the schedulers.
pub(super) async fn clear(
    app: &App,
    dag_id: &DagId,
    tis: &[TaskInstanceRecord],
    ended: EndedRuns,
    note: Option<&str>,
) -> ApiResult<()> {
    let now = Utc::now();
    let runs = store::transact!(app.store, "clear tasks", |tx| {
        let runs = clearing::clear(tx, &app.graphs, tis, ended, now).await?;
        if let Some(note) = note {
            for ti in tis {
                let note = Some(note).filter(|note| !note.is_empty());
                tx.set_task_note(ti.id, note, now).await?;
            }
        }
        Ok(runs)
    })?;
    for run in runs {
        app.broker.hint(Hint::Run(run));
    }
    app.broker.hint(Hint::Dag(dag_id.clone()));
    Ok(())
}

/// The instances of a run that fit.
pub(super) async fn preview(
    app: &App,
    run: &RunRecord,
    fits: impl Fn(&TaskInstanceRecord) -> bool,
) -> ApiResult<Vec<TaskInstanceRecord>> {
    let mut tis = app.store.reader().await?.task_instances_of(run.key).await?;
    tis.retain(fits);
    Ok(tis)
}

/// What `POST clearTaskInstances` asks for.
struct TasksToClear {
    dry_run: bool,
    only_failed: bool,
    only_running: bool,
    reset_runs: bool,
    tasks: Option<Vec<(TaskId, Option<MapIndex>)>>,
    run_id: Option<RunId>,
    from: Option<Timestamp>,
    to: Option<Timestamp>,
    upstream: bool,
    downstream: bool,
    future: bool,
    past: bool,
    prevent_running: bool,
    note: Option<String>,
}

impl TasksToClear {
    fn read(mut body: Body) -> ApiResult<Self> {
        take_version_wish(&mut body);
        let wish = Self {
            dry_run: body.boolean("dry_run", Some(true)),
            from: body.instant("start_date", false),
            to: body.instant("end_date", false),
            only_failed: body.boolean("only_failed", Some(true)),
            only_running: body.boolean("only_running", Some(false)),
            reset_runs: body.boolean("reset_dag_runs", Some(true)),
            tasks: body
                .has("task_ids")
                .then(|| body.any("task_ids"))
                .filter(|ids| !ids.is_null())
                .map(|ids| ids.as_array().into_iter().flatten().filter_map(named).collect()),
            run_id: body.text("dag_run_id", 250).map(RunId::new),
            upstream: body.boolean("include_upstream", Some(false)),
            downstream: body.boolean("include_downstream", Some(false)),
            future: body.boolean("include_future", Some(false)),
            past: body.boolean("include_past", Some(false)),
            prevent_running: body.boolean("prevent_running_task", Some(false)),
            note: body.text("note", 1000),
        };
        let dated = wish.from.is_some() || wish.to.is_some();
        for (wrong, text) in [
            (
                wish.only_running && body.had("only_failed") && wish.only_failed,
                "only_failed and only_running both are set to True",
            ),
            (
                wish.from.zip(wish.to).is_some_and(|(from, to)| from > to),
                "end_date is sooner than start_date",
            ),
            (
                dated && wish.run_id.is_some(),
                "Exactly one of dag_run_id or (start_date and end_date) must be provided",
            ),
            (
                wish.tasks.as_ref().is_some_and(Vec::is_empty),
                "task_ids list should have at least 1 element.",
            ),
        ] {
            if wrong {
                body.refuse(text);
            }
        }
        body.finish()?;
        Ok(wish)
    }

    /// The runs that it is about.
    async fn runs(&self, app: &App, dag_id: &DagId) -> ApiResult<Vec<RunRecord>> {
        let mut db = app.store.reader().await?;
        let Some(run_id) = &self.run_id else {
            let from = self.from.filter(|_| !self.past);
            let to = self.to.filter(|_| !self.future);
            return Ok(db.runs_dated(dag_id, from, to).await?);
        };
        let run = db.run(dag_id, run_id).await?;
        let run =
            run.ok_or_else(|| ApiError::not_found(format!("Dag Run id {run_id} not found in dag {dag_id}")))?;
        if !self.past && !self.future {
            return Ok(vec![run]);
        }
        let Some(date) = run.logical_date else {
            return Err(ApiError::bad_request(
                "Cannot use include_past or include_future with no logical_date(e.g. manually or asset-triggered).",
            ));
        };
        let from = Some(date).filter(|_| !self.past);
        let to = Some(date).filter(|_| !self.future);
        Ok(db.runs_dated(dag_id, from, to).await?)
    }
}

/// Takes note of which version a request wants runs to go on with: they all go on with the latest
/// ([`store::repo`]'s `versions`), as Airflow's do without a versioned bundle.
pub(super) fn take_version_wish(body: &mut Body) {
    if body.has("run_on_latest_version") {
        body.any("run_on_latest_version");
    }
}

/// A task as a request names it: by name, or `[name, map index]`.
fn named(id: &Value) -> Option<(TaskId, Option<MapIndex>)> {
    if let Some(task) = id.as_str() {
        return Some((TaskId::new(task), None));
    }
    let index = id.get(1)?.as_i64()?;
    Some((TaskId::new(id.get(0)?.as_str()?), Some(map_index(index))))
}

/// `POST clearTaskInstances`
pub(crate) async fn clear_tasks(
    State(app): State<App>,
    caller: Caller,
    Path(dag_id): Path<DagId>,
    headers: HeaderMap,
    bytes: Bytes,
) -> ApiResult {
    caller.must_be(Role::User)?;
    let wish = TasksToClear::read(Body::read(&headers, &bytes)?)?;
    let dag = super::dags::find(&app, &dag_id).await?;
    let runs = wish.runs(&app, &dag_id).await?;
    let graph = super::dags::graph(&app, &dag).await?;
    let choice = ClearChoice {
        tasks: wish.tasks.clone(),
        upstream: wish.upstream,
        downstream: wish.downstream,
        only_failed: wish.only_failed,
        only_running: wish.only_running,
    };
    let fits = choice.filter(&graph.dag);
    let mut tis = Vec::new();
    for run in &runs {
        tis.extend(preview(&app, run, &fits).await?);
    }
    if !wish.dry_run {
        if wish.prevent_running && tis.iter().any(|ti| ti.state == StateName::Running) {
            return Err(ApiError::conflict(
                "AirflowClearRunningTaskException: Disable 'prevent_running_task' to proceed, or wait until the task is \
                 not running, queued, or scheduled state.",
            ));
        }
        let ended = match wish.reset_runs {
            true => EndedRuns::StartAgain,
            false => EndedRuns::Stay,
        };
        clear(&app, &dag_id, &tis, ended, wish.note.as_deref()).await?;
    }
    envelope(&app, &tis).await
}
