//! What workers call.

use super::{ask, beat, joining, report, start, store_status, token_of, triggers};
use crate::App;
use chrono::Utc;
use identity::{ClaimToken, TokenError};
use model::task_instance::BeatNumber;
use model::{TryNumber, WorkerId};
use proto::v1::claim_reply::Outcome as ClaimOutcome;
use proto::v1::worker_service_server::WorkerService;
use proto::v1::{
    AppendLogReply, AppendLogRequest, AskReply, AskRequest, ClaimReply, ClaimRequest, HeartbeatReply,
    HeartbeatRequest, LeaveReply, LeaveRequest, RegisterReply, RegisterRequest, ReportReply, ReportRequest,
    SyncTriggersReply, SyncTriggersRequest, TriggerFiredReply, TriggerFiredRequest,
};
use python::messages::Question;
use store::StoreError;
use store::repo::{Claimed, TaskInstanceRecord};
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

/// The worker of a token, if it speaks for itself.
fn itself(token: Result<WorkerId, TokenError>, claimed: &str) -> Result<WorkerId, Status> {
    let id = token.map_err(|error| Status::unauthenticated(error.to_string()))?;
    if id.to_string() == claimed {
        return Ok(id);
    }
    Err(Status::permission_denied("the token is another worker's"))
}

impl Workers {
    /// The worker that a call is from; it may speak only for itself.
    fn worker<T>(&self, request: &Request<T>, claimed: &str) -> Result<WorkerId, Status> {
        itself(self.app.tokens.worker(token_of(request)?), claimed)
    }

    /// Lets only a worker pass whose life has not ended.
    async fn must_live(&self, id: WorkerId) -> Result<(), Status> {
        let lives = async { self.app.store.reader().await?.worker_lives(id).await };
        match lives.await.map_err(|error: StoreError| store_status(&error))? {
            true => Ok(()),
            false => Err(Status::failed_precondition("the worker's life has ended")),
        }
    }

    /// The worker whose life a call ends: that is told by itself, or, once it is dead, by its watchdog, which can say nothing
    /// else than that and what had begun.
    fn leaver(&self, request: &Request<LeaveRequest>) -> Result<WorkerId, Status> {
        let (token, message) = (token_of(request)?, request.get_ref());
        match self.app.tokens.farewell(token) {
            Ok(id) if message.died => itself(Ok(id), &message.worker_id),
            Ok(_) => Err(Status::permission_denied(
                "with this token only a worker's death can be told",
            )),
            Err(_) => self.worker(request, &message.worker_id),
        }
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
        joining::register(&self.app, request).await.map(Response::new)
    }

    async fn heartbeat(
        &self,
        request: Request<HeartbeatRequest>,
    ) -> Result<Response<HeartbeatReply>, Status> {
        let id = self.worker(&request, &request.get_ref().worker_id)?;
        let mut reply = beat::heard(&self.app, id, request.into_inner()).await?;
        if reply.alive {
            reply.pass = Some(joining::pass(&self.app, id)?);
        }
        Ok(Response::new(reply))
    }

    async fn leave(&self, request: Request<LeaveRequest>) -> Result<Response<LeaveReply>, Status> {
        let id = self.leaver(&request)?;
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
        let ti = match self.app.tokens.worker(token_of(&request)?) {
            Ok(worker) => {
                self.must_live(worker).await?;
                None
            }
            Err(_) => Some(self.current(&self.claim(&request)?).await?),
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
        self.must_live(worker).await?;
        let reply = triggers::sync(&self.app, worker, request.into_inner()).await?;
        Ok(Response::new(reply))
    }

    async fn trigger_fired(
        &self,
        request: Request<TriggerFiredRequest>,
    ) -> Result<Response<TriggerFiredReply>, Status> {
        // Also of one whose life has ended: an event of a trigger that nobody else has taken yet has happened.
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
