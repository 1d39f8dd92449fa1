//! A store with one DAG, and what one does with it.

use chrono::Utc;
use model::dag::Dag;
use model::dag_run::DagRunType;
use model::task_instance::{BeatNumber, Finding, LossCause, NamedClaims, Outcome, StateName};
use model::{ClaimEpoch, DagRunKey, DagVersionId, TaskInstanceId, TryNumber, WorkerId};
use scheduling::{Decision, Move};
use serde_json::json;
use std::time::Duration as StdDuration;
use store::repo::{
    Beat, ClaimRequest, Claimed, DispatchLimits, HeardBeat, LockedRun, LossLimits, LostTask, NewRun, NewXCom,
    ParsedDag, PoolRecord, Report, Reported, TaskInstanceRecord, WorkerRecord,
};
use store::{Store, StoreError};
use uuid::Uuid;

pub(crate) const LEASE: StdDuration = StdDuration::from_secs(60);
pub(crate) const LIMITS: LossLimits = LossLimits {
    infra_retries: 3,
    worker_losses: 2,
    start_retries: 3,
};

pub(crate) fn ti_id() -> TaskInstanceId {
    TaskInstanceId::new(Uuid::now_v7())
}

pub(crate) fn worker_id() -> WorkerId {
    WorkerId::new(Uuid::now_v7())
}

pub(crate) struct World {
    pub(crate) store: Store,
    pub(crate) dag: Dag,
    pub(crate) version: DagVersionId,
    _folder: tempfile::TempDir,
}

/// A DAG of `count` tasks side by side.
pub(crate) fn document(count: usize) -> String {
    let tasks: Vec<_> = (0..count)
        .map(|n| json!({"__type": "operator", "__var": {"task_id": format!("t{n:03}"), "task_type": "BashOperator", "retries": 1}}))
        .collect();
    json!({"__version": 3, "dag": {
        "dag_id": "d", "fileloc": "/d.py", "relative_fileloc": "d.py", "max_active_tasks": 1000, "max_active_runs": 16,
        "timetable": {"__type": "airflow.timetables.simple.NullTimetable", "__var": {}}, "tasks": tasks,
    }})
    .to_string()
}

pub(crate) fn parsed(serialized: &str) -> ParsedDag {
    ParsedDag {
        dag_id: "d".into(),
        fileloc: "/d.py".into(),
        relative_fileloc: "d.py".into(),
        bundle_name: "dags-folder".into(),
        bundle_version: None,
        display_name: None,
        description: None,
        owners: vec!["me".into()],
        tags: vec!["one".into()],
        timetable_type: "NullTimetable".into(),
        timetable_summary: None,
        timetable_description: None,
        has_timetable: false,
        max_active_runs: 16,
        max_active_tasks: 1000,
        max_consecutive_failed: 0,
        allowed_run_types: None,
        has_task_limits: false,
        has_several_pools: false,
        paused_at_creation: false,
        serialized: serialized.to_owned(),
        canonical: serialized.to_owned(),
        native: "{}".into(),
        source: "# source".into(),
        parse_duration: 0.1,
    }
}

pub(crate) async fn world(store: Store, folder: tempfile::TempDir, tasks: usize) -> World {
    store.migrate().await.unwrap();
    let text = document(tasks);
    let dag = Dag::from_serialized(&serde_json::from_str(&text).unwrap()).unwrap();
    let id = DagVersionId::new(Uuid::now_v7());
    let saved = store::transact!(store, "save", |tx| {
        tx.ensure_default_pool(128).await?;
        tx.save_dag(&parsed(&text), id, Utc::now()).await
    })
    .unwrap();
    World {
        store,
        dag,
        version: saved.version_id,
        _folder: folder,
    }
}

pub(crate) async fn sqlite(tasks: usize) -> World {
    let folder = tempfile::tempdir().unwrap();
    let store = Store::open_sqlite(&folder.path().join("test.db")).await.unwrap();
    world(store, folder, tasks).await
}

pub(crate) async fn mariadb(tasks: usize) -> Option<World> {
    let url = harness::mariadb_database()?;
    let store = Store::open_mariadb(&url, 8).await.unwrap();
    Some(world(store, tempfile::tempdir().unwrap(), tasks).await)
}

/// Both stores; MariaDB only where there is one.
pub(crate) async fn worlds(tasks: usize) -> Vec<World> {
    let mut worlds = vec![sqlite(tasks).await];
    worlds.extend(mariadb(tasks).await);
    worlds
}

impl World {
    pub(crate) async fn run(&self, name: &str) -> Result<DagRunKey, StoreError> {
        let run = NewRun {
            dag: &self.dag,
            version_id: self.version,
            run_id: name.into(),
            run_type: DagRunType::Manual,
            logical_date: None,
            interval: None,
            run_after: Utc::now(),
            conf: "{}".into(),
            triggered_by: "test",
            triggering_user: None,
            note: None,
            trace_context: None,
            partition: None,
        };
        store::transact!(self.store, "create run", |tx| {
            let key = tx.create_run(&run, &mut ti_id, Utc::now()).await?;
            tx.start_runs(&[key], Utc::now()).await?;
            Ok(key)
        })
    }

    /// Gives the default pool so many slots.
    pub(crate) async fn resize_pool(&self, slots: i64) {
        store::transact!(self.store, "resize", |tx| {
            let pool = tx.pools().await?.remove(0);
            let record = PoolRecord { slots, ..pool };
            tx.update_pool(&"default_pool".into(), &record).await
        })
        .unwrap();
    }

    /// Schedules every task of a run that is not.
    pub(crate) async fn schedule_all(&self, key: DagRunKey) {
        self.schedule_some(key, usize::MAX).await;
    }

    /// Schedules the first so many tasks of a run that are not.
    pub(crate) async fn schedule_some(&self, key: DagRunKey, most: usize) {
        self.move_some(key, StateName::NoStatus, &Decision::Schedule, most)
            .await;
    }

    /// Makes this move with the first so many task instances of a run that are in that state.
    pub(crate) async fn move_some(&self, key: DagRunKey, from: StateName, decision: &Decision, most: usize) {
        store::transact!(self.store, "schedule", |tx| {
            let LockedRun::Mine(run) = tx.lock_run(key).await? else {
                panic!("the run is free")
            };
            let moves: Vec<Move> = tx
                .snapshot(key)
                .await?
                .into_iter()
                .filter(|ti| ti.state == from)
                .take(most)
                .map(|ti| Move {
                    id: ti.id,
                    from: ti.state,
                    decision: decision.clone(),
                })
                .collect();
            tx.apply_moves(&run, &self.dag, &moves, &mut ti_id, Utc::now())
                .await
        })
        .unwrap();
    }

    pub(crate) async fn dispatch(
        &self,
        by: WorkerId,
        parallelism: u32,
    ) -> Result<Vec<TaskInstanceId>, StoreError> {
        let limits = DispatchLimits {
            scheduler: by,
            parallelism,
        };
        let dispatches =
            store::transact!(self.store, "dispatch", |tx| tx.dispatch(limits, Utc::now()).await)?;
        Ok(dispatches.into_iter().map(|dispatch| dispatch.id).collect())
    }

    pub(crate) async fn register(&self, name: &str) -> WorkerId {
        let worker = WorkerRecord {
            id: worker_id(),
            name: name.into(),
            hostname: "h".into(),
            queues: vec!["default".into()],
            concurrency: 4,
            trigger_capacity: 0,
            key: "a key".into(),
            pool: "default".into(),
        };
        store::transact!(self.store, "register", |tx| tx
            .register_worker(&worker, LEASE)
            .await)
        .unwrap();
        worker.id
    }

    pub(crate) async fn claim(&self, id: TaskInstanceId, worker: WorkerId, claim_id: &str) -> Claimed {
        self.claim_of(id, worker, claim_id, false).await
    }

    /// Claims a task instance, or with `any_of_queue` the heaviest of its queue.
    pub(crate) async fn claim_of(
        &self,
        id: TaskInstanceId,
        worker: WorkerId,
        claim_id: &str,
        any_of_queue: bool,
    ) -> Claimed {
        self.claim_after(id, worker, claim_id, any_of_queue, 0).await
    }

    /// Claims as a worker does that has begun so many heartbeats.
    pub(crate) async fn claim_after(
        &self,
        id: TaskInstanceId,
        worker: WorkerId,
        claim_id: &str,
        any_of_queue: bool,
        beat: i64,
    ) -> Claimed {
        let try_number = match self.task(id).await.try_number {
            TryNumber(0) => TryNumber(1),
            current => current,
        };
        let request = ClaimRequest {
            id,
            try_number,
            claim_id: claim_id.into(),
            worker,
            beat: BeatNumber(beat),
            hostname: "h".into(),
            unixname: "u".into(),
            pid: 1,
            any_of: any_of_queue.then(|| "default".into()),
            keeps_xcoms: false,
        };
        store::transact!(self.store, "claim", |tx| tx.claim(&request, Utc::now()).await).unwrap()
    }

    pub(crate) async fn report(&self, id: TaskInstanceId, epoch: i64, outcome: Outcome) -> Reported {
        self.report_with(id, epoch, outcome, None).await
    }

    /// Reports a try that goes on with that method and arguments after it has waited.
    pub(crate) async fn report_with(
        &self,
        id: TaskInstanceId,
        epoch: i64,
        outcome: Outcome,
        next: Option<(String, String)>,
    ) -> Reported {
        let report = Report {
            id,
            epoch: ClaimEpoch(epoch),
            outcome,
            end_date: Utc::now(),
            exit_cause: None,
            xcoms: vec![NewXCom {
                key: "return_value".into(),
                value: "\"é\"".into(),
                mapped_length: None,
            }],
            rendered_fields: Some("{}".into()),
            map_label: None,
            next,
            outlets: Vec::new(),
            outlet_events: Vec::new(),
            trigger: None,
        };
        store::transact!(self.store, "report", |tx| tx.report(&report, Utc::now()).await).unwrap()
    }

    pub(crate) async fn task(&self, id: TaskInstanceId) -> TaskInstanceRecord {
        let mut db = self.store.reader().await.unwrap();
        db.task_instance_by_id(id).await.unwrap().unwrap()
    }

    pub(crate) async fn state(&self, id: TaskInstanceId) -> StateName {
        self.task(id).await.state
    }

    /// A worker's heartbeat, with what follows from it.
    pub(crate) async fn beat(
        &self,
        worker: WorkerId,
        number: i64,
        held: &[(TaskInstanceId, i64)],
        asked: &[&str],
    ) -> HeardBeat {
        let named = NamedClaims {
            number: BeatNumber(number),
            held: held.iter().map(|(id, epoch)| (*id, ClaimEpoch(*epoch))).collect(),
            asked: asked.iter().map(|id| (*id).to_owned()).collect(),
        };
        let beat = Beat {
            worker,
            draining: false,
            unwell: None,
            named,
        };
        let heard = store::transact!(self.store, "beat", |tx| tx.hear_beat(&beat, LEASE).await).unwrap();
        for (claim, finding) in &heard.findings {
            store::transact!(self.store, "compare", |tx| {
                match finding {
                    Finding::Nothing => {}
                    Finding::Named => tx.note_unnamed(claim, None).await?,
                    Finding::Unnamed => tx.note_unnamed(claim, Some(beat.named.number)).await?,
                    Finding::Unknown => {
                        let held = (claim.id, claim.epoch);
                        let graphs = store::Graphs::default();
                        tx.give_back(&graphs, held, LIMITS, "unheard", Utc::now()).await?;
                    }
                }
                Ok(())
            })
            .unwrap();
        }
        heard
    }

    /// Loses everything that a worker holds.
    pub(crate) async fn lose(&self, worker: WorkerId, cause: LossCause) {
        let graphs = store::Graphs::default();
        store::transact!(self.store, "lose", |tx| {
            let mut lost = tx.tasks_of_worker(worker).await?;
            LostTask::accuse(&mut lost, &cause, LIMITS);
            tx.lose_all(&graphs, &lost, LIMITS, &cause, Utc::now()).await
        })
        .unwrap();
    }

    /// Queues again whatever of a run waits to be tried or started again.
    pub(crate) async fn queue_again(&self, key: DagRunKey, from: StateName) {
        self.move_some(key, from, &Decision::Schedule, usize::MAX).await;
        self.dispatch(worker_id(), 100).await.unwrap();
    }

    /// One task instance, queued.
    pub(crate) async fn queued_one(&self) -> (DagRunKey, TaskInstanceId) {
        let key = self.run("r").await.unwrap();
        self.schedule_all(key).await;
        let queued = self.dispatch(worker_id(), 1).await.unwrap();
        (key, queued[0])
    }
}
