//! Marking runs: their state and note.

use super::access::Caller;
use super::body::Body;
use super::error::ApiResult;
use super::query::Query;
use super::reply::Json;
use super::runs::{References, find, response};
use crate::App;
use axum::body::Bytes;
use axum::extract::{Path, State};
use axum::http::HeaderMap;
use broker::Hint;
use chrono::Utc;
use identity::Role;
use model::dag_run::DagRunState;
use model::task_instance::StateName;
use model::{DagId, RunId};
use store::repo::{News, RunNews, RunRecord};

/// What may be changed about a run.
#[derive(Debug, Default)]
pub(crate) struct RunChange {
    pub(crate) state: Option<DagRunState>,
    /// `Some(None)` removes it.
    pub(crate) note: Option<Option<String>>,
}

impl RunChange {
    /// Takes `state` and `note` out of a body.
    pub(crate) fn read(body: &mut Body) -> Self {
        let has_note = body.has("note");
        let word = body.text("state", 50);
        let note = body
            .text("note", store::limits::NOTE)
            .filter(|note| !note.is_empty());
        let state = match word.as_deref() {
            None => None,
            Some("queued") => Some(DagRunState::Queued),
            Some("success") => Some(DagRunState::Success),
            Some("failed") => Some(DagRunState::Failed),
            Some(other) => {
                body.refuse_word("state", "'queued', 'success' or 'failed'", other);
                None
            }
        };
        Self {
            state,
            note: has_note.then_some(note),
        }
    }

    /// Leaves only what an update mask names.
    pub(crate) fn masked(self, mask: &[&str]) -> Self {
        let named = |key: &str| mask.is_empty() || mask.contains(&key);
        Self {
            state: self.state.filter(|_| named("state")),
            note: self.note.filter(|_| named("note")),
        }
    }

    /// Makes the change; tasks of a run that is ended by hand end with it.
    pub(crate) async fn apply(&self, app: &App, run: &RunRecord) -> ApiResult<()> {
        let now = Utc::now();
        store::transact!(app.store, "patch run", |tx| {
            if let Some(note) = &self.note {
                tx.set_run_note(run.key, note.as_deref(), now).await?;
            }
            let Some(state) = self.state else { return Ok(()) };
            let mut has_teardowns = false;
            if state.is_finished() {
                let graph = tx.graph_for(&app.graphs, run).await?;
                for ti in tx.task_instances_of(run.key).await? {
                    if ti.state.is_finished() {
                        continue;
                    }
                    if graph.dag.task(&ti.task_id).is_some_and(|task| task.is_teardown) {
                        has_teardowns = true;
                        continue;
                    }
                    tx.mark_task_instance(&ti, ended_by_hand(ti.state, state), now)
                        .await?;
                }
            }
            // Teardowns still clean up, and the run ends with them (`_set_dag_run_terminal_state`).
            if !has_teardowns {
                tx.mark_run(run.key, state, now).await?;
            }
            let news = match state {
                DagRunState::Success => Some(RunNews::Success),
                DagRunState::Failed => Some(RunNews::Failed),
                DagRunState::Queued | DagRunState::Running => None,
            };
            if let Some(news) = news {
                let msg = format!("Dag Run's state was manually set to `{state}`.");
                let hooks = tx.listeners().await?;
                tx.tell(&hooks, &News::Run(run.key, news, &msg), now).await?;
            }
            Ok(())
        })?;
        app.broker.hint(Hint::Run(run.key));
        app.broker.hint(Hint::Dag(run.dag_id.clone()));
        Ok(())
    }
}

/// What becomes of an unfinished task whose run is marked as ended.
fn ended_by_hand(task: StateName, run: DagRunState) -> StateName {
    let started = matches!(
        task,
        StateName::Running | StateName::Deferred | StateName::UpForReschedule | StateName::AwaitingInput
    );
    match (started, run) {
        (true, DagRunState::Success) => StateName::Success,
        (true, DagRunState::Failed | DagRunState::Queued | DagRunState::Running) => StateName::Failed,
        (false, _) => StateName::Skipped,
    }
}

pub(crate) async fn patch(
    State(app): State<App>,
    caller: Caller,
    Path((dag_id, run_id)): Path<(DagId, RunId)>,
    query: Query,
    headers: HeaderMap,
    bytes: Bytes,
) -> ApiResult {
    caller.must_be(Role::User)?;
    let mut body = Body::read(&headers, &bytes)?;
    let change = RunChange::read(&mut body);
    body.finish()?;
    let run = find(&app, &dag_id, &run_id).await?;
    change.masked(&query.all("update_mask")).apply(&app, &run).await?;
    let run = find(&app, &dag_id, &run_id).await?;
    Ok(Json(response(&app, &run, &mut References::default()).await?))
}
