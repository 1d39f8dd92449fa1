//! DagRuns.

use super::access::Caller;
use super::body::Body;
use super::cursor::Paging;
use super::dags::when;
use super::error::{ApiError, ApiResult};
use super::pattern::Pipe;
use super::query::Query;
use super::reply::Json;
use crate::App;
use crate::trigger::{TriggerError, TriggerRequest, trigger_run};
use axum::body::Bytes;
use axum::extract::{Path, State};
use axum::http::{HeaderMap, StatusCode, header};
use identity::Role;
use model::dag_run::{DagRunState, DagRunType};
use model::time::rest_format;
use model::timetable::DataInterval;
use model::{DagId, DagVersionId, RunId, Timestamp};
use serde_json::{Value, json};
use std::collections::{BTreeSet, HashMap};
use store::StoreError;
use store::repo::{Condition, DURATION, DagRecord, Order, Paged, RunRecord};
use store::sql::Value as Stored;

/// DAGs and versions that a page of runs or task instances refers to.
#[derive(Default)]
pub(crate) struct References {
    dags: HashMap<DagId, Option<DagRecord>>,
    versions: HashMap<DagVersionId, Value>,
}

impl References {
    /// Reads at once what a page refers to.
    pub(crate) async fn of(
        app: &App,
        dag_ids: BTreeSet<&DagId>,
        versions: BTreeSet<DagVersionId>,
    ) -> Result<Self, StoreError> {
        let mut db = app.store.reader().await?;
        let found = db.dags_named(&Vec::from_iter(dag_ids)).await?;
        let dags: HashMap<DagId, Option<DagRecord>> = found
            .into_iter()
            .map(|dag| (dag.dag_id.clone(), Some(dag)))
            .collect();
        let found = db.versions_named(&Vec::from_iter(versions)).await?;
        let shown = found.iter().filter_map(|version| {
            let dag = dags.get(&version.dag_id)?.as_ref()?;
            Some((version.id, super::meta::version_response(version, dag)))
        });
        let versions = shown.collect();
        Ok(Self { dags, versions })
    }

    pub(crate) async fn display_name(&mut self, app: &App, dag_id: &DagId) -> Result<String, StoreError> {
        let name = self
            .dag(app, dag_id)
            .await?
            .and_then(|dag| dag.display_name.clone());
        Ok(name.unwrap_or_else(|| dag_id.to_string()))
    }

    async fn dag(&mut self, app: &App, dag_id: &DagId) -> Result<Option<&DagRecord>, StoreError> {
        if !self.dags.contains_key(dag_id) {
            let found = app.store.reader().await?.dag(dag_id).await?;
            self.dags.insert(dag_id.clone(), found);
        }
        Ok(self.dags.get(dag_id).and_then(Option::as_ref))
    }

    /// The versions of its DAG that a run has used, oldest first.
    async fn versions_of(&mut self, app: &App, run: &RunRecord) -> Result<Vec<Value>, StoreError> {
        let only = self
            .dag(app, &run.dag_id)
            .await?
            .is_none_or(|dag| dag.version_number == 1);
        let ids = match only {
            true => BTreeSet::from([run.version_id]),
            false => app.store.reader().await?.versions_in_run(run.key).await?,
        };
        let mut versions = Vec::new();
        for id in ids {
            versions.push(self.version(app, &run.dag_id, id).await?);
        }
        versions.retain(|version| !version.is_null());
        Ok(versions)
    }

    pub(crate) async fn version(
        &mut self,
        app: &App,
        dag_id: &DagId,
        id: DagVersionId,
    ) -> Result<Value, StoreError> {
        if let Some(version) = self.versions.get(&id) {
            return Ok(version.clone());
        }
        let Some(dag) = self.dag(app, dag_id).await?.cloned() else {
            return Ok(Value::Null);
        };
        let versions = app.store.reader().await?.dag_versions(dag_id).await?;
        for version in &versions {
            self.versions
                .insert(version.id, super::meta::version_response(version, &dag));
        }
        Ok(self.versions.get(&id).cloned().unwrap_or(Value::Null))
    }
}

/// `DAGRunResponse`
pub(crate) async fn response(
    app: &App,
    run: &RunRecord,
    references: &mut References,
) -> Result<Value, StoreError> {
    let duration = run
        .start_date
        .zip(run.end_date)
        .map(|(start, end)| (end - start).as_seconds_f64());
    let conf: Value = serde_json::from_str(&run.conf).unwrap_or_else(|_| json!({}));
    let versions = references.versions_of(app, run).await?;
    Ok(json!({
        "dag_run_id": run.run_id,
        "dag_id": run.dag_id,
        "logical_date": when(run.logical_date),
        "queued_at": when(run.queued_at),
        "start_date": when(run.start_date),
        "end_date": when(run.end_date),
        "duration": duration,
        "data_interval_start": when(run.data_interval_start),
        "data_interval_end": when(run.data_interval_end),
        "run_after": rest_format(run.run_after),
        "last_scheduling_decision": when(run.last_decision_at),
        "run_type": run.run_type.as_str(),
        "state": run.state.as_str(),
        "triggered_by": run.triggered_by,
        "triggering_user_name": run.triggering_user,
        "conf": conf,
        "note": run.note,
        "dag_versions": versions,
        "bundle_version": null,
        "dag_display_name": references.display_name(app, &run.dag_id).await?,
        "partition_key": run.partition_key,
        "partition_date": when(run.partition_date),
    }))
}

fn missing(dag_id: &DagId, run_id: &RunId) -> ApiError {
    ApiError::not_found(format!(
        "The DagRun with dag_id: `{dag_id}` and run_id: `{run_id}` was not found"
    ))
}

pub(crate) async fn find(app: &App, dag_id: &DagId, run_id: &RunId) -> ApiResult<RunRecord> {
    let found = app.store.reader().await?.run(dag_id, run_id).await?;
    found.ok_or_else(|| missing(dag_id, run_id))
}

/// The column that a name in `order_by` stands for.
pub(crate) fn column(name: &str) -> Option<&'static str> {
    Some(match name {
        "id" => "id",
        "state" => "state",
        "dag_id" => "dag_id",
        "run_id" | "dag_run_id" => "run_id",
        "logical_date" => "logical_date",
        "run_after" => "run_after",
        "start_date" => "start_date",
        "end_date" => "end_date",
        "updated_at" => "updated_at",
        "conf" => "conf",
        "partition_key" => "partition_key",
        "partition_date" => "partition_date",
        "duration" => DURATION,
        _ => return None,
    })
}

/// Checks words for states.
pub(crate) fn check_states<'a>(words: impl IntoIterator<Item = &'a str>) -> ApiResult<()> {
    for word in words {
        if word.parse::<DagRunState>().is_err() {
            let text = "Invalid value for state. Valid values are queued, running, success, failed";
            return Err(ApiError::invalid_text(text));
        }
    }
    Ok(())
}

fn filters(query: &mut Query) -> ApiResult<Vec<Condition>> {
    check_states(query.all("state"))?;
    for kind in query.all("run_type") {
        if kind.parse::<DagRunType>().is_err() {
            let words: Vec<&str> = DagRunType::ALL.iter().map(|kind| kind.as_str()).collect();
            let text = format!(
                "Invalid value for run type. Valid values are {}",
                words.join(", ")
            );
            return Err(ApiError::invalid_text(text));
        }
    }
    let mut conditions = Vec::new();
    for column in [
        "run_after",
        "logical_date",
        "start_date",
        "end_date",
        "updated_at",
    ] {
        query.range(column, column, &mut conditions);
    }
    query.duration(&mut conditions);
    query.checked()?;
    query.one_of("state", "state", &mut conditions);
    query.one_of("run_type", "run_type", &mut conditions);
    query.pattern("run_id", "run_id", &mut conditions);
    query.pattern("dag_id", "dag_id", &mut conditions);
    query.pattern("triggering_user_name", "triggering_user", &mut conditions);
    query.pattern_with("partition_key", "partition_key", Pipe::Letter, &mut conditions);
    query.versions("dag_version", &mut conditions);
    query.bundle_version(&mut conditions);
    if let Some(asset) = query
        .text("consuming_asset_pattern")
        .filter(|text| !text.is_empty())
    {
        let named = |column| Condition::Contains(column, vec![asset.to_owned()]);
        conditions.push(Condition::Through(
            "id",
            "SELECT used.run_key FROM run_asset_event used JOIN asset_event event ON event.id = used.event_id \
             JOIN asset ON asset.id = event.asset_id WHERE",
            Box::new(Condition::Any(vec![named("asset.name"), named("asset.uri")])),
        ));
    }
    if let Some(text) = query.text("conf_contains").filter(|text| !text.is_empty()) {
        conditions.push(Condition::Contains("conf", vec![text.to_owned()]));
    }
    Ok(conditions)
}

pub(crate) async fn list(
    State(app): State<App>,
    caller: Caller,
    Path(dag_id): Path<DagId>,
    mut query: Query,
) -> ApiResult {
    caller.must_be(Role::Viewer)?;
    let mut conditions = filters(&mut query)?;
    let order = query.order(&column, "id", "id")?;
    let paging = Paging::read(&mut query, &app, &order)?;
    conditions.extend(partition_dates(&app, &dag_id, &mut query).await?);
    if dag_id.as_str() != "~" {
        super::dags::find(&app, &dag_id).await?;
        conditions.push(Condition::Is("dag_id", (&dag_id).into()));
    }
    collection(&app, conditions, &order, &paging).await
}

/// `partition_date_gte` and `partition_date_lte`: days, on the clock of the timetable's zone.
async fn partition_dates(app: &App, dag_id: &DagId, query: &mut Query) -> ApiResult<Vec<Condition>> {
    let (from, to) = (
        query.instant("partition_date_gte"),
        query.instant("partition_date_lte"),
    );
    query.checked()?;
    if from.is_none() && to.is_none() {
        return Ok(Vec::new());
    }
    if dag_id.as_str() == "~" {
        let text = "partition_date_gte and partition_date_lte require a specific dag_id.";
        return Err(ApiError::bad_request(text));
    }
    let dag = super::dags::find(app, dag_id).await?;
    if !dag.is_partitioned() {
        return Err(ApiError::bad_request(format!(
            "Dag with dag_id: '{dag_id}' is not partitioned; partition_date_gte and partition_date_lte are not supported."
        )));
    }
    let graph = super::dags::graph(app, &dag).await?;
    let here = |at: Timestamp| Stored::from(graph.dag.timetable.partition_instant(at));
    let from = from.map(|at| Condition::AtLeast("partition_date", here(at)));
    let to = to.map(|at| Condition::Below("partition_date", here(at + chrono::Duration::days(1))));
    Ok(from.into_iter().chain(to).collect())
}

/// `DAGRunCollectionResponse`
pub(crate) async fn collection(
    app: &App,
    conditions: Vec<Condition>,
    order: &[Order],
    paging: &Paging,
) -> ApiResult {
    let listing = paging.listing(conditions, order);
    let (mut runs, total) = app.store.lister().await?.runs(&listing).await?;
    let table = (Paged::DagRuns, order);
    let mut page = paging
        .finish(app, table, (&mut runs, total), |run| run.key.into())
        .await?;
    let dag_ids = runs.iter().map(|run| &run.dag_id).collect();
    let versions = runs.iter().map(|run| run.version_id).collect();
    let mut references = References::of(app, dag_ids, versions).await?;
    let mut out = Vec::with_capacity(runs.len());
    for run in &runs {
        out.push(response(app, run, &mut references).await?);
    }
    page["dag_runs"] = out.into();
    Ok(Json(page))
}

pub(crate) async fn show(
    State(app): State<App>,
    caller: Caller,
    Path((dag_id, run_id)): Path<(DagId, RunId)>,
) -> ApiResult {
    caller.must_be(Role::Viewer)?;
    let run = find(&app, &dag_id, &run_id).await?;
    Ok(Json(response(&app, &run, &mut References::default()).await?))
}

/// `TriggerDAGRunPostBody`
#[derive(Debug, Default)]
pub(crate) struct TriggerBody {
    run_id: Option<String>,
    logical_date: Option<Timestamp>,
    interval: Option<DataInterval>,
    run_after: Option<Timestamp>,
    conf: Value,
    note: Option<String>,
    partition_key: Option<String>,
}

impl TriggerBody {
    pub(crate) fn read(body: &mut Body, needs_date: bool) -> Self {
        let run_id = body.text("dag_run_id", store::limits::RUN_ID.most);
        let start = body.instant("data_interval_start", false);
        let end = body.instant("data_interval_end", false);
        let logical_date = body.instant("logical_date", needs_date);
        let run_after = body.instant("run_after", false);
        let conf = body.object("conf");
        let note = body
            .text("note", store::limits::NOTE)
            .filter(|note| !note.is_empty());
        let partition_key = body.text("partition_key", store::limits::PARTITION_KEY.most);
        if start.is_some() != end.is_some() {
            body.refuse(
                "Either both data_interval_start and data_interval_end must be provided or both must be None",
            );
        }
        Self {
            run_id,
            logical_date,
            interval: start.zip(end).map(|(start, end)| DataInterval { start, end }),
            run_after,
            conf,
            note,
            partition_key,
        }
    }

    pub(crate) fn request(
        self,
        dag_id: DagId,
        run_type: DagRunType,
        triggered_by: &'static str,
        user: String,
    ) -> TriggerRequest {
        TriggerRequest {
            dag_id,
            run_id: self.run_id,
            logical_date: self.logical_date,
            interval: self.interval,
            run_after: self.run_after,
            conf: if self.conf.is_object() {
                self.conf
            } else {
                json!({})
            },
            note: self.note,
            run_type,
            triggered_by,
            user: Some(user),
            partition_key: self.partition_key,
        }
    }
}

/// Why no run was made, for clients.
pub(crate) fn refused(error: TriggerError) -> ApiError {
    match error {
        TriggerError::UnknownDag(_) => ApiError::not_found(error.to_string()),
        TriggerError::ImportErrors(_) | TriggerError::Invalid(_) => ApiError::bad_request(error.to_string()),
        TriggerError::Duplicate { .. } => ApiError::duplicate(),
        TriggerError::Store(error) => error.into(),
    }
}

pub(crate) async fn trigger(
    State(app): State<App>,
    caller: Caller,
    Path(dag_id): Path<DagId>,
    headers: HeaderMap,
    bytes: Bytes,
) -> ApiResult {
    caller.must_be(Role::User)?;
    let mut body = Body::read(&headers, &bytes)?;
    let wish = TriggerBody::read(&mut body, true);
    body.finish()?;
    let by = if headers.contains_key(header::REFERER) {
        "ui"
    } else {
        "rest_api"
    };
    let request = wish.request(dag_id, DagRunType::Manual, by, caller.name);
    let run = trigger_run(&app.store, &app.graphs, &*app.broker, &request)
        .await
        .map_err(refused)?;
    Ok(Json(response(&app, &run, &mut References::default()).await?))
}

/// Deletes a run that is not running.
pub(crate) async fn remove(app: &App, run: &RunRecord) -> ApiResult<()> {
    let (dag_id, run_id) = (&run.dag_id, &run.run_id);
    if run.state == DagRunState::Running {
        return Err(ApiError::conflict(format!(
            "The DagRun with dag_id: `{dag_id}` and run_id: `{run_id}` cannot be deleted in running state"
        )));
    }
    let deleted = store::transact!(app.store, "delete run", |tx| tx.delete_run(run.key).await)?;
    if deleted {
        Ok(())
    } else {
        Err(missing(dag_id, run_id))
    }
}

pub(crate) async fn delete(
    State(app): State<App>,
    caller: Caller,
    Path((dag_id, run_id)): Path<(DagId, RunId)>,
) -> ApiResult<StatusCode> {
    caller.must_be(Role::User)?;
    remove(&app, &find(&app, &dag_id, &run_id).await?).await?;
    Ok(StatusCode::NO_CONTENT)
}
