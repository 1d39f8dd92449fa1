//! From a message to a running task.

use crate::control::is_transient;
use crate::{Shared, run};
use bootstrap::Stop;
use broker::{Deliveries, Delivery};
use model::{ClaimEpoch, QueueName, TaskInstanceId, TryNumber};
use processes::lease::Permit;
use proto::v1::claim_reply::Outcome;
use proto::v1::{Claim, Ending, StartTask};
use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;
use tokio::sync::{Notify, OwnedSemaphorePermit};
use tokio_util::sync::CancellationToken;

/// Messages fetched ahead of their claims.
const PREFETCH: u16 = 4;
/// How long all slots may be taken before messages fetched ahead go back for other workers.
const HOARDING: Duration = Duration::from_millis(300);
/// How often a claim is tried while the control plane cannot be reached, before the message goes back.
const CLAIM_TRIES: u32 = 8;

/// What a worker asks for.
#[derive(Debug, Clone)]
pub(crate) struct Wish {
    /// The task instance that it heard of.
    pub(crate) id: TaskInstanceId,
    /// The try.
    pub(crate) try_number: TryNumber,
    /// The queue of its message, where a heavier one may be had instead: a message is a right to one of those that wait.
    /// What waits in a queue is in the order in which it came, but the heaviest is to go first.
    pub(crate) any_of: Option<QueueName>,
}

/// The tasks that run now.
#[derive(Clone, Default)]
pub(crate) struct Running {
    tasks: Arc<Mutex<HashMap<TaskInstanceId, (ClaimEpoch, CancellationToken)>>>,
    ended: Arc<Notify>,
    given_up: Arc<AtomicBool>,
}

impl Running {
    fn lock(&self) -> MutexGuard<'_, HashMap<TaskInstanceId, (ClaimEpoch, CancellationToken)>> {
        self.tasks.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn begin(&self, id: TaskInstanceId, epoch: ClaimEpoch) -> CancellationToken {
        let token = CancellationToken::new();
        let mut tasks = self.lock();
        if let Some((_, older)) = tasks.insert(id, (epoch, token.clone())) {
            // A newer claim of the same task instance can only mean that the older one is void.
            older.cancel();
        }
        metrics::gauge!(telemetry::metric::RUNNING).set(tasks.len() as u32);
        token
    }

    fn end(&self, id: TaskInstanceId, epoch: ClaimEpoch) {
        let mut tasks = self.lock();
        if tasks.get(&id).is_some_and(|(current, _)| *current == epoch) {
            tasks.remove(&id);
        }
        metrics::gauge!(telemetry::metric::RUNNING).set(tasks.len() as u32);
        drop(tasks);
        self.ended.notify_waiters();
    }

    pub(crate) fn len(&self) -> usize {
        self.lock().len()
    }

    pub(crate) fn claims(&self) -> Vec<Claim> {
        let claim = |(id, (epoch, _)): (&TaskInstanceId, &(ClaimEpoch, CancellationToken))| Claim {
            task_instance_id: id.to_string(),
            epoch: epoch.0,
        };
        self.lock().iter().map(claim).collect()
    }

    /// Stops a task. Whether it still ran under that claim.
    pub(crate) fn stop(&self, id: TaskInstanceId, epoch: ClaimEpoch) -> bool {
        let tasks = self.lock();
        let found = tasks.get(&id).filter(|(current, _)| *current == epoch);
        if let Some((_, token)) = found {
            token.cancel();
        }
        found.is_some()
    }

    /// Stops everything, for others to try again: nothing that fails by it is reported as a failure.
    pub(crate) fn give_up(&self) {
        self.given_up.store(true, Ordering::Relaxed);
        for (_, token) in self.lock().values() {
            token.cancel();
        }
    }

    /// Begins anew after having given up.
    pub(crate) fn resume(&self) {
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

/// Takes messages from a queue until told to stop.
pub(crate) async fn consume(shared: Arc<Shared>, queue: QueueName, stop: Stop) -> anyhow::Result<()> {
    let mut deliveries = shared.broker.consume(&queue, PREFETCH).await?;
    loop {
        tokio::select! {
            () = python_works(&shared, deliveries.as_mut()) => {}
            () = stop.draining().cancelled() => break,
        }
        let slot = tokio::select! {
            slot = free_slot(&shared, deliveries.as_mut()) => slot?,
            () = stop.draining().cancelled() => break,
        };
        let delivery = tokio::select! {
            delivery = deliveries.next() => delivery,
            () = stop.draining().cancelled() => break,
        };
        tokio::spawn(handle(Arc::clone(&shared), delivery, slot));
    }
    deliveries.pause().await;
    Ok(())
}

/// Waits while Python is known not to start: tasks are not taken from workers that can run them.
async fn python_works(shared: &Shared, deliveries: &mut dyn Deliveries) {
    let Some(python) = shared.python.as_ref() else {
        return;
    };
    let Some(problem) = python.problem() else { return };
    tracing::error!("this worker takes no tasks until Python can be started: {problem}");
    shared.health.troubled(Some(problem.to_string()));
    deliveries.pause().await;
    python.works().await;
    shared.health.troubled(None);
    tracing::info!("Python can be started again; this worker takes tasks");
}

/// Waits for a free slot. While there is none, messages fetched ahead are not kept from other workers for long.
async fn free_slot(shared: &Shared, deliveries: &mut dyn Deliveries) -> anyhow::Result<OwnedSemaphorePermit> {
    let slot = Arc::clone(&shared.slots).acquire_owned();
    tokio::pin!(slot);
    tokio::select! {
        slot = &mut slot => return Ok(slot?),
        () = tokio::time::sleep(HOARDING) => {}
    }
    deliveries.pause().await;
    Ok(slot.await?)
}

/// Claims one task instance and runs it. Returns how it ended; `None` when there was nothing to run, or it was stopped.
pub(crate) async fn run_one(
    shared: &Arc<Shared>,
    id: TaskInstanceId,
    try_number: TryNumber,
    stop: &Stop,
) -> Option<Ending> {
    let wish = Wish {
        id,
        try_number,
        any_of: None,
    };
    let (start, permit) = loop {
        let answer = tokio::select! {
            answer = claim(shared, &wish) => answer,
            // A claim that was granted meanwhile is given back when the worker leaves.
            () = stop.draining().cancelled() => return None,
        };
        match answer {
            Some(Some(granted)) => break granted,
            Some(None) => {
                tracing::info!(task_instance = %id, "there is nothing to run: the task is not waiting for this try any more");
                return None;
            }
            None => {}
        }
    };
    let epoch = ClaimEpoch(start.epoch);
    let stop = shared.running.begin(id, epoch);
    let ending = run::run_task(Arc::clone(shared), (start, permit), stop.clone()).await;
    shared.running.end(id, epoch);
    Some(ending).filter(|_| !stop.is_cancelled())
}

async fn handle(shared: Arc<Shared>, delivery: Delivery, slot: OwnedSemaphorePermit) {
    let message = match &delivery.message {
        Ok(message) => message.clone(),
        Err(problem) => {
            tracing::warn!("a message that is none of ours is put aside: {problem}");
            delivery.reject().await;
            return;
        }
    };
    let wish = Wish {
        id: message.task_instance,
        try_number: message.try_number,
        any_of: Some(message.queue.clone()),
    };
    let Some(start) = claim(&shared, &wish).await else {
        delivery.requeue().await;
        return;
    };
    let Some((start, permit)) = start else {
        delivery.ack().await;
        return;
    };
    // The claim is committed, so the message has done its duty: nothing is acknowledged at the end of a long task.
    let id = start.task_instance_id.parse().unwrap_or(message.task_instance);
    let epoch = ClaimEpoch(start.epoch);
    let stop = shared.running.begin(id, epoch);
    let acknowledging = tokio::spawn(delivery.ack());
    run::run_task(Arc::clone(&shared), (start, permit), stop).await;
    shared.running.end(id, epoch);
    drop(slot);
    acknowledging.await.ok();
}

/// Claims a task instance: `None` to try again later, `Some(None)` to forget it. The permit is of the life that claimed,
/// however late the answer comes.
async fn claim(shared: &Shared, wish: &Wish) -> Option<Option<(StartTask, Permit)>> {
    let claim_id = uuid::Uuid::new_v4().to_string();
    let mut wait = Duration::from_millis(50);
    for _ in 0..CLAIM_TRIES {
        let permit = shared.lease.permit();
        match shared.control.claim(shared, wish, &claim_id).await {
            Ok(reply) => match reply.outcome {
                Some(Outcome::Start(start)) => {
                    processes::pause::point("claimed");
                    return Some(Some((start, permit)));
                }
                Some(Outcome::Refused(why)) => {
                    tracing::debug!(task_instance = %wish.id, "nothing to run: {why}");
                    return Some(None);
                }
                Some(Outcome::UnknownWorker(_)) | None => {
                    shared.register.notify_one();
                    tokio::time::sleep(Duration::from_millis(500)).await;
                    return None;
                }
            },
            Err(status) if is_transient(&status) => {
                tokio::time::sleep(wait).await;
                wait = (wait * 2).min(Duration::from_secs(3));
            }
            Err(status) => {
                tracing::error!(task_instance = %wish.id, "a claim was refused: {status}");
                tokio::time::sleep(Duration::from_secs(1)).await;
                return None;
            }
        }
    }
    None
}
