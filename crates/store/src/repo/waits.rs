//! Why a task instance waits, from the planner's view of its run to pools, queues and workers.

use super::runs::RunRecord;
use super::tasks::TaskInstanceRecord;
use super::triggers::TriggerRecord;
use crate::sql::{Dialect, Value, placeholders};
use crate::unit_of_work::Tx;
use crate::{Graphs, StoreError, params};
use model::dag::Dag;
use model::dag_run::DagRunState;
use model::task_instance::StateName;
use model::{TaskId, Timestamp};
use scheduling::{Blocker, RunSnapshot, blockers, some};

/// One thing that a task instance waits for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Wait {
    /// Airflow's name for the dependency.
    pub name: &'static str,
    /// What blocks it, and what would release it.
    pub reason: String,
}

impl Wait {
    fn of(blocker: &Blocker) -> Self {
        Self::new(blocker.name(), blocker.to_string())
    }

    fn new(name: &'static str, reason: impl Into<String>) -> Self {
        Self {
            name,
            reason: reason.into(),
        }
    }
}

/// Airflow's name for whatever a queued one waits for.
const STATE: &str = "Task Instance State";

fn waits_for_pod(ti: &TaskInstanceRecord) -> Wait {
    let reason = format!(
        "its pod has not taken it yet; see `kubectl get pods -l updraft/task-instance={}`",
        ti.id
    );
    Wait::new(STATE, reason)
}

/// A try that never began waits until it is started again; a sensor between two pokes has no cause.
fn waits_to_be_started(ti: &TaskInstanceRecord, cause: &str) -> Wait {
    let at = ti
        .not_before
        .map(|at| format!(" at {}", model::time::rest_format(at)));
    let reason = format!(
        "it could not be started: {cause}; the same try is started again{}",
        at.unwrap_or_default()
    );
    Wait::new("Ready To Reschedule", reason)
}

impl Tx {
    /// Why a task instance that is not running waits, the most decisive first. Empty for one that runs or has ended, and
    /// for one that goes on at once. `in_pod` says that its executor is the KubernetesExecutor.
    ///
    /// # Errors
    /// As the database says.
    pub async fn waits_for(
        &mut self,
        graphs: &Graphs,
        ti: &TaskInstanceRecord,
        in_pod: bool,
        now: Timestamp,
    ) -> Result<Vec<Wait>, StoreError> {
        if ti.state == StateName::Deferred
            && let Some(trigger) = self.trigger_of(ti).await?
        {
            return Ok(vec![self.waits_for_trigger(&trigger).await?]);
        }
        if ti.state == StateName::UpForReschedule
            && let Some(cause) = &ti.exit_cause
        {
            let mut waits = vec![waits_to_be_started(ti, cause)];
            waits.extend(self.waits_in_run(graphs, ti, now).await?);
            return Ok(waits);
        }
        match ti.state {
            StateName::NoStatus
            | StateName::UpForRetry
            | StateName::UpForReschedule
            | StateName::Deferred => self.waits_in_run(graphs, ti, now).await,
            StateName::Scheduled => self.waits_for_slots(ti).await,
            StateName::Queued if in_pod => Ok(vec![waits_for_pod(ti)]),
            StateName::Queued => self.waits_for_worker(ti).await,
            StateName::AwaitingInput => Ok(vec![Wait::new(
                "Ready To Reschedule",
                "it waits for a person's input",
            )]),
            StateName::Restarting => {
                let reason = "it was cleared while it ran; its worker is stopping the old process";
                Ok(vec![Wait::new("Task Instance Not Running", reason)])
            }
            StateName::Running
            | StateName::Success
            | StateName::Failed
            | StateName::UpstreamFailed
            | StateName::Skipped
            | StateName::Removed => Ok(Vec::new()),
        }
    }

    async fn waits_for_trigger(&mut self, trigger: &TriggerRecord) -> Result<Wait, StoreError> {
        let host = match trigger.worker {
            Some(worker) => self.worker_name(worker).await?,
            None => None,
        };
        let mut reason = match host {
            Some(name) => format!("its trigger {} on {name} has not fired yet", trigger.classpath),
            None => format!(
                "its trigger {} waits for a worker or triggerer that runs it",
                trigger.classpath
            ),
        };
        if let Some(at) = trigger.timeout_at {
            reason.push_str(&format!("; it fails at {}", model::time::rest_format(at)));
        }
        Ok(Wait::new("Ready To Reschedule", reason))
    }

    async fn waits_in_run(
        &mut self,
        graphs: &Graphs,
        ti: &TaskInstanceRecord,
        now: Timestamp,
    ) -> Result<Vec<Wait>, StoreError> {
        let Some(run) = self.run_by_key(ti.run_key).await? else {
            return Ok(Vec::new());
        };
        let graph = self.graph_for(graphs, &run).await?;
        let dag = &graph.dag;
        let paused = self.dag(&run.dag_id).await?.is_none_or(|record| record.is_paused);
        if run.state != DagRunState::Running {
            return self.waits_for_run(dag, &run, paused).await;
        }
        let tasks = self.snapshot(run.key).await?;
        let active_over_runs = self.active_over_runs(dag).await?;
        let held_by_past = self.held_by_past(dag, &run).await?;
        let previously_skipped = self.previously_skipped(dag, run.key, &tasks).await?;
        let awaiting_mutation = self.awaiting_mutation(run.key).await?;
        let lengths = self
            .mapped_lengths(
                run.key,
                &dag.mapped_over(dag.tasks.iter().map(|task| &task.task_id)),
            )
            .await?;
        let snapshot = RunSnapshot {
            dag,
            start_date: run.start_date,
            paused,
            tasks: &tasks,
            active_over_runs: &active_over_runs,
            held_by_past: &held_by_past,
            previously_skipped: &previously_skipped,
            awaiting_mutation: &awaiting_mutation,
            lengths: &lengths,
            now,
        };
        let found = blockers(&snapshot, ti.id);
        let mut waits: Vec<Wait> = found.iter().map(Wait::of).collect();
        if found.iter().any(|blocker| matches!(blocker, Blocker::Past)) {
            waits.extend(self.is_waited_for_by_the_past(dag, &run).await?);
        }
        Ok(waits)
    }

    async fn waits_for_run(
        &mut self,
        dag: &Dag,
        run: &RunRecord,
        paused: bool,
    ) -> Result<Vec<Wait>, StoreError> {
        let mut waits = Vec::new();
        if run.state != DagRunState::Queued {
            let reason = format!(
                "the run has ended as {}; clear it to run it again",
                run.state.as_str()
            );
            return Ok(vec![Wait::new("Dagrun Running", reason)]);
        }
        if paused {
            let reason = "the DAG is paused; the run starts when the DAG is unpaused";
            waits.push(Wait::new("Dag Not Paused", reason));
        }
        let sql = "SELECT run_id FROM dag_run WHERE dag_id = ? AND state = 'running' ORDER BY id";
        let rows = self.query(sql, params![&run.dag_id]).await?;
        let running: Vec<String> = rows
            .into_iter()
            .map(|mut row| row.next())
            .collect::<Result<_, _>>()?;
        let limit = self.dag(&run.dag_id).await?.map_or_else(
            || i64::from(dag.max_active_runs),
            |record| i64::from(record.max_active_runs),
        );
        if running.len() as i64 >= limit {
            let mut reason = format!(
                "the run is queued: max_active_runs {limit} of {limit} are taken by {}; it starts when one of them ends",
                some(&running)
            );
            if let Some(successor) = self.successor_that_waits(dag, run, &running).await? {
                reason.push_str(&format!(
                    "; but {successor} waits itself for the run before it by depends_on_past, so neither goes on: raise \
                     max_active_runs to {} until this run has ended, or mark {successor} as failed and clear it afterwards",
                    limit + 1
                ));
            }
            waits.push(Wait::new("Dagrun Running", reason));
        }
        if waits.is_empty() {
            waits.push(Wait::new(
                "Dagrun Running",
                "the run is queued and about to start",
            ));
        }
        Ok(waits)
    }

    /// One of these running runs that is later than `run`, does nothing, and has a task that the past holds back.
    async fn successor_that_waits(
        &mut self,
        dag: &Dag,
        run: &RunRecord,
        running: &[String],
    ) -> Result<Option<String>, StoreError> {
        for run_id in running {
            let Some(other) = self.run(&run.dag_id, &run_id.as_str().into()).await? else {
                continue;
            };
            let is_later = other.logical_date > run.logical_date && run.logical_date.is_some();
            if !is_later || self.held_by_past(dag, &other).await?.is_empty() {
                continue;
            }
            let sql = "SELECT COUNT(*) FROM task_instance WHERE run_key = ? \
                       AND state IN ('scheduled', 'queued', 'running', 'restarting', 'up_for_retry', 'up_for_reschedule', \
                       'deferred', 'awaiting_input')";
            let row = self.query_one(sql, params![other.key]).await?;
            if row.map_or(Ok(0), |mut row| row.next::<i64>())? == 0 {
                return Ok(Some(run_id.clone()));
            }
        }
        Ok(None)
    }

    /// Says so when the run before is queued, and cannot start because this one has the place that it needs.
    async fn is_waited_for_by_the_past(
        &mut self,
        dag: &Dag,
        run: &RunRecord,
    ) -> Result<Option<Wait>, StoreError> {
        let Some(date) = run.logical_date else {
            return Ok(None);
        };
        let Some((previous, _)) = self.run_before(dag, date).await? else {
            return Ok(None);
        };
        let Some(previous) = self.run_by_key(previous).await? else {
            return Ok(None);
        };
        if previous.state != DagRunState::Queued {
            return Ok(None);
        }
        let reason = format!(
            "the run before it, {}, is queued; if it waits for a place among max_active_runs that this run holds, neither \
             goes on until the limit is raised or this run is ended",
            previous.run_id
        );
        Ok(Some(Wait::new("Previous Dagrun State", reason)))
    }

    async fn waits_for_slots(&mut self, ti: &TaskInstanceRecord) -> Result<Vec<Wait>, StoreError> {
        const NAME: &str = "Pool Slots Available";
        let sql = "SELECT slots, include_deferred FROM slot_pool WHERE pool = ?";
        let Some(mut row) = self.query_one(sql, params![&ti.pool]).await? else {
            let reason = format!(
                "there is no pool {}; it goes on when one of that name is created",
                ti.pool
            );
            return Ok(vec![Wait::new(NAME, reason)]);
        };
        let (slots, include_deferred): (i64, bool) = (row.next()?, row.next()?);
        if slots >= 0 && ti.pool_slots > slots {
            let reason = format!(
                "it needs {} slots, and pool {} has {slots} in all; it goes on when the pool is made larger",
                ti.pool_slots, ti.pool
            );
            return Ok(vec![Wait::new(NAME, reason)]);
        }
        let deferred = if include_deferred { ", 'deferred'" } else { "" };
        let sql = format!(
            "SELECT dag_id, task_id, pool_slots FROM task_instance \
             WHERE pool = ? AND state IN ('queued', 'running'{deferred}) ORDER BY queued_at, id"
        );
        let (mut used, mut holders) = (0, Vec::new());
        for mut row in self.query(&sql, params![&ti.pool]).await? {
            let (dag_id, task_id): (String, String) = (row.next()?, row.next()?);
            used += row.next::<i64>()?;
            holders.push(format!("{dag_id}.{task_id}"));
        }
        if slots >= 0 && slots - used < ti.pool_slots {
            let reason = format!(
                "pool {}: {used} of {slots} slots are held by {}; it needs {} and goes on when they are free and nothing heavier waits",
                ti.pool,
                some(&holders),
                ti.pool_slots
            );
            return Ok(vec![Wait::new(NAME, reason)]);
        }
        if let Some(wait) = self.waits_for_its_run(ti).await? {
            return Ok(vec![wait]);
        }
        let reason = "it has all it needs but a place among [core] parallelism of a scheduler; it goes on when a task ends";
        Ok(vec![Wait::new("Task Concurrency", reason)])
    }

    /// Whether as many of its run have slots as `max_active_tasks` allows.
    async fn waits_for_its_run(&mut self, ti: &TaskInstanceRecord) -> Result<Option<Wait>, StoreError> {
        let Some(record) = self.dag(&ti.dag_id).await? else {
            return Ok(None);
        };
        let sql = "SELECT task_id FROM task_instance WHERE run_key = ? AND state IN ('queued', 'running') ORDER BY queued_at, id";
        let rows = self.query(sql, params![ti.run_key]).await?;
        let holders: Vec<TaskId> = rows
            .into_iter()
            .map(|mut row| row.next())
            .collect::<Result<_, _>>()?;
        let limit = record.max_active_tasks;
        let is_full = holders.len() as i64 >= i64::from(limit);
        Ok(is_full.then(|| Wait::of(&Blocker::RunFull { limit, holders })))
    }

    async fn waits_for_worker(&mut self, ti: &TaskInstanceRecord) -> Result<Vec<Wait>, StoreError> {
        let sql =
            "SELECT id, name, queues, concurrency, unwell FROM worker WHERE state = 'active' ORDER BY name";
        // On a laptop the one worker serves every queue.
        let any_queue = self.dialect() == Dialect::Sqlite;
        let (mut ids, mut slots, mut unwell) = (Vec::new(), 0, Vec::new());
        for mut row in self.query(sql, &[]).await? {
            let (id, name, queues): (model::WorkerId, String, String) =
                (row.next()?, row.next()?, row.next()?);
            let (concurrency, problem): (i64, Option<String>) = (row.next()?, row.next()?);
            let queues: Vec<String> = serde_json::from_str(&queues).unwrap_or_default();
            if !any_queue && queues.iter().all(|queue| queue != ti.queue.as_str()) {
                continue;
            }
            if let Some(problem) = problem {
                let reason = format!(
                    "worker {name} serves queue {} but is not well, and takes no task: {problem}",
                    ti.queue
                );
                unwell.push(Wait::new(STATE, reason));
                continue;
            }
            ids.push(Value::from(id));
            slots += concurrency;
        }
        if ids.is_empty() && !unwell.is_empty() {
            return Ok(unwell);
        }
        if ids.is_empty() {
            let reason = format!(
                "no worker serves queue {}; it goes on when one is started with it",
                ti.queue
            );
            return Ok(vec![Wait::new(STATE, reason)]);
        }
        let sql = format!(
            "SELECT COUNT(*) FROM task_instance WHERE state = 'running' AND worker_id IN ({})",
            placeholders(ids.len())
        );
        let row = self.query_one(&sql, &ids).await?;
        let busy: i64 = row.map_or(Ok(0), |mut row| row.next())?;
        let reason = if busy >= slots {
            format!(
                "all {slots} slots of the workers of queue {} are taken; it goes on when a task of theirs ends",
                ti.queue
            )
        } else {
            format!(
                "it is on its way to a worker of queue {}: {busy} of {slots} slots are taken",
                ti.queue
            )
        };
        let mut waits = vec![Wait::new(STATE, reason)];
        waits.extend(unwell);
        Ok(waits)
    }
}
