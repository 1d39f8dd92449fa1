//! Claims that one side has and the other has not, tries that never began, and task instances that lose their workers.

use crate::world::*;
use chrono::{Duration, Utc};
use model::ClaimEpoch;
use model::task_instance::{Finding, LossCause, Outcome, StateName};
use scheduling::Decision;
use store::repo::{Claimed, LossLimits, Reported};

#[tokio::test]
async fn a_claim_whose_answer_was_lost_goes_back_to_the_queue_as_the_same_try() {
    for world in worlds(1).await {
        let (key, id) = world.queued_one().await;
        let worker = world.register("w").await;
        world.claim(id, worker, "a").await;
        assert!(
            world.beat(worker, 1, &[], &["a"]).await.findings.is_empty(),
            "it is asked for"
        );
        // All answers were lost, and the worker gave up asking.
        assert_eq!(
            world.beat(worker, 2, &[], &[]).await.findings[0].1,
            Finding::Unnamed
        );
        assert!(
            world.beat(worker, 2, &[], &[]).await.findings.is_empty(),
            "the same heartbeat again"
        );
        assert_eq!(world.state(id).await, StateName::Running);
        world.beat(worker, 3, &[], &[]).await;
        let back = world.task(id).await;
        assert_eq!((back.state, back.infra_losses), (StateName::UpForReschedule, 0));
        assert!(
            back.not_before.is_some_and(|at| at <= Utc::now()),
            "at once, the first time"
        );
        world.queue_again(key, StateName::UpForReschedule).await;
        let again = world.task(id).await;
        assert_eq!(
            (again.state, again.try_number.0),
            (StateName::Queued, 1),
            "the same try"
        );
        world.claim(id, worker, "b").await;
        assert!(matches!(
            world.report(id, 1, Outcome::Success).await,
            Reported::Stale(_)
        ));
        assert!(matches!(
            world.report(id, 2, Outcome::Success).await,
            Reported::Applied(StateName::Success)
        ));
        let mut db = world.store.reader().await.unwrap();
        assert!(
            db.history(id).await.unwrap().is_empty(),
            "no try of the user's was spent"
        );
    }
}

#[tokio::test]
async fn only_heartbeats_that_began_after_the_question_can_lose_a_claim() {
    for world in worlds(1).await {
        let (_, id) = world.queued_one().await;
        let worker = world.register("w").await;
        // Four heartbeats were under way when the worker noted that it asks.
        world.claim_after(id, worker, "a", false, 4).await;
        for number in 1..=4 {
            assert!(
                world.beat(worker, number, &[], &[]).await.findings.is_empty(),
                "{number}"
            );
        }
        world.beat(worker, 5, &[], &[]).await;
        let named = world.beat(worker, 6, &[(id, 1)], &[]).await;
        assert_eq!(named.findings[0].1, Finding::Named);
        world.beat(worker, 8, &[(id, 1)], &[]).await;
        // One that is late by two is ignored, whatever it says.
        let late = world.beat(worker, 7, &[], &[]).await;
        assert!(late.alive && late.findings.is_empty() && late.void.is_empty());
        world.beat(worker, 9, &[], &[]).await;
        assert_eq!(world.state(id).await, StateName::Running, "not two in a row");
        // A worker that does not count its heartbeats (one of an earlier version) loses nothing.
        let (_, other) = second(&world).await;
        let old = world.register("old").await;
        world.claim(other, old, "c").await;
        for _ in 0..3 {
            world.beat(old, 0, &[], &[]).await;
        }
        assert_eq!(world.state(other).await, StateName::Running);
        let void = world.beat(old, 0, &[(other, 1), (id, 1)], &[]).await.void;
        assert_eq!(void, [(id, ClaimEpoch(1))], "another's claim is none of its own");
    }
}

/// Another queued task instance, in a run of its own.
async fn second(world: &World) -> (model::DagRunKey, model::TaskInstanceId) {
    let key = world.run("second").await.unwrap();
    world.schedule_all(key).await;
    let queued = world.dispatch(worker_id(), 100).await.unwrap();
    (key, queued[0])
}

#[tokio::test]
async fn a_try_that_cannot_be_started_waits_longer_each_time_and_ends_at_last() {
    for world in worlds(1).await {
        let (key, id) = world.queued_one().await;
        let worker = world.register("w").await;
        let mut pauses = Vec::new();
        let graphs = store::Graphs::default();
        for epoch in 1..=4 {
            let Claimed::Granted(granted) = world.claim(id, worker, &format!("c{epoch}")).await else {
                panic!("it is queued")
            };
            assert_eq!((granted.0.claim_epoch.0, granted.0.try_number.0), (epoch, 1));
            let now = Utc::now();
            let give_back = async || {
                let held = (id, ClaimEpoch(epoch));
                store::transact!(world.store, "give back", |tx| tx
                    .give_back(&graphs, held, LIMITS, "no fork server", now)
                    .await)
                .unwrap()
            };
            assert_eq!(give_back().await, Some(key));
            assert_eq!(give_back().await, None, "the same again changes nothing");
            let ti = world.task(id).await;
            if epoch == 4 {
                let cause = ti.exit_cause.unwrap();
                assert_eq!(ti.state, StateName::UpForRetry, "it has a retry of its own");
                assert!(
                    cause.contains("4 times") && cause.contains("no fork server"),
                    "{cause}"
                );
                break;
            }
            assert_eq!(ti.state, StateName::UpForReschedule);
            pauses.push((ti.not_before.unwrap() - now).as_seconds_f64().round());
            world.queue_again(key, StateName::UpForReschedule).await;
        }
        assert_eq!(pauses, [0.0, 1.0, 2.0]);
    }
}

#[tokio::test]
async fn what_goes_on_after_waiting_keeps_what_it_goes_on_with_when_it_could_not_be_started() {
    for world in worlds(1).await {
        let (key, id) = world.queued_one().await;
        let worker = world.register("w").await;
        world.claim(id, worker, "a").await;
        let until = Some(Utc::now());
        let next = Some(("execute_complete".to_owned(), "{\"a\": 1}".to_owned()));
        world.report_with(id, 1, Outcome::Deferred { until }, next).await;
        world
            .move_some(key, StateName::Deferred, &Decision::Resume, 1)
            .await;
        world.dispatch(worker_id(), 1).await.unwrap();
        let Claimed::Granted(granted) = world.claim(id, worker, "b").await else {
            panic!("it is queued")
        };
        assert_eq!((granted.0.try_number.0, granted.0.claim_epoch.0), (1, 2));
        for number in 1..=2 {
            world.beat(worker, number, &[], &[]).await;
        }
        world.queue_again(key, StateName::UpForReschedule).await;
        let again = world.task(id).await;
        assert_eq!((again.state, again.try_number.0), (StateName::Queued, 1));
        assert_eq!(again.next_method.as_deref(), Some("execute_complete"));
        assert_eq!(again.next_kwargs.as_deref(), Some("{\"a\": 1}"));
        assert!(again.start_date.is_some());
    }
}

#[tokio::test]
async fn a_task_that_takes_two_workers_in_a_row_with_it_fails_and_those_beside_it_do_not() {
    for world in worlds(2).await {
        let key = world.run("r").await.unwrap();
        world.schedule_all(key).await;
        let queued = world.dispatch(worker_id(), 10).await.unwrap();
        let (poison, bystander) = (queued[0], queued[1]);
        for (turn, cause) in [LossCause::WorkerDied, LossCause::WorkerLost]
            .into_iter()
            .enumerate()
        {
            let worker = world.register(&format!("w{turn}")).await;
            world.claim(poison, worker, &format!("p{turn}")).await;
            if turn == 1 {
                world.claim(bystander, worker, "b").await;
            }
            world.lose(worker, cause).await;
            if turn == 0 {
                assert_eq!(world.state(poison).await, StateName::UpForRetry);
                world.queue_again(key, StateName::UpForRetry).await;
            }
        }
        let failed = world.task(poison).await;
        let cause = failed.exit_cause.clone().unwrap();
        assert_eq!(failed.state, StateName::Failed, "{cause}");
        assert!(
            cause.contains("2 times in a row") && cause.contains("worker_losses"),
            "{cause}"
        );
        assert_eq!(world.state(bystander).await, StateName::UpForRetry);
        // A person who clears it has it tried again, with nothing held against it.
        store::transact!(world.store, "clear", |tx| tx
            .clear_task_instance(&failed, 1, Utc::now())
            .await)
        .unwrap();
        world.queue_again(key, StateName::NoStatus).await;
        let worker = world.register("w2").await;
        world.claim(poison, worker, "p2").await;
        world.lose(worker, LossCause::WorkerDied).await;
        assert_eq!(world.state(poison).await, StateName::UpForRetry);
    }
}

#[tokio::test]
async fn workers_that_leave_in_good_order_or_a_try_in_between_accuse_nobody() {
    for world in worlds(1).await {
        let (key, id) = world.queued_one().await;
        let turn = async |name: &str, end: Option<LossCause>| {
            let worker = world.register(name).await;
            world.claim(id, worker, name).await;
            match end {
                Some(cause) => world.lose(worker, cause).await,
                None => {
                    let epoch = world.task(id).await.claim_epoch.0;
                    let retry_at = Some(Utc::now() - Duration::seconds(1));
                    world.report(id, epoch, Outcome::Failed { retry_at }).await;
                }
            }
            assert_eq!(world.state(id).await, StateName::UpForRetry, "{name}");
            world.queue_again(key, StateName::UpForRetry).await;
        };
        turn("left", Some(LossCause::WorkerShutdown)).await;
        turn("died", Some(LossCause::WorkerDied)).await;
        turn("reported", None).await;
        turn("died again", Some(LossCause::WorkerDied)).await;
    }
}

/// How a claim ends for no fault of the task's.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Loss {
    /// User code never began.
    BeforeItBegan,
    /// It began, and its end was never reported.
    Unreported,
    /// It began, and its worker was told to go.
    Shutdown,
}

const LOSSES: [Loss; 3] = [Loss::BeforeItBegan, Loss::Unreported, Loss::Shutdown];

#[tokio::test]
async fn whatever_the_infrastructure_loses_in_whatever_order_no_try_of_the_users_is_used_up() {
    for world in worlds(1).await {
        let (key, id) = world.queued_one().await;
        let worker = world.register("w").await;
        let limits = LossLimits {
            infra_retries: 1000,
            start_retries: 1000,
            ..LIMITS
        };
        let lose = async |cause: LossCause| {
            let graphs = store::Graphs::default();
            store::transact!(world.store, "lose", |tx| {
                let lost = tx.tasks_of_worker(worker).await?;
                tx.lose_all(&graphs, &lost, limits, &cause, Utc::now()).await
            })
            .unwrap();
        };
        let mut epoch = 0;
        for first in LOSSES {
            for second in LOSSES {
                for third in LOSSES {
                    let order = [first, second, third];
                    let own = world.task(id).await;
                    let left = |ti: &store::repo::TaskInstanceRecord| {
                        i64::from(ti.max_tries) - i64::from(ti.try_number.0)
                    };
                    let (before, mut number) = (left(&own), own.try_number.0);
                    for loss in order {
                        epoch += 1;
                        let claimed = world.claim(id, worker, &format!("c{epoch}")).await;
                        assert!(matches!(claimed, Claimed::Granted(_)), "{order:?}");
                        let from = match loss {
                            Loss::BeforeItBegan => {
                                let (graphs, held) = (store::Graphs::default(), (id, ClaimEpoch(epoch)));
                                store::transact!(world.store, "give back", |tx| tx
                                    .give_back(&graphs, held, limits, "away", Utc::now())
                                    .await)
                                .unwrap();
                                StateName::UpForReschedule
                            }
                            Loss::Unreported => {
                                lose(LossCause::Unreported("lost".into())).await;
                                number += 1;
                                StateName::UpForRetry
                            }
                            Loss::Shutdown => {
                                lose(LossCause::WorkerShutdown).await;
                                number += 1;
                                StateName::UpForRetry
                            }
                        };
                        assert_eq!(world.task(id).await.state, from, "{order:?}");
                        world.queue_again(key, from).await;
                        let again = world.task(id).await;
                        assert_eq!((again.try_number.0, left(&again)), (number, before), "{order:?}");
                    }
                }
            }
        }
    }
}

#[tokio::test]
async fn a_task_that_the_infrastructure_loses_too_often_has_its_own_retries_still() {
    for world in worlds(1).await {
        let (key, id) = world.queued_one().await;
        let worker = world.register("w").await;
        let limits = LossLimits {
            infra_retries: 2,
            ..LIMITS
        };
        let own = world.task(id).await;
        let retries = own.max_tries + 1 - own.try_number.0;
        for loss in 0..=2 + retries {
            let claimed = world.claim(id, worker, &format!("c{loss}")).await;
            assert!(matches!(claimed, Claimed::Granted(_)), "{loss}");
            let graphs = store::Graphs::default();
            store::transact!(world.store, "lose", |tx| {
                let lost = tx.tasks_of_worker(worker).await?;
                tx.lose_all(&graphs, &lost, limits, &LossCause::WorkerShutdown, Utc::now())
                    .await
            })
            .unwrap();
            if loss == 2 + retries {
                assert_eq!(world.state(id).await, StateName::Failed);
            } else {
                assert_eq!(world.state(id).await, StateName::UpForRetry, "{loss}");
                world.queue_again(key, StateName::UpForRetry).await;
            }
        }
    }
}
