//! What every broker must do, run on the in-process one and on RabbitMQ.

#![expect(
    clippy::unwrap_used,
    reason = "a contract that cannot be set up is a failed contract"
)]

use broker::{Broker, Hint, LocalBroker, RabbitBroker, TaskMessage};
use model::{DagRunKey, QueueName, TaskInstanceId, TryNumber};
use std::time::{Duration, Instant};
use tokio::task::JoinSet;
use uuid::Uuid;

const PATIENCE: Duration = Duration::from_secs(20);

/// The brokers, and those who send their hints.
fn brokers_and_senders() -> Vec<(Box<dyn Broker>, JoinSet<()>)> {
    let mut brokers: Vec<(Box<dyn Broker>, JoinSet<()>)> =
        vec![(Box::new(LocalBroker::default()), JoinSet::new())];
    if let Some(url) = harness::rabbitmq_url() {
        let broker = RabbitBroker::new(&url, "contract").unwrap();
        let mut senders = JoinSet::new();
        senders.spawn(broker.hint_sender().run());
        brokers.push((Box::new(broker), senders));
    }
    brokers
}

fn brokers() -> Vec<Box<dyn Broker>> {
    brokers_and_senders()
        .into_iter()
        .map(|(broker, _)| broker)
        .collect()
}

fn queue() -> QueueName {
    QueueName::new(format!("q{}", Uuid::new_v4().simple()))
}

fn message(queue: &QueueName, n: u128) -> TaskMessage {
    TaskMessage {
        version: TaskMessage::VERSION,
        task_instance: TaskInstanceId::new(Uuid::from_u128(n)),
        try_number: TryNumber(1),
        sequence: 1,
        queue: queue.clone(),
    }
}

async fn next(deliveries: &mut dyn broker::Deliveries) -> broker::Delivery {
    tokio::time::timeout(PATIENCE, deliveries.next())
        .await
        .expect("a delivery")
}

#[tokio::test]
async fn messages_arrive_in_order_and_once() {
    for broker in brokers() {
        let queue = queue();
        let sent: Vec<TaskMessage> = (1..=50).map(|n| message(&queue, n)).collect();
        assert!(broker.publish(&sent).await.iter().all(Result::is_ok));
        let mut deliveries = broker.consume(&queue, 10).await.unwrap();
        for expected in &sent {
            let delivery = next(deliveries.as_mut()).await;
            assert_eq!(delivery.message.as_ref(), Ok(expected));
            delivery.ack().await;
        }
        assert_eq!(broker.depth(&queue).await.unwrap(), 0);
        broker.close().await;
    }
}

#[tokio::test]
async fn what_is_given_back_or_dropped_comes_again() {
    for broker in brokers() {
        let queue = queue();
        broker.publish(&[message(&queue, 1)]).await;
        let mut deliveries = broker.consume(&queue, 1).await.unwrap();
        next(deliveries.as_mut()).await.requeue().await;
        let again = next(deliveries.as_mut()).await;
        assert!(again.message.is_ok());
        drop(again);
        deliveries.pause().await;
        drop(deliveries);
        let mut others = broker.consume(&queue, 1).await.unwrap();
        next(others.as_mut()).await.ack().await;
        broker.close().await;
    }
}

#[tokio::test]
async fn two_consumers_share_a_queue() {
    for broker in brokers() {
        let queue = queue();
        let mut one = broker.consume(&queue, 1).await.unwrap();
        let mut two = broker.consume(&queue, 1).await.unwrap();
        let sent: Vec<TaskMessage> = (1..=2).map(|n| message(&queue, n)).collect();
        broker.publish(&sent).await;
        // Neither settles its message, so each gets one.
        let (first, second) = tokio::join!(next(one.as_mut()), next(two.as_mut()));
        assert_ne!(first.message, second.message);
        first.ack().await;
        second.ack().await;
        broker.close().await;
    }
}

#[tokio::test]
async fn hints_reach_every_listener() {
    for (broker, _senders) in brokers_and_senders() {
        let mut one = broker.hints().await.unwrap();
        let mut two = broker.hints().await.unwrap();
        let hint = Hint::Run(DagRunKey(7));
        let hear = |hints: &mut Box<dyn broker::Hints>| {
            let hint = hint.clone();
            let broker = &broker;
            let mut hints = std::mem::replace(hints, Box::new(Silent));
            async move {
                // A listener is heard of only after it has connected, so the hint is given until it arrives.
                loop {
                    broker.hint(hint.clone());
                    let heard = tokio::time::timeout(Duration::from_millis(200), hints.next()).await;
                    if heard.is_ok_and(|heard| heard == hint) {
                        return;
                    }
                }
            }
        };
        let both = async { tokio::join!(hear(&mut one), hear(&mut two)) };
        tokio::time::timeout(PATIENCE, both).await.expect("both hear it");
        broker.close().await;
    }
}

struct Silent;

#[tonic::async_trait]
impl broker::Hints for Silent {
    async fn next(&mut self) -> Hint {
        std::future::pending().await
    }
}

#[tokio::test]
async fn a_broker_that_is_down_is_told_and_waited_for() {
    let broker = RabbitBroker::new("amqp://guest:guest@127.0.0.1:1//", "contract").unwrap();
    let queue = queue();
    let outcome = tokio::time::timeout(PATIENCE, broker.publish(&[message(&queue, 1)]))
        .await
        .expect("bounded");
    let told = outcome[0].as_ref().unwrap_err().to_string();
    assert!(told.contains("127.0.0.1:1") && !told.contains("guest"), "{told}");
    assert!(!broker.is_healthy());
    let mut deliveries = broker.consume(&queue, 1).await.unwrap();
    assert!(
        tokio::time::timeout(Duration::from_millis(300), deliveries.next())
            .await
            .is_err()
    );
    assert!(RabbitBroker::new("redis://localhost", "contract").is_err());
}

#[tokio::test]
async fn a_broker_that_hangs_holds_up_nobody_who_gives_hints() {
    // It takes connections and never says a word.
    let silent = tokio::net::TcpListener::bind(("127.0.0.1", 0)).await.unwrap();
    let port = silent.local_addr().unwrap().port();
    let broker = RabbitBroker::new(&format!("amqp://guest:guest@127.0.0.1:{port}//"), "contract").unwrap();
    let mut senders = JoinSet::new();
    senders.spawn(broker.hint_sender().run());
    let begin = Instant::now();
    for key in 0..20_000 {
        broker.hint(Hint::Run(DagRunKey(key)));
    }
    assert!(begin.elapsed() < Duration::from_secs(2), "{:?}", begin.elapsed());
    let closing = tokio::time::timeout(Duration::from_secs(6), broker.close());
    closing.await.expect("closing takes a bounded time");
}

#[tokio::test]
async fn hints_that_were_given_just_before_the_end_are_sent() {
    let Some(url) = harness::rabbitmq_url() else {
        return;
    };
    let listening = RabbitBroker::new(&url, "contract").unwrap();
    let mut hints = listening.hints().await.unwrap();
    let hearing = async { while hints.next().await != Hint::Timetables {} };
    tokio::pin!(hearing);
    // A listener is heard of only after it has connected, so a command is run until it is heard.
    let told = async {
        loop {
            let command = RabbitBroker::new(&url, "contract").unwrap();
            command.hint(Hint::Timetables);
            command.close().await;
            if tokio::time::timeout(Duration::from_millis(300), &mut hearing)
                .await
                .is_ok()
            {
                return;
            }
        }
    };
    tokio::time::timeout(PATIENCE, told).await.expect("it is heard");
}
