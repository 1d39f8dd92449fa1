//! Making backfills.
//!
//! Follows `airflow/models/backfill.py`.

use crate::clearing::{self, EndedRuns};
use crate::foreign_timetable;
use broker::{Broker, Hint};
use chrono::Utc;
use model::dag::Dag;
use model::dag_run::DagRunType;
use model::timetable::{NextRun, Partition, Timetable, TimetableError};
use model::{DagId, TaskInstanceId, Timestamp};
use serde_json::{Map, Value};
use std::str::FromStr;
use store::repo::{BackfillRecord, DagRecord, NewBackfill, NewRun, RunRecord};
use store::{Graph, Graphs, Store, StoreError, Tx};
use thiserror::Error;

/// Dates that one backfill may have.
const MOST_RUNS: usize = 100_000;

/// What to do about dates that have a run already.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Reprocess {
    /// Nothing.
    None,
    /// Run those again that failed.
    Failed,
    /// Run those again that have ended.
    Completed,
}

impl Reprocess {
    /// The word of the API and the command line.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::None => "none",
            Self::Failed => "failed",
            Self::Completed => "completed",
        }
    }
}

impl FromStr for Reprocess {
    type Err = String;
    fn from_str(word: &str) -> Result<Self, String> {
        [Self::None, Self::Failed, Self::Completed]
            .into_iter()
            .find(|it| it.as_str() == word)
            .ok_or_else(|| format!("{word:?} is none of 'none', 'failed' and 'completed'"))
    }
}

/// Which backfill to make.
#[derive(Debug, Clone)]
pub struct BackfillRequest {
    /// The DAG.
    pub dag_id: DagId,
    /// First logical date.
    pub from: Timestamp,
    /// Last logical date.
    pub to: Timestamp,
    /// Whether the last date runs first.
    pub reverse: bool,
    /// Parameters of the runs: a JSON object.
    pub conf: Option<Value>,
    /// What to do about dates that have a run already.
    pub reprocess: Reprocess,
    /// Runs at the same time.
    pub max_active_runs: u32,
    /// Who asked.
    pub user: Option<String>,
}

/// Why no backfill was made.
#[derive(Debug, Error)]
pub enum BackfillError {
    /// There is no such DAG.
    #[error("Could not find dag {0}")]
    UnknownDag(DagId),
    /// There may be only one at a time.
    #[error("There is already a running backfill for dag {0}")]
    AlreadyRunning(DagId),
    /// The DAG allows no runs of this type.
    #[error("Dag with dag_id: '{0}' does not allow backfill runs")]
    NotAllowed(DagId),
    /// Something about the request is wrong.
    #[error("{0}")]
    Invalid(String),
    /// The store failed.
    #[error(transparent)]
    Store(#[from] StoreError),
}

/// A DAG that can be backfilled, and its dates in the order in which they run.
struct Plan {
    record: DagRecord,
    graph: std::sync::Arc<Graph>,
    dates: Vec<BackfillDate>,
}

/// One date of a backfill, or one partition.
#[derive(Debug, Clone)]
pub struct BackfillDate {
    next: NextRun,
    /// The partition; `None` where runs have logical dates.
    pub partition: Option<Partition>,
}

impl BackfillDate {
    /// Its logical date; `None` where runs are about partitions.
    pub fn logical_date(&self) -> Option<Timestamp> {
        Some(self.next.logical_date).filter(|_| self.partition.is_none())
    }

    /// The run that it has already.
    async fn run(&self, tx: &mut Tx, dag_id: &DagId) -> Result<Option<RunRecord>, StoreError> {
        match &self.partition {
            Some(partition) => tx.run_about(dag_id, partition.date).await,
            None => tx.run_dated(dag_id, self.next.logical_date).await,
        }
    }
}

/// The dates that a backfill would run.
///
/// # Errors
/// As [`create_backfill`].
pub async fn dry_run(
    store: &Store,
    graphs: &Graphs,
    request: &BackfillRequest,
) -> Result<Vec<BackfillDate>, BackfillError> {
    let plan = plan(store, graphs, request).await?;
    let mut db = store.reader().await?;
    let mut wanted = Vec::new();
    for date in plan.dates {
        let present = date.run(&mut db, &request.dag_id).await?;
        if present.is_none_or(|run| why_not(&run, request.reprocess).is_none()) {
            wanted.push(date);
        }
    }
    Ok(wanted)
}

/// Makes a backfill with all its runs, and tells the schedulers.
///
/// # Errors
/// When the DAG cannot be backfilled, or another backfill of it runs.
pub async fn create_backfill(
    store: &Store,
    graphs: &Graphs,
    broker: &dyn Broker,
    request: &BackfillRequest,
) -> Result<BackfillRecord, BackfillError> {
    let plan = plan(store, graphs, request).await?;
    if plan.dates.is_empty() {
        let text = format!(
            "No runs to create for Dag {} in the range [{}, {}]",
            request.dag_id, request.from, request.to
        );
        return Err(BackfillError::Invalid(text));
    }
    let now = Utc::now();
    let made = store::transact!(store, "create backfill", |tx| {
        // Under the DAG's lock nobody makes another one, or a run for one of the dates.
        if tx.lock_dag_waiting(&request.dag_id).await?.is_none() {
            return Ok(None);
        }
        if !tx.open_backfills(&request.dag_id).await?.is_empty() {
            return Ok(None);
        }
        let id = tx.create_backfill(&new_backfill(request), now).await?;
        for (at, date) in plan.dates.iter().enumerate() {
            let ordinal = u32::try_from(at + 1).unwrap_or(u32::MAX);
            let run = make_run(tx, graphs, request, &plan, date, now).await?;
            let named = (date.logical_date(), date.partition.as_ref());
            tx.add_backfill_run(id, named, ordinal, run).await?;
        }
        tx.backfill(id).await
    })?;
    let made = made.ok_or_else(|| BackfillError::AlreadyRunning(request.dag_id.clone()))?;
    broker.hint(Hint::Dag(request.dag_id.clone()));
    Ok(made)
}

fn new_backfill(request: &BackfillRequest) -> NewBackfill {
    NewBackfill {
        dag_id: request.dag_id.clone(),
        from_date: request.from,
        to_date: request.to,
        conf: request.conf.as_ref().map(Value::to_string),
        reprocess: request.reprocess.as_str(),
        max_active_runs: request.max_active_runs,
        triggering_user: request.user.clone(),
    }
}

/// Why a date that has a run gets no other one.
fn why_not(run: &RunRecord, reprocess: Reprocess) -> Option<&'static str> {
    use model::dag_run::DagRunState as State;
    match (run.state, reprocess) {
        (State::Queued | State::Running, _) => Some("in flight"),
        (State::Success | State::Failed, Reprocess::None) | (State::Success, Reprocess::Failed) => {
            Some("already exists")
        }
        (State::Failed, Reprocess::Failed) | (State::Success | State::Failed, Reprocess::Completed) => None,
    }
}

/// Makes the run for a date, or runs the present one again; or tells why neither.
async fn make_run(
    tx: &mut Tx,
    graphs: &Graphs,
    request: &BackfillRequest,
    plan: &Plan,
    date: &BackfillDate,
    now: Timestamp,
) -> Result<Result<model::DagRunKey, &'static str>, StoreError> {
    let conf = request.conf.as_ref().map(Value::to_string);
    let present = date.run(tx, &request.dag_id).await?;
    if let Some(why) = present.as_ref().and_then(|run| why_not(run, request.reprocess)) {
        return Ok(Err(why));
    }
    // A partition gets another run, where a date has its run cleared.
    if let Some(run) = present.filter(|_| date.partition.is_none()) {
        let tis = tx.task_instances_of(run.key).await?;
        clearing::clear(tx, graphs, &tis, EndedRuns::StartAgain, now).await?;
        if let Some(conf) = &conf {
            tx.set_run_conf(run.key, conf).await?;
        }
        return Ok(Ok(run.key));
    }
    let run = NewRun {
        dag: &plan.graph.dag,
        version_id: plan.record.version_id,
        run_id: match &date.partition {
            Some(partition) => {
                let suffix = uuid::Uuid::new_v4().simple().to_string();
                partition.run_id(DagRunType::Backfill, date.next.run_after, &suffix[..8])
            }
            None => DagRunType::Backfill.generate_run_id(date.next.run_after, None),
        },
        run_type: DagRunType::Backfill,
        logical_date: date.logical_date(),
        interval: Some(date.next.interval).filter(|_| date.partition.is_none()),
        run_after: date.next.run_after,
        conf: conf.unwrap_or_else(|| "{}".to_owned()),
        triggered_by: "backfill",
        triggering_user: request.user.clone(),
        note: None,
        trace_context: None,
        partition: date.partition.clone(),
    };
    if tx.run(&request.dag_id, &run.run_id).await?.is_some() {
        return Ok(Err("in flight"));
    }
    let mut ids = || TaskInstanceId::new(uuid::Uuid::now_v7());
    tx.create_run(&run, &mut ids, now).await.map(Ok)
}

async fn plan(store: &Store, graphs: &Graphs, request: &BackfillRequest) -> Result<Plan, BackfillError> {
    let dag_id = &request.dag_id;
    let mut db = store.reader().await?;
    let record = db.dag(dag_id).await?.filter(|dag| !dag.is_stale);
    let record = record.ok_or_else(|| BackfillError::UnknownDag(dag_id.clone()))?;
    let graph = graphs.get(&mut db, record.version_id).await?;
    drop(db);
    check(&graph, request)?;
    if !is_periodic(&graph.dag.timetable) {
        return Err(not_periodic(dag_id));
    }
    check_dates(&graph.dag, request)?;
    let now = Utc::now();
    let mut dates = if graph.dag.timetable.is_foreign() {
        let between = foreign_timetable::runs_between(store, dag_id, (request.from, request.to)).await?;
        let between = between.map_err(BackfillError::Invalid)?;
        dated(between.ok_or_else(|| not_periodic(dag_id))?, now)
    } else {
        dates_of(&graph.dag.timetable, request, now)
            .map_err(|error| BackfillError::Invalid(error.to_string()))?
    };
    if request.reverse {
        dates.reverse();
    }
    Ok(Plan { record, graph, dates })
}

fn not_periodic(dag_id: &DagId) -> BackfillError {
    BackfillError::Invalid(format!(
        "{dag_id} has a non-periodic schedule that does not support backfills"
    ))
}

/// Those of the runs whose data is all there.
fn dated(runs: Vec<NextRun>, now: Timestamp) -> Vec<BackfillDate> {
    let past = runs.into_iter().filter(|next| next.interval.end < now);
    past.map(|next| BackfillDate {
        next,
        partition: None,
    })
    .collect()
}

fn dates_of(
    timetable: &Timetable,
    request: &BackfillRequest,
    now: Timestamp,
) -> Result<Vec<BackfillDate>, TimetableError> {
    let (from, to) = (request.from, request.to);
    if timetable.is_partitioned() {
        let between = timetable.partitions_between(from, to, MOST_RUNS)?.into_iter();
        return Ok(between
            .map(|(next, partition)| BackfillDate {
                next,
                partition: Some(partition),
            })
            .collect());
    }
    Ok(dated(timetable.runs_between(from, to, now, MOST_RUNS)?, now))
}

/// Whether a timetable names dates again and again.
pub(crate) fn is_periodic(timetable: &Timetable) -> bool {
    match timetable {
        Timetable::Null
        | Timetable::Once
        | Timetable::Continuous
        | Timetable::AssetTriggered
        | Timetable::PartitionedAssets(_)
        | Timetable::PartitionedAtRuntime => false,
        // Only Python can say no.
        Timetable::Foreign { .. } => true,
        Timetable::AssetOrTime(inner) => is_periodic(inner),
        Timetable::CronPartition(_)
        | Timetable::CronTrigger { .. }
        | Timetable::CronDataInterval { .. }
        | Timetable::DeltaTrigger { .. }
        | Timetable::DeltaDataInterval { .. }
        | Timetable::Events { .. } => true,
    }
}

fn check(graph: &Graph, request: &BackfillRequest) -> Result<(), BackfillError> {
    let body = graph.document.get("dag").unwrap_or(&Value::Null);
    if !graph.dag.allows(DagRunType::Backfill) {
        return Err(BackfillError::NotAllowed(request.dag_id.clone()));
    }
    if let Some(conf) = &request.conf {
        let nothing = Map::new();
        let conf = conf.as_object().unwrap_or(&nothing);
        crate::params::check(body, conf).map_err(BackfillError::Invalid)?;
    }
    Ok(())
}

fn check_dates(dag: &Dag, request: &BackfillRequest) -> Result<(), BackfillError> {
    let invalid = |text: String| Err(BackfillError::Invalid(text));
    let shown = model::time::python_isoformat;
    let (from, to) = (request.from, request.to);
    if from > to {
        return invalid(format!(
            "from_date ({}) must not be after to_date ({}).",
            shown(from),
            shown(to)
        ));
    }
    let now = Utc::now();
    if from >= now && to >= now {
        return invalid("Backfill cannot be executed for future dates.".to_owned());
    }
    if dag.tasks.iter().any(|task| task.depends_on_past) {
        if request.reverse {
            let text = "Backfill cannot be run in reverse when the Dag has tasks where depends_on_past=True.";
            return invalid(text.to_owned());
        }
        if request.reprocess == Reprocess::None {
            return invalid(
                "Dag has tasks for which depends_on_past=True. You must set reprocess behavior to reprocess completed or \
                 reprocess failed."
                    .to_owned(),
            );
        }
    }
    Ok(())
}
