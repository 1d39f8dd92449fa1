//! Runs that want planning: each at most once in the queue, none planned twice at the same time.

use model::{DagRunKey, Timestamp};
use std::cmp::Reverse;
use std::collections::{BinaryHeap, HashSet, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;
use tokio::sync::Notify;
use tokio::time::Instant;

#[derive(Default)]
struct State {
    queue: VecDeque<DagRunKey>,
    queued: HashSet<DagRunKey>,
    /// Being planned right now.
    active: HashSet<DagRunKey>,
    /// Wanted again while being planned.
    again: HashSet<DagRunKey>,
    later: BinaryHeap<Reverse<(Instant, DagRunKey)>>,
}

/// The queue of runs to plan. Clones share it.
#[derive(Clone, Default)]
pub(crate) struct DirtyRuns {
    state: Arc<Mutex<State>>,
    arrived: Arc<Notify>,
}

impl State {
    fn add(&mut self, key: DagRunKey) {
        if self.active.contains(&key) {
            self.again.insert(key);
        } else if self.queued.insert(key) {
            self.queue.push_back(key);
        }
    }

    /// Moves what is due from `later` to the queue; tells when the next one is.
    fn ripen(&mut self, now: Instant) -> Option<Instant> {
        while let Some(Reverse((at, key))) = self.later.peek().copied() {
            if at > now {
                return Some(at);
            }
            self.later.pop();
            self.add(key);
        }
        None
    }
}

impl DirtyRuns {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn add(&self, key: DagRunKey) {
        self.lock().add(key);
        self.arrived.notify_one();
    }

    pub(crate) fn add_later(&self, key: DagRunKey, after: Duration) {
        self.lock().later.push(Reverse((Instant::now() + after, key)));
        self.arrived.notify_one();
    }

    pub(crate) fn add_at(&self, key: DagRunKey, at: Timestamp, now: Timestamp) {
        self.add_later(key, (at - now).to_std().unwrap_or(Duration::ZERO));
    }

    /// The next run to plan; [`DirtyRuns::planned`] must follow. May be dropped while it waits.
    pub(crate) async fn next(&self) -> DagRunKey {
        loop {
            let arrived = self.arrived.notified();
            let (found, ripe) = {
                let mut state = self.lock();
                let ripe = state.ripen(Instant::now());
                let found = state.queue.pop_front();
                if let Some(key) = found {
                    state.queued.remove(&key);
                    state.active.insert(key);
                    if !state.queue.is_empty() {
                        self.arrived.notify_one();
                    }
                }
                (found, ripe)
            };
            match (found, ripe) {
                (Some(key), _) => return key,
                (None, Some(at)) => tokio::select! {
                    () = arrived => {}
                    () = tokio::time::sleep_until(at) => {}
                },
                (None, None) => arrived.await,
            }
        }
    }

    pub(crate) fn planned(&self, key: DagRunKey) {
        let mut state = self.lock();
        state.active.remove(&key);
        if state.again.remove(&key) {
            state.add(key);
            self.arrived.notify_one();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_run_wanted_while_it_is_planned_is_planned_once_more() {
        let dirty = DirtyRuns::default();
        let key = DagRunKey(1);
        dirty.add(key);
        dirty.add(key);
        assert_eq!(dirty.next().await, key);
        dirty.add(key);
        dirty.add(key);
        let waiting = tokio::time::timeout(Duration::from_secs(1), dirty.next()).await;
        assert!(waiting.is_err(), "it must not be planned twice at the same time");
        dirty.planned(key);
        assert_eq!(dirty.next().await, key);
        dirty.planned(key);
        assert!(
            tokio::time::timeout(Duration::from_secs(1), dirty.next())
                .await
                .is_err()
        );
    }

    #[tokio::test(start_paused = true)]
    async fn what_is_wanted_later_comes_later() {
        let dirty = DirtyRuns::default();
        dirty.add_later(DagRunKey(1), Duration::from_secs(5));
        dirty.add_later(DagRunKey(2), Duration::from_secs(1));
        let begin = Instant::now();
        assert_eq!(dirty.next().await, DagRunKey(2));
        assert_eq!(dirty.next().await, DagRunKey(1));
        assert_eq!(begin.elapsed().as_secs(), 5);
    }
}
