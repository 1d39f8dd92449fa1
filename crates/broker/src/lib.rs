//! Queues between schedulers and workers, and hints between components.
//!
//! A message is a reference to a task instance, never the truth about it: it may be lost, doubled, late or forged, and
//! nothing worse happens than a delay. The database decides.
//!
//! Two brokers: [`RabbitBroker`] for a cluster, [`LocalBroker`] for one process. Both pass one contract suite.

mod local;
mod message;
mod rabbit;

pub use local::LocalBroker;
pub use message::{Hint, TaskMessage};
pub use rabbit::{HintSender, RabbitBroker};

use async_trait::async_trait;
use model::QueueName;
use thiserror::Error;

/// What can go wrong with a broker; all of it may be tried again.
#[derive(Debug, Error)]
pub enum BrokerError {
    /// The broker cannot be reached, or broke off.
    #[error("the broker is unavailable: {0}")]
    Unavailable(String),
    /// The broker did not take a message.
    #[error("the broker refused a message for queue {queue}: {why}")]
    Refused {
        /// The queue.
        queue: QueueName,
        /// What it said.
        why: String,
    },
    /// The broker's address cannot be understood.
    #[error("[celery] broker_url is not an AMQP URL (amqp://user:password@host:5672/vhost): {0}")]
    Address(String),
}

/// A broker.
#[async_trait]
pub trait Broker: Send + Sync {
    /// Hands messages over, in order. `Ok` per message means that the broker has it for good. The whole call takes a
    /// bounded time.
    async fn publish(&self, messages: &[TaskMessage]) -> Vec<Result<(), BrokerError>>;

    /// Starts to take messages from a queue, at most `prefetch` unsettled at a time.
    ///
    /// # Errors
    /// Only when it can never work; a broker that is down is waited for in [`Deliveries::next`].
    async fn consume(&self, queue: &QueueName, prefetch: u16) -> Result<Box<dyn Deliveries>, BrokerError>;

    /// Messages that wait in a queue; 0 when there is no such queue.
    ///
    /// # Errors
    /// When the broker cannot be asked.
    async fn depth(&self, queue: &QueueName) -> Result<u64, BrokerError>;

    /// Tells every scheduler something, without any guarantee. Never waits: whoever serves a request may call it.
    fn hint(&self, hint: Hint);

    /// The hints from now on.
    ///
    /// # Errors
    /// Only when it can never work.
    async fn hints(&self) -> Result<Box<dyn Hints>, BrokerError>;

    /// Whether the broker was reachable when it was last needed.
    fn is_healthy(&self) -> bool;

    /// Sends the hints that still wait, for a short time, and ends all connections.
    async fn close(&self);
}

/// Messages from a queue.
#[async_trait]
pub trait Deliveries: Send {
    /// The next message; waits for one, through any number of reconnects. May be dropped while it waits.
    async fn next(&mut self) -> Delivery;

    /// Gives back what was fetched and not handed out, until [`Deliveries::next`] is called again.
    async fn pause(&mut self);
}

/// Hints from other components.
#[async_trait]
pub trait Hints: Send {
    /// The next hint; waits for one, through any number of reconnects. May be dropped while it waits.
    async fn next(&mut self) -> Hint;
}

/// A message in hand. Unless it is settled, it goes back to the queue.
pub struct Delivery {
    /// The message, or why it cannot be read.
    pub message: Result<TaskMessage, String>,
    settle: Box<dyn Settle>,
}

impl Delivery {
    pub(crate) fn new(message: Result<TaskMessage, String>, settle: Box<dyn Settle>) -> Self {
        Self { message, settle }
    }

    /// The message is dealt with.
    pub async fn ack(self) {
        self.settle.settle(Settlement::Ack).await;
    }

    /// The message goes back to its queue.
    pub async fn requeue(self) {
        self.settle.settle(Settlement::Requeue).await;
    }

    /// The message is put aside: it can never be dealt with.
    pub async fn reject(self) {
        self.settle.settle(Settlement::Reject).await;
    }
}

/// What becomes of a message.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Settlement {
    Ack,
    Requeue,
    Reject,
}

#[async_trait]
pub(crate) trait Settle: Send + Sync {
    async fn settle(self: Box<Self>, how: Settlement);
}
