//! What every store must do, run on SQLite and on MariaDB.

#![expect(
    clippy::unwrap_used,
    reason = "a contract that cannot be set up is a failed contract"
)]

mod claims;
mod limits;
mod lists;
mod outside;
mod slots;
mod world;

use chrono::{Duration, Utc};
use model::dag_run::DagRunState;
use model::task_instance::{LossCause, Outcome, StateName};
use model::{DagRunKey, DagVersionId};
use std::collections::HashSet;
use std::time::Duration as StdDuration;
use store::repo::{Claimed, LockedRun, ParsedDag, Registered, Reported, WorkerRecord};
use store::{Cipher, Store, StoreError};
use uuid::Uuid;
use world::*;

#[tokio::test]
async fn migrating_twice_changes_nothing_and_the_schema_is_checked() {
    for world in worlds(1).await {
        assert!(world.store.migrate().await.unwrap().is_empty());
        world.store.check_schema().await.unwrap();
        world.store.reset().await.unwrap();
        assert!(
            world
                .store
                .reader()
                .await
                .unwrap()
                .dags()
                .await
                .unwrap()
                .is_empty()
        );
    }
    let folder = tempfile::tempdir().unwrap();
    let empty = Store::open_sqlite(&folder.path().join("empty.db")).await.unwrap();
    let error = empty.check_schema().await.unwrap_err().to_string();
    assert!(error.contains("updraft db migrate"), "{error}");
}

#[tokio::test]
async fn an_unchanged_dag_gets_no_new_version_and_a_changed_one_does() {
    for world in worlds(1).await {
        let save = async |text: &str| {
            let id = DagVersionId::new(Uuid::now_v7());
            store::transact!(world.store, "save", |tx| tx
                .save_dag(&parsed(text), id, Utc::now())
                .await)
            .unwrap()
        };
        assert!(!save(&document(1)).await.is_new_version);
        let changed = save(&document(2)).await;
        assert!(changed.is_new_version);
        let mut db = world.store.reader().await.unwrap();
        let dag = db.dag(&"d".into()).await.unwrap().unwrap();
        assert_eq!((dag.version_number, dag.version_id), (2, changed.version_id));
        assert_eq!(
            db.dag_version(world.version).await.unwrap().unwrap().source,
            "# source"
        );
    }
}

#[tokio::test]
async fn a_second_run_of_the_same_name_is_a_duplicate() {
    for world in worlds(1).await {
        world.run("same").await.unwrap();
        assert!(matches!(
            world.run("same").await,
            Err(StoreError::Duplicate { .. })
        ));
    }
}

#[tokio::test]
async fn a_transaction_that_fails_leaves_nothing_behind() {
    for world in worlds(1).await {
        let failed: Result<(), StoreError> = store::transact!(world.store, "fail", |tx| {
            tx.create_pool(&"p".into(), 3, None, false).await?;
            Err(StoreError::Inconsistent("on purpose".into()))
        });
        assert!(failed.is_err());
        // One that is dropped in the middle of its work is undone, too.
        let mut dropped = world.store.begin().await.unwrap();
        dropped.create_pool(&"q".into(), 3, None, false).await.unwrap();
        drop(dropped);
        let pools = world.store.reader().await.unwrap().pools().await.unwrap();
        assert_eq!(pools.len(), 1, "{pools:?}");
    }
}

#[tokio::test]
async fn a_dag_whose_last_runs_all_failed_is_paused() {
    for world in worlds(1).await {
        let text = document(1);
        let parsed = ParsedDag {
            max_consecutive_failed: 2,
            ..parsed(&text)
        };
        store::transact!(world.store, "save", |tx| tx
            .save_dag(&parsed, world.version, Utc::now())
            .await)
        .unwrap();
        let ended = async |name: &str, state: DagRunState| {
            let key = world.run(name).await.unwrap();
            let now = Utc::now();
            store::transact!(world.store, "end", |tx| {
                tx.finish_run(key, state, now).await?;
                tx.pause_after_failures(&"d".into(), now).await
            })
            .unwrap();
            let mut db = world.store.reader().await.unwrap();
            db.dag(&"d".into()).await.unwrap().unwrap().is_paused
        };
        assert!(!ended("first", DagRunState::Failed).await, "only one yet");
        assert!(!ended("second", DagRunState::Success).await);
        assert!(
            !ended("third", DagRunState::Failed).await,
            "a success stands between"
        );
        assert!(ended("fourth", DagRunState::Failed).await);
    }
}

#[tokio::test]
async fn schedulers_side_by_side_queue_each_task_once_and_never_overfill_a_pool() {
    for world in worlds(60).await {
        let key = world.run("r").await.unwrap();
        world.schedule_all(key).await;
        world.resize_pool(40).await;
        let turns = (0..4).map(|_| async {
            let me = worker_id();
            let mut mine = Vec::new();
            for _ in 0..6 {
                mine.extend(world.dispatch(me, 7).await.unwrap());
            }
            mine
        });
        let mut queued = Vec::new();
        let mut turns: Vec<_> = turns.map(Box::pin).collect();
        while !turns.is_empty() {
            let (a, b) = (turns.pop(), turns.pop());
            let (a, b) = tokio::join!(async { if let Some(a) = a { a.await } else { vec![] } }, async {
                if let Some(b) = b { b.await } else { vec![] }
            });
            queued.extend(a);
            queued.extend(b);
        }
        let distinct: HashSet<_> = queued.iter().collect();
        assert_eq!(distinct.len(), queued.len());
        assert_eq!(queued.len(), 28, "four schedulers of seven places each");
    }
}

#[tokio::test]
async fn one_claim_wins_and_asking_again_gives_the_same_answer() {
    for world in worlds(1).await {
        let (_, id) = world.queued_one().await;
        let (a, b) = (world.register("a").await, world.register("b").await);
        let Claimed::Granted(first) = world.claim(id, a, "one").await else {
            panic!("granted")
        };
        let Claimed::Granted(again) = world.claim(id, a, "one").await else {
            panic!("the same answer")
        };
        assert_eq!(first.0.claim_epoch, again.0.claim_epoch);
        assert!(matches!(world.claim(id, b, "two").await, Claimed::Refused(_)));
        assert!(matches!(world.claim(id, a, "three").await, Claimed::Refused(_)));
    }
}

#[tokio::test]
async fn what_a_task_keeps_is_there_for_its_next_try_until_it_expires() {
    for world in worlds(1).await {
        let (key, id) = world.queued_one().await;
        let worker = world.register("w").await;
        let Claimed::Granted(granted) = world.claim(id, worker, "one").await else {
            panic!("granted")
        };
        let (ti, now) = (&granted.0, Utc::now());
        for (name, value, expires) in [
            ("pod", "\"first\"", None),
            ("pod", "\"second\"", None),
            ("short", "1", Some(now + Duration::seconds(5))),
        ] {
            store::transact!(world.store, "keep", |tx| {
                tx.set_task_state(ti, name, value, expires).await
            })
            .unwrap();
        }
        let later = now + Duration::seconds(10);
        let kept = async |name: &str, at| {
            let mut db = world.store.reader().await.unwrap();
            db.task_state(ti, name, at).await.unwrap()
        };
        assert_eq!(kept("pod", later).await.as_deref(), Some("\"second\""));
        assert_eq!(kept("short", now).await.as_deref(), Some("1"));
        assert_eq!(kept("short", later).await, None);
        store::transact!(world.store, "forget", |tx| tx
            .delete_task_state(ti, Some("pod"))
            .await)
        .unwrap();
        assert_eq!(kept("pod", now).await, None);
        store::transact!(world.store, "forget", |tx| tx.delete_task_state(ti, None).await).unwrap();
        assert_eq!(kept("short", now).await, None);
        assert_eq!(ti.run_key, key);
    }
}

#[tokio::test]
async fn a_worker_without_a_lease_gets_nothing() {
    for world in worlds(1).await {
        let (_, id) = world.queued_one().await;
        assert!(matches!(
            world.claim(id, worker_id(), "x").await,
            Claimed::UnknownWorker
        ));
        let retired = world.register("w").await;
        store::transact!(world.store, "retire", |tx| tx.retire_worker(retired).await).unwrap();
        assert!(matches!(
            world.claim(id, retired, "y").await,
            Claimed::UnknownWorker
        ));
        assert_eq!(world.state(id).await, StateName::Queued);
    }
}

#[tokio::test]
async fn reports_may_come_twice_and_stale_ones_change_nothing() {
    for world in worlds(1).await {
        let (key, id) = world.queued_one().await;
        let worker = world.register("w").await;
        world.claim(id, worker, "one").await;
        assert!(matches!(
            world.report(id, 0, Outcome::Success).await,
            Reported::Stale(StateName::Running)
        ));
        assert!(matches!(
            world.report(id, 1, Outcome::Success).await,
            Reported::Applied(StateName::Success)
        ));
        assert!(matches!(
            world.report(id, 1, Outcome::Success).await,
            Reported::Repeated
        ));
        let failed = Outcome::Failed { retry_at: None };
        assert!(matches!(
            world.report(id, 1, failed).await,
            Reported::Stale(StateName::Success)
        ));
        assert_eq!(world.state(id).await, StateName::Success);
        let mut db = world.store.reader().await.unwrap();
        let xcom = db
            .xcom(key, &"t000".into(), model::MapIndex(-1), "return_value")
            .await
            .unwrap()
            .unwrap();
        assert_eq!(xcom.value, "\"é\"");
        assert!(
            !db.overlooked_runs(Utc::now() + Duration::seconds(1), 10)
                .await
                .unwrap()
                .is_empty()
        );
    }
}

#[tokio::test]
async fn a_retry_keeps_the_failed_try_in_the_history() {
    for world in worlds(1).await {
        let (key, id) = world.queued_one().await;
        let worker = world.register("w").await;
        world.claim(id, worker, "one").await;
        let at = Utc::now() + Duration::seconds(60);
        world.report(id, 1, Outcome::Failed { retry_at: Some(at) }).await;
        let mut db = world.store.reader().await.unwrap();
        let history = db.history(id).await.unwrap();
        assert_eq!(
            (history.len(), history[0].try_number, history[0].state.as_str()),
            (1, 1, "failed")
        );
        assert!(db.runs_with_due_tasks(Utc::now(), 10).await.unwrap().is_empty());
        assert_eq!(
            db.runs_with_due_tasks(at + Duration::seconds(1), 10)
                .await
                .unwrap(),
            [key]
        );
    }
}

#[tokio::test]
async fn a_worker_that_comes_back_loses_what_it_ran_before() {
    for world in worlds(1).await {
        let (_, id) = world.queued_one().await;
        let first = world.register("w").await;
        world.claim(id, first, "one").await;
        let second = WorkerRecord {
            id: worker_id(),
            name: "w".into(),
            hostname: "h".into(),
            queues: vec![],
            concurrency: 1,
            trigger_capacity: 0,
            key: "a key".into(),
            pool: "default".into(),
        };
        let earlier = store::transact!(world.store, "register", |tx| tx
            .register_worker(&second, LEASE)
            .await)
        .unwrap();
        assert_eq!(earlier, Registered::Begun(vec![first]));
        store::transact!(world.store, "lose", |tx| {
            let lost = tx.tasks_of_worker(first).await?;
            tx.lose_all(
                &store::Graphs::default(),
                &lost,
                LIMITS,
                &LossCause::WorkerRestarted,
                Utc::now(),
            )
            .await
        })
        .unwrap();
        let ti = world
            .store
            .reader()
            .await
            .unwrap()
            .task_instance_by_id(id)
            .await
            .unwrap()
            .unwrap();
        assert_eq!((ti.state, ti.infra_losses), (StateName::UpForRetry, 1));
        assert!(matches!(
            world.report(id, 1, Outcome::Success).await,
            Reported::Stale(_)
        ));
    }
}

#[tokio::test]
async fn only_the_same_key_takes_the_name_of_a_living_worker() {
    for world in worlds(1).await {
        let worker = |key: &str| WorkerRecord {
            id: worker_id(),
            name: "w".into(),
            hostname: "h".into(),
            queues: vec![],
            concurrency: 1,
            trigger_capacity: 0,
            key: key.into(),
            pool: "default".into(),
        };
        let register = async |worker: &WorkerRecord, lease: StdDuration| {
            store::transact!(world.store, "register", |tx| tx
                .register_worker(worker, lease)
                .await)
            .unwrap()
        };
        let lives = async |id| {
            world
                .store
                .reader()
                .await
                .unwrap()
                .worker_lives(id)
                .await
                .unwrap()
        };
        let (first, thief) = (worker("one"), worker("two"));
        assert_eq!(register(&first, LEASE).await, Registered::Begun(vec![]));
        assert_eq!(register(&thief, LEASE).await, Registered::NameTaken);
        assert!(lives(first.id).await && !lives(thief.id).await);
        // Nor does anybody get a token for a life that is another's.
        let same_life = WorkerRecord {
            id: first.id,
            ..worker("two")
        };
        assert_eq!(register(&same_life, LEASE).await, Registered::NameTaken);
        // The same worker may, and whoever comes when the lease is over, or the worker has left.
        let again = worker("one");
        assert_eq!(
            register(&again, StdDuration::ZERO).await,
            Registered::Begun(vec![first.id])
        );
        tokio::time::sleep(StdDuration::from_millis(20)).await;
        assert_eq!(register(&thief, LEASE).await, Registered::Begun(vec![again.id]));
        store::transact!(world.store, "retire", |tx| tx.retire_worker(thief.id).await).unwrap();
        // A life that has ended does not begin again.
        assert_eq!(register(&thief, LEASE).await, Registered::NameTaken);
        assert_eq!(register(&worker("one"), LEASE).await, Registered::Begun(vec![]));
    }
}

#[tokio::test]
async fn of_two_workers_that_take_a_name_at_the_same_time_one_has_it() {
    for world in worlds(1).await {
        for round in 0..10 {
            let racing = (0..4).map(|number| {
                let store = world.store.clone();
                let worker = WorkerRecord {
                    id: worker_id(),
                    name: format!("w{round}"),
                    hostname: "h".into(),
                    queues: vec![],
                    concurrency: 1,
                    trigger_capacity: 0,
                    key: format!("key {number}"),
                    pool: "default".into(),
                };
                async move {
                    store::transact!(store, "register", |tx| tx.register_worker(&worker, LEASE).await)
                        .unwrap()
                }
            });
            let ends = racing.collect::<tokio::task::JoinSet<_>>().join_all().await;
            let begun = ends
                .iter()
                .filter(|end| matches!(end, Registered::Begun(_)))
                .count();
            assert_eq!(begun, 1, "{ends:?}");
        }
    }
}

#[tokio::test]
async fn leases_run_out_by_the_databases_clock() {
    for world in worlds(1).await {
        let worker = WorkerRecord {
            id: worker_id(),
            name: "w".into(),
            hostname: "h".into(),
            queues: vec![],
            concurrency: 1,
            trigger_capacity: 0,
            key: "a key".into(),
            pool: "default".into(),
        };
        let none = StdDuration::ZERO;
        store::transact!(world.store, "register", |tx| tx
            .register_worker(&worker, none)
            .await)
        .unwrap();
        tokio::time::sleep(StdDuration::from_millis(20)).await;
        let (expired, alive) = world
            .store
            .reader()
            .await
            .unwrap()
            .expired_workers()
            .await
            .unwrap();
        assert_eq!((expired, alive), (vec![worker.id], 1));
        assert!(store::transact!(world.store, "expire", |tx| tx.expire_worker(worker.id).await).unwrap());
        let heard = world.beat(worker.id, 1, &[], &[]).await;
        assert!(!heard.alive, "what has ended is not renewed");
    }
}

#[tokio::test]
async fn a_run_is_planned_by_one_scheduler_at_a_time() {
    let Some(world) = mariadb(1).await else { return };
    let key = world.run("r").await.unwrap();
    let mut first = world.store.begin().await.unwrap();
    assert!(matches!(first.lock_run(key).await.unwrap(), LockedRun::Mine(_)));
    let mut second = world.store.begin().await.unwrap();
    assert!(matches!(second.lock_run(key).await.unwrap(), LockedRun::Busy));
    assert!(matches!(
        second.lock_run(DagRunKey(-1)).await.unwrap(),
        LockedRun::Gone
    ));
}

#[tokio::test]
async fn the_claim_query_walks_its_index_on_both_databases() {
    for world in worlds(200).await {
        let key = world.run("r").await.unwrap();
        world.schedule_all(key).await;
        let plan = world.store.explain_dispatch().await.unwrap();
        assert!(plan.contains("ix_ti_dispatch"), "{plan}");
        assert!(
            !plan.to_lowercase().contains("filesort") && !plan.contains("TEMP B-TREE"),
            "{plan}"
        );
    }
}

#[tokio::test]
async fn secrets_are_stored_encrypted_and_read_back() {
    for world in worlds(1).await {
        let cipher = Cipher::new("MTIzNDU2Nzg5MDEyMzQ1Njc4OTAxMjM0NTY3ODkwMTI=").unwrap();
        store::transact!(world.store, "set", |tx| tx
            .set_variable("k", "s3cret", None, &cipher)
            .await)
        .unwrap();
        let mut db = world.store.reader().await.unwrap();
        assert_eq!(db.variable("k", &cipher).await.unwrap().unwrap().value, "s3cret");
        assert!(db.variable("k", &Cipher::default()).await.is_err());
        assert!(
            db.variable("K", &cipher).await.unwrap().is_none(),
            "names are told apart by case"
        );
    }
}
