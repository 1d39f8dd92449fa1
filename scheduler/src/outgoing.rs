//! Dispatches on their way to the broker. No plan waits for a broker: a plan puts what it dispatched into a bounded list,
//! and one publisher hands it over. Whatever is dropped or lost is still in the outbox, where the relay finds it.

use model::TaskInstanceId;
use std::collections::{HashSet, VecDeque};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use store::repo::Dispatch;
use tokio::sync::Notify;
use tracing::Span;

/// Dispatches that wait at most; no more than `[core] parallelism` are usually under way.
const CAPACITY: usize = 20_000;

/// One dispatch, and the span of the plan that it comes from.
pub(crate) struct HandOver {
    pub(crate) dispatch: Dispatch,
    pub(crate) span: Span,
}

impl HandOver {
    /// What tells it from every other one.
    fn identity(&self) -> (TaskInstanceId, i64) {
        (self.dispatch.id, self.dispatch.sequence)
    }
}

#[derive(Default)]
struct Waiting {
    order: VecDeque<HandOver>,
    /// Those that wait or are being published.
    known: HashSet<(TaskInstanceId, i64)>,
}

/// Dispatches between a plan and the broker.
#[derive(Default)]
pub(crate) struct Outgoing {
    waiting: Mutex<Waiting>,
    arrived: Notify,
    is_closed: AtomicBool,
    /// Dispatches that the broker has and that are still in the outbox. They leave it with the next transaction, whatever
    /// it is about.
    confirmed: Mutex<Vec<Dispatch>>,
}

impl Outgoing {
    fn lock(&self) -> MutexGuard<'_, Waiting> {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Adds dispatches, but for those that are under way already and what would be too many.
    pub(crate) fn offer(&self, dispatches: Vec<Dispatch>, span: &Span) {
        let mut waiting = self.lock();
        for dispatch in dispatches {
            let hand_over = HandOver {
                dispatch,
                span: span.clone(),
            };
            if waiting.order.len() < CAPACITY && waiting.known.insert(hand_over.identity()) {
                waiting.order.push_back(hand_over);
            }
        }
        drop(waiting);
        self.arrived.notify_one();
    }

    /// The next dispatches to publish, at most `most`; waits for some. `None` once it is closed and nothing waits.
    pub(crate) async fn next(&self, most: usize) -> Option<Vec<HandOver>> {
        loop {
            let arrived = self.arrived.notified();
            {
                let mut waiting = self.lock();
                let count = waiting.order.len().min(most);
                if count > 0 {
                    return Some(waiting.order.drain(..count).collect());
                }
            }
            if self.is_closed.load(Ordering::Relaxed) {
                return None;
            }
            arrived.await;
        }
    }

    /// Notes that publishing was tried: from now on the relay may offer it again.
    pub(crate) fn tried(&self, hand_over: &HandOver) {
        self.lock().known.remove(&hand_over.identity());
    }

    /// Nothing is offered any more: [`Outgoing::next`] ends with what waits now.
    pub(crate) fn close(&self) {
        self.is_closed.store(true, Ordering::Relaxed);
        self.arrived.notify_one();
    }

    /// Returns `true` once it is closed.
    pub(crate) fn is_closed(&self) -> bool {
        self.is_closed.load(Ordering::Relaxed)
    }

    /// Takes the dispatches that are to leave the outbox.
    pub(crate) fn take_confirmed(&self) -> Vec<Dispatch> {
        std::mem::take(&mut *self.confirmed.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// Adds dispatches that are to leave the outbox.
    pub(crate) fn confirmed(&self, dispatches: impl IntoIterator<Item = Dispatch>) {
        self.confirmed
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .extend(dispatches);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use model::TryNumber;

    fn id(number: u128) -> TaskInstanceId {
        TaskInstanceId::new(uuid::Uuid::from_u128(number))
    }

    fn dispatch(number: u128) -> Dispatch {
        Dispatch {
            id: id(number),
            try_number: TryNumber(1),
            sequence: 1,
            queue: "default".into(),
            executor: None,
        }
    }

    #[tokio::test]
    async fn a_dispatch_is_under_way_once_until_it_was_tried() {
        let outgoing = Outgoing::default();
        let span = Span::none();
        outgoing.offer(vec![dispatch(1), dispatch(2)], &span);
        outgoing.offer(vec![dispatch(2), dispatch(3)], &span);
        let first = outgoing.next(2).await.expect("two");
        let ids = |batch: &[HandOver]| batch.iter().map(|one| one.dispatch.id).collect::<Vec<_>>();
        assert_eq!(ids(&first), [id(1), id(2)]);
        // The broker hangs; the relay offers all of them again.
        outgoing.offer(vec![dispatch(1), dispatch(2), dispatch(3)], &span);
        assert_eq!(ids(&outgoing.next(9).await.expect("one")), [id(3)]);
        first.iter().for_each(|one| outgoing.tried(one));
        outgoing.offer(vec![dispatch(1)], &span);
        outgoing.close();
        assert_eq!(ids(&outgoing.next(9).await.expect("one")), [id(1)]);
        assert!(outgoing.next(9).await.is_none());
    }
}
