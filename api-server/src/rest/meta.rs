//! Versions, sources, import errors, statistics, health.

use super::access::Caller;
use super::dags::find;
use super::error::{ApiError, ApiResult};
use super::query::{Query, cut, path_number};
use crate::{AIRFLOW_VERSION, App};
use axum::Json;
use axum::extract::{Path, State};
use axum::http::{HeaderMap, StatusCode, header};
use axum::response::{IntoResponse, Response};
use identity::Role;
use model::DagId;
use model::dag_run::DagRunState;
use model::time::{python_isoformat, rest_format};
use serde_json::{Value, json};
use std::collections::{BTreeMap, BTreeSet};
use std::sync::{PoisonError, RwLock};
use std::time::{Duration, Instant};
use store::repo::{DagRecord, DagVersionRecord, ImportErrorRecord};

/// `DagVersionResponse`
pub(crate) fn version_response(version: &DagVersionRecord, dag: &DagRecord) -> Value {
    json!({
        "id": version.id, "version_number": version.version_number, "dag_id": version.dag_id,
        "bundle_name": version.bundle_name, "bundle_version": version.bundle_version, "created_at": rest_format(version.created_at),
        "dag_display_name": dag.display_name.as_deref().unwrap_or(dag.dag_id.as_str()), "bundle_url": null,
    })
}

pub(crate) async fn versions(
    State(app): State<App>,
    caller: Caller,
    Path(dag_id): Path<DagId>,
    mut query: Query,
) -> ApiResult {
    caller.must_be(Role::Viewer)?;
    let page = query.page(&app)?;
    let dag = find(&app, &dag_id).await?;
    let versions = app.store.reader().await?.dag_versions(&dag_id).await?;
    let total = versions.len();
    let versions: Vec<Value> = cut(versions, page)
        .iter()
        .map(|version| version_response(version, &dag))
        .collect();
    Ok(Json(json!({"dag_versions": versions, "total_entries": total})))
}

pub(crate) async fn version_of_dag(
    State(app): State<App>,
    caller: Caller,
    Path((dag_id, number)): Path<(DagId, String)>,
) -> ApiResult {
    caller.must_be(Role::Viewer)?;
    let number = path_number("version_number", &number, i64::MIN)?;
    let missing = || {
        ApiError::not_found(format!(
            "The DagVersion with dag_id: `{dag_id}` and version_number: `{number}` was not found"
        ))
    };
    let mut db = app.store.reader().await?;
    let dag = db.dag(&dag_id).await?.ok_or_else(missing)?;
    let versions = db.dag_versions(&dag_id).await?;
    let version = versions
        .iter()
        .find(|version| version.version_number == number)
        .ok_or_else(missing)?;
    Ok(Json(version_response(version, &dag)))
}

/// Whether a client wants JSON (`Some(true)`), plain text (`Some(false)`), or something that we do not have.
fn wants_json(headers: &HeaderMap) -> Option<bool> {
    let accept = headers
        .get(header::ACCEPT)
        .and_then(|value| value.to_str().ok())
        .unwrap_or("*/*")
        .trim();
    if accept.starts_with("*/*") || accept.starts_with("application/json") || accept.is_empty() {
        return Some(true);
    }
    accept.starts_with("text/plain").then_some(false)
}

pub(crate) async fn source(
    State(app): State<App>,
    caller: Caller,
    Path(dag_id): Path<DagId>,
    mut query: Query,
    headers: HeaderMap,
) -> ApiResult<Response> {
    caller.must_be(Role::Viewer)?;
    let as_json = wants_json(&headers).ok_or_else(|| {
        ApiError::detail(
            StatusCode::NOT_ACCEPTABLE,
            "Only application/json or text/plain is supported",
        )
    })?;
    let number = query.number("version_number", -1, i64::MIN)?;
    let shown = if number < 0 {
        "None".to_owned()
    } else {
        number.to_string()
    };
    let missing = || {
        ApiError::not_found(format!(
            "The source code of the Dag {dag_id}, version_number {shown} was not found"
        ))
    };
    let mut db = app.store.reader().await?;
    let dag = db.dag(&dag_id).await?.ok_or_else(missing)?;
    let id = if number < 0 {
        dag.version_id
    } else {
        let versions = db.dag_versions(&dag_id).await?;
        versions
            .iter()
            .find(|version| version.version_number == number)
            .ok_or_else(missing)?
            .id
    };
    let version = db.dag_version(id).await?.ok_or_else(missing)?;
    if !as_json {
        return Ok((
            [(header::CONTENT_TYPE, "text/plain; charset=utf-8")],
            version.source,
        )
            .into_response());
    }
    let name = dag.display_name.as_deref().unwrap_or(dag.dag_id.as_str());
    let body = json!({"content": version.source, "dag_id": dag_id, "version_number": version.version_number, "dag_display_name": name});
    Ok(Json(body).into_response())
}

pub(crate) async fn dag_stats(State(app): State<App>, caller: Caller, query: Query) -> ApiResult {
    caller.must_be(Role::Viewer)?;
    let wanted = query.all("dag_ids");
    let mut db = app.store.reader().await?;
    let mut counts: BTreeMap<DagId, BTreeMap<DagRunState, i64>> = BTreeMap::new();
    for (dag_id, state, count) in db.run_counts().await? {
        counts.entry(dag_id).or_default().insert(state, count);
    }
    let names: BTreeMap<DagId, Option<String>> = db
        .dags()
        .await?
        .into_iter()
        .map(|dag| (dag.dag_id, dag.display_name))
        .collect();
    let stats: Vec<Value> = counts
        .iter()
        .filter(|(dag_id, _)| wanted.is_empty() || wanted.contains(&dag_id.as_str()))
        .map(|(dag_id, states)| {
            let count = |state: DagRunState| json!({"state": state.as_str(), "count": states.get(&state).copied().unwrap_or(0)});
            let name = names.get(dag_id).and_then(Option::as_deref).unwrap_or(dag_id.as_str());
            json!({"dag_id": dag_id, "dag_display_name": name, "stats": DagRunState::ALL.map(count)})
        })
        .collect();
    Ok(Json(json!({"dags": stats, "total_entries": stats.len()})))
}

pub(crate) async fn dag_tags(State(app): State<App>, caller: Caller, mut query: Query) -> ApiResult {
    caller.must_be(Role::Viewer)?;
    let page = query.page(&app)?;
    let dags = app.store.reader().await?.dags().await?;
    let tags: BTreeSet<String> = dags
        .into_iter()
        .filter(|dag| !dag.is_stale)
        .flat_map(|dag| dag.tags)
        .collect();
    let total = tags.len();
    Ok(Json(
        json!({"tags": cut(tags.into_iter().collect(), page), "total_entries": total}),
    ))
}

/// Airflow warns of assets that contradict each other and of pools that do not exist; there are no such warnings here.
pub(crate) async fn dag_warnings(caller: Caller, State(app): State<App>, mut query: Query) -> ApiResult {
    caller.must_be(Role::Viewer)?;
    query.page(&app)?;
    Ok(Json(json!({"dag_warnings": [], "total_entries": 0})))
}

fn error_response(error: &ImportErrorRecord) -> Value {
    json!({
        "import_error_id": error.id, "timestamp": rest_format(error.created_at), "filename": error.path,
        "bundle_name": error.bundle_name, "stack_trace": error.stack_trace,
    })
}

pub(crate) async fn import_errors(State(app): State<App>, caller: Caller, mut query: Query) -> ApiResult {
    caller.must_be(Role::Viewer)?;
    let page = query.page(&app)?;
    let mut errors = app.store.reader().await?.import_errors().await?;
    query.retain("filename", &mut errors, |error| error.path.as_str());
    let total = errors.len();
    let errors: Vec<Value> = cut(errors, page).iter().map(error_response).collect();
    Ok(Json(json!({"import_errors": errors, "total_entries": total})))
}

pub(crate) async fn import_error(
    State(app): State<App>,
    caller: Caller,
    Path(id): Path<String>,
) -> ApiResult {
    caller.must_be(Role::Viewer)?;
    let id = path_number("import_error_id", &id, i64::MIN)?;
    let found = app.store.reader().await?.import_error(id).await?;
    let missing = || {
        ApiError::not_found(format!(
            "The ImportError with import_error_id: `{id}` was not found"
        ))
    };
    found.as_ref().map(error_response).map(Json).ok_or_else(missing)
}

pub(crate) async fn version() -> Json<Value> {
    Json(json!({"version": AIRFLOW_VERSION, "git_version": format!("updraft:{}", env!("CARGO_PKG_VERSION"))}))
}

/// How old what is known of the components may be; older, the database does not answer.
const KNOWN: Duration = Duration::from_secs(20);

/// What was last known of the other components, so that whoever asks needs no connection to the database.
#[derive(Debug, Default)]
pub(crate) struct Parts {
    last: RwLock<Option<(Instant, Value)>>,
}

impl Parts {
    fn known(&self) -> Option<Value> {
        let last = self.last.read().unwrap_or_else(PoisonError::into_inner);
        let fresh = last.as_ref().filter(|(at, _)| at.elapsed() <= KNOWN);
        fresh.map(|(_, facts)| facts.clone())
    }

    /// Reads how they are. Without an answer what is known stays, and grows old.
    pub(crate) async fn refresh(&self, app: &App) {
        match look(app).await {
            Ok(facts) => {
                let mut last = self.last.write().unwrap_or_else(PoisonError::into_inner);
                *last = Some((Instant::now(), facts));
            }
            Err(error) => tracing::warn!("the state of the components cannot be read: {error}"),
        }
    }
}

async fn look(app: &App) -> Result<Value, store::StoreError> {
    let limit = app.config.scheduler.health_check_threshold;
    let mut db = app.store.reader().await?;
    let triggerers = db.triggerers_seen().await?;
    let (now, jobs) = (db.now().await?, db.latest_jobs().await?);
    let latest_job = |name: &str| {
        let of_kind = jobs.iter().filter(|job| job.kind == name);
        of_kind.map(|job| job.heartbeat_at).max()
    };
    let part = |name: &str, latest: Option<model::Timestamp>, absent: Value| {
        let status = latest.map_or(absent, |at| {
            let fresh = (now - at).to_std().map_or(true, |age| age <= limit);
            json!(if fresh { "healthy" } else { "unhealthy" })
        });
        json!({"status": status, format!("latest_{name}_heartbeat"): latest.map(python_isoformat)})
    };
    Ok(json!({
        "metadatabase": {"status": "healthy"},
        "scheduler": part("scheduler", latest_job("scheduler"), json!("unhealthy")),
        "triggerer": part("triggerer", triggerers, Value::Null),
        "dag_processor": part("dag_processor", latest_job("dag_processor"), Value::Null),
    }))
}

pub(crate) async fn health(State(app): State<App>) -> Json<Value> {
    if app.parts.known().is_none() {
        app.parts.refresh(&app).await;
    }
    let unknown = |name: &str| json!({"status": null, format!("latest_{name}_heartbeat"): null});
    let mut parts = app.parts.known().unwrap_or_else(|| {
        json!({
            "metadatabase": {"status": "unhealthy"}, "scheduler": unknown("scheduler"),
            "triggerer": unknown("triggerer"), "dag_processor": unknown("dag_processor"),
        })
    });
    // Airflow has no such part, so there is one only when there is something to say.
    if let Some(problem) = app.logs.problem() {
        parts["task_logs"] = json!({"status": "unhealthy", "problem": problem});
    }
    Json(parts)
}

pub(crate) async fn old_health() -> Response {
    let text = "Moved in Airflow 3. Please change config to check `/api/v2/monitor/health`";
    (StatusCode::NOT_FOUND, Json(json!({"error": text}))).into_response()
}

pub(crate) async fn metrics(State(app): State<App>) -> Response {
    (
        [(header::CONTENT_TYPE, "text/plain; version=0.0.4")],
        (app.metrics)(),
    )
        .into_response()
}
