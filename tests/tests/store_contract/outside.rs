//! What happens around runs: partitions that wait, deadlines, tasks that begin with a trigger, news for listeners.

use crate::world::*;
use chrono::{DateTime, Duration, Utc};
use model::dag::Dag;
use model::dag_run::{DagRunState, DagRunType};
use model::task_instance::StateName;
use model::timetable::Partition;
use model::{DagRunKey, DagVersionId, MapIndex, Timestamp};
use scheduling::{Decision, Move};
use serde_json::{Value, json};
use store::repo::{
    AssetEventSource, CallbackKind, Hooks, LockedRun, Mutation, NewAssetEvent, NewRun, News, PartitionTarget,
    PartitionedRuns, RunNews,
};
use uuid::Uuid;

fn asset() -> Value {
    json!({"__type": "asset", "name": "a", "uri": "a", "group": "asset", "extra": {}})
}

/// A DAG that waits for partitions of an asset, with a deadline and a task that begins with a trigger.
fn text() -> String {
    let identity = json!({"__type": "airflow.partition_mappers.identity.IdentityMapper", "__var": {}});
    let start = json!({"__type": "START_TRIGGER_ARGS", "trigger_cls": "m.T", "trigger_kwargs": {"__type": "dict", "__var": {"n": 1}},
        "next_method": "go_on", "next_kwargs": null, "timeout": 60.0});
    let seconds = json!({"__classname__": "datetime.timedelta", "__version__": 2, "__data__": 10.0});
    let variable = json!({"__classname__": "airflow.sdk.definitions.deadline.VariableInterval", "__version__": 0, "__data__": {"key": "k"}});
    let callback = json!({"__classname__": "airflow.sdk.definitions.callback.AsyncCallback", "__version__": 0, "__data__": {"path": "m.f", "kwargs": {}}});
    let twenty = json!({"__classname__": "datetime.timedelta", "__version__": 2, "__data__": 20.0});
    let own = json!({"name": "own", "reference": {"reference_type": "Mine", "__class_path": "m.Mine"}, "interval": twenty, "callback": callback});
    let alert = |kind: &str, interval: &Value| json!({"name": kind, "reference": {"reference_type": kind}, "interval": interval, "callback": callback});
    json!({"__version": 3, "dag": {
        "dag_id": "d", "fileloc": "/d.py", "relative_fileloc": "d.py", "max_active_tasks": 1000, "max_active_runs": 16,
        "deadline": [alert("DagRunQueuedAtDeadline", &seconds), alert("DagRunQueuedAtDeadline", &variable), alert("AverageRuntimeDeadline", &seconds), own],
        "timetable": {"__type": "airflow.timetables.simple.PartitionedAssetTimetable", "__var": {
            "asset_condition": asset(), "default_partition_mapper": identity, "partition_mapper_config": []}},
        "tasks": [{"__type": "operator", "__var": {"task_id": "t", "task_type": "X", "start_from_trigger": true, "start_trigger_args": start}}],
    }})
    .to_string()
}

async fn save(world: &mut World) {
    let text = text();
    world.dag = Dag::from_serialized(&serde_json::from_str(&text).unwrap()).unwrap();
    let mut parsed = parsed(&text);
    parsed.timetable_type = "PartitionedAssetTimetable".into();
    let id = DagVersionId::new(Uuid::now_v7());
    let saved = store::transact!(world.store, "save", |tx| {
        let saved = tx.save_dag(&parsed, id, Utc::now()).await?;
        tx.set_asset_references(&world.dag, Utc::now()).await?;
        Ok(saved)
    })
    .unwrap();
    world.version = saved.version_id;
}

fn about(world: &World, name: &str, key: &str, date: Option<Timestamp>) -> NewRun<'static> {
    let dag: &'static Dag = Box::leak(Box::new(world.dag.clone()));
    NewRun {
        dag,
        version_id: world.version,
        run_id: name.into(),
        run_type: DagRunType::Scheduled,
        logical_date: None,
        interval: None,
        run_after: date.unwrap_or_else(Utc::now),
        conf: "{}".into(),
        triggered_by: "test",
        triggering_user: None,
        note: None,
        trace_context: None,
        partition: Some(Partition {
            key: key.into(),
            date,
        }),
    }
}

async fn make(world: &World, run: &NewRun<'_>) -> DagRunKey {
    store::transact!(world.store, "create run", |tx| tx
        .create_run(run, &mut ti_id, Utc::now())
        .await)
    .unwrap()
}

fn day(text: &str) -> Option<Timestamp> {
    DateTime::parse_from_rfc3339(text).ok().map(|at| at.to_utc())
}

#[tokio::test]
async fn an_update_of_a_partition_waits_until_its_run_has_it_and_never_starts_it_twice() {
    for mut world in worlds(1).await {
        save(&mut world).await;
        let now = Utc::now();
        let nothing = serde_json::Map::new();
        let asset = world
            .store
            .reader()
            .await
            .unwrap()
            .asset_named("a")
            .await
            .unwrap()
            .unwrap();
        let update = |key: Option<&'static str>| NewAssetEvent {
            asset: asset.id,
            source: AssetEventSource::Outside,
            extra: &nothing,
            aliases: &[],
            partition_key: key,
            partition_date: None,
        };
        for key in [Some("x"), None] {
            let event = update(key);
            store::transact!(world.store, "update", |tx| tx.add_asset_event(&event, now).await).unwrap();
        }
        let mut db = world.store.reader().await.unwrap();
        assert_eq!(db.dags_with_updated_partitions().await.unwrap(), ["d".into()]);
        assert!(
            db.dags_with_updated_assets().await.unwrap().is_empty(),
            "an update of the whole is none of a partition"
        );
        let waiting = db.partition_events(&"d".into()).await.unwrap();
        assert_eq!((waiting.len(), waiting[0].target_key.as_deref()), (1, None));
        assert_eq!(db.assets_of_partitions(&waiting).await.unwrap().len(), 1);
        drop(db);
        let event = waiting[0].clone();
        let map = async || {
            let targets = ["one", "two"].map(|key| PartitionTarget {
                key: key.to_owned(),
                said: None,
            });
            store::transact!(world.store, "map", |tx| tx
                .map_partition_event(&"d".into(), &event, &targets, now)
                .await)
            .unwrap();
            let mut db = world.store.reader().await.unwrap();
            assert!(db.dags_with_updated_partitions().await.unwrap().is_empty());
            let waiting = db.partition_events(&"d".into()).await.unwrap();
            waiting
                .into_iter()
                .filter_map(|event| event.target_key)
                .collect::<Vec<_>>()
        };
        assert_eq!(map().await, ["one", "two"]);
        let key = make(&world, &about(&world, "r1", "one", day("2026-01-02T00:00:00Z"))).await;
        store::transact!(world.store, "consume", |tx| tx
            .consume_partition(&"d".into(), key, "one")
            .await)
        .unwrap();
        store::transact!(world.store, "again", |tx| tx
            .look_at_partitions_again(&"d".into())
            .await)
        .unwrap();
        assert_eq!(map().await, ["two"], "what it has started already is left out");
        let mut db = world.store.reader().await.unwrap();
        assert_eq!(db.consumed_asset_events(key).await.unwrap().len(), 1);
        drop(db);
        store::transact!(world.store, "forget", |tx| {
            tx.clear_partition(key, now).await?;
            tx.look_at_partitions_again(&"d".into()).await
        })
        .unwrap();
        assert_eq!(
            map().await,
            ["two"],
            "whatever becomes of the run that it started"
        );
        let second = make(&world, &about(&world, "r2", "two", day("2026-01-03T00:00:00Z"))).await;
        store::transact!(world.store, "consume", |tx| tx
            .consume_partition(&"d".into(), second, "two")
            .await)
        .unwrap();
        let mut db = world.store.reader().await.unwrap();
        assert_eq!(db.consumed_asset_events(second).await.unwrap().len(), 1);
        assert!(db.partition_events(&"d".into()).await.unwrap().is_empty());
    }
}

#[tokio::test]
async fn runs_are_found_by_their_partitions_which_can_be_taken_from_them() {
    for mut world in worlds(1).await {
        save(&mut world).await;
        make(&world, &about(&world, "r1", "one", day("2026-01-01T00:00:00Z"))).await;
        make(&world, &about(&world, "r2", "two", day("2026-01-02T00:00:00Z"))).await;
        make(&world, &about(&world, "r3", "none", None)).await;
        let found = async |wanted: &PartitionedRuns| {
            let mut db = world.store.reader().await.unwrap();
            let runs = db.partitioned_runs(&"d".into(), wanted).await.unwrap();
            runs.into_iter()
                .map(|run| run.run_id.to_string())
                .collect::<Vec<_>>()
        };
        assert_eq!(found(&PartitionedRuns::Key("two".into())).await, ["r2"]);
        assert_eq!(found(&PartitionedRuns::Run("r3".into())).await, ["r3"]);
        assert_eq!(found(&PartitionedRuns::Dated(None, None)).await, ["r1", "r2"]);
        assert_eq!(
            found(&PartitionedRuns::Dated(day("2026-01-02T00:00:00Z"), None)).await,
            ["r2"]
        );
        let mut db = world.store.reader().await.unwrap();
        assert_eq!(
            db.last_partitioned_run(&"d".into()).await.unwrap(),
            day("2026-01-02T00:00:00Z")
        );
        let about = db
            .run_about(&"d".into(), day("2026-01-01T00:00:00Z"))
            .await
            .unwrap()
            .unwrap();
        drop(db);
        let clear = async || {
            store::transact!(world.store, "clear", |tx| tx
                .clear_partition(about.key, Utc::now())
                .await)
            .unwrap()
        };
        assert_eq!((clear().await, clear().await), (true, false));
    }
}

#[tokio::test]
async fn a_deadline_is_missed_once_and_forgotten_by_a_run_that_kept_it() {
    for mut world in worlds(1).await {
        save(&mut world).await;
        let key = world.run("r").await.unwrap();
        let begin = Utc::now();
        let mut db = world.store.reader().await.unwrap();
        let later = begin + Duration::seconds(11);
        let passed = db.passed_deadlines(later, 10).await.unwrap();
        assert_eq!(
            passed.len(),
            1,
            "one has no length yet, and of one there is no average"
        );
        assert!(db.passed_deadlines(begin, 10).await.unwrap().is_empty());
        let open = db.open_deadlines(10).await.unwrap();
        assert_eq!((open.len(), open[0].variable.as_deref()), (2, Some("k")));
        let asked = open[1].reference.as_deref().unwrap_or_default();
        assert!(asked.contains("m.Mine"), "{asked}");
        assert_eq!(open[1].length, Some(Duration::seconds(20)));
        drop(db);
        let measure = Some(Duration::hours(1));
        store::transact!(world.store, "measure", |tx| tx
            .set_deadline(open[0].id, None, measure, begin)
            .await)
        .unwrap();
        let base = Some(begin - Duration::hours(9));
        store::transact!(world.store, "measure", |tx| tx
            .set_deadline(open[1].id, base, open[1].length, begin)
            .await)
        .unwrap();
        let mut db = world.store.reader().await.unwrap();
        assert!(db.open_deadlines(10).await.unwrap().is_empty());
        assert_eq!(db.passed_deadlines(begin, 10).await.unwrap(), [open[1].id]);
        store::transact!(world.store, "miss", |tx| tx
            .miss_deadline(open[1].id, begin)
            .await)
        .unwrap();
        let claim = store::transact!(world.store, "claim", |tx| tx
            .claim_run_callback(begin, LEASE)
            .await);
        assert_eq!(claim.unwrap().unwrap().kind, CallbackKind::Deadline(open[1].id));
        let miss = async || {
            store::transact!(world.store, "miss", |tx| tx.miss_deadline(passed[0], later).await).unwrap()
        };
        assert_eq!((miss().await, miss().await), (Some(key), None));
        let claim = store::transact!(world.store, "claim", |tx| tx
            .claim_run_callback(later, LEASE)
            .await);
        assert_eq!(claim.unwrap().unwrap().kind, CallbackKind::Deadline(passed[0]));
        let mut db = world.store.reader().await.unwrap();
        let call = db.deadline_call(passed[0]).await.unwrap().unwrap();
        assert_eq!(
            (&call["path"], &call["is_awaited"]),
            (&json!("m.f"), &json!(true))
        );
        let far = begin + Duration::hours(2);
        assert_eq!(db.passed_deadlines(far, 10).await.unwrap(), [open[0].id]);
        drop(db);
        // Queued anew, the one that is not missed counts from then on.
        let again = begin + Duration::hours(1);
        store::transact!(world.store, "clear", |tx| tx
            .note_clearing(key, false, again)
            .await)
        .unwrap();
        let mut db = world.store.reader().await.unwrap();
        assert!(
            db.passed_deadlines(begin + Duration::minutes(90), 10)
                .await
                .unwrap()
                .is_empty()
        );
        drop(db);
        store::transact!(world.store, "keep", |tx| tx.keep_deadlines(key, begin).await).unwrap();
        let mut db = world.store.reader().await.unwrap();
        assert!(
            db.passed_deadlines(begin + Duration::days(9), 10)
                .await
                .unwrap()
                .is_empty()
        );
    }
}

#[tokio::test]
async fn a_task_begins_with_its_trigger_and_grows_beside_itself() {
    for mut world in worlds(1).await {
        save(&mut world).await;
        let key = world.run("r").await.unwrap();
        let decide = async |decision: Decision, from: StateName| {
            let now = Utc::now();
            store::transact!(world.store, "decide", |tx| {
                let LockedRun::Mine(run) = tx.lock_run(key).await? else {
                    panic!("the run is free")
                };
                let id = tx.task_instances_of(key).await?[0].id;
                let moves = [Move {
                    id,
                    from,
                    decision: decision.clone(),
                }];
                tx.apply_moves(&run, &world.dag, &moves, &mut ti_id, now).await
            })
        };
        decide(Decision::Defer, StateName::NoStatus).await.unwrap();
        assert!(
            decide(Decision::Defer, StateName::NoStatus).await.is_err(),
            "it is deferred already"
        );
        let mut db = world.store.reader().await.unwrap();
        let ti = db.task_instances_of(key).await.unwrap().remove(0);
        assert_eq!((ti.state, ti.try_number.0), (StateName::Deferred, 1));
        let limit = ti.not_before.unwrap() - ti.start_date.unwrap();
        assert_eq!(limit, Duration::seconds(60));
        let trigger = db.trigger_of(&ti).await.unwrap().unwrap();
        assert_eq!(
            (trigger.classpath.as_str(), trigger.next_method.as_deref()),
            ("m.T", Some("go_on"))
        );
        assert_eq!(db.triggers_waited_for(&[ti.id]).await.unwrap().len(), 1);
        drop(db);
        decide(
            Decision::Grow(vec![MapIndex(1), MapIndex(2)]),
            StateName::Deferred,
        )
        .await
        .unwrap();
        let mut db = world.store.reader().await.unwrap();
        assert_eq!(db.task_instances_of(key).await.unwrap().len(), 3);
    }
}

#[tokio::test]
async fn task_instances_wait_for_a_word_of_python() {
    for world in worlds(3).await {
        let hook = Hooks(vec!["task_instance_mutation_hook".to_owned()]);
        let before = world.run("before").await.unwrap();
        store::transact!(world.store, "note", |tx| tx.set_listeners(&hook).await).unwrap();
        let key = world.run("r").await.unwrap();
        let mut db = world.store.reader().await.unwrap();
        assert!(db.awaiting_mutation(before).await.unwrap().is_empty());
        assert_eq!(db.awaiting_mutation(key).await.unwrap().len(), 3);
        drop(db);
        let now = Utc::now();
        let claim =
            async || store::transact!(world.store, "claim", |tx| tx.claim_mutations(now, LEASE).await);
        let claimed = claim().await.unwrap().expect("they wait");
        let asked = claimed.ids.clone();
        assert_eq!((claimed.run_key, asked.len()), (key, 3));
        assert_eq!(claim().await.unwrap(), None, "they are in hand");
        let one = Mutation {
            id: asked[0],
            queue: "far".into(),
            pool: "side".into(),
            pool_slots: 2,
            priority_weight: 7,
            executor: None,
            max_tries: 5,
        };
        store::transact!(world.store, "mutate", |tx| tx
            .mutate(&claimed, std::slice::from_ref(&one), now)
            .await)
        .unwrap();
        let mut db = world.store.reader().await.unwrap();
        assert!(db.awaiting_mutation(key).await.unwrap().is_empty());
        let ti = db.task_instance_by_id(asked[0]).await.unwrap().expect("it");
        let placed = (
            ti.queue.as_str(),
            ti.pool.as_str(),
            ti.pool_slots,
            ti.priority_weight,
            ti.max_tries,
        );
        assert_eq!(placed, ("far", "side", 2, 7, 5));
        let other = db.task_instance_by_id(asked[1]).await.unwrap().expect("it");
        assert_eq!(other.queue.as_str(), "default");
    }
}

#[tokio::test]
async fn a_run_takes_over_another_version_once() {
    for world in worlds(2).await {
        let key = world.run("r").await.unwrap();
        let (text, id) = (document(3), DagVersionId::new(Uuid::now_v7()));
        let graphs = store::Graphs::default();
        let told = store::transact!(world.store, "save", |tx| {
            tx.save_dag(&parsed(&text), id, Utc::now()).await?;
            tx.tell_runs_of_version(&"d".into(), Utc::now()).await
        });
        assert_eq!(told.unwrap(), [key]);
        let run = world.store.reader().await.unwrap().run_by_key(key).await.unwrap();
        let run = run.expect("it");
        let adopt = async || {
            store::transact!(world.store, "adopt", |tx| {
                let version = tx.version_for(&run).await?;
                let mut run = run.clone();
                tx.adopt_version(&graphs, &mut run, version, &mut ti_id, Utc::now())
                    .await?;
                Ok(run.version_id)
            })
        };
        assert_eq!(adopt().await.unwrap(), id);
        adopt().await.expect_err("somebody else has, in between");
        let tis = world.store.reader().await.unwrap().task_instances_of(key).await;
        let tis = tis.unwrap();
        assert_eq!(tis.len(), 3);
        assert!(tis.iter().all(|ti| ti.version_id == id));
    }
}

#[tokio::test]
async fn listeners_and_names_of_runs_are_noted_and_go_with_the_dag() {
    for mut world in worlds(1).await {
        save(&mut world).await;
        let key = world.run("r").await.unwrap();
        let now = Utc::now();
        let heard = Hooks(vec!["on_dag_run_running".to_owned()]);
        for hooks in [&heard, &Hooks::default(), &heard] {
            store::transact!(world.store, "note", |tx| tx.set_listeners(hooks).await).unwrap();
            let known = world.store.reader().await.unwrap().listeners().await.unwrap();
            assert_eq!(&known, hooks);
        }
        for news in [RunNews::Running, RunNews::Success] {
            let news = News::Run(key, news, "started");
            store::transact!(world.store, "tell", |tx| tx.tell(&heard, &news, now).await).unwrap();
        }
        let claim = store::transact!(world.store, "claim", |tx| tx.claim_run_callback(now, LEASE).await);
        assert_eq!(
            claim.unwrap().unwrap().kind,
            CallbackKind::Listener("on_dag_run_running".into(), serde_json::Value::Null)
        );
        let claim = store::transact!(world.store, "claim", |tx| tx.claim_run_callback(now, LEASE).await);
        assert_eq!(claim.unwrap(), None, "nobody listens for how it ended");
        store::transact!(world.store, "name", |tx| tx
            .set_next_run_id(&"d".into(), Some("mine"))
            .await)
        .unwrap();
        let named = world
            .store
            .reader()
            .await
            .unwrap()
            .next_run_id(&"d".into())
            .await
            .unwrap();
        assert_eq!(named.unwrap().as_str(), "mine");
        store::transact!(world.store, "finish", |tx| tx
            .finish_run(key, DagRunState::Success, now)
            .await)
        .unwrap();
        assert!(store::transact!(world.store, "delete", |tx| tx.delete_dag(&"d".into()).await).unwrap());
        assert!(
            world
                .store
                .reader()
                .await
                .unwrap()
                .next_run_id(&"d".into())
                .await
                .unwrap()
                .is_none()
        );
    }
}
