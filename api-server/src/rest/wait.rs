//! `GET dagRuns/{id}/wait`: a line of JSON whenever the run has been looked at, until it has ended.

use super::access::Caller;
use super::error::{ApiError, ApiResult, problem, problem_with};
use super::lines;
use super::query::Query;
use super::runs;
use crate::App;
use axum::extract::{Path, State};
use axum::response::Response;
use futures_util::stream;
use identity::Role;
use model::dag_run::DagRunState;
use model::{DagId, MapIndex, RunId, TaskId};
use serde_json::{Map, Value, json};
use std::time::Duration;
use store::StoreError;
use store::repo::RunRecord;

/// A client cannot ask for a pause beyond this.
const LONGEST: f64 = 3600.0;

fn interval(query: &Query) -> ApiResult<Duration> {
    let location = [json!("query"), json!("interval")];
    let Some(text) = query.text("interval") else {
        let missing = problem("missing", &location, "Field required", Value::Null);
        return Err(ApiError::invalid(vec![missing]));
    };
    match text.trim().parse::<f64>() {
        Ok(seconds) if seconds > 0.0 => Ok(Duration::from_secs_f64(seconds.min(LONGEST))),
        Ok(_) => Err(ApiError::invalid(vec![problem_with(
            "greater_than",
            &location,
            "Input should be greater than 0",
            json!(text),
            json!({"gt": 0.0}),
        )])),
        Err(_) => Err(ApiError::invalid(vec![problem(
            "float_parsing",
            &location,
            "Input should be a valid number, unable to parse string as a number",
            json!(text),
        )])),
    }
}

pub(crate) async fn wait(
    State(app): State<App>,
    caller: Caller,
    Path((dag_id, run_id)): Path<(DagId, RunId)>,
    query: Query,
) -> ApiResult<Response> {
    caller.must_be(Role::Viewer)?;
    let interval = interval(&query)?;
    let tasks: Vec<TaskId> = query.all("result").into_iter().map(TaskId::new).collect();
    let run = runs::find(&app, &dag_id, &run_id).await?;
    let following = Following {
        app,
        run,
        interval,
        tasks,
        told: false,
    };
    Ok(lines::answer(stream::unfold(following, Following::next)))
}

/// A run that a client waits for.
struct Following {
    app: App,
    /// As last seen.
    run: RunRecord,
    interval: Duration,
    tasks: Vec<TaskId>,
    /// Whether the client has heard of what was last seen.
    told: bool,
}

impl Following {
    /// The next line; none after the run's end, or when there is nothing more to wait for.
    async fn next(mut self) -> Option<(Result<String, StoreError>, Self)> {
        if self.told {
            if self.run.state.is_finished() {
                return None;
            }
            tokio::select! {
                () = tokio::time::sleep(self.interval) => {}
                () = self.app.closing.cancelled() => return None,
            }
            match look(&self.app, &self.run).await {
                // Deleted meanwhile.
                Ok(None) => return None,
                Ok(Some(run)) => self.run = run,
                Err(error) => tracing::warn!("a run that a client waits for cannot be looked at: {error}"),
            }
        }
        self.told = true;
        let line = line(&self.app, &self.run, &self.tasks).await;
        Some((line, self))
    }
}

async fn look(app: &App, run: &RunRecord) -> Result<Option<RunRecord>, StoreError> {
    app.store.reader().await?.run_by_key(run.key).await
}

/// `{"state": ...}`, with the results of the tasks asked for once the run succeeded or failed.
async fn line(app: &App, run: &RunRecord, tasks: &[TaskId]) -> Result<String, StoreError> {
    let mut line = Map::new();
    line.insert("state".to_owned(), run.state.as_str().into());
    let ended = matches!(run.state, DagRunState::Success | DagRunState::Failed);
    if ended && !tasks.is_empty() {
        let mut results = Map::new();
        let mut db = app.store.reader().await?;
        for task_id in tasks {
            let values = db.xcom_series(run.key, task_id, "return_value").await?;
            let value = match values.as_slice() {
                [] => continue,
                [one] if one.map_index == MapIndex(-1) => parsed(&one.value),
                many => many.iter().map(|xcom| parsed(&xcom.value)).collect(),
            };
            results.insert(task_id.to_string(), value);
        }
        if !results.is_empty() {
            line.insert("results".to_owned(), Value::Object(results));
        }
    }
    Ok(format!("{}\n", model::json::write(&Value::Object(line))))
}

fn parsed(text: &str) -> Value {
    serde_json::from_str(text).unwrap_or_else(|_| text.into())
}
