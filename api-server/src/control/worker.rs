//! What workers call.

use super::{ask, start, store_status, token_of, triggers};
use crate::App;
use crate::logs::LogName;
use broker::Hint;
use chrono::{Duration, Utc};
use identity::ClaimToken;
use model::asset::{Outlet, OutletEvent};
use model::task_instance::StateName;
use model::{ClaimEpoch, TryNumber, WorkerId};
use proto::v1::claim_reply::Outcome as ClaimOutcome;
use proto::v1::worker_service_server::WorkerService;
use proto::v1::{
    AppendLogReply, AppendLogRequest, AskReply, AskRequest, Claim, ClaimReply, ClaimRequest, HeartbeatReply,
    HeartbeatRequest, LeaveReply, LeaveRequest, RegisterReply, RegisterRequest, ReportReply, ReportRequest,
    SyncTriggersReply, SyncTriggersRequest, TriggerFiredReply, TriggerFiredRequest,
};
use python::messages::Question;
use std::collections::HashSet;
use store::repo::{Claimed, NewTrigger, NewXCom, Report, Reported, TaskInstanceRecord, WorkerRecord};
use telemetry::metric;
use tonic::{Request, Response, Status};

/// `WorkerService`
pub(crate) struct Workers {
    pub(crate) app: App,
}

fn parse<T: std::str::FromStr>(what: &str, text: &str) -> Result<T, Status> {
    text.parse()
        .map_err(|_| Status::invalid_argument(format!("{what} {text:?} is not one")))
}

impl Workers {
    /// The worker that a call is from; it may speak only for itself.
    fn worker<T>(&self, request: &Request<T>, claimed: &str) -> Result<WorkerId, Status> {
        let id = self
            .app
            .tokens
            .worker(token_of(request)?)
            .map_err(|error| Status::unauthenticated(error.to_string()))?;
        if id.to_string() == claimed {
            return Ok(id);
        }
        Err(Status::permission_denied("the token is another worker's"))
    }

    fn claim<T>(&self, request: &Request<T>) -> Result<ClaimToken, Status> {
        self.app
            .tokens
            .claim(token_of(request)?)
            .map_err(|error| Status::unauthenticated(error.to_string()))
    }

    /// The task instance of a claim, if the claim is the current one.
    async fn current(&self, claim: &ClaimToken) -> Result<TaskInstanceRecord, Status> {
        let mut db = self
            .app
            .store
            .reader()
            .await
            .map_err(|error| store_status(&error))?;
        let ti = db
            .task_instance_by_id(claim.task_instance)
            .await
            .map_err(|error| store_status(&error))?;
        let ti = ti.ok_or_else(|| Status::not_found("the task instance is gone"))?;
        // A trigger writes on in the log of the try that it belongs to.
        let goes_on = matches!(
            ti.state,
            StateName::Running | StateName::Restarting | StateName::Deferred
        );
        if goes_on && ti.claim_epoch == claim.epoch {
            Ok(ti)
        } else {
            Err(Status::failed_precondition(
                "the claim is not the current one any more",
            ))
        }
    }

    async fn write_log(
        &self,
        ti: &TaskInstanceRecord,
        try_number: u32,
        offset: u64,
        data: bytes::Bytes,
    ) -> Result<u64, Status> {
        let name = LogName::of(ti, try_number);
        let logs = self.app.logs.clone();
        let written = tokio::task::spawn_blocking(move || logs.append(&name, offset, &data)).await;
        let written = written
            .map_err(|error| std::io::Error::other(error.to_string()))
            .and_then(|written| written);
        written.map_err(|error| {
            tracing::error!("a log cannot be written: {error}");
            Status::unavailable(format!("the log cannot be written: {error}"))
        })
    }

    async fn lose(&self, worker: WorkerId, cause: &str) -> Result<(), Status> {
        let now = Utc::now();
        let budget = self.app.config.updraft.infra_retries;
        let runs = store::transact!(self.app.store, "lose tasks", |tx| {
            let lost = tx.tasks_of_worker(worker).await?;
            tx.lose_all(&self.app.graphs, &lost, budget, cause, now).await
        });
        for run in runs.map_err(|error| store_status(&error))? {
            metrics::counter!(metric::TASKS_LOST).increment(1);
            self.app.broker.hint(Hint::Run(run));
        }
        Ok(())
    }

    /// When the try after the one that ended is due.
    async fn retry_at(
        &self,
        ti: &TaskInstanceRecord,
        report: &ReportRequest,
    ) -> Result<model::Timestamp, Status> {
        let mut db = self
            .app
            .store
            .reader()
            .await
            .map_err(|error| store_status(&error))?;
        let ended = model::time::from_micros(report.end_date).unwrap_or_else(Utc::now);
        let asked = report
            .retry_delay
            .map(|seconds| Duration::milliseconds((seconds * 1000.0) as i64));
        let longest = self.app.config.core.max_retry_delay;
        let due = self.app.graphs.retry_at(&mut db, ti, ended, asked, longest).await;
        due.map_err(|error| store_status(&error))
    }
}

#[tonic::async_trait]
impl WorkerService for Workers {
    async fn register(&self, request: Request<RegisterRequest>) -> Result<Response<RegisterReply>, Status> {
        let id = self.worker(&request, &request.get_ref().worker_id)?;
        let message = request.into_inner();
        let worker = WorkerRecord {
            id,
            name: message.name,
            hostname: message.hostname,
            queues: message.queues,
            concurrency: message.concurrency,
            trigger_capacity: message.trigger_capacity,
        };
        let lease = self.app.config.scheduler.worker_lease;
        let earlier = store::transact!(self.app.store, "register worker", |tx| tx
            .register_worker(&worker, lease)
            .await);
        for life in earlier.map_err(|error| store_status(&error))? {
            tracing::info!(name = %worker.name, "a worker is back; what it ran before is tried again");
            self.lose(life, "worker_restarted").await?;
        }
        let seconds = u32::try_from(lease.as_secs()).unwrap_or(u32::MAX);
        Ok(Response::new(RegisterReply {
            lease_seconds: seconds,
        }))
    }

    async fn heartbeat(
        &self,
        request: Request<HeartbeatRequest>,
    ) -> Result<Response<HeartbeatReply>, Status> {
        let id = self.worker(&request, &request.get_ref().worker_id)?;
        let message = request.into_inner();
        let lease = self.app.config.scheduler.worker_lease;
        let outcome = store::transact!(self.app.store, "worker heartbeat", |tx| {
            let alive = tx.renew_lease(id, lease, message.draining).await?;
            Ok((alive, tx.current_claims(id).await?))
        });
        let (alive, current) = outcome.map_err(|error| store_status(&error))?;
        let current: HashSet<(String, i64)> = current
            .into_iter()
            .map(|(id, epoch)| (id.to_string(), epoch.0))
            .collect();
        let is_void = |claim: &Claim| !current.contains(&(claim.task_instance_id.clone(), claim.epoch));
        Ok(Response::new(HeartbeatReply {
            alive,
            stop: message.claims.into_iter().filter(is_void).collect(),
        }))
    }

    async fn leave(&self, request: Request<LeaveRequest>) -> Result<Response<LeaveReply>, Status> {
        let id = self.worker(&request, &request.get_ref().worker_id)?;
        let cause = if request.get_ref().died {
            tracing::warn!(worker = %id, "a worker died; what it ran is tried again");
            "worker_died"
        } else {
            "worker_shutdown"
        };
        self.lose(id, cause).await?;
        let retired = store::transact!(self.app.store, "retire worker", |tx| tx.retire_worker(id).await);
        retired.map_err(|error| store_status(&error))?;
        Ok(Response::new(LeaveReply {}))
    }

    async fn claim(&self, request: Request<ClaimRequest>) -> Result<Response<ClaimReply>, Status> {
        let worker = self.worker(&request, &request.get_ref().worker_id)?;
        let message = request.into_inner();
        let wish = store::repo::ClaimRequest {
            id: parse("task instance", &message.task_instance_id)?,
            try_number: TryNumber(message.try_number),
            claim_id: message.claim_id,
            worker,
            hostname: message.hostname,
            unixname: message.unixname,
            pid: message.pid,
            any_of: Some(message.any_of_queue)
                .filter(|queue| !queue.is_empty())
                .map(|queue| queue.as_str().into()),
            keeps_xcoms: self.app.config.core.has_xcom_backend,
        };
        let now = Utc::now();
        let claimed = store::transact!(self.app.store, "claim", |tx| {
            match tx.claim(&wish, now).await? {
                Claimed::Granted(granted) => {
                    let graph = self.app.graphs.get(tx, granted.0.version_id).await?;
                    let dag_run = tx.run_for_sdk(&granted.1).await?;
                    let to_clear = match wish.keeps_xcoms && granted.0.next_method.is_none() {
                        true => tx.xcom_keys(&granted.0).await?,
                        false => Vec::new(),
                    };
                    Ok(Ok((granted, (dag_run, to_clear), graph)))
                }
                other => Ok(Err(other)),
            }
        });
        let (word, outcome) = match claimed.map_err(|error| store_status(&error))? {
            Ok((granted, facts, graph)) => {
                let (ti, run) = *granted;
                (
                    "granted",
                    ClaimOutcome::Start(start::start_task(&self.app, &ti, &run, facts, &graph, worker)?),
                )
            }
            Err(Claimed::UnknownWorker) => ("unknown_worker", ClaimOutcome::UnknownWorker(true)),
            Err(Claimed::Refused(why)) => ("refused", ClaimOutcome::Refused(why.to_owned())),
            Err(Claimed::Granted(_)) => ("refused", ClaimOutcome::Refused("already granted".to_owned())),
        };
        metrics::counter!(metric::CLAIMS, "outcome" => word).increment(1);
        Ok(Response::new(ClaimReply {
            outcome: Some(outcome),
        }))
    }

    async fn ask(&self, request: Request<AskRequest>) -> Result<Response<AskReply>, Status> {
        // A worker asks on behalf of its triggers, none of which has a claim.
        let is_worker = self.app.tokens.worker(token_of(&request)?).is_ok();
        let ti = if is_worker {
            None
        } else {
            Some(self.current(&self.claim(&request)?).await?)
        };
        let bytes = request.into_inner().request;
        let question: Result<Question, _> = serde_json::from_slice(&bytes);
        let answer = match question {
            Ok(question) => ask::answer(&self.app, ti.as_ref(), question).await,
            Err(_) => python::messages::Answer::failure(400, "Unhandled request"),
        };
        let write = |value: Option<serde_json::Value>| {
            value.map(|value| value.to_string()).unwrap_or_default().into()
        };
        Ok(Response::new(AskReply {
            body: write(answer.body),
            error: write(answer.error),
        }))
    }

    async fn append_log(
        &self,
        request: Request<AppendLogRequest>,
    ) -> Result<Response<AppendLogReply>, Status> {
        let claim = self.claim(&request)?;
        let ti = self.current(&claim).await?;
        let message = request.into_inner();
        let length = self
            .write_log(&ti, claim.try_number, message.offset, message.data)
            .await?;
        Ok(Response::new(AppendLogReply { length }))
    }

    async fn sync_triggers(
        &self,
        request: Request<SyncTriggersRequest>,
    ) -> Result<Response<SyncTriggersReply>, Status> {
        let worker = self.worker(&request, &request.get_ref().worker_id)?;
        let reply = triggers::sync(&self.app, worker, request.into_inner()).await?;
        Ok(Response::new(reply))
    }

    async fn trigger_fired(
        &self,
        request: Request<TriggerFiredRequest>,
    ) -> Result<Response<TriggerFiredReply>, Status> {
        let worker = self.worker(&request, &request.get_ref().worker_id)?;
        let reply = triggers::fired(&self.app, worker, request.into_inner()).await?;
        Ok(Response::new(reply))
    }

    async fn report(&self, request: Request<ReportRequest>) -> Result<Response<ReportReply>, Status> {
        let claim = self.claim(&request)?;
        let message = request.into_inner();
        let mut db = self
            .app
            .store
            .reader()
            .await
            .map_err(|error| store_status(&error))?;
        let ti = db
            .task_instance_by_id(claim.task_instance)
            .await
            .map_err(|error| store_status(&error))?;
        drop(db);
        let ti = ti.ok_or_else(|| Status::not_found("the task instance is gone"))?;
        if !message.log_tail.is_empty() {
            self.write_log(
                &ti,
                claim.try_number,
                message.log_offset,
                message.log_tail.clone(),
            )
            .await?;
        }
        let retry_at = self.retry_at(&ti, &message).await?;
        let outcome = proto::outcome_of(&message, || retry_at)
            .map_err(|error| Status::invalid_argument(error.to_string()))?;
        let now = Utc::now();
        let listed =
            |text: &str| -> Vec<serde_json::Value> { serde_json::from_str(text).unwrap_or_default() };
        let xcom = |xcom: proto::v1::XCom| NewXCom {
            key: xcom.key,
            value: xcom.value,
            mapped_length: xcom.mapped_length,
        };
        let report = Report {
            id: claim.task_instance,
            epoch: ClaimEpoch(claim.epoch.0),
            outcome,
            end_date: model::time::from_micros(message.end_date).unwrap_or(now),
            exit_cause: message.exit_cause,
            xcoms: message.xcoms.into_iter().map(xcom).collect(),
            rendered_fields: message.rendered_fields,
            map_label: message.map_label,
            next: message
                .next_method
                .map(|method| (method, message.next_kwargs.unwrap_or_else(|| "{}".to_owned()))),
            outlets: listed(&message.task_outlets)
                .iter()
                .filter_map(Outlet::read)
                .collect(),
            outlet_events: listed(&message.outlet_events)
                .iter()
                .filter_map(OutletEvent::read)
                .collect(),
            trigger: message.trigger.map(|trigger| {
                let (kwargs, is_encrypted) = self.app.cipher.seal(&trigger.kwargs);
                NewTrigger {
                    classpath: trigger.classpath,
                    kwargs,
                    is_encrypted,
                    queue: trigger.queue,
                    next: (trigger.next_method, trigger.next_kwargs),
                }
            }),
        };
        let updates_assets = !report.outlets.is_empty();
        let reported = store::transact!(self.app.store, "report", |tx| tx.report(&report, now).await);
        let (word, stale) = match reported.map_err(|error| store_status(&error))? {
            Reported::Applied(_) => ("applied", false),
            Reported::Repeated => ("repeated", false),
            Reported::Stale(_) => ("stale", true),
            Reported::Gone => ("gone", true),
        };
        metrics::counter!(metric::REPORTS, "outcome" => word).increment(1);
        if !stale {
            self.app.broker.hint(Hint::Run(ti.run_key));
        }
        if updates_assets && !stale {
            self.app.broker.hint(Hint::Timetables);
        }
        Ok(Response::new(ReportReply { stale }))
    }
}
