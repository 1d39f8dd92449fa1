//! Consumers that survive their connection.

use super::connection::{Link, declare_queue};
use super::{HINTS, queue_name};
use crate::{Deliveries, Delivery, Hint, Hints, Settle, Settlement, TaskMessage};
use async_trait::async_trait;
use futures_util::StreamExt;
use lapin::message::Delivery as AmqpDelivery;
use lapin::options::{
    BasicAckOptions, BasicCancelOptions, BasicConsumeOptions, BasicNackOptions, BasicQosOptions,
    BasicRejectOptions, ExchangeDeclareOptions, QueueBindOptions, QueueDeclareOptions,
};
use lapin::types::{FieldTable, ShortString};
use lapin::{Channel, Consumer, ExchangeKind};
use model::QueueName;
use std::time::Duration;

/// Waits longer from failure to failure, and starts over after a success.
#[derive(Default)]
struct Patience {
    failures: u32,
}

impl Patience {
    async fn wait(&mut self, what: &str, broker: &str, problem: &str) {
        if self.failures == 0 {
            tracing::warn!(
                broker,
                problem,
                "{what}: the broker is not available, trying again"
            );
        }
        self.failures += 1;
        let ceiling = (200u64 << self.failures.min(5)).min(5000);
        tokio::time::sleep(Duration::from_millis(rand::random_range(ceiling / 2..=ceiling))).await;
    }

    fn reset(&mut self, what: &str) {
        if self.failures > 0 {
            tracing::info!("{what}: the broker is back");
        }
        self.failures = 0;
    }
}

struct Open {
    channel: Channel,
    consumer: Consumer,
}

pub(super) struct RabbitDeliveries {
    link: Link,
    queue: QueueName,
    prefetch: u16,
    open: Option<Open>,
    patience: Patience,
}

impl RabbitDeliveries {
    pub(super) fn new(link: Link, queue: QueueName, prefetch: u16) -> Self {
        Self {
            link,
            queue,
            prefetch,
            open: None,
            patience: Patience::default(),
        }
    }

    async fn connect(&self) -> Result<Open, lapin::Error> {
        let connection = self.link.connection().await?;
        let channel = connection.create_channel().await?;
        declare_queue(&channel, &self.queue).await?;
        channel
            .basic_qos(self.prefetch, BasicQosOptions::default())
            .await?;
        let name = ShortString::try_new(queue_name(&self.queue)).unwrap_or_default();
        let consumer = channel
            .basic_consume(
                name,
                "".into(),
                BasicConsumeOptions::default(),
                FieldTable::default(),
            )
            .await?;
        Ok(Open { channel, consumer })
    }
}

#[async_trait]
impl Deliveries for RabbitDeliveries {
    async fn next(&mut self) -> Delivery {
        loop {
            let problem = match self.open.as_mut() {
                None => match self.connect().await {
                    Ok(open) => {
                        self.open = Some(open);
                        self.patience.reset("consumer");
                        continue;
                    }
                    Err(error) => error.to_string(),
                },
                Some(open) => match open.consumer.next().await {
                    Some(Ok(delivery)) => {
                        let message = TaskMessage::read(&delivery.data);
                        return Delivery::new(message, Box::new(RabbitSettle(delivery)));
                    }
                    Some(Err(error)) => error.to_string(),
                    None => "the consumer was cancelled".to_owned(),
                },
            };
            self.open = None;
            self.link.reset().await;
            self.patience.wait("consumer", self.link.place(), &problem).await;
        }
    }

    async fn pause(&mut self) {
        let Some(Open {
            channel,
            mut consumer,
        }) = self.open.take()
        else {
            return;
        };
        let work = async {
            channel
                .basic_cancel(consumer.tag(), BasicCancelOptions::default())
                .await?;
            while let Some(Ok(delivery)) = consumer.next().await {
                delivery
                    .nack(BasicNackOptions {
                        requeue: true,
                        ..BasicNackOptions::default()
                    })
                    .await?;
            }
            Ok::<_, lapin::Error>(())
        };
        // The channel stays open as long as messages taken from it wait to be settled: their handles hold it.
        if !matches!(
            tokio::time::timeout(Duration::from_secs(2), work).await,
            Ok(Ok(()))
        ) {
            self.link.reset().await;
        }
    }
}

struct RabbitSettle(AmqpDelivery);

#[async_trait]
impl Settle for RabbitSettle {
    async fn settle(self: Box<Self>, how: Settlement) {
        let delivery = self.0;
        let work = async {
            match how {
                Settlement::Ack => delivery.ack(BasicAckOptions::default()).await,
                Settlement::Requeue => {
                    delivery
                        .nack(BasicNackOptions {
                            requeue: true,
                            ..BasicNackOptions::default()
                        })
                        .await
                }
                Settlement::Reject => delivery.reject(BasicRejectOptions { requeue: false }).await,
            }
        };
        // A message that is not settled comes again, and is then found to be claimed already.
        if !matches!(
            tokio::time::timeout(Duration::from_secs(5), work).await,
            Ok(Ok(true))
        ) {
            tracing::debug!("a delivery could not be settled; it will come again");
        }
    }
}

pub(super) async fn declare_hints(channel: &Channel) -> Result<(), lapin::Error> {
    let options = ExchangeDeclareOptions {
        durable: true,
        ..ExchangeDeclareOptions::default()
    };
    channel
        .exchange_declare(HINTS.into(), ExchangeKind::Fanout, options, FieldTable::default())
        .await
}

pub(super) struct RabbitHints {
    link: Link,
    open: Option<Open>,
    patience: Patience,
}

impl RabbitHints {
    pub(super) fn new(link: Link) -> Self {
        Self {
            link,
            open: None,
            patience: Patience::default(),
        }
    }

    async fn connect(&self) -> Result<Open, lapin::Error> {
        let connection = self.link.connection().await?;
        let channel = connection.create_channel().await?;
        declare_hints(&channel).await?;
        let options = QueueDeclareOptions {
            exclusive: true,
            auto_delete: true,
            ..QueueDeclareOptions::default()
        };
        let queue = channel
            .queue_declare("".into(), options, FieldTable::default())
            .await?;
        let name = queue.name().clone();
        channel
            .queue_bind(
                name.clone(),
                HINTS.into(),
                "".into(),
                QueueBindOptions::default(),
                FieldTable::default(),
            )
            .await?;
        let options = BasicConsumeOptions {
            no_ack: true,
            ..BasicConsumeOptions::default()
        };
        let consumer = channel
            .basic_consume(name, "".into(), options, FieldTable::default())
            .await?;
        Ok(Open { channel, consumer })
    }
}

#[async_trait]
impl Hints for RabbitHints {
    async fn next(&mut self) -> Hint {
        loop {
            let problem = match self.open.as_mut() {
                None => match self.connect().await {
                    Ok(open) => {
                        self.open = Some(open);
                        self.patience.reset("hints");
                        continue;
                    }
                    Err(error) => error.to_string(),
                },
                Some(Open { consumer, .. }) => match consumer.next().await {
                    Some(Ok(delivery)) => match serde_json::from_slice(&delivery.data) {
                        Ok(hint) => return hint,
                        Err(_) => continue,
                    },
                    Some(Err(error)) => error.to_string(),
                    None => "the consumer was cancelled".to_owned(),
                },
            };
            self.open = None;
            self.link.reset().await;
            self.patience.wait("hints", self.link.place(), &problem).await;
        }
    }
}
