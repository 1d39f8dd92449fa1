//! Making a run because somebody asked for it.

use crate::foreign_timetable;
use broker::{Broker, Hint};
use chrono::Utc;
use model::dag::Dag;
use model::dag_run::{DagRunType, is_valid_run_id};
use model::timetable::{DataInterval, Partition};
use model::{DagId, DagVersionId, RunId, TaskInstanceId, Timestamp};
use store::repo::{NewRun, RunRecord};
use store::{Graphs, Store, StoreError};
use thiserror::Error;

/// Which run to make.
#[derive(Debug, Clone)]
pub struct TriggerRequest {
    /// The DAG.
    pub dag_id: DagId,
    /// Its name; made up if absent.
    pub run_id: Option<String>,
    /// Its logical date.
    pub logical_date: Option<Timestamp>,
    /// Its data interval, where the caller sets it.
    pub interval: Option<DataInterval>,
    /// Earliest start; now if absent.
    pub run_after: Option<Timestamp>,
    /// Parameters: a JSON object.
    pub conf: serde_json::Value,
    /// Note.
    pub note: Option<String>,
    /// Manual, or triggered by a task.
    pub run_type: DagRunType,
    /// `rest_api`, `ui`, `cli`, `operator`.
    pub triggered_by: &'static str,
    /// Who asked.
    pub user: Option<String>,
    /// The partition that the run is about; only of DAGs that have partitions.
    pub partition_key: Option<String>,
}

impl TriggerRequest {
    /// Whether a task or the command line asks: the interval is then that of the moment at which the run may start,
    /// whatever its logical date.
    fn is_as_of_now(&self) -> bool {
        matches!(self.triggered_by, "operator" | "cli")
    }

    /// Refuses a date before the `start_date` of the DAG's `default_args`, where that counts.
    fn check_start(&self, body: &serde_json::Value) -> Result<(), TriggerError> {
        let start = body.pointer("/default_args/__var/start_date/__var");
        let start = start.and_then(serde_json::Value::as_f64);
        let start = start.and_then(|seconds| model::time::from_micros((seconds * 1e6).round() as i64));
        match (self.logical_date, start) {
            (Some(date), Some(start)) if self.is_as_of_now() && date < start => {
                let iso = model::time::python_isoformat;
                Err(TriggerError::Invalid(format!(
                    "Logical date [{}] should be >= start_date [{}] from Dag's default_args",
                    iso(date),
                    iso(start)
                )))
            }
            _ => Ok(()),
        }
    }
}

/// Why no run was made.
#[derive(Debug, Error)]
pub enum TriggerError {
    /// There is no such DAG.
    #[error("Dag with dag_id: '{0}' not found")]
    UnknownDag(DagId),
    /// Its file is broken.
    #[error("Dag with dag_id: '{0}' has import errors and cannot be triggered")]
    ImportErrors(DagId),
    /// Something about the request is wrong.
    #[error("{0}")]
    Invalid(String),
    /// There is a run of that name or date.
    #[error("a run of DAG {dag_id} with run id {run_id} or the same logical date exists already")]
    Duplicate {
        /// The DAG.
        dag_id: DagId,
        /// The run.
        run_id: RunId,
    },
    /// The store failed.
    #[error(transparent)]
    Store(#[from] StoreError),
}

fn check_run_id(run_id: &str, run_type: DagRunType) -> Result<(), TriggerError> {
    let invalid = |text: String| Err(TriggerError::Invalid(text));
    if run_id.contains("..") {
        return invalid(format!(
            "The run_id '{run_id}' must not contain '..' to prevent path traversal"
        ));
    }
    if !is_valid_run_id(run_id) {
        return invalid(format!(
            "The run_id provided '{run_id}' does not match regex pattern '^[A-Za-z0-9_.~:+-]+$' or \
             '^(?:manual|scheduled|asset_triggered)__(?:\\d{{4}}-\\d{{2}}-\\d{{2}}T\\d{{2}}:\\d{{2}}:\\d{{2}}\\+00:00)$'"
        ));
    }
    let reserved = DagRunType::ALL
        .into_iter()
        .filter(|kind| *kind != DagRunType::Manual && *kind != run_type)
        .find(|kind| run_id.starts_with(&format!("{}__", kind.as_str())));
    match reserved {
        Some(kind) => invalid(format!(
            "A manual DAG run cannot use ID '{run_id}' since it is reserved for {} runs",
            kind.as_str()
        )),
        None => Ok(()),
    }
}

fn check_run_type(dag: &Dag, run_type: DagRunType) -> Result<(), TriggerError> {
    let what = match run_type {
        DagRunType::Manual => "manual",
        DagRunType::AssetMaterialization => "asset materialization",
        DagRunType::OperatorTriggered => "operator-triggered",
        DagRunType::Backfill | DagRunType::Scheduled | DagRunType::AssetTriggered => return Ok(()),
    };
    if dag.allows(run_type) {
        return Ok(());
    }
    let text = format!("Dag with dag_id: '{}' does not allow {what} runs", dag.dag_id);
    Err(TriggerError::Invalid(text))
}

/// The data interval of a run that somebody asks for, and the name that a timetable of the user's own gives it.
async fn interval_of(
    store: &Store,
    dag: &Dag,
    request: &TriggerRequest,
    run_after: Timestamp,
) -> Result<(Option<DataInterval>, Option<RunId>), TriggerError> {
    let is_named = request.run_id.as_deref().is_some_and(|run_id| !run_id.is_empty());
    let valid = |run_id: Option<String>| run_id.filter(|run_id| is_valid_run_id(run_id)).map(RunId::new);
    let given = request.logical_date.and(request.interval);
    // Airflow takes the date itself only where a client asks over REST (`api/common/trigger_dag.py`).
    let is_client = !request.is_as_of_now();
    let date = request
        .logical_date
        .map(|date| if is_client { date } else { run_after });
    match (date, given) {
        (None, given) | (Some(_), given @ Some(_)) => {
            if is_named || !dag.timetable.is_foreign() {
                return Ok((given, None));
            }
            let name = foreign_timetable::manual_name(store, &dag.dag_id, given, run_after).await?;
            Ok((given, valid(name.map_err(TriggerError::Invalid)?)))
        }
        (Some(date), None) if dag.timetable.is_foreign() => {
            let answer = foreign_timetable::manual_run(store, &dag.dag_id, date, run_after).await?;
            let (interval, run_id) = answer.map_err(TriggerError::Invalid)?;
            Ok((Some(interval), valid(run_id)))
        }
        (Some(date), None) => {
            let interval = dag.timetable.manual_interval(date);
            let interval = interval.map_err(|error| TriggerError::Invalid(error.to_string()))?;
            Ok((Some(interval), None))
        }
    }
}

/// The partition of a run that somebody asks for (`SerializedDAG.validate_partition_key`).
fn partition(dag: &Dag, key: Option<&str>) -> Result<Option<Partition>, TriggerError> {
    let Some(key) = key else { return Ok(None) };
    let invalid = |text: String| Err(TriggerError::Invalid(text));
    if !dag.timetable.takes_partitions() {
        return invalid(format!(
            "Dag '{}' is not a partitioned Dag and does not accept a partition_key.",
            dag.dag_id
        ));
    }
    if key.trim().is_empty() {
        return invalid("partition_key must not be empty or whitespace-only.".to_owned());
    }
    let length = key.chars().count();
    if length > 250 {
        return invalid(format!(
            "partition_key must be at most 250 characters; got {length}."
        ));
    }
    match dag.timetable.partition_date(key) {
        Ok(date) => Ok(Some(Partition {
            key: key.to_owned(),
            date,
        })),
        Err(error) => invalid(error.to_string()),
    }
}

/// Makes a run in state queued and tells the schedulers.
///
/// # Errors
/// When there is no such DAG, it cannot be triggered, or such a run exists.
pub async fn trigger_run(
    store: &Store,
    graphs: &Graphs,
    broker: &dyn Broker,
    request: &TriggerRequest,
) -> Result<RunRecord, TriggerError> {
    let now = Utc::now();
    let dag_id = &request.dag_id;
    let mut db = store.reader().await?;
    let record = db.dag(dag_id).await?.filter(|dag| !dag.is_stale);
    let record = record.ok_or_else(|| TriggerError::UnknownDag(dag_id.clone()))?;
    if record.has_import_errors {
        return Err(TriggerError::ImportErrors(dag_id.clone()));
    }
    let version_id: DagVersionId = record.version_id;
    let graph = graphs.get(&mut db, version_id).await?;
    drop(db);
    let partition = partition(&graph.dag, request.partition_key.as_deref())?;
    let run_after = request.run_after.unwrap_or(now);
    let (interval, own_id) = interval_of(store, &graph.dag, request, run_after).await?;
    let run_id = match request.run_id.as_deref().filter(|run_id| !run_id.is_empty()) {
        Some(run_id) => {
            check_run_id(run_id, request.run_type)?;
            RunId::new(run_id)
        }
        None => own_id.unwrap_or_else(|| request.run_type.generate_run_id(run_after, None)),
    };
    let nothing = serde_json::Map::new();
    let conf = request.conf.as_object().unwrap_or(&nothing);
    let body = graph.document.get("dag").unwrap_or(&serde_json::Value::Null);
    check_run_type(&graph.dag, request.run_type)?;
    request.check_start(body)?;
    crate::params::check(body, conf).map_err(TriggerError::Invalid)?;
    let span = tracing::info_span!("dag_run.create", dag.id = %dag_id, run.id = %run_id);
    let run = NewRun {
        dag: &graph.dag,
        version_id,
        run_id,
        run_type: request.run_type,
        logical_date: request.logical_date,
        interval,
        run_after,
        conf: request.conf.to_string(),
        triggered_by: request.triggered_by,
        triggering_user: request.user.clone(),
        note: request.note.clone(),
        trace_context: telemetry::context_of(&span),
        partition,
    };
    let made = make(store, &run, now).await?;
    broker.hint(Hint::Dag(dag_id.clone()));
    Ok(made)
}

async fn make(store: &Store, run: &NewRun<'_>, now: Timestamp) -> Result<RunRecord, TriggerError> {
    let mut ids = || TaskInstanceId::new(uuid::Uuid::now_v7());
    let (dag_id, run_id) = (&run.dag.dag_id, &run.run_id);
    let made = store::transact!(store, "trigger run", |tx| {
        tx.create_run(run, &mut ids, now).await?;
        tx.run(dag_id, run_id).await
    });
    match made {
        Ok(Some(made)) => Ok(made),
        Ok(None) => Err(StoreError::Inconsistent(format!("run {run_id} vanished")).into()),
        Err(StoreError::Duplicate { .. }) => Err(TriggerError::Duplicate {
            dag_id: dag_id.clone(),
            run_id: run_id.clone(),
        }),
        Err(error) => Err(error.into()),
    }
}
