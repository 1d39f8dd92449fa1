//! RabbitMQ.
//!
//! One quorum queue per Airflow queue, messages confirmed and mandatory. Reconnecting is done here, not by the client
//! library: any error drops the connection, and whoever needs it next builds everything anew.

mod connection;
mod consumer;
mod sender;

use crate::{Broker, BrokerError, Deliveries, Hint, Hints, TaskMessage};
use async_trait::async_trait;
use connection::Link;
use consumer::{RabbitDeliveries, RabbitHints};
use lapin::options::{BasicPublishOptions, QueueDeclareOptions};
use lapin::types::{FieldTable, ShortString};
use lapin::{BasicProperties, Channel, Confirmation};
use model::QueueName;
use sender::Hinting;
use std::collections::HashSet;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;
use tokio::sync::Mutex;

pub use sender::HintSender;

/// How long handing over a batch may take; a broker with a memory alarm answers nothing at all.
const PUBLISH: Duration = Duration::from_secs(10);
/// The exchange that carries hints to every scheduler.
const HINTS: &str = "updraft.hints";
/// Where messages end that can never be dealt with.
const DEAD: &str = "updraft.dead";

fn queue_name(queue: &QueueName) -> String {
    format!("updraft.task.{queue}")
}

/// A RabbitMQ server.
pub struct RabbitBroker {
    link: Link,
    publisher: Mutex<Option<Publisher>>,
    hinting: Hinting,
    healthy: AtomicBool,
}

struct Publisher {
    tasks: Channel,
    declared: HashSet<QueueName>,
}

impl RabbitBroker {
    /// A broker at that URL; `name` is what the server shows for the connections. Connects when first needed.
    ///
    /// # Errors
    /// When the URL is not an AMQP one.
    pub fn new(url: &str, name: &str) -> Result<Self, BrokerError> {
        Ok(Self {
            link: Link::new(url, name)?,
            publisher: Mutex::new(None),
            hinting: Hinting::new(),
            healthy: AtomicBool::new(true),
        })
    }

    async fn open(&self) -> Result<Publisher, lapin::Error> {
        let connection = self.link.connection().await?;
        let tasks = connection.create_channel().await?;
        tasks
            .confirm_select(lapin::options::ConfirmSelectOptions::default())
            .await?;
        Ok(Publisher {
            tasks,
            declared: HashSet::new(),
        })
    }

    /// Publishes a batch on the publisher's channel. An error means that the channel is not to be used again.
    async fn publish_batch(
        &self,
        publisher: &mut Publisher,
        messages: &[TaskMessage],
    ) -> Result<Vec<Result<(), BrokerError>>, lapin::Error> {
        let mut confirms = Vec::with_capacity(messages.len());
        for message in messages {
            if publisher.declared.insert(message.queue.clone()) {
                connection::declare_queue(&publisher.tasks, &message.queue).await?;
            }
            let properties = BasicProperties::default()
                .with_delivery_mode(2)
                .with_content_type("application/json".into())
                .with_message_id(message.task_instance.to_string().into());
            let options = BasicPublishOptions {
                mandatory: true,
                ..BasicPublishOptions::default()
            };
            let name = ShortString::try_new(queue_name(&message.queue)).unwrap_or_default();
            let confirm = publisher
                .tasks
                .basic_publish("".into(), name, options, &message.write(), properties)
                .await?;
            confirms.push(confirm);
        }
        let mut returned = HashSet::new();
        let mut acked = Vec::with_capacity(messages.len());
        for confirm in confirms {
            match confirm.await? {
                Confirmation::Ack(back) => {
                    // A returned message may be told with another one's confirmation: go by its id.
                    returned.extend(back.and_then(|m| m.delivery.properties.message_id().clone()));
                    acked.push(true);
                }
                Confirmation::Nack(_) | Confirmation::NotRequested => acked.push(false),
            }
        }
        let returned: HashSet<String> = returned
            .into_iter()
            .map(|id: ShortString| id.to_string())
            .collect();
        let outcome = |(message, acked): (&TaskMessage, bool)| {
            let refused = |why: &str| {
                Err(BrokerError::Refused {
                    queue: message.queue.clone(),
                    why: why.to_owned(),
                })
            };
            if returned.contains(&message.task_instance.to_string()) {
                return refused("its queue is gone");
            }
            if acked {
                Ok(())
            } else {
                refused("it was not confirmed")
            }
        };
        let outcomes: Vec<_> = messages.iter().zip(acked).map(outcome).collect();
        for (message, outcome) in messages.iter().zip(&outcomes) {
            if outcome.is_err() {
                publisher.declared.remove(&message.queue);
            }
        }
        Ok(outcomes)
    }
}

#[async_trait]
impl Broker for RabbitBroker {
    async fn publish(&self, messages: &[TaskMessage]) -> Vec<Result<(), BrokerError>> {
        let mut slot = self.publisher.lock().await;
        let work = async {
            let mut publisher = match slot.take() {
                Some(publisher) => publisher,
                None => self.open().await?,
            };
            let outcomes = self.publish_batch(&mut publisher, messages).await?;
            *slot = Some(publisher);
            Ok::<_, lapin::Error>(outcomes)
        };
        let problem = match tokio::time::timeout(PUBLISH, work).await {
            Ok(Ok(outcomes)) => {
                self.healthy.store(true, Ordering::Relaxed);
                return outcomes;
            }
            Ok(Err(error)) => error.to_string(),
            Err(_) => format!("no answer within {} s", PUBLISH.as_secs()),
        };
        let problem = format!("{}: {problem}", self.link.place());
        self.healthy.store(false, Ordering::Relaxed);
        self.link.reset().await;
        messages
            .iter()
            .map(|_| Err(BrokerError::Unavailable(problem.clone())))
            .collect()
    }

    async fn consume(&self, queue: &QueueName, prefetch: u16) -> Result<Box<dyn Deliveries>, BrokerError> {
        Ok(Box::new(RabbitDeliveries::new(
            self.link.another(),
            queue.clone(),
            prefetch,
        )))
    }

    async fn depth(&self, queue: &QueueName) -> Result<u64, BrokerError> {
        let unavailable =
            |error: lapin::Error| BrokerError::Unavailable(format!("{}: {error}", self.link.place()));
        let work = async {
            let connection = self.link.connection().await?;
            // A channel of its own: asking for a queue that is not there closes the channel.
            let channel = connection.create_channel().await?;
            let options = QueueDeclareOptions {
                passive: true,
                ..QueueDeclareOptions::default()
            };
            let name = ShortString::try_new(queue_name(queue)).unwrap_or_default();
            let found = channel.queue_declare(name, options, FieldTable::default()).await;
            match found {
                Ok(found) => {
                    channel.close(200, "done".into()).await.ok();
                    Ok(u64::from(found.message_count()))
                }
                Err(error) if error.is_amqp_soft_error() => Ok(0),
                Err(error) => Err(error),
            }
        };
        match tokio::time::timeout(PUBLISH, work).await {
            Ok(outcome) => outcome.map_err(unavailable),
            Err(_) => Err(BrokerError::Unavailable(format!(
                "{}: no answer",
                self.link.place()
            ))),
        }
    }

    fn hint(&self, hint: Hint) {
        self.hinting.give(hint);
    }

    async fn hints(&self) -> Result<Box<dyn Hints>, BrokerError> {
        Ok(Box::new(RabbitHints::new(self.link.another())))
    }

    fn is_healthy(&self) -> bool {
        self.healthy.load(Ordering::Relaxed)
    }

    async fn close(&self) {
        self.flush_hints().await;
        self.publisher.lock().await.take();
        self.link.reset().await;
    }
}
