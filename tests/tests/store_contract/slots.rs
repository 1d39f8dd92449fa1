//! Who gets slots, and who is claimed first.

use crate::world::*;
use chrono::Utc;
use model::task_instance::StateName;
use std::sync::Arc;
use store::repo::{Claimed, ParsedDag};

#[tokio::test]
async fn pools_and_parallelism_bound_what_is_queued() {
    for world in worlds(30).await {
        let key = world.run("r").await.unwrap();
        world.schedule_all(key).await;
        let (one, two) = (worker_id(), worker_id());
        assert_eq!(world.dispatch(one, 5).await.unwrap().len(), 5);
        assert_eq!(world.dispatch(one, 5).await.unwrap().len(), 0);
        world.resize_pool(8).await;
        assert_eq!(world.dispatch(two, 100).await.unwrap().len(), 3);
    }
}

#[tokio::test]
async fn a_task_that_needs_more_slots_than_are_free_lets_smaller_ones_pass() {
    for mut world in worlds(3).await {
        world.dag.tasks[0].pool_slots = 5;
        let key = world.run("r").await.unwrap();
        world.schedule_all(key).await;
        world.resize_pool(1).await;
        assert_eq!(world.dispatch(worker_id(), 100).await.unwrap().len(), 1);
    }
}

#[tokio::test]
async fn the_heaviest_of_a_queue_is_claimed_first_and_each_once() {
    for mut world in worlds(4).await {
        for (at, task) in world.dag.tasks.iter_mut().enumerate() {
            task.priority_weight = [1, 9, 5, 9][at];
            if at == 3 {
                task.queue = "other".into();
            }
        }
        let key = world.run("r").await.unwrap();
        world.schedule_all(key).await;
        assert_eq!(world.dispatch(worker_id(), 100).await.unwrap().len(), 4);
        let worker = world.register("w").await;
        let tis = world.store.reader().await.unwrap().task_instances_of(key).await;
        let tis = tis.unwrap();
        let of = |name: &str| tis.iter().find(|ti| ti.task_id.as_str() == name).expect("it").id;
        let got = async |id, claim_id: &str| match world.claim_of(id, worker, claim_id, true).await {
            Claimed::Granted(granted) => granted.0.task_id.to_string(),
            other => format!("{other:?}"),
        };
        assert_eq!(got(of("t000"), "one").await, "t001");
        assert_eq!(
            got(of("t000"), "one").await,
            "t001",
            "the same question has the same answer"
        );
        // Its own message is a right to what else waits in its queue.
        assert_eq!(got(of("t001"), "two").await, "t002");
        assert_eq!(got(of("t002"), "three").await, "t000");
        assert!(got(of("t000"), "four").await.starts_with("Refused"));
        assert_eq!(world.state(of("t003")).await, StateName::Queued);
        // Whoever wants this one and no other gets it.
        assert!(matches!(
            world.claim(of("t003"), worker, "five").await,
            Claimed::Granted(_)
        ));
    }
}

#[tokio::test]
async fn a_run_has_no_more_slots_of_all_pools_than_its_dag_allows() {
    for mut world in worlds(6).await {
        for task in &mut world.dag.tasks[3..] {
            task.pool = "other".into();
        }
        let limited = ParsedDag {
            max_active_tasks: 4,
            has_several_pools: world.dag.has_several_pools(),
            ..parsed(&document(6))
        };
        store::transact!(world.store, "limit", |tx| {
            tx.create_pool(&"other".into(), 8, None, false).await?;
            tx.save_dag(&limited, world.version, Utc::now()).await.map(|_| ())
        })
        .unwrap();
        let (first, second) = (
            world.run("first").await.unwrap(),
            world.run("second").await.unwrap(),
        );
        world.schedule_all(first).await;
        assert_eq!(world.dispatch(worker_id(), 100).await.unwrap().len(), 4);
        assert_eq!(world.dispatch(worker_id(), 100).await.unwrap().len(), 0);
        // Two that wait are before them, and have no room; the second run has room for all of its.
        world.schedule_some(second, 2).await;
        assert_eq!(world.dispatch(worker_id(), 100).await.unwrap().len(), 2);
        assert_eq!(world.dispatch(worker_id(), 100).await.unwrap().len(), 0);
        world.schedule_all(second).await;
        assert_eq!(world.dispatch(worker_id(), 100).await.unwrap().len(), 2);
        assert_eq!(world.dispatch(worker_id(), 100).await.unwrap().len(), 0);
    }
}

#[tokio::test]
async fn each_message_is_a_right_to_one_task_however_many_claim_at_once() {
    for mut world in worlds(16).await {
        for (at, task) in world.dag.tasks.iter_mut().enumerate() {
            task.priority_weight = i64::try_from(at * 7 % 16).unwrap();
        }
        let key = world.run("r").await.unwrap();
        world.schedule_all(key).await;
        let queued = world.dispatch(worker_id(), 100).await.unwrap();
        let worker = world.register("w").await;
        let world = Arc::new(world);
        let mut claims = tokio::task::JoinSet::new();
        for id in queued {
            let world = Arc::clone(&world);
            claims.spawn(async move { world.claim_of(id, worker, &id.to_string(), true).await });
        }
        while let Some(claimed) = claims.join_next().await {
            assert!(matches!(claimed.unwrap(), Claimed::Granted(_)));
        }
        let tis = world.store.reader().await.unwrap().task_instances_of(key).await;
        assert!(tis.unwrap().iter().all(|ti| ti.state == StateName::Running));
    }
}
