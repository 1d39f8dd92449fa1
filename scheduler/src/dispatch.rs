//! Handing task instances to the broker, and doing so again for those that were not confirmed.

use crate::Shared;
use crate::outgoing::HandOver;
use crate::pods::PodExecutor;
use broker::TaskMessage;
use lifecycle::Stop;
use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use std::time::Duration;
use store::StoreError;
use store::repo::{Dispatch, RunRecord};
use telemetry::metric;

/// Age at which an outbox row that nobody confirmed is published again.
const UNCONFIRMED: chrono::Duration = chrono::Duration::seconds(2);
/// Age at which a queued task instance that nobody claimed is looked for in its queue.
const UNCLAIMED: chrono::Duration = chrono::Duration::seconds(5);
const RELAY: Duration = Duration::from_secs(1);
/// Turns of the relay from one look for lost messages to the next. With what it may be late, a lost message is published
/// again within ten seconds.
const LOOK_EVERY: u64 = 2;
const BATCH: i64 = 200;
/// Messages that are published before the first confirmation is waited for.
const PUBLISHED_AT_ONCE: usize = 200;

fn message(dispatch: &Dispatch) -> TaskMessage {
    TaskMessage {
        version: TaskMessage::VERSION,
        task_instance: dispatch.id,
        try_number: dispatch.try_number,
        sequence: dispatch.sequence,
        queue: dispatch.queue.clone(),
    }
}

impl Shared {
    /// Sends what a committed plan dispatched on its way; waits for nobody.
    pub(crate) fn send(&self, dispatches: Vec<Dispatch>, run: &RunRecord) {
        if dispatches.is_empty() {
            return;
        }
        let span = tracing::info_span!("task.dispatch", run.id = %run.run_id, dag.id = %run.dag_id, count = dispatches.len());
        telemetry::set_parent(&span, run.trace_context.as_deref());
        self.offer(dispatches, &span);
    }

    fn offer(&self, dispatches: Vec<Dispatch>, span: &tracing::Span) {
        let (for_pods, for_queues): (Vec<_>, Vec<_>) = dispatches
            .into_iter()
            .partition(|dispatch| PodExecutor::is_for(&self.config, dispatch));
        self.pods.order(for_pods);
        if !for_queues.is_empty() {
            self.outgoing.offer(for_queues, span);
        }
    }

    /// Hands one batch to the broker. Returns `true` if it took all of it.
    async fn publish(&self, batch: Vec<HandOver>) -> bool {
        let messages: Vec<TaskMessage> = batch.iter().map(|one| message(&one.dispatch)).collect();
        let outcomes = self.broker.publish(&messages).await;
        let mut confirmed = Vec::with_capacity(batch.len());
        let mut problem = None;
        for (hand_over, outcome) in batch.into_iter().zip(outcomes) {
            self.outgoing.tried(&hand_over);
            match outcome {
                Ok(()) => {
                    tracing::trace!(parent: &hand_over.span, "the broker has it");
                    confirmed.push(hand_over.dispatch);
                }
                Err(error) => problem = Some(error),
            }
        }
        metrics::counter!(metric::DISPATCHED).increment(confirmed.len() as u64);
        self.outgoing.confirmed(confirmed);
        if let Some(error) = &problem {
            metrics::counter!(metric::DISPATCH_FAILURES).increment(1);
            tracing::warn!("tasks could not be handed to the broker, trying again: {error}");
        }
        problem.is_none()
    }

    /// Publishes again what was not confirmed, and what was confirmed but seems to have been lost since.
    async fn relay_once(&self, look_for_lost: bool) -> Result<(), StoreError> {
        let now = chrono::Utc::now();
        let confirmed = self.outgoing.take_confirmed();
        if !confirmed.is_empty() {
            let done = store::transact!(self.store, "confirm", |tx| tx
                .confirm_dispatches(&confirmed)
                .await);
            if let Err(error) = done {
                self.outgoing.confirmed(confirmed);
                return Err(error);
            }
        }
        let mut db = self.store.reader().await?;
        let unconfirmed = db.unconfirmed_dispatches(now - UNCONFIRMED, BATCH).await?;
        let waiting = if look_for_lost {
            db.unclaimed(now - UNCLAIMED, BATCH).await?
        } else {
            Vec::new()
        };
        drop(db);
        if !unconfirmed.is_empty() {
            metrics::counter!(metric::REDISPATCHED, "reason" => "unconfirmed")
                .increment(unconfirmed.len() as u64);
            self.offer(unconfirmed, &tracing::Span::none());
        }
        let lost = self.lost(waiting).await;
        if !lost.is_empty() {
            metrics::counter!(metric::REDISPATCHED, "reason" => "lost").increment(lost.len() as u64);
            tracing::warn!(
                count = lost.len(),
                "queued tasks are in no queue and in no pod; handing them over again"
            );
            self.offer(lost, &tracing::Span::none());
        }
        Ok(())
    }

    /// Those of `waiting` whose queues are empty, or who have no pod: their messages are gone.
    async fn lost(&self, waiting: Vec<Dispatch>) -> Vec<Dispatch> {
        let (mut for_pods, waiting): (Vec<_>, Vec<_>) = waiting
            .into_iter()
            .partition(|dispatch| PodExecutor::is_for(&self.config, dispatch));
        for_pods.retain(|dispatch| !self.pods.has(dispatch));
        let queues: HashSet<_> = waiting.iter().map(|dispatch| dispatch.queue.clone()).collect();
        let mut is_empty = HashMap::new();
        for queue in queues {
            let empty = matches!(self.broker.depth(&queue).await, Ok(0));
            is_empty.insert(queue, empty);
        }
        let lost = waiting
            .into_iter()
            .filter(|dispatch| is_empty.get(&dispatch.queue) == Some(&true));
        for_pods.into_iter().chain(lost).collect()
    }
}

/// Hands dispatches to the broker until there are no more planners. What a broker that is away does not take then is left to
/// the other schedulers.
pub(crate) async fn publisher(shared: Arc<Shared>) {
    while let Some(batch) = shared.outgoing.next(PUBLISHED_AT_ONCE).await {
        let all_taken = shared.publish(batch).await;
        if !all_taken && shared.outgoing.is_closed() {
            return;
        }
    }
}

/// Relays until told to stop.
pub(crate) async fn relay(shared: Arc<Shared>, stop: Stop) {
    let mut turn = 0u64;
    loop {
        tokio::select! {
            () = stop.draining().cancelled() => break,
            () = tokio::time::sleep(RELAY) => {}
        }
        turn += 1;
        if let Err(error) = shared.relay_once(turn.is_multiple_of(LOOK_EVERY)).await {
            tracing::warn!("the outbox could not be relayed, trying again: {error}");
        }
    }
    // What was confirmed last leaves the outbox with us, if the database lets it.
    shared.relay_once(false).await.ok();
}
