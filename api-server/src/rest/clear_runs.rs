//! Clearing whole runs: they run again, or what failed in them, or what is new in their DAG; or they are about no partition
//! any more.

use super::access::Caller;
use super::body::Body;
use super::clear::{clear, preview, take_version_wish};
use super::error::{ApiError, ApiResult};
use super::mark_run::RunChange;
use super::reply::Json;
use super::runs::{self, References};
use super::tasks::responses;
use crate::App;
use crate::clearing::{self, EndedRuns, has_failed};
use crate::partitions::{self, PartitionClearing};
use axum::body::Bytes;
use axum::extract::{Path, State};
use axum::http::HeaderMap;
use broker::Hint;
use chrono::Utc;
use identity::Role;
use model::timetable::Timetable;
use model::{DagId, RunId, Timestamp};
use serde_json::{Value, json};
use store::repo::{PartitionedRuns, RunRecord, TaskInstanceRecord};

/// What of a run is cleared, and how.
struct RunClearing {
    only_failed: bool,
    only_new: bool,
    note: Option<String>,
}

impl RunClearing {
    /// Takes what it needs out of a body.
    fn read(body: &mut Body) -> Self {
        take_version_wish(body);
        let wish = Self {
            only_failed: body.boolean("only_failed", Some(false)),
            only_new: body.boolean("only_new", Some(false)),
            note: body.text("note", store::limits::NOTE),
        };
        if wish.only_failed && wish.only_new {
            body.refuse("only_new and only_failed are mutually exclusive");
        }
        wish
    }

    fn fits(&self, ti: &TaskInstanceRecord) -> bool {
        !self.only_failed || has_failed(ti)
    }

    /// What would be cleared of a run, or would be added to it.
    async fn tried(&self, app: &App, run: &RunRecord) -> ApiResult<Vec<Value>> {
        if self.only_new {
            return new_tasks(app, run).await;
        }
        let mut tis = preview(app, run, |ti| self.fits(ti)).await?;
        tis.sort_by_key(|ti| ti.id);
        Ok(responses(app, &tis).await?)
    }

    async fn apply(&self, app: &App, run: &RunRecord) -> ApiResult<()> {
        if self.only_new {
            return add_new_tasks(app, run).await;
        }
        let tis = preview(app, run, |ti| self.fits(ti)).await?;
        clear(app, &run.dag_id, &tis, EndedRuns::StartAgain, None).await?;
        if let Some(note) = &self.note {
            let change = RunChange {
                state: None,
                note: Some(Some(note.clone()).filter(|note| !note.is_empty())),
            };
            change.apply(app, run).await?;
        }
        Ok(())
    }
}

/// `POST dagRuns/{id}/clear`
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
    let wish = RunClearing::read(&mut body);
    body.finish()?;
    let run = runs::find(&app, &dag_id, &run_id).await?;
    if dry_run {
        let tried = wish.tried(&app, &run).await?;
        return Ok(Json(
            json!({"total_entries": tried.len(), "task_instances": tried}),
        ));
    }
    wish.apply(&app, &run).await?;
    let run = runs::find(&app, &dag_id, &run_id).await?;
    Ok(Json(
        runs::response(&app, &run, &mut References::default()).await?,
    ))
}

/// Which runs a request means by their partitions.
#[derive(Default)]
struct PartitionWish {
    key: Option<String>,
    from: Option<Timestamp>,
    to: Option<Timestamp>,
}

impl PartitionWish {
    fn read(body: &mut Body) -> Self {
        let wish = Self {
            key: body.text("partition_key", store::limits::PARTITION_KEY.most),
            from: body.instant("partition_date_start", false),
            to: body.instant("partition_date_end", false),
        };
        if wish.from.zip(wish.to).is_some_and(|(from, to)| from > to) {
            body.refuse("partition_date_start must be on or before partition_date_end.");
        }
        wish
    }

    fn is_dated(&self) -> bool {
        self.from.is_some() || self.to.is_some()
    }

    /// The runs meant, for a DAG with that timetable; its zone's clock is what the bounds are read on.
    fn runs(&self, timetable: &Timetable) -> PartitionedRuns {
        let here = |at: Option<Timestamp>| at.map(|at| timetable.partition_instant(at));
        match &self.key {
            Some(key) => PartitionedRuns::Key(key.clone()),
            None => PartitionedRuns::Dated(here(self.from), here(self.to)),
        }
    }
}

/// Names of the runs in a request; the path fills in the DAG.
fn named_runs(dag_id: &DagId, entries: Vec<Value>) -> ApiResult<Vec<(DagId, RunId)>> {
    let mut named = Vec::new();
    for (at, entry) in entries.into_iter().enumerate() {
        let mut body = Body::of(entry, vec![json!("body"), json!("dag_runs"), json!(at)])?;
        let run_id = RunId::new(body.required_text("dag_run_id"));
        let own = body.text("dag_id", 250).map(DagId::new);
        // Also in the shape of the request, and without a meaning there.
        body.text("state", 50);
        body.text("note", store::limits::NOTE);
        body.finish()?;
        let of = match own.filter(|own| own.as_str() != "~") {
            None if dag_id.as_str() == "~" => {
                return Err(ApiError::bad_request(format!(
                    "When the URL dag_id is '~', every entry must provide a concrete dag_id (missing on dag_run_id: '{run_id}')."
                )));
            }
            Some(own) if dag_id.as_str() != "~" && own != *dag_id => {
                return Err(ApiError::bad_request(format!(
                    "Entry dag_id '{own}' does not match the URL dag_id '{dag_id}'."
                )));
            }
            own => own.unwrap_or_else(|| dag_id.clone()),
        };
        if !named.contains(&(of.clone(), run_id.clone())) {
            named.push((of, run_id));
        }
    }
    Ok(named)
}

/// The runs that a request names one by one, or means by their partitions.
async fn meant(
    app: &App,
    dag_id: &DagId,
    entries: Vec<Value>,
    partitions: &PartitionWish,
) -> ApiResult<Vec<RunRecord>> {
    let mut found = Vec::new();
    if entries.is_empty() {
        if dag_id.as_str() == "~" {
            let text = "Partition selectors require a concrete dag_id; '~' is not supported.";
            return Err(ApiError::bad_request(text));
        }
        let dag = super::dags::find(app, dag_id).await?;
        let graph = super::dags::graph(app, &dag).await?;
        let wanted = partitions.runs(&graph.dag.timetable);
        found = app
            .store
            .reader()
            .await?
            .partitioned_runs(dag_id, &wanted)
            .await?;
    }
    for (of, run_id) in named_runs(dag_id, entries)? {
        found.push(runs::find(app, &of, &run_id).await?);
    }
    Ok(found)
}

/// `POST clearDagRuns`: runs named one by one, or by their partitions.
pub(crate) async fn clear_many(
    State(app): State<App>,
    caller: Caller,
    Path(dag_id): Path<DagId>,
    headers: HeaderMap,
    bytes: Bytes,
) -> ApiResult {
    caller.must_be(Role::User)?;
    let mut body = Body::read(&headers, &bytes)?;
    let dry_run = body.boolean("dry_run", Some(true));
    let entries = if body.has("dag_runs") {
        body.list("dag_runs")
    } else {
        Vec::new()
    };
    let partitions = PartitionWish::read(&mut body);
    let wish = RunClearing::read(&mut body);
    let ways = [
        !entries.is_empty(),
        partitions.key.is_some(),
        partitions.is_dated(),
    ];
    if ways.iter().filter(|way| **way).count() != 1 {
        body.refuse(
            "Exactly one of dag_runs (non-empty), partition_key, or a partition date window (partition_date_start / \
             partition_date_end) must be provided.",
        );
    }
    body.finish()?;
    let found = meant(&app, &dag_id, entries, &partitions).await?;
    if dry_run {
        let mut tried = Vec::new();
        for run in &found {
            tried.extend(wish.tried(&app, run).await?);
        }
        return Ok(Json(
            json!({"total_entries": tried.len(), "task_instances": tried}),
        ));
    }
    let (mut references, mut cleared) = (References::default(), Vec::new());
    for run in &found {
        wish.apply(&app, run).await?;
        let run = runs::find(&app, &run.dag_id, &run.run_id).await?;
        cleared.push(runs::response(&app, &run, &mut references).await?);
    }
    Ok(Json(json!({
        "total_entries": cleared.len(), "dag_runs": cleared, "total_entries_limit": null, "next_cursor": null,
        "previous_cursor": null,
    })))
}

/// `POST clearPartitions`: runs are about no partition any more.
pub(crate) async fn clear_partitions(
    State(app): State<App>,
    caller: Caller,
    Path(dag_id): Path<DagId>,
    headers: HeaderMap,
    bytes: Bytes,
) -> ApiResult {
    caller.must_be(Role::User)?;
    let mut body = Body::read(&headers, &bytes)?;
    let dry_run = body.boolean("dry_run", Some(true));
    let with_tasks = body.boolean("clear_task_instances", Some(false));
    let run_id = body.text("run_id", 250);
    let window = PartitionWish::read(&mut body);
    let ways = [run_id.is_some(), window.key.is_some(), window.is_dated()];
    if ways.iter().filter(|way| **way).count() != 1 {
        body.refuse(
            "Exactly one of run_id, partition_key, or a partition date window (partition_date_start / partition_date_end) \
             must be provided.",
        );
    }
    body.finish()?;
    let dag = super::dags::find(&app, &dag_id).await?;
    let graph = super::dags::graph(&app, &dag).await?;
    let wanted = match run_id {
        Some(run_id) => PartitionedRuns::Run(run_id),
        None => window.runs(&graph.dag.timetable),
    };
    let how = PartitionClearing { dry_run, with_tasks };
    let cleared =
        partitions::clear_partitions(&app.store, &app.graphs, &*app.broker, &dag_id, &wanted, how).await?;
    Ok(Json(json!({
        "dag_runs_cleared": cleared.count(), "task_instances_cleared": cleared.task_instances, "dry_run": dry_run,
    })))
}

/// Lets a run go on with its DAG's latest version, of which only the new tasks run.
async fn add_new_tasks(app: &App, run: &RunRecord) -> ApiResult<()> {
    let now = Utc::now();
    store::transact!(app.store, "add tasks to a run", |tx| {
        if let Some(mut run) = tx.run_by_key(run.key).await? {
            clearing::adopt(tx, &app.graphs, &mut run, now).await?;
        }
        tx.note_clearing(run.key, clearing::has_ended(run), now).await
    })?;
    app.broker.hint(Hint::Dag(run.dag_id.clone()));
    Ok(())
}

/// Tasks that the DAG's latest version has and the run has not.
async fn new_tasks(app: &App, run: &RunRecord) -> ApiResult<Vec<Value>> {
    let dag = super::dags::find(app, &run.dag_id).await?;
    let graph = super::dags::graph(app, &dag).await?;
    let present = preview(app, run, |_| true).await?;
    let tasks = graph.dag.tasks.iter().map(|task| &task.task_id);
    let new = tasks.filter(|id| present.iter().all(|ti| ti.task_id != **id));
    Ok(new
        .map(|id| json!({"task_id": id, "task_display_name": id}))
        .collect())
}
