//! Hints on their way to the server. Whoever gives one does not wait: it is put into a bounded list, from which one sender
//! takes it. The same hint waits there once, however often it is given.

use super::connection::Link;
use super::consumer::declare_hints;
use super::{HINTS, RabbitBroker};
use crate::Hint;
use backoff::Backoff;
use lapin::options::BasicPublishOptions;
use lapin::{BasicProperties, Channel};
use std::collections::{HashSet, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;
use tokio::sync::Notify;

/// Hints that wait at most; those beyond are dropped, and the sweep of the schedulers finds what they were about.
const CAPACITY: usize = 10_000;
/// Hints that are sent before the list is looked at again.
const BATCH: usize = 200;
/// How long one batch may take: a server with a memory alarm takes nothing at all.
const SEND: Duration = Duration::from_secs(2);
const FIRST_PAUSE: Duration = Duration::from_millis(100);
const LAST_PAUSE: Duration = Duration::from_secs(3);

/// The list of hints that wait to be sent.
#[derive(Default)]
struct Waiting {
    order: VecDeque<Hint>,
    known: HashSet<Hint>,
}

/// Hints on their way. Clones share the list.
#[derive(Clone)]
pub(super) struct Hinting {
    waiting: Arc<Mutex<Waiting>>,
    arrived: Arc<Notify>,
}

impl Hinting {
    pub(super) fn new() -> Self {
        Self {
            waiting: Arc::default(),
            arrived: Arc::new(Notify::new()),
        }
    }

    fn lock(&self) -> MutexGuard<'_, Waiting> {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Adds a hint, unless it waits already or the list is full.
    pub(super) fn give(&self, hint: Hint) {
        let mut waiting = self.lock();
        if waiting.order.len() >= CAPACITY || !waiting.known.insert(hint.clone()) {
            return;
        }
        waiting.order.push_back(hint);
        drop(waiting);
        self.arrived.notify_one();
    }

    fn take(&self) -> Vec<Hint> {
        let mut waiting = self.lock();
        let count = waiting.order.len().min(BATCH);
        let taken: Vec<Hint> = waiting.order.drain(..count).collect();
        for hint in &taken {
            waiting.known.remove(hint);
        }
        taken
    }

    fn give_back(&self, hints: Vec<Hint>) {
        hints.into_iter().for_each(|hint| self.give(hint));
    }
}

/// Sends hints: the one task of a program that does.
pub struct HintSender {
    hinting: Hinting,
    link: Link,
    channel: Option<Channel>,
}

impl HintSender {
    /// Sends until it is dropped; a server that is away is waited for.
    pub async fn run(mut self) {
        let mut backoff = Backoff::new(FIRST_PAUSE, LAST_PAUSE);
        loop {
            let hints = self.hinting.take();
            if hints.is_empty() {
                self.hinting.arrived.notified().await;
                continue;
            }
            if self.send(&hints).await {
                backoff.reset();
                continue;
            }
            self.hinting.give_back(hints);
            backoff.pause().await;
        }
    }

    /// Sends what waits now, if the server takes it; what a program that ends does last.
    async fn flush(mut self) {
        loop {
            let hints = self.hinting.take();
            if hints.is_empty() || !self.send(&hints).await {
                break;
            }
        }
        self.link.reset().await;
    }

    /// Returns `true` if the server has them all, as far as can be known without confirmations.
    async fn send(&mut self, hints: &[Hint]) -> bool {
        let sending = async {
            let channel = match self.channel.take() {
                Some(channel) => channel,
                None => {
                    let channel = self.link.connection().await?.create_channel().await?;
                    declare_hints(&channel).await?;
                    channel
                }
            };
            for hint in hints {
                let Ok(bytes) = serde_json::to_vec(hint) else {
                    continue;
                };
                let (options, properties) = (BasicPublishOptions::default(), BasicProperties::default());
                channel
                    .basic_publish(HINTS.into(), "".into(), options, &bytes, properties)
                    .await?;
            }
            Ok::<_, lapin::Error>(channel)
        };
        let problem = match tokio::time::timeout(SEND, sending).await {
            Ok(Ok(channel)) => {
                self.channel = Some(channel);
                return true;
            }
            Ok(Err(error)) => error.to_string(),
            Err(_) => format!("no answer within {} s", SEND.as_secs()),
        };
        tracing::debug!(place = self.link.place(), "hints were not sent: {problem}");
        self.link.reset().await;
        false
    }
}

impl RabbitBroker {
    /// Who sends the hints that are given from now on. A program runs it once, for as long as it works.
    pub fn hint_sender(&self) -> HintSender {
        HintSender {
            hinting: self.hinting.clone(),
            link: self.link.another(),
            channel: None,
        }
    }

    /// Sends the hints that wait, for programs that end without having run the sender.
    pub(super) async fn flush_hints(&self) {
        if !self.hinting.lock().order.is_empty() {
            self.hint_sender().flush().await;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use model::DagRunKey;

    #[test]
    fn a_hint_waits_once_and_the_list_is_bounded() {
        let hinting = Hinting::new();
        for _ in 0..3 {
            for key in 0..(CAPACITY as i64 + 7) {
                hinting.give(Hint::Run(DagRunKey(key)));
            }
        }
        let mut taken = Vec::new();
        loop {
            let batch = hinting.take();
            if batch.is_empty() {
                break;
            }
            taken.extend(batch);
        }
        let expected: Vec<Hint> = (0..CAPACITY as i64)
            .map(|key| Hint::Run(DagRunKey(key)))
            .collect();
        assert_eq!(taken, expected);
        hinting.give(Hint::Timetables);
        assert_eq!(hinting.take(), [Hint::Timetables]);
    }
}
