//! Callbacks of DAGs whose runs have ended, and of tasks whose process was lost. They are Python of the DAG file, so they are called where files are parsed.

use crate::deadlines::shown;
use crate::{SPARE, Shared, goes_on};
use chrono::Utc;
use lifecycle::Stop;
use model::TryNumber;
use model::task_instance::StateName;
use processes::lease::{BootInstant, Lease, Permit};
use python::{Instead, ParseFailure, ParseRequest, parse_file};
use serde_json::{Value, json};
use std::sync::Arc;
use std::time::Duration;
use store::repo::{CallbackKind, RunCallback, RunRecord, TaskInstanceRecord};
use store::{Graph, Graphs, StoreError, Tx};

const TURN: Duration = Duration::from_secs(1);
/// How often a callback is tried whose process was lost after it had begun.
const ATTEMPTS: u32 = 3;
/// Before a callback that could not begin is tried again.
const PAUSE: Duration = Duration::from_secs(2);

/// What became of a callback.
enum Called {
    /// It was called, or never can be.
    Done,
    /// It may have begun, and its process was lost.
    Lost(String),
    /// It did not begin.
    NotBegun(String),
    /// It is in the hands of another DAG processor by now.
    Void,
}

/// Calls callbacks until told to stop.
pub(crate) async fn call(shared: Arc<Shared>, stop: Stop) {
    let graphs = Graphs::default();
    while !shared.note_listeners().await {
        if !goes_on("listeners cannot be asked for", Ok(false), TURN, &stop).await {
            return;
        }
    }
    let what = "callbacks of runs cannot be called";
    while goes_on(what, shared.call_one(&graphs).await, TURN, &stop).await {}
}

/// Whether a task has a callback of its own for such an end.
fn calls(graph: &Graph, ti: &TaskInstanceRecord, state: StateName) -> bool {
    let has = graph.dag.task(&ti.task_id).map(|task| task.has_callbacks);
    has.is_some_and(|has| {
        if state == StateName::UpForRetry {
            has.on_retry
        } else {
            has.on_failure
        }
    })
}

/// Which e-mail a task sends at such an end.
fn mails(graph: &Graph, ti: &TaskInstanceRecord, state: StateName) -> Option<&'static str> {
    let has = graph.dag.task(&ti.task_id)?.has_callbacks;
    if state == StateName::UpForRetry {
        has.mail_on_retry.then_some("retry")
    } else {
        has.mail_on_failure.then_some("failure")
    }
}

/// A task instance as callbacks are told of it.
fn described(ti: &TaskInstanceRecord, try_number: TryNumber) -> Value {
    json!({
        "id": ti.id, "dag_version_id": ti.version_id, "task_id": ti.task_id, "dag_id": ti.dag_id,
        "run_id": ti.run_id, "try_number": try_number.0, "map_index": ti.map_index.0, "hostname": ti.hostname,
    })
}

/// What is said of a callback beside its file; `None` when what it is about is gone.
async fn particulars(
    db: &mut Tx,
    graph: &Graph,
    callback: &RunCallback,
    run: &RunRecord,
    ti: Option<&TaskInstanceRecord>,
) -> Result<Option<Value>, StoreError> {
    let try_number = match callback.kind {
        CallbackKind::Task(_, number) => Some(number),
        CallbackKind::Run | CallbackKind::Deadline(_) | CallbackKind::Listener(..) => None,
    };
    let told = ti.map(|ti| described(ti, try_number.unwrap_or(ti.try_number)));
    let dag_run = db.run_for_sdk(run).await?;
    Ok(Some(match (&callback.kind, ti) {
        (CallbackKind::Task(state, _), Some(ti)) => json!({
            "type": "TaskCallbackRequest", "ti": told, "task_callback_type": state.as_str(),
            "only_mail": !calls(graph, ti, *state), "mail": mails(graph, ti, *state),
            "context_from_server": {
                "dag_run": dag_run, "max_tries": ti.max_tries, "variables": [], "connections": [],
                "xcom_keys_to_clear": [],
            },
        }),
        (CallbackKind::Task(..), None) => return Ok(None),
        (CallbackKind::Deadline(id), _) => {
            let Some(call) = db.deadline_call(*id).await? else {
                return Ok(None);
            };
            json!({"type": "DeadlineCallback", "call": call, "dag_run": shown(run, run.dag_id.as_str())})
        }
        (CallbackKind::Listener(hook, facts), _) => json!({
            "type": "Listener", "hook": hook, "facts": facts, "run_key": run.key.0,
            "dag_run": shown(run, run.dag_id.as_str()),
        }),
        (CallbackKind::Run, _) => json!({
            "type": "DagCallbackRequest", "dag_id": run.dag_id, "run_id": run.run_id,
            "is_failure_callback": callback.is_failure,
            "context_from_server": {"dag_run": dag_run, "last_ti": told},
        }),
    }))
}

/// What a callback asks for.
enum Wanted {
    Call(Box<ParseRequest>),
    /// What it needs is not there yet, for this reason.
    Later(String),
    /// The run, its file or its bundle is gone.
    Nothing,
}

impl Shared {
    /// Calls the oldest callback that waits. Whether there was one.
    async fn call_one(&self, graphs: &Graphs) -> Result<bool, StoreError> {
        let now = Utc::now();
        if let Err(error) = self.measure_deadlines(now).await {
            tracing::warn!("deadlines cannot be measured, trying again: {error}");
        }
        if !self.store.reader().await?.has_run_callback(now).await? {
            return Ok(false);
        }
        // A child begins only in the first part of the time for which it is held, so that it has ended when that is over.
        let lease = Lease::new().map_err(|error| StoreError::Inconsistent(error.to_string()))?;
        lease.begin(BootInstant::now().after(SPARE));
        let claimed = store::transact!(self.store, "claim callback", |tx| tx
            .claim_run_callback(now, self.hold())
            .await)?;
        let Some(callback) = claimed else {
            return Ok(false);
        };
        let request = self.request_for(graphs, &callback, lease.permit()).await?;
        processes::pause::point("callback");
        let called = match request {
            Wanted::Call(request) => self.call(&callback, *request).await,
            Wanted::Later(why) => Called::NotBegun(why),
            Wanted::Nothing => Called::Done,
        };
        let event = callback.id;
        match called {
            Called::Done => {}
            Called::Lost(why) if callback.attempts + 1 < ATTEMPTS => {
                tracing::warn!(event, "a callback could not be called, trying again: {why}");
                return Ok(false);
            }
            Called::Lost(why) => tracing::error!(event, "a callback is given up: {why}"),
            Called::NotBegun(why) => {
                tracing::warn!(event, "a callback could not begin, trying again: {why}");
                let again = Utc::now() + PAUSE;
                store::transact!(self.store, "give callback back", |tx| tx
                    .give_back_run_callback(&callback, again)
                    .await)?;
                return Ok(false);
            }
            Called::Void => {
                tracing::warn!(
                    event,
                    "a callback was not called here: another DAG processor has it by now"
                );
                return Ok(false);
            }
        }
        store::transact!(self.store, "end callback", |tx| tx
            .end_run_callback(&callback)
            .await)?;
        Ok(true)
    }

    /// Which file to load, and what to call there.
    async fn request_for(
        &self,
        graphs: &Graphs,
        callback: &RunCallback,
        permit: Permit,
    ) -> Result<Wanted, StoreError> {
        let mut db = self.store.reader().await?;
        let Some(key) = callback.run_key else {
            let CallbackKind::Listener(hook, facts) = &callback.kind else {
                return Ok(Wanted::Nothing);
            };
            let is_heard = db.listeners().await?.have(hook);
            let news = json!({"kind": "news", "hook": hook, "facts": facts});
            return Ok(if is_heard {
                Wanted::Call(Box::new(self.without_file(Instead::News(news, permit))))
            } else {
                Wanted::Nothing
            });
        };
        let Some(run) = db.run_by_key(key).await? else {
            return Ok(Wanted::Nothing);
        };
        let graph = db.graph_for(graphs, &run).await?;
        let ti = match callback.task_instance {
            Some(id) => db.task_instance_by_id(id).await?,
            None => None,
        };
        let name = &graph.bundle_name;
        let Some(bundle) = self.bundles.find(name) else {
            return Ok(if self.bundles.is_awaited(name) {
                Wanted::Later(format!("the bundle {name} has not been fetched yet"))
            } else {
                Wanted::Nothing
            });
        };
        let mut request = json!({
            "filepath": graph.relative_fileloc, "bundle_name": bundle.name, "bundle_version": bundle.version,
            "msg": callback.reason,
        });
        let Some(more) = particulars(&mut db, &graph, callback, &run, ti.as_ref()).await? else {
            return Ok(Wanted::Nothing);
        };
        if let (Some(request), Value::Object(more)) = (request.as_object_mut(), more) {
            request.extend(more);
        }
        Ok(Wanted::Call(Box::new(ParseRequest {
            file: bundle.path.join(&graph.relative_fileloc),
            bundle,
            limits: self.limits(),
            instead: Some(Instead::Callback(request, permit)),
        })))
    }

    /// What goes wrong within a callback is told and no reason to call it again, as in Airflow.
    async fn call(&self, callback: &RunCallback, request: ParseRequest) -> Called {
        let event = callback.id;
        match parse_file(&self.python, &request, |question| self.answer(question)).await {
            Ok(done) => {
                for error in done.import_errors.values() {
                    tracing::error!(event, "a callback went wrong: {error}");
                }
                let answer = done.answer.as_ref();
                if let Some(why) = answer.and_then(|answer| answer.get("error")?.as_str()) {
                    tracing::error!(event, "a listener went wrong: {why}");
                }
                Called::Done
            }
            Err(ParseFailure::Void) => Called::Void,
            Err(failure @ ParseFailure::Python(_)) => Called::NotBegun(failure.to_string()),
            Err(failure @ ParseFailure::Lost) => Called::Lost(failure.to_string()),
            Err(
                failure @ (ParseFailure::TooSlow(_) | ParseFailure::Died { .. } | ParseFailure::Nonsense(_)),
            ) => {
                tracing::error!(event, "a callback went wrong: {failure}");
                Called::Done
            }
        }
    }
}
