//! From a message to a running task.

use crate::control::is_transient;
use crate::running::{Asked, RunningTask};
use crate::{Shared, run};
use backoff::Backoff;
use broker::{Deliveries, Delivery};
use lifecycle::{Kind, Lifecycle, Stop};
use model::{ClaimEpoch, QueueName, TaskInstanceId, TryNumber};
use processes::lease::Permit;
use proto::v1::claim_reply::Outcome;
use proto::v1::{Ending, StartTask};
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::OwnedSemaphorePermit;

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

/// Answer to a claim.
enum Claimed {
    /// The task is ours, and runs from now on. The permit is of the life that claimed, however late the answer came.
    Granted(RunningTask, Box<StartTask>, Permit),
    /// There is nothing to run: the message is to be forgotten.
    Nothing,
    /// To be tried again later.
    Later,
}

/// Takes messages from a queue until told to stop.
pub(crate) async fn consume(
    shared: Arc<Shared>,
    queue: QueueName,
    lifecycle: Lifecycle,
) -> anyhow::Result<()> {
    let stop = lifecycle.stop();
    let mut deliveries = shared.broker.consume(&queue, PREFETCH).await?;
    loop {
        if shared.wellness.problem().is_some() {
            // Others may have what was fetched ahead.
            deliveries.pause().await;
            tokio::select! {
                () = shared.wellness.well() => {}
                () = stop.draining().cancelled() => break,
            }
        }
        let slot = tokio::select! {
            slot = free_slot(&shared, deliveries.as_mut()) => slot?,
            () = stop.draining().cancelled() => break,
        };
        let delivery = tokio::select! {
            delivery = deliveries.next() => delivery,
            () = stop.draining().cancelled() => break,
        };
        let handling = handle(Arc::clone(&shared), delivery, slot, lifecycle.clone());
        lifecycle.spawn("task", Kind::Request, handling);
    }
    deliveries.pause().await;
    Ok(())
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
    let (task, start, permit) = loop {
        let answer = tokio::select! {
            answer = claim(shared, &wish) => answer,
            // A claim that was granted meanwhile is given back when the worker leaves.
            () = stop.draining().cancelled() => return None,
        };
        match answer {
            Claimed::Granted(task, start, permit) => break (task, start, permit),
            Claimed::Nothing => {
                tracing::info!(task_instance = %id, "there is nothing to run: the task is not waiting for this try any more");
                return None;
            }
            Claimed::Later => {}
        }
    };
    let stopped = task.stopped();
    let ending = Box::pin(run::run_task(Arc::clone(shared), *start, permit, task)).await;
    Some(ending).filter(|_| !stopped.is_cancelled())
}

async fn handle(shared: Arc<Shared>, delivery: Delivery, slot: OwnedSemaphorePermit, lifecycle: Lifecycle) {
    let message = match &delivery.message {
        Ok(message) => message.clone(),
        Err(problem) => {
            tracing::warn!("a message that is none of ours is put aside: {problem}");
            delivery.reject().await;
            return;
        }
    };
    if shared.wellness.problem().is_some() {
        delivery.requeue().await;
        return;
    }
    let wish = Wish {
        id: message.task_instance,
        try_number: message.try_number,
        any_of: Some(message.queue.clone()),
    };
    let (task, start, permit) = match claim(&shared, &wish).await {
        Claimed::Granted(task, start, permit) => (task, start, permit),
        Claimed::Nothing => {
            delivery.ack().await;
            return;
        }
        Claimed::Later => {
            delivery.requeue().await;
            return;
        }
    };
    // The claim is committed, so the message has done its duty: nothing is acknowledged at the end of a long task.
    let acknowledging = lifecycle.spawn("acknowledgement", Kind::Request, delivery.ack());
    run::run_task(Arc::clone(&shared), *start, permit, task).await;
    drop(slot);
    acknowledging.ended().await;
}

/// Claims a task instance. It is named in heartbeats from here on, so that an answer on its way is not taken for lost.
async fn claim(shared: &Shared, wish: &Wish) -> Claimed {
    // Taken first: should the worker begin another life in between, it permits nothing.
    let permit = shared.lease.permit();
    let asked = shared.running.ask(shared.id());
    let mut backoff = Backoff::new(crate::FIRST_PAUSE, crate::LONGEST_PAUSE);
    for _ in 0..CLAIM_TRIES {
        match shared.control.claim(shared, wish, &asked).await {
            Ok(reply) => match reply.outcome {
                Some(Outcome::Start(start)) => {
                    processes::pause::point("claimed");
                    return granted(asked, start, permit).await;
                }
                Some(Outcome::Refused(why)) => {
                    tracing::debug!(task_instance = %wish.id, "nothing to run: {why}");
                    return Claimed::Nothing;
                }
                Some(Outcome::UnknownWorker(_)) | None => {
                    shared.register.notify_one();
                    tokio::time::sleep(Duration::from_millis(500)).await;
                    return Claimed::Later;
                }
            },
            Err(_) if asked.is_void() => return Claimed::Later,
            Err(status) if is_transient(&status) => {
                backoff.pause().await;
            }
            Err(status) => {
                tracing::error!(task_instance = %wish.id, "a claim was refused: {status}");
                tokio::time::sleep(Duration::from_secs(1)).await;
                return Claimed::Later;
            }
        }
    }
    Claimed::Later
}

/// Takes what was granted. What cannot be read or comes too late is left: heartbeats do not name it, so it goes back.
async fn granted(asked: Asked, start: StartTask, permit: Permit) -> Claimed {
    let Ok(id) = start.task_instance_id.parse() else {
        tracing::error!(
            "a claim was granted for {:?}, which is no task instance; leaving it",
            start.task_instance_id
        );
        tokio::time::sleep(Duration::from_secs(1)).await;
        return Claimed::Later;
    };
    match asked.granted(id, ClaimEpoch(start.epoch)) {
        Some(task) => Claimed::Granted(task, Box::new(start), permit),
        None => Claimed::Later,
    }
}
