//! What workers call about the triggers that they run.

use super::store_status;
use crate::App;
use crate::logs::LogName;
use broker::Hint;
use chrono::Utc;
use identity::ClaimToken;
use model::task_instance::Outcome;
use model::trigger::TriggerEvent;
use model::{TaskInstanceId, TriggerId, WorkerId};
use proto::v1::{RunTrigger, SyncTriggersReply, SyncTriggersRequest, TriggerFiredReply, TriggerFiredRequest};
use serde_json::{Map, Value, json};
use std::collections::HashSet;
use store::repo::{Fired, TaskInstanceRecord, TriggerHost, TriggerRecord};
use store::{StoreError, Tx};
use telemetry::metric;
use tonic::Status;

/// Bytes after which an answer is full. One order more is far below what a message may have.
const REPLY: usize = 4 << 20;

/// Tells a worker which triggers to run, and which not any more.
pub(super) async fn sync(
    app: &App,
    worker: WorkerId,
    request: SyncTriggersRequest,
) -> Result<SyncTriggersReply, Status> {
    let reader = async { app.store.reader().await?.has_triggers().await };
    if !reader.await.map_err(|error: StoreError| store_status(&error))? {
        // The usual answer costs no transaction.
        return Ok(SyncTriggersReply {
            start: Vec::new(),
            cancel: request.running,
        });
    }
    let host = TriggerHost {
        worker,
        capacity: request.capacity,
        queues: request.queues,
    };
    let own = store::transact!(app.store, "assign triggers", |tx| tx.assign_triggers(&host).await);
    let own = own.map_err(|error| store_status(&error))?;
    let running: HashSet<i64> = request.running.iter().copied().collect();
    let wanted: HashSet<i64> = own.iter().map(|trigger| trigger.id.0).collect();
    let mut start: Vec<RunTrigger> = Vec::new();
    let mut size = 0;
    for trigger in own.iter().filter(|trigger| !running.contains(&trigger.id.0)) {
        match order(app, worker, trigger).await {
            Ok(order) => {
                size += order.as_ref().map_or(0, |order| {
                    order.dag.len() + order.dag_run.len() + order.kwargs.len()
                });
                start.extend(order);
                if size > REPLY {
                    // The rest comes with the next answer.
                    break;
                }
            }
            Err(error) => tracing::error!(trigger = %trigger.id, "a trigger cannot be started: {error}"),
        }
    }
    Ok(SyncTriggersReply {
        start,
        cancel: running.difference(&wanted).copied().collect(),
    })
}

/// What a worker must know to run a trigger; `None` when nobody waits for it any more.
async fn order(
    app: &App,
    worker: WorkerId,
    trigger: &TriggerRecord,
) -> Result<Option<RunTrigger>, StoreError> {
    let mut db = app.store.reader().await?;
    let mut order = RunTrigger {
        id: trigger.id.0,
        classpath: trigger.classpath.clone(),
        kwargs: trigger.open_kwargs(&app.cipher)?,
        log_limit: app.config.updraft.max_task_log_bytes,
        timeout_at: trigger.timeout_at.map(model::time::to_micros),
        ..RunTrigger::default()
    };
    if let Some(hash) = &trigger.watcher_hash {
        let assets: Map<String, Value> = db
            .watched_assets(hash)
            .await?
            .into_iter()
            .map(|key| (key.name, key.uri.into()))
            .collect();
        order.watched_assets = Value::Object(assets).to_string();
        return Ok(Some(order));
    }
    let Some(id) = trigger.task_instance else {
        return Ok(None);
    };
    let Some(ti) = db.task_instance_by_id(id).await? else {
        return Ok(None);
    };
    let claim = ClaimToken {
        task_instance: ti.id,
        epoch: trigger.epoch,
        try_number: ti.try_number.0,
        worker,
    };
    order.token = app
        .tokens
        .for_claim(&claim)
        .map_err(|error| StoreError::Inconsistent(error.to_string()))?;
    let name = LogName::of(&ti, ti.try_number.0);
    order.log_offset = app.logs.length(&name);
    order.task_instance = described(&ti).to_string();
    let graph = app.graphs.get(&mut db, ti.version_id).await?;
    let task = graph.dag.task(&ti.task_id);
    if task.is_some_and(|task| task.start_trigger.is_some())
        && let Some(run) = db.run_by_key(ti.run_key).await?
    {
        order.dag = graph.document.to_string();
        order.dag_run = db.run_for_sdk(&run).await?.to_string();
    }
    Ok(Some(order))
}

/// `TaskInstanceDTO`
fn described(ti: &TaskInstanceRecord) -> Value {
    json!({
        "id": ti.id, "task_id": ti.task_id, "dag_id": ti.dag_id, "run_id": ti.run_id, "try_number": ti.try_number.0,
        "dag_version_id": ti.version_id, "map_index": ti.map_index.0, "hostname": ti.hostname, "queue": ti.queue,
        "pool_slots": ti.pool_slots, "priority_weight": ti.priority_weight,
    })
}

/// A trigger fired, or failed.
pub(super) async fn fired(
    app: &App,
    worker: WorkerId,
    message: TriggerFiredRequest,
) -> Result<TriggerFiredReply, Status> {
    let id = TriggerId(message.id);
    let event = event_of(&message)?;
    let done = fire(app, id, worker, &event)
        .await
        .map_err(|error| store_status(&error))?;
    let word = match (&event, done) {
        (_, Fired::Stale) => "stale",
        (TriggerEvent::Failed(_), _) => "failed",
        (TriggerEvent::Fired(_) | TriggerEvent::Ended { .. }, _) => "fired",
    };
    metrics::counter!(metric::TRIGGERS, "outcome" => word).increment(1);
    match done {
        Fired::Task(run) => app.broker.hint(Hint::Run(run)),
        Fired::Assets => app.broker.hint(Hint::Timetables),
        Fired::Stale => {}
    }
    Ok(TriggerFiredReply {
        stale: done == Fired::Stale,
    })
}

async fn fire(app: &App, id: TriggerId, worker: WorkerId, event: &TriggerEvent) -> Result<Fired, StoreError> {
    let now = Utc::now();
    let ended = match event {
        TriggerEvent::Ended { .. } => retry_of(app, &mut app.store.reader().await?, id).await?,
        TriggerEvent::Fired(_) | TriggerEvent::Failed(_) => None,
    };
    let retry_at = ended.map(|(_, retry_at)| retry_at);
    store::transact!(app.store, "fire trigger", |tx| {
        let fired = tx.fire_trigger(id, worker, event, retry_at, now).await?;
        if let (Fired::Task(_), Some((ti, _))) = (&fired, ended) {
            // It ends without a process that could call them.
            tx.add_task_callback(&app.graphs, ti, "ended by its trigger", now)
                .await?;
        }
        Ok(fired)
    })
}

/// The task instance that waits for a trigger, and when it is tried again, should it fail now.
async fn retry_of(
    app: &App,
    db: &mut Tx,
    id: TriggerId,
) -> Result<Option<(TaskInstanceId, model::Timestamp)>, StoreError> {
    let Some(ti) = db.trigger(id).await?.and_then(|trigger| trigger.task_instance) else {
        return Ok(None);
    };
    let Some(ti) = db.task_instance_by_id(ti).await? else {
        return Ok(None);
    };
    let longest = app.config.core.max_retry_delay;
    let retry_at = app.graphs.retry_at(db, &ti, Utc::now(), None, longest).await?;
    Ok(Some((ti.id, retry_at)))
}

fn event_of(message: &TriggerFiredRequest) -> Result<TriggerEvent, Status> {
    if message.failed {
        return Ok(TriggerEvent::Failed(message.traceback.clone()));
    }
    if let Some(payload) = &message.payload {
        let payload = serde_json::from_str(payload)
            .map_err(|error| Status::invalid_argument(format!("the payload is not JSON: {error}")))?;
        return Ok(TriggerEvent::Fired(payload));
    }
    let outcome = match message.state.as_deref() {
        Some("success") => Outcome::Success,
        Some("skipped") => Outcome::Skipped,
        Some("failed") => Outcome::Failed { retry_at: None },
        other => {
            return Err(Status::invalid_argument(format!(
                "a trigger cannot end a task as {other:?}"
            )));
        }
    };
    let xcoms: Map<String, Value> = serde_json::from_str(&message.xcoms).unwrap_or_default();
    Ok(TriggerEvent::Ended {
        outcome,
        xcoms: xcoms
            .into_iter()
            .map(|(key, value)| (key, value.to_string()))
            .collect(),
    })
}
