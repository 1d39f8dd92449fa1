//! Creating runs when their time has come, and starting runs that wait.

use crate::{Shared, new_task_instance_id};
use chrono::Utc;
use lifecycle::Stop;
use model::dag::Dag;
use model::dag_run::{DagRunState, DagRunType};
use model::timetable::{DataInterval, NextRun};
use model::{DagId, DagRunKey, Timestamp};
use scheduling::{QueuedRun, choose_runs_to_start};
use std::sync::Arc;
use std::time::Duration;
use store::repo::{DagRecord, NewRun, News, RunNews, TimetableQuestion};
use store::{StoreError, Tx};
use telemetry::metric;

/// DAGs looked at in one turn.
const DAGS_PER_TURN: i64 = 50;
/// The longest sleep between two looks.
const LONGEST: Duration = Duration::from_secs(1);

/// Creates and starts runs until told to stop.
pub(crate) async fn creator(shared: Arc<Shared>, stop: Stop) {
    let mut pause = Duration::ZERO;
    loop {
        tokio::select! {
            () = stop.draining().cancelled() => return,
            () = shared.look.notified() => {}
            () = tokio::time::sleep(pause) => {}
        }
        pause = match shared.look_at_runs().await {
            Ok(pause) => pause,
            Err(error) => {
                tracing::warn!("runs could not be created, trying again: {error}");
                LONGEST
            }
        };
    }
}

impl Shared {
    /// Creates what is due and starts what may start. Returns how long to wait for what is next.
    async fn look_at_runs(&self) -> Result<Duration, StoreError> {
        let now = Utc::now();
        let mut db = self.store.reader().await?;
        // Before any run is read: a DAG processor notes its listeners before it stores DAGs.
        self.set_listeners(!db.listeners().await?.is_empty());
        let due = db.due_dags(now, DAGS_PER_TURN).await?;
        let waiting = db.dags_with_queued_runs(now).await?;
        let updated = db.dags_with_updated_assets().await?;
        let partitions = db.dags_with_updated_partitions().await?;
        let next = db.next_due(now).await?;
        drop(db);
        let mut more = false;
        for dag_id in &due {
            more |= self.create_due_runs(dag_id).await?;
        }
        for dag_id in &updated {
            if let Err(error) = self.create_asset_runs(dag_id).await {
                tracing::error!("updated assets start no run of DAG {dag_id}, trying again: {error}");
            }
        }
        for dag_id in &partitions {
            if let Err(error) = self.create_partition_runs(dag_id).await {
                tracing::error!("updated partitions start no run of DAG {dag_id}, trying again: {error}");
            }
        }
        for dag_id in waiting
            .iter()
            .filter(|dag_id| !due.contains(dag_id) && !updated.contains(dag_id))
        {
            self.start_waiting(dag_id).await?;
        }
        if more {
            return Ok(Duration::ZERO);
        }
        let until_next = next.and_then(|at| (at - Utc::now()).to_std().ok());
        Ok(until_next.map_or(LONGEST, |wait| wait.min(LONGEST)))
    }

    /// Creates the runs of a DAG that are due, at most so many per turn. Whether more are due.
    async fn create_due_runs(&self, dag_id: &DagId) -> Result<bool, StoreError> {
        for _ in 0..self.config.scheduler.max_dagruns_to_create_per_loop {
            let now = Utc::now();
            let outcome = store::transact!(self.store, "create run", |tx| {
                let Some(record) = tx.lock_dag(dag_id).await? else {
                    return Ok((false, Vec::new()));
                };
                let created = self.create_if_due(tx, &record, now).await?;
                let started = self.start_queued(tx, &record, now).await?;
                Ok((created, started))
            });
            let (created, started) = match outcome {
                Ok(outcome) => outcome,
                Err(error @ StoreError::Inconsistent(_)) => {
                    tracing::error!("DAG {dag_id} cannot be scheduled: {error}");
                    return Ok(false);
                }
                Err(error) => return Err(error),
            };
            self.dirty_all(&started);
            if !created {
                return Ok(false);
            }
            metrics::counter!(metric::RUNS_CREATED, "type" => "scheduled").increment(1);
        }
        Ok(true)
    }

    /// Creates the run that a DAG's updated assets ask for, and starts what may start.
    async fn create_asset_runs(&self, dag_id: &DagId) -> Result<(), StoreError> {
        let now = Utc::now();
        let suffix = random_suffix();
        let (created, started) = store::transact!(self.store, "create asset run", |tx| {
            let Some(record) = tx.lock_dag(dag_id).await? else {
                return Ok((false, Vec::new()));
            };
            let created = self.create_if_updated(tx, &record, &suffix, now).await?;
            let started = self.start_queued(tx, &record, now).await?;
            Ok((created, started))
        })?;
        self.dirty_all(&started);
        if created {
            metrics::counter!(metric::RUNS_CREATED, "type" => "asset_triggered").increment(1);
        }
        Ok(())
    }

    /// As `SchedulerJobRunner._create_dag_runs_asset_triggered`, but exact: a run consumes what its DAG has not consumed
    /// yet, not what lies between two instants.
    async fn create_if_updated(
        &self,
        tx: &mut Tx,
        record: &DagRecord,
        suffix: &str,
        now: Timestamp,
    ) -> Result<bool, StoreError> {
        if record.is_paused || record.is_stale || record.has_import_errors {
            return Ok(false);
        }
        let Some(pending) = tx.pending_assets(&record.dag_id).await? else {
            return Ok(false);
        };
        let graph = self.graphs.get(tx, record.version_id).await?;
        let dag = &graph.dag;
        if !dag
            .asset_condition
            .as_ref()
            .is_some_and(|it| it.is_met(&pending.updated))
        {
            return Ok(false);
        }
        let active = [DagRunState::Queued, DagRunState::Running];
        if tx.count_active_runs(&record.dag_id, &active).await? >= run_limit(dag, record) {
            return Ok(false);
        }
        let mut events = Vec::new();
        if dag.catchup {
            events = tx.earlier_asset_events(&record.dag_id).await?;
        }
        events.extend(&pending.events);
        let span = tracing::info_span!("dag_run.create", dag.id = %record.dag_id);
        let run = NewRun {
            dag,
            version_id: record.version_id,
            run_id: DagRunType::AssetTriggered.generate_run_id(pending.last, Some(suffix)),
            run_type: DagRunType::AssetTriggered,
            logical_date: None,
            interval: None,
            run_after: pending.last,
            conf: "{}".to_owned(),
            triggered_by: "asset",
            triggering_user: None,
            note: None,
            trace_context: telemetry::context_of(&span),
            partition: None,
        };
        let key = tx.create_run(&run, &mut new_task_instance_id, now).await?;
        tx.consume_asset_events(&record.dag_id, key, &events).await?;
        Ok(true)
    }

    async fn create_if_due(
        &self,
        tx: &mut Tx,
        record: &DagRecord,
        now: Timestamp,
    ) -> Result<bool, StoreError> {
        let Some(next) = next_run_of(record).filter(|next| next.run_after <= now) else {
            return Ok(false);
        };
        if record.is_paused || record.is_stale || record.has_import_errors {
            return Ok(false);
        }
        let graph = self.graphs.get(tx, record.version_id).await?;
        let dag = &graph.dag;
        if !dag.allows(DagRunType::Scheduled) {
            return Ok(false);
        }
        let limit = run_limit(dag, record);
        let active = [DagRunState::Queued, DagRunState::Running];
        if tx.count_active_runs(&record.dag_id, &active).await? >= limit {
            return Ok(false);
        }
        let run = scheduled_run(tx, record, dag, &next).await?;
        // The run may be there already: made by hand for this date, or by a transaction whose commit seemed to fail.
        let exists = tx.run(&record.dag_id, &run.run_id).await?.is_some()
            || (run.logical_date.is_some() && tx.run_with_date(&record.dag_id, next.logical_date).await?);
        if !exists {
            tx.create_run(&run, &mut new_task_instance_id, now).await?;
        }
        if dag.timetable.is_foreign() {
            let question = TimetableQuestion::Next {
                last: Some(next.interval),
            };
            tx.ask_timetable(&record.dag_id, question, now).await?;
        }
        let following = following(dag, Some(next.interval), now);
        tx.set_next_run(&record.dag_id, following).await?;
        Ok(true)
    }

    async fn start_waiting(&self, dag_id: &DagId) -> Result<(), StoreError> {
        let now = Utc::now();
        let started = store::transact!(self.store, "start runs", |tx| {
            match tx.lock_dag(dag_id).await? {
                Some(record) => self.start_queued(tx, &record, now).await,
                None => Ok(Vec::new()),
            }
        })?;
        self.dirty_all(&started);
        Ok(())
    }

    /// Starts the queued runs of a locked DAG that fit under its limit.
    pub(crate) async fn start_queued(
        &self,
        tx: &mut Tx,
        record: &DagRecord,
        now: Timestamp,
    ) -> Result<Vec<DagRunKey>, StoreError> {
        if record.is_paused || record.is_stale {
            return Ok(Vec::new());
        }
        let mut started = self.start_backfills(tx, record, now).await?;
        let running = tx
            .count_active_runs(&record.dag_id, &[DagRunState::Running])
            .await?;
        let places = record.max_active_runs.saturating_sub(running);
        if places == 0 {
            return Ok(started);
        }
        let queued = tx.queued_runs(&record.dag_id, now, places).await?;
        let queued: Vec<QueuedRun> = queued.into_iter().map(|key| QueuedRun { key }).collect();
        let chosen = choose_runs_to_start(&queued, running, record.max_active_runs);
        started.extend(self.start(tx, &chosen, now).await?);
        Ok(started)
    }

    /// Starts the queued runs of a locked DAG's backfills, each under its own limit and in its own order.
    async fn start_backfills(
        &self,
        tx: &mut Tx,
        record: &DagRecord,
        now: Timestamp,
    ) -> Result<Vec<DagRunKey>, StoreError> {
        let mut started = Vec::new();
        for backfill in tx.waiting_backfills(&record.dag_id).await? {
            let running = tx.running_backfill_runs(backfill.id).await?;
            let places = backfill.max_active_runs.saturating_sub(running);
            let queued = tx.queued_backfill_runs(backfill.id, places).await?;
            started.extend(self.start(tx, &queued, now).await?);
        }
        Ok(started)
    }

    /// Starts queued runs, and has listeners told of it.
    async fn start(
        &self,
        tx: &mut Tx,
        queued: &[DagRunKey],
        now: Timestamp,
    ) -> Result<Vec<DagRunKey>, StoreError> {
        let started = tx.start_runs(queued, now).await?;
        if self.has_listeners() {
            let hooks = tx.listeners().await?;
            for key in &started {
                tx.tell(&hooks, &News::Run(*key, RunNews::Running, "started"), now)
                    .await?;
            }
        }
        Ok(started)
    }

    fn dirty_all(&self, keys: &[DagRunKey]) {
        for key in keys {
            self.dirty.add(*key);
        }
    }
}

/// What tells runs apart whose assets were updated at the same instant.
pub(crate) fn random_suffix() -> String {
    let text = uuid::Uuid::new_v4().simple().to_string();
    text.chars().take(8).collect()
}

fn run_limit(dag: &Dag, record: &DagRecord) -> u32 {
    dag.timetable
        .active_runs_limit()
        .map_or(record.max_active_runs, |limit| limit.min(record.max_active_runs))
}

fn next_run_of(record: &DagRecord) -> Option<NextRun> {
    let interval = DataInterval {
        start: record.next_interval_start?,
        end: record.next_interval_end?,
    };
    Some(NextRun {
        logical_date: record.next_logical_date?,
        interval,
        run_after: record.next_run_after?,
    })
}

/// The run after the one over `last`. A timetable that names no date any more wants none.
fn following(dag: &Dag, last: Option<DataInterval>, now: Timestamp) -> Option<NextRun> {
    match dag.timetable.next_run(last, &dag.time_restriction(), now) {
        Ok(next) => next,
        Err(error) => {
            tracing::error!(dag_id = %dag.dag_id, "no next run: {error}");
            None
        }
    }
}

/// The run that a DAG's timetable asks for.
async fn scheduled_run<'a>(
    tx: &mut Tx,
    record: &DagRecord,
    dag: &'a Dag,
    next: &NextRun,
) -> Result<NewRun<'a>, StoreError> {
    let span = tracing::info_span!("dag_run.create", dag.id = %record.dag_id);
    let partition = dag
        .timetable
        .partition_of(next.run_after)
        .map_err(|error| StoreError::Inconsistent(format!("its timetable names no partition: {error}")))?;
    let own_id = if dag.timetable.is_foreign() {
        tx.next_run_id(&record.dag_id).await?
    } else {
        None
    };
    let run_id = match (&partition, own_id) {
        (Some(partition), _) => partition.run_id(DagRunType::Scheduled, next.run_after, &random_suffix()),
        (None, Some(own_id)) => own_id,
        (None, None) => DagRunType::Scheduled.generate_run_id(next.run_after, None),
    };
    let is_dated = partition.is_none();
    Ok(NewRun {
        dag,
        version_id: record.version_id,
        run_id,
        run_type: DagRunType::Scheduled,
        logical_date: Some(next.logical_date).filter(|_| is_dated),
        interval: Some(next.interval).filter(|_| is_dated),
        run_after: next.run_after,
        conf: "{}".to_owned(),
        triggered_by: "timetable",
        triggering_user: None,
        note: None,
        trace_context: telemetry::context_of(&span),
        partition,
    })
}
