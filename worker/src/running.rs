//! What this worker has asked for, what it runs, and what ended on it without a report.
//!
//! The control plane compares all of that with its own claims at every heartbeat, so each claim is in here from before it is
//! asked for until its report is acknowledged. Both ways out are guards: a panic leaves nothing behind.

use model::{ClaimEpoch, TaskInstanceId, WorkerId};
use std::collections::{HashMap, HashSet};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use tokio::sync::Notify;
use tokio_util::sync::CancellationToken;

/// A task instance and the claim under which it runs.
pub(crate) type Held = (TaskInstanceId, ClaimEpoch);

/// A claim whose try ended here without a report that was acknowledged, and why.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Lost {
    pub(crate) claim: Held,
    pub(crate) cause: String,
}

/// What one heartbeat names.
#[derive(Debug, Default)]
pub(crate) struct Named {
    pub(crate) number: i64,
    pub(crate) held: Vec<Held>,
    pub(crate) asked: Vec<String>,
    pub(crate) lost: Vec<Lost>,
}

#[derive(Default)]
struct State {
    /// Number of the last heartbeat that began.
    beat: i64,
    asked: HashSet<String>,
    tasks: HashMap<TaskInstanceId, (ClaimEpoch, CancellationToken)>,
    lost: Vec<Lost>,
    /// Ended because the worker leaves or begins anew; the control plane ends these claims when it hears of that.
    stopped: Vec<Held>,
}

impl State {
    fn held(&self) -> Vec<Held> {
        let running = self.tasks.iter().map(|(id, (epoch, _))| (*id, *epoch));
        running.chain(self.stopped.iter().copied()).collect()
    }
}

/// The tasks that run now, and what else the control plane must know of. Clones share everything.
#[derive(Clone, Default)]
pub(crate) struct Running {
    state: Arc<Mutex<State>>,
    ended: Arc<Notify>,
    pressing: Arc<Notify>,
    given_up: Arc<AtomicBool>,
}

impl Running {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Notes that a claim is about to be asked for, in this life of the worker.
    pub(crate) fn ask(&self, life: WorkerId) -> Asked {
        let claim_id = uuid::Uuid::new_v4().to_string();
        let mut state = self.lock();
        state.asked.insert(claim_id.clone());
        let beat = state.beat;
        drop(state);
        Asked {
            running: self.clone(),
            claim_id,
            life,
            beat,
        }
    }

    /// Begins a heartbeat: what it names, all seen at one moment.
    pub(crate) fn begin_beat(&self) -> Named {
        let mut state = self.lock();
        state.beat += 1;
        Named {
            number: state.beat,
            held: state.held(),
            asked: state.asked.iter().cloned().collect(),
            lost: state.lost.clone(),
        }
    }

    /// A heartbeat that named these was acknowledged; the control plane has ended them.
    pub(crate) fn forget_lost(&self, heard: &[Lost]) {
        if !heard.is_empty() {
            self.lock().lost.retain(|lost| !heard.contains(lost));
        }
    }

    /// Waits until there is something that the control plane should hear of at once.
    pub(crate) async fn pressing(&self) {
        self.pressing.notified().await;
    }

    pub(crate) fn len(&self) -> usize {
        self.lock().tasks.len()
    }

    /// Every claim that this worker has heard of and that has not been reported.
    pub(crate) fn heard(&self) -> Vec<Held> {
        let state = self.lock();
        let lost = state.lost.iter().map(|lost| lost.claim);
        state.held().into_iter().chain(lost).collect()
    }

    /// Stops a task. Returns `true` if it still ran under that claim.
    pub(crate) fn stop(&self, id: TaskInstanceId, epoch: ClaimEpoch) -> bool {
        let state = self.lock();
        let found = state.tasks.get(&id).filter(|(current, _)| *current == epoch);
        if let Some((_, token)) = found {
            token.cancel();
        }
        found.is_some()
    }

    /// Stops everything, for others to try again: nothing that fails by it is reported as a failure.
    pub(crate) fn give_up(&self) {
        self.given_up.store(true, Ordering::Relaxed);
        for (_, token) in self.lock().tasks.values() {
            token.cancel();
        }
    }

    /// Begins a new life after having given up: the claims of the old one are void, also those whose answers are still on
    /// their way.
    pub(crate) fn resume(&self) {
        let mut state = self.lock();
        state.asked.clear();
        state.lost.clear();
        state.stopped.clear();
        drop(state);
        self.given_up.store(false, Ordering::Relaxed);
    }

    pub(crate) fn has_given_up(&self) -> bool {
        self.given_up.load(Ordering::Relaxed)
    }

    /// Waits until nothing runs.
    pub(crate) async fn empty(&self) {
        loop {
            let ended = self.ended.notified();
            if self.len() == 0 {
                return;
            }
            ended.await;
        }
    }
}

/// A claim that is being asked for. Dropping it gives it up: an answer that comes later is not taken.
pub(crate) struct Asked {
    running: Running,
    claim_id: String,
    life: WorkerId,
    beat: i64,
}

impl Asked {
    /// Chosen for this claim; asking again with it gives the same answer.
    pub(crate) fn claim_id(&self) -> &str {
        &self.claim_id
    }

    /// The life of the worker that asks.
    pub(crate) const fn life(&self) -> WorkerId {
        self.life
    }

    /// The last heartbeat that began before this was noted.
    pub(crate) const fn beat(&self) -> i64 {
        self.beat
    }

    /// Returns `true` if the worker has begun another life meanwhile.
    pub(crate) fn is_void(&self) -> bool {
        !self.running.lock().asked.contains(&self.claim_id)
    }

    /// The claim was granted: the task runs from here on. `None` if the worker has begun another life meanwhile.
    pub(crate) fn granted(self, id: TaskInstanceId, epoch: ClaimEpoch) -> Option<RunningTask> {
        let stop = CancellationToken::new();
        let mut state = self.running.lock();
        if !state.asked.remove(&self.claim_id) {
            return None;
        }
        if let Some((_, older)) = state.tasks.insert(id, (epoch, stop.clone())) {
            // A newer claim of the same task instance can only mean that the older one is void.
            older.cancel();
        }
        metrics::gauge!(telemetry::metric::RUNNING).set(state.tasks.len() as u32);
        drop(state);
        Some(RunningTask {
            running: self.running.clone(),
            claim: (id, epoch),
            stop,
            lost: Some(
                "the worker's own code ended before the try was reported; see the worker's log".to_owned(),
            ),
        })
    }
}

impl Drop for Asked {
    fn drop(&mut self) {
        self.running.lock().asked.remove(&self.claim_id);
    }
}

/// A task that runs. Dropping it ends its entry; unless it was settled before, the control plane is told that it is lost.
pub(crate) struct RunningTask {
    running: Running,
    claim: Held,
    stop: CancellationToken,
    /// Why nobody knows how it ended; `None` once that is known.
    lost: Option<String>,
}

impl RunningTask {
    /// The claim under which it runs.
    pub(crate) const fn claim(&self) -> Held {
        self.claim
    }

    /// Cancelled when the task must stop.
    pub(crate) fn stopped(&self) -> CancellationToken {
        self.stop.clone()
    }

    /// The control plane knows how it ended.
    pub(crate) fn settle(&mut self) {
        self.lost = None;
    }

    /// Its end cannot be reported, for this reason.
    pub(crate) fn lose(&mut self, cause: String) {
        self.lost = Some(cause);
    }
}

impl Drop for RunningTask {
    fn drop(&mut self) {
        let (id, epoch) = self.claim;
        let mut state = self.running.lock();
        if state.tasks.get(&id).is_some_and(|(current, _)| *current == epoch) {
            state.tasks.remove(&id);
        }
        metrics::gauge!(telemetry::metric::RUNNING).set(state.tasks.len() as u32);
        if let Some(cause) = self.lost.take() {
            if self.running.has_given_up() {
                state.stopped.push(self.claim);
            } else {
                let claim = self.claim;
                state.lost.push(Lost { claim, cause });
                self.running.pressing.notify_one();
            }
        }
        drop(state);
        self.running.ended.notify_waiters();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use uuid::Uuid;

    fn life() -> WorkerId {
        WorkerId::new(Uuid::from_u128(1))
    }

    fn claim(n: u128) -> Held {
        (TaskInstanceId::new(Uuid::from_u128(n)), ClaimEpoch(1))
    }

    #[test]
    fn a_claim_is_named_from_before_it_is_asked_for_until_its_try_is_settled() {
        let running = Running::default();
        assert_eq!(running.begin_beat().number, 1);
        let asked = running.ask(life());
        assert_eq!(asked.beat(), 1);
        let claim_id = asked.claim_id().to_owned();
        assert_eq!(running.begin_beat().asked, [claim_id]);
        let (id, epoch) = claim(2);
        let mut task = asked.granted(id, epoch).unwrap();
        let named = running.begin_beat();
        assert_eq!((named.held, named.asked.len()), (vec![claim(2)], 0));
        task.settle();
        drop(task);
        let named = running.begin_beat();
        assert_eq!((named.held.len(), named.lost.len(), named.number), (0, 0, 4));
    }

    #[tokio::test]
    async fn a_task_that_panics_leaves_no_entry_and_is_told_as_lost() {
        let running = Running::default();
        let (id, epoch) = claim(2);
        let task = running.ask(life()).granted(id, epoch).unwrap();
        let panicked = tokio::spawn(async move {
            let _task = task;
            panic!("on purpose");
        });
        assert!(panicked.await.unwrap_err().is_panic());
        running.empty().await;
        running.pressing().await;
        let named = running.begin_beat();
        assert_eq!(named.lost[0].claim, claim(2));
        assert_eq!(running.heard(), [claim(2)]);
        running.forget_lost(&named.lost);
        assert!(running.begin_beat().lost.is_empty());
    }

    #[test]
    fn an_answer_to_a_claim_of_an_earlier_life_is_not_taken() {
        let running = Running::default();
        let asked = running.ask(life());
        running.give_up();
        running.resume();
        assert!(asked.is_void());
        let (id, epoch) = claim(2);
        assert!(asked.granted(id, epoch).is_none());
        assert_eq!(running.len(), 0);
    }

    #[test]
    fn what_is_stopped_because_the_worker_leaves_is_held_until_it_has_left() {
        let running = Running::default();
        let (id, epoch) = claim(2);
        let task = running.ask(life()).granted(id, epoch).unwrap();
        running.give_up();
        drop(task);
        let named = running.begin_beat();
        assert_eq!((named.held, named.lost.len()), (vec![claim(2)], 0));
        assert_eq!(running.heard(), [claim(2)]);
    }
}
