//! What workers call.

use super::{ask, beat, report, start, store_status, token_of, triggers};
use crate::App;
use chrono::Utc;
use identity::ClaimToken;
use model::task_instance::{BeatNumber, LossCause};
use model::{TryNumber, WorkerId};
use proto::v1::claim_reply::Outcome as ClaimOutcome;
use proto::v1::worker_service_server::WorkerService;
use proto::v1::{
    AppendLogReply, AppendLogRequest, AskReply, AskRequest, ClaimReply, ClaimRequest, HeartbeatReply,
    HeartbeatRequest, LeaveReply, LeaveRequest, RegisterReply, RegisterRequest, ReportReply, ReportRequest,
    SyncTriggersReply, SyncTriggersRequest, TriggerFiredReply, TriggerFiredRequest,
};
use python::messages::Question;
use store::repo::{Claimed, TaskInstanceRecord, WorkerRecord};
use telemetry::metric;
use tonic::{Request, Response, Status};

/// `WorkerService`
pub(crate) struct Workers {
    pub(crate) app: App,
}

pub(super) fn parse<T: std::str::FromStr>(what: &str, text: &str) -> Result<T, Status> {
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
        if report::goes_on(&ti, claim) {
            Ok(ti)
        } else {
            Err(Status::failed_precondition(
                "the claim is not the current one any more",
            ))
        }
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
            beat::lose(&self.app, life, &LossCause::WorkerRestarted).await?;
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
        let reply = beat::heard(&self.app, id, request.into_inner()).await?;
        Ok(Response::new(reply))
    }

    async fn leave(&self, request: Request<LeaveRequest>) -> Result<Response<LeaveReply>, Status> {
        let id = self.worker(&request, &request.get_ref().worker_id)?;
        beat::left(&self.app, id, request.into_inner()).await?;
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
            beat: BeatNumber(message.beat),
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
                    // The graph may be a few seconds old.
                    let bundle_version = match graph.bundle_version {
                        Some(_) => tx.bundle_version(granted.0.version_id).await?,
                        None => None,
                    };
                    let facts = start::RunFacts {
                        dag_run,
                        xcom_keys_to_clear: to_clear,
                        bundle_version,
                    };
                    Ok(Ok((granted, facts, graph)))
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
        let written = report::write_log(&self.app, &ti, claim.try_number, message.offset, message.data).await;
        let reply = match written {
            Ok(length) => AppendLogReply {
                length,
                unwritten: String::new(),
            },
            Err(error) => AppendLogReply {
                length: message.offset,
                unwritten: error.to_string(),
            },
        };
        Ok(Response::new(reply))
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
        let reply = report::store(&self.app, &claim, request.into_inner()).await?;
        Ok(Response::new(reply))
    }
}
