//! Planning one run: snapshot, pure plan, transitions and dispatches in one transaction.

use crate::snapshots::Snapshot;
use crate::{Shared, new_task_instance_id};
use broker::Hint;
use lifecycle::Stop;
use model::dag::Dag;
use model::dag_run::{DagRunEvent, DagRunState};
use model::{DagRunKey, MapIndex, TaskId, TaskInstanceId, Timestamp};
use scheduling::{Decision, Plan, RunEnd, RunSnapshot, TaskSnapshot, plan_run};
use std::collections::HashSet;
use std::sync::Arc;
use std::time::{Duration, Instant};
use store::repo::{Dispatch, LockedRun, News, RunEvent, RunNews, RunRecord};
use store::{StoreError, Tx};
use telemetry::metric;

/// Plans runs until told to stop.
pub(crate) async fn planner(shared: Arc<Shared>, stop: Stop) {
    loop {
        let key = tokio::select! {
            () = stop.draining().cancelled() => return,
            key = shared.dirty.next() => key,
        };
        let begin = Instant::now();
        let outcome = shared.plan(key).await;
        shared.dirty.planned(key);
        metrics::histogram!(metric::PLAN_SECONDS).record(begin.elapsed());
        match outcome {
            Ok(word) => metrics::counter!(metric::PLANS, "outcome" => word).increment(1),
            Err(error) => {
                metrics::counter!(metric::PLANS, "outcome" => "error").increment(1);
                tracing::warn!("run {key} could not be planned, the sweep will try again: {error}");
            }
        }
    }
}

/// What a plan's transaction did.
enum Planned {
    /// Nothing to decide: the run is not running, gone, or another scheduler's.
    Nothing(&'static str),
    /// The run is over; these may go on by what changed in it.
    Over(Vec<DagRunKey>),
    Done(Box<Done>),
}

/// A plan that was carried out.
struct Done {
    run: RunRecord,
    plan: Plan,
    dispatches: Vec<Dispatch>,
    /// Runs that what happened in this one may let go on.
    linked: Vec<DagRunKey>,
    /// How the run stands now, for its next plan.
    snapshot: Option<Snapshot>,
}

/// When a run that another scheduler plans is looked at again: that plan may not have seen what we were told of.
const BUSY: Duration = Duration::from_millis(100);

impl Shared {
    async fn plan(&self, key: DagRunKey) -> Result<&'static str, StoreError> {
        let now = chrono::Utc::now();
        let confirmed = self.outgoing.take_confirmed();
        let planned = store::transact!(self.store, "plan run", |tx| {
            tx.confirm_dispatches(&confirmed).await?;
            self.plan_in(tx, key, now).await
        });
        let planned = match planned {
            Ok(planned) => planned,
            Err(error) => {
                self.outgoing.confirmed(confirmed);
                return Err(error);
            }
        };
        Ok(match planned {
            Planned::Nothing(word) => {
                if word == "busy" {
                    self.dirty.add_later(key, BUSY);
                }
                word
            }
            Planned::Over(linked) => {
                for other in linked {
                    self.dirty.add(other);
                }
                "not running"
            }
            Planned::Done(done) => {
                self.follow_up(*done, now).await;
                "planned"
            }
        })
    }

    /// What follows from a plan once its transaction holds.
    async fn follow_up(&self, done: Done, now: Timestamp) {
        let Done {
            run,
            plan,
            dispatches,
            linked,
            snapshot,
        } = done;
        let key = run.key;
        if let Some(snapshot) = snapshot {
            self.snapshots.keep(key, snapshot);
        }
        for other in linked {
            self.dirty.add(other);
        }
        self.send(dispatches, &run);
        if let Some(at) = plan.wake_at {
            self.dirty.add_at(key, at, now);
        }
        if plan
            .moves
            .iter()
            .any(|planned| matches!(planned.decision, Decision::Expand(_) | Decision::Grow(_)))
        {
            self.dirty.add(key);
        }
        if let Some(end) = plan.end {
            let word = if end.is_failure() { "failed" } else { "success" };
            metrics::counter!(metric::RUNS_ENDED, "state" => word).increment(1);
            tracing::info!(dag_id = %run.dag_id, run_id = %run.run_id, state = word, reason = end.reason(), "run ended");
            // A place under max_active_runs is free.
            self.look.notify_one();
            self.broker.hint(Hint::Dag(run.dag_id));
        }
    }

    async fn plan_in(&self, tx: &mut Tx, key: DagRunKey, now: Timestamp) -> Result<Planned, StoreError> {
        let run = match tx.lock_run(key).await? {
            LockedRun::Mine(run) => run,
            LockedRun::Busy => return Ok(Planned::Nothing("busy")),
            LockedRun::Gone => {
                tx.clear_all_run_events(key).await?;
                return Ok(Planned::Nothing("gone"));
            }
        };
        let events = tx.run_events(key).await?;
        if run.state.is_finished() {
            tx.clear_run_events(&events).await?;
            let linked = self.linked_to(tx, &run, &events).await?;
            return Ok(Planned::Over(linked));
        }
        if run.state != DagRunState::Running {
            return Ok(Planned::Nothing("not running"));
        }
        let mut run = run;
        let record = tx.dag(&run.dag_id).await?;
        let latest = record.as_ref().map_or(run.version_id, |record| record.version_id);
        if latest != run.version_id {
            self.snapshots.take(run.key);
        }
        let graph = tx
            .adopt_version(&self.graphs, &mut run, latest, &mut new_task_instance_id, now)
            .await?;
        let dag = &graph.dag;
        let paused = record.is_none_or(|record| record.is_paused);
        let Some((plan, snapshot)) = self.decide(tx, (&run, dag, paused), &events, now).await? else {
            return Ok(Planned::Nothing("busy"));
        };
        let culprit = match plan.end {
            // As it is before the plan skips it.
            Some(RunEnd::TimedOut) => tx.last_begun(key).await?,
            Some(RunEnd::Deadlock) => blocked(dag, snapshot.tasks()),
            Some(RunEnd::Success | RunEnd::TaskFailure) | None => None,
        };
        tx.apply_moves(&run, dag, &plan.moves, &mut new_task_instance_id, now)
            .await?;
        if let Some(end) = plan.end {
            self.end_run(tx, (&run, dag), (end, culprit), now).await?;
        }
        // Without an event or a move nothing happened here, so runs that wake each other come to rest.
        let linked = if dag.links_runs() && (!events.is_empty() || !plan.moves.is_empty()) {
            let mut running = tx.running_runs_of(&run.dag_id).await?;
            running.retain(|other| *other != key);
            running
        } else {
            Vec::new()
        };
        let dispatches = tx.dispatch(self.limits(), now).await?;
        tx.clear_run_events(&events).await?;
        tx.count_plan(key).await?;
        let snapshot = snapshot.after(&plan.moves).filter(|_| plan.end.is_none());
        Ok(Planned::Done(Box::new(Done {
            run: *run,
            plan,
            dispatches,
            linked,
            snapshot,
        })))
    }

    /// What is to become of a run, and what that was decided by; `None` when somebody else has the lock on its DAG.
    async fn decide(
        &self,
        tx: &mut Tx,
        (run, dag, paused): (&RunRecord, &Dag, bool),
        events: &[RunEvent],
        now: Timestamp,
    ) -> Result<Option<(Plan, Snapshot)>, StoreError> {
        let (mut snapshot, mut is_kept) = self.snapshot_of(tx, run, events).await?;
        let active_over_runs = if dag.has_limits_over_runs() {
            // Counts over all runs are exact only under the DAG's lock.
            if tx.lock_dag(&run.dag_id).await?.is_none() {
                return Ok(None);
            }
            tx.active_over_runs(dag).await?
        } else {
            Default::default()
        };
        let held_by_past = tx.held_by_past(dag, run).await?;
        let mut previously_skipped = tx.previously_skipped(dag, run.key, snapshot.tasks()).await?;
        let awaiting_mutation = tx.awaiting_mutation(run.key).await?;
        let lengths = tx
            .mapped_lengths(run.key, &sources(run, dag, snapshot.tasks()))
            .await?;
        let plan = loop {
            let plan = plan_run(&RunSnapshot {
                dag,
                start_date: run.start_date,
                paused,
                tasks: snapshot.tasks(),
                active_over_runs: &active_over_runs,
                held_by_past: &held_by_past,
                previously_skipped: &previously_skipped,
                awaiting_mutation: &awaiting_mutation,
                lengths: &lengths,
                now,
            });
            if plan.end.is_none() || !is_kept {
                break plan;
            }
            // A run ends by what the database says, not by what is remembered.
            (snapshot, is_kept) = (Snapshot::read(run, tx.snapshot(run.key).await?), false);
            previously_skipped = tx.previously_skipped(dag, run.key, snapshot.tasks()).await?;
        };
        Ok(Some((plan, snapshot)))
    }

    /// Runs that may go on because something changed in one that is over: a person marked a task there, say.
    async fn linked_to(
        &self,
        tx: &mut Tx,
        run: &RunRecord,
        events: &[RunEvent],
    ) -> Result<Vec<DagRunKey>, StoreError> {
        if events.is_empty() {
            return Ok(Vec::new());
        }
        match tx.graph_for(&self.graphs, run).await {
            Ok(graph) if graph.dag.links_runs() => tx.running_runs_of(&run.dag_id).await,
            // A version that cannot be read holds nobody else.
            Ok(_) | Err(StoreError::Inconsistent(_)) => Ok(Vec::new()),
            Err(error) => Err(error),
        }
    }

    /// How the task instances of a run stand: what is kept of its last plan with what the events tell, or all read anew.
    async fn snapshot_of(
        &self,
        tx: &mut Tx,
        run: &RunRecord,
        events: &[RunEvent],
    ) -> Result<(Snapshot, bool), StoreError> {
        // Taken out, so that a transaction that is run again reads everything.
        let kept = self.snapshots.take(run.key).filter(|kept| kept.is_current(run));
        let changed: Option<Vec<TaskInstanceId>> = events.iter().map(|event| event.task_instance).collect();
        if let (Some(mut kept), Some(changed)) = (kept, changed) {
            let changed = tx.snapshot_of_tasks(&changed).await?;
            if kept.update(changed) {
                return Ok((kept, true));
            }
        }
        Ok((Snapshot::read(run, tx.snapshot(run.key).await?), false))
    }

    /// Ends a run, and notes who is to be told. `culprit` is the task instance that a run which timed out or hangs ended
    /// by.
    async fn end_run(
        &self,
        tx: &mut Tx,
        (run, dag): (&RunRecord, &Dag),
        (end, culprit): (RunEnd, Option<TaskInstanceId>),
        now: Timestamp,
    ) -> Result<(), StoreError> {
        let failed = end.is_failure();
        self.finish(tx, run, failed, now).await?;
        if self.has_listeners() {
            let news = if failed { RunNews::Failed } else { RunNews::Success };
            let hooks = tx.listeners().await?;
            tx.tell(&hooks, &News::Run(run.key, news, end.reason()), now)
                .await?;
        }
        if end == RunEnd::TaskFailure {
            tx.pause_after_failures(&run.dag_id, now).await?;
        }
        if !failed && !dag.deadlines.is_empty() {
            tx.keep_deadlines(run.key, now).await?;
        }
        let is_wanted = match failed {
            true => dag.has_callbacks.on_failure,
            false => dag.has_callbacks.on_success,
        };
        if is_wanted {
            let about = match end {
                RunEnd::Success | RunEnd::TaskFailure => tx.last_ended(run.key, failed).await?,
                RunEnd::Deadlock | RunEnd::TimedOut => culprit,
            };
            tx.add_run_callback(run.key, about, failed, end.reason(), now)
                .await?;
        }
        Ok(())
    }

    async fn finish(
        &self,
        tx: &mut Tx,
        run: &RunRecord,
        failed: bool,
        now: Timestamp,
    ) -> Result<(), StoreError> {
        let to = run
            .state
            .apply(DagRunEvent::Finish { failed })
            .map_err(|error| StoreError::Inconsistent(error.to_string()))?;
        if tx.finish_run(run.key, to, now).await? {
            return Ok(());
        }
        let detail = format!("run {} moved on meanwhile", run.run_id);
        Err(StoreError::Contention {
            name: "plan run",
            detail,
        })
    }
}

/// The first task instance that hangs behind one that is over.
fn blocked(dag: &Dag, tasks: &[TaskSnapshot]) -> Option<TaskInstanceId> {
    let ended = tasks.iter().filter(|ti| ti.state.is_finished());
    let ended: HashSet<&TaskId> = ended.map(|ti| &ti.task_id).collect();
    let hangs = |task: &TaskId| {
        let mut before = dag.task(task).into_iter().flat_map(|task| &task.upstream);
        before.any(|at| ended.contains(&dag.tasks[*at].task_id))
    };
    let mut open = tasks.iter().filter(|ti| !ti.state.is_finished());
    open.find(|ti| hangs(&ti.task_id)).map(|ti| ti.id)
}

/// The tasks whose lengths matter to a plan. What is expanded stays as it is, unless something was cleared since.
fn sources(run: &RunRecord, dag: &Dag, tasks: &[TaskSnapshot]) -> Vec<TaskId> {
    let is_cleared = run.clear_number > 0;
    // Which instances belong together follows from the lengths of all groups.
    let is_nested = dag.tasks.iter().any(|task| task.mapped_groups.len() > 1);
    let open = tasks.iter().filter(|ti| {
        if is_nested || ti.map_index == MapIndex::UNMAPPED {
            !ti.state.is_finished()
        } else {
            is_cleared && ti.state.is_schedulable()
        }
    });
    dag.mapped_over(open.map(|ti| &ti.task_id))
}
