//! A broker within one process.

use crate::{Broker, BrokerError, Deliveries, Delivery, Hint, Hints, Settle, Settlement, TaskMessage};
use async_trait::async_trait;
use model::QueueName;
use std::collections::{HashMap, VecDeque};
use std::sync::{Arc, Mutex, PoisonError};
use tokio::sync::{Notify, broadcast};

/// Messages that one queue holds at most; a scheduler publishes no more than it has slots, so this is far away.
const CAPACITY: usize = 100_000;
/// Hints that a slow listener may be behind; older ones are dropped, and the sweep finds what they were about.
const HINTS: usize = 10_000;

/// Queues in memory.
#[derive(Clone)]
pub struct LocalBroker {
    queues: Arc<Mutex<HashMap<QueueName, Arc<Queue>>>>,
    hints: broadcast::Sender<Hint>,
    one_queue: bool,
}

#[derive(Default)]
struct Queue {
    messages: Mutex<VecDeque<TaskMessage>>,
    arrived: Notify,
}

impl Queue {
    fn lock(&self) -> std::sync::MutexGuard<'_, VecDeque<TaskMessage>> {
        self.messages.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn give_back(&self, message: TaskMessage) {
        self.lock().push_front(message);
        self.arrived.notify_one();
    }
}

impl Default for LocalBroker {
    fn default() -> Self {
        Self {
            queues: Arc::default(),
            hints: broadcast::channel(HINTS).0,
            one_queue: false,
        }
    }
}

impl LocalBroker {
    /// A broker whose messages all go to one queue, whatever queue they name: for the one worker of a process, which serves
    /// every queue, as Airflow's LocalExecutor does.
    pub fn for_one_worker() -> Self {
        Self {
            queues: Arc::default(),
            hints: broadcast::channel(HINTS).0,
            one_queue: true,
        }
    }

    fn queue(&self, name: &QueueName) -> Arc<Queue> {
        let every = QueueName::new("*");
        let name = if self.one_queue { &every } else { name };
        let mut queues = self.queues.lock().unwrap_or_else(PoisonError::into_inner);
        Arc::clone(queues.entry(name.clone()).or_default())
    }
}

#[async_trait]
impl Broker for LocalBroker {
    async fn publish(&self, messages: &[TaskMessage]) -> Vec<Result<(), BrokerError>> {
        let mut outcomes = Vec::with_capacity(messages.len());
        for message in messages {
            let queue = self.queue(&message.queue);
            let mut waiting = queue.lock();
            if waiting.len() >= CAPACITY {
                let why = format!("it holds {CAPACITY} messages already");
                outcomes.push(Err(BrokerError::Refused {
                    queue: message.queue.clone(),
                    why,
                }));
                continue;
            }
            waiting.push_back(message.clone());
            drop(waiting);
            queue.arrived.notify_one();
            outcomes.push(Ok(()));
        }
        outcomes
    }

    async fn consume(&self, queue: &QueueName, _prefetch: u16) -> Result<Box<dyn Deliveries>, BrokerError> {
        Ok(Box::new(LocalDeliveries {
            queue: self.queue(queue),
        }))
    }

    async fn depth(&self, queue: &QueueName) -> Result<u64, BrokerError> {
        Ok(self.queue(queue).lock().len() as u64)
    }

    fn hint(&self, hint: Hint) {
        // Nobody listening is no error: hints promise nothing.
        self.hints.send(hint).ok();
    }

    async fn hints(&self) -> Result<Box<dyn Hints>, BrokerError> {
        Ok(Box::new(LocalHints {
            receiver: self.hints.subscribe(),
        }))
    }

    fn is_healthy(&self) -> bool {
        true
    }

    async fn close(&self) {}
}

struct LocalDeliveries {
    queue: Arc<Queue>,
}

#[async_trait]
impl Deliveries for LocalDeliveries {
    async fn next(&mut self) -> Delivery {
        loop {
            let arrived = self.queue.arrived.notified();
            let message = self.queue.lock().pop_front();
            if let Some(message) = message {
                if !self.queue.lock().is_empty() {
                    // One arrival wakes one consumer; the next one is woken from here.
                    self.queue.arrived.notify_one();
                }
                let settle = LocalSettle {
                    queue: Arc::clone(&self.queue),
                    message: Some(message.clone()),
                };
                return Delivery::new(Ok(message), Box::new(settle));
            }
            arrived.await;
        }
    }

    async fn pause(&mut self) {}
}

struct LocalSettle {
    queue: Arc<Queue>,
    message: Option<TaskMessage>,
}

#[async_trait]
impl Settle for LocalSettle {
    async fn settle(mut self: Box<Self>, how: Settlement) {
        match how {
            Settlement::Ack | Settlement::Reject => self.message = None,
            Settlement::Requeue => {}
        }
    }
}

impl Drop for LocalSettle {
    fn drop(&mut self) {
        if let Some(message) = self.message.take() {
            self.queue.give_back(message);
        }
    }
}

struct LocalHints {
    receiver: broadcast::Receiver<Hint>,
}

#[async_trait]
impl Hints for LocalHints {
    async fn next(&mut self) -> Hint {
        loop {
            match self.receiver.recv().await {
                Ok(hint) => return hint,
                Err(broadcast::error::RecvError::Lagged(_)) => {}
                Err(broadcast::error::RecvError::Closed) => std::future::pending().await,
            }
        }
    }
}
