//! Task instances marked by hand: their outcome and their note, one, all of a task or all of a task group.

use super::access::Caller;
use super::body::Body;
use super::error::{ApiError, ApiResult};
use super::query::{Query, path_number};
use super::tasks::{TaskPath, envelope, instances, map_index};
use crate::App;
use crate::clearing::{self, EndedRuns, Selection, has_failed};
use axum::body::Bytes;
use axum::extract::{Path, State};
use axum::http::HeaderMap;
use broker::Hint;
use chrono::Utc;
use identity::Role;
use model::task_instance::StateName;
use model::{DagId, DagRunKey, GroupId, MapIndex, RunId, TaskId};
use std::collections::HashSet;
use store::repo::{News, RunRecord, TaskInstanceRecord};

/// What may be changed about a task instance by hand.
#[derive(Debug, Default)]
pub(crate) struct TaskChange {
    state: Option<StateName>,
    /// An empty one removes the note.
    note: Option<String>,
    upstream: bool,
    downstream: bool,
    future: bool,
    past: bool,
}

/// The instances that a change of state is about.
struct Affected {
    /// Those that are not in that state yet.
    altered: Vec<TaskInstanceRecord>,
    /// Those after them that failed and can go on now.
    resumed: Vec<TaskInstanceRecord>,
}

impl TaskChange {
    /// Takes `new_state`, `note` and what else is to change out of a body.
    pub(crate) fn read(body: &mut Body) -> Self {
        let word = body.text("new_state", 50);
        let note = body.text("note", 1000);
        let mut flag = |key: &str| body.boolean(key, Some(false));
        let (upstream, downstream) = (flag("include_upstream"), flag("include_downstream"));
        let (future, past) = (flag("include_future"), flag("include_past"));
        let state = match word.as_deref() {
            None => None,
            Some("success") => Some(StateName::Success),
            Some("failed") => Some(StateName::Failed),
            Some("skipped") => Some(StateName::Skipped),
            Some(other) => {
                let text = format!("'{other}' is not one of ['success', 'failed', 'skipped']");
                body.refuse_value("new_state", &text, other);
                None
            }
        };
        Self {
            state,
            note,
            upstream,
            downstream,
            future,
            past,
        }
    }

    /// Leaves only what an update mask names.
    pub(crate) fn masked(self, mask: &[&str]) -> Self {
        let named = |key: &str| mask.is_empty() || mask.contains(&key);
        Self {
            state: self.state.filter(|_| named("new_state")),
            note: self.note.clone().filter(|_| named("note")),
            ..self
        }
    }

    /// Makes the change to the instances of a task, all of them or the one of that index, and its state also to the
    /// relatives that were asked for. Returns those of the task itself as they were.
    pub(crate) async fn apply(
        &self,
        app: &App,
        path: &TaskPath,
        index: Option<MapIndex>,
    ) -> ApiResult<Vec<TaskInstanceRecord>> {
        let tis = instances(&mut app.store.reader().await?, path, index).await?;
        if tis.is_empty() {
            return Ok(tis);
        }
        let (dag_id, run_id, task_id) = path;
        let run = super::runs::find(app, dag_id, run_id).await?;
        let affected = self.affected(app, &run, &[(task_id.clone(), index)]).await?;
        if let Some((to, affected)) = self.state.zip(affected.as_ref())
            && affected.altered.is_empty()
        {
            return Err(ApiError::conflict(format!(
                "Task id {task_id} is already in {to} state"
            )));
        }
        self.write(app, &tis, affected).await?;
        Ok(tis)
    }

    /// Writes the note of `tis` and the state of what is affected, and tells the schedulers.
    async fn write(
        &self,
        app: &App,
        tis: &[TaskInstanceRecord],
        affected: Option<Affected>,
    ) -> ApiResult<()> {
        let now = Utc::now();
        let runs = store::transact!(app.store, "patch task instances", |tx| {
            if let Some(note) = &self.note {
                let note = Some(note.as_str()).filter(|note| !note.is_empty());
                for ti in tis {
                    tx.set_task_note(ti.id, note, now).await?;
                }
            }
            let mut runs: Vec<DagRunKey> = Vec::new();
            if let Some((to, affected)) = self.state.zip(affected.as_ref()) {
                let hooks = tx.listeners().await?;
                let why = format!("TaskInstance's state was manually set to `{to}`.");
                for ti in &affected.altered {
                    let marked = tx.mark_task_instance(ti, to, now).await?;
                    tx.tell(&hooks, &News::Task(&marked, None, &why), now).await?;
                    runs.push(ti.run_key);
                }
                runs.extend(
                    clearing::clear(tx, &app.graphs, &affected.resumed, EndedRuns::StartAgain, now).await?,
                );
            }
            runs.sort_unstable();
            runs.dedup();
            Ok(runs)
        })?;
        for run in runs {
            app.broker.hint(Hint::Run(run));
        }
        Ok(())
    }

    /// What the change of state is about, `None` when there is none (`SerializedDAG.set_task_instance_state` and
    /// `set_task_group_state`).
    async fn affected(
        &self,
        app: &App,
        run: &RunRecord,
        tasks: &[(TaskId, Option<MapIndex>)],
    ) -> ApiResult<Option<Affected>> {
        let Some(to) = self.state else { return Ok(None) };
        let mut db = app.store.reader().await?;
        let graph = db.graph_for(&app.graphs, run).await?;
        let own: HashSet<&TaskId> = tasks.iter().map(|(task, _)| task).collect();
        let selected = || Selection::of(tasks.iter().cloned());
        let whole = tasks.iter().map(|(task, _)| (task.clone(), None));
        let (mut up, mut down, mut after) = (selected(), selected(), Selection::of(whole));
        if self.upstream {
            up.add_relatives(&graph.dag, true, true);
        }
        if self.downstream {
            down.add_relatives(&graph.dag, false, false);
        }
        after.add_relatives(&graph.dag, false, true);
        let runs = match run.logical_date {
            Some(date) if self.future || self.past => {
                let from = Some(date).filter(|_| !self.past);
                let to = Some(date).filter(|_| !self.future);
                let dated = db.runs_dated(&run.dag_id, from, to).await?;
                dated
                    .into_iter()
                    .filter(|run| run.logical_date.is_some())
                    .collect()
            }
            Some(_) | None => vec![run.clone()],
        };
        let mut affected = Affected {
            altered: Vec::new(),
            resumed: Vec::new(),
        };
        for run in runs {
            for ti in db.task_instances_of(run.key).await? {
                if (up.has(&ti) || down.has(&ti)) && ti.state != to {
                    affected.altered.push(ti);
                } else if !own.contains(&ti.task_id) && after.has(&ti) && has_failed(&ti) {
                    affected.resumed.push(ti);
                }
            }
        }
        Ok(Some(affected))
    }
}

/// Says why there is nothing of a task to mark.
async fn missing(app: &App, (dag_id, run_id, task_id): &TaskPath, index: Option<MapIndex>) -> ApiResult {
    let dag = super::dags::find(app, dag_id).await?;
    let graph = super::dags::graph(app, &dag).await?;
    Err(ApiError::not_found(match (graph.dag.task(task_id), index) {
        (None, _) => format!("Task '{task_id}' not found in Dag '{dag_id}'"),
        (Some(_), None) => format!(
            "The Task Instance with dag_id: `{dag_id}`, run_id: `{run_id}` and task_id: `{task_id}` was not found"
        ),
        (Some(_), Some(index)) => format!(
            "The Task Instance with dag_id: `{dag_id}`, run_id: `{run_id}`, task_id: `{task_id}` and map_index: `{index}` was not found"
        ),
    }))
}

/// Marks instances of a task, or only shows which would be marked.
async fn change(
    app: &App,
    path: &TaskPath,
    index: Option<MapIndex>,
    change: TaskChange,
    dry_run: bool,
) -> ApiResult {
    if !dry_run {
        change.apply(app, path, index).await?;
    }
    let tis = instances(&mut app.store.reader().await?, path, index).await?;
    if tis.is_empty() {
        return missing(app, path, index).await;
    }
    if dry_run && change.state.is_some() {
        let run = super::runs::find(app, &path.0, &path.1).await?;
        let affected = change.affected(app, &run, &[(path.2.clone(), index)]).await?;
        return envelope(app, &affected.map(|of| of.altered).unwrap_or_default()).await;
    }
    envelope(app, &tis).await
}

/// Reads a change from a request.
fn read(query: &Query, headers: &HeaderMap, bytes: &Bytes) -> ApiResult<TaskChange> {
    let mut body = Body::read(headers, bytes)?;
    let wanted = TaskChange::read(&mut body);
    body.finish()?;
    Ok(wanted.masked(&query.all("update_mask")))
}

/// Sets outcome and note of all instances of a task in a run; dry, it only shows which.
pub(crate) async fn mark_task<const DRY: bool>(
    State(app): State<App>,
    caller: Caller,
    Path(path): Path<TaskPath>,
    mut query: Query,
    headers: HeaderMap,
    bytes: Bytes,
) -> ApiResult {
    caller.must_be(Role::User)?;
    let wanted = read(&query, &headers, &bytes)?;
    let index = match query.text("map_index") {
        None => None,
        Some(_) => Some(map_index(query.number("map_index", -1, -1)?)),
    };
    change(&app, &path, index, wanted, DRY).await
}

type InstancePath = (DagId, RunId, TaskId, String);

/// Sets outcome and note of one instance of a mapped task; dry, it only shows which.
pub(crate) async fn mark_instance<const DRY: bool>(
    State(app): State<App>,
    caller: Caller,
    Path((dag_id, run_id, task_id, index)): Path<InstancePath>,
    query: Query,
    headers: HeaderMap,
    bytes: Bytes,
) -> ApiResult {
    caller.must_be(Role::User)?;
    let wanted = read(&query, &headers, &bytes)?;
    let index = map_index(path_number("map_index", &index, i64::MIN)?);
    change(&app, &(dag_id, run_id, task_id), Some(index), wanted, DRY).await
}

type GroupPath = (DagId, RunId, GroupId);

/// Sets outcome and note of all instances of a task group in a run; dry, it only shows which.
pub(crate) async fn mark_group<const DRY: bool>(
    State(app): State<App>,
    caller: Caller,
    Path((dag_id, run_id, group_id)): Path<GroupPath>,
    query: Query,
    headers: HeaderMap,
    bytes: Bytes,
) -> ApiResult {
    caller.must_be(Role::User)?;
    let wanted = read(&query, &headers, &bytes)?;
    let dag = super::dags::find(&app, &dag_id).await?;
    let graph = super::dags::graph(&app, &dag).await?;
    let tasks = model::dag::tasks_of_group(&graph.document, &group_id)
        .ok_or_else(|| ApiError::not_found(format!("Task group '{group_id}' not found in DAG '{dag_id}'")))?;
    let mut tis = Vec::new();
    let run = app.store.reader().await?.run(&dag_id, &run_id).await?;
    if let Some(run) = &run {
        tis = app.store.reader().await?.task_instances_of(run.key).await?;
        tis.retain(|ti| tasks.contains(&ti.task_id));
        tis.sort_by(|a, b| (&a.task_id, a.map_index).cmp(&(&b.task_id, b.map_index)));
    }
    let Some(run) = run.filter(|_| !tis.is_empty()) else {
        return Err(ApiError::not_found(format!(
            "No task instances found for task group '{group_id}' in dag run '{run_id}'"
        )));
    };
    let whole: Vec<_> = tasks.into_iter().map(|task| (task, None)).collect();
    let affected = wanted.affected(&app, &run, &whole).await?;
    let shown: Vec<_> = match &affected {
        Some(affected) => affected.altered.iter().map(|ti| ti.id).collect(),
        None => tis.iter().map(|ti| ti.id).collect(),
    };
    if !DRY {
        if let (Some(to), true) = (wanted.state, shown.is_empty()) {
            return Err(ApiError::conflict(format!(
                "All task instances in the group are already in {to} state"
            )));
        }
        wanted.write(&app, &tis, affected).await?;
    }
    let shown = app.store.reader().await?.task_instances_by_id(&shown).await?;
    envelope(&app, &shown).await
}
