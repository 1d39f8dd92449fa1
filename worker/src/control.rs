//! Calls of the control plane, each with its token, its deadline and its retries.

use crate::Shared;
use crate::address::Address;
use crate::claims::Wish;
use crate::pass::Passes;
use crate::running::{Asked, Held, Named};
use crate::watchdog::Farewell;
use backoff::Backoff;
use identity::Membership;
use model::WorkerId;
use proto::v1::worker_service_client::WorkerServiceClient;
use proto::v1::{
    AppendLogReply, AppendLogRequest, AskReply, AskRequest, Claim, ClaimReply, ClaimRequest, HeartbeatReply,
    HeartbeatRequest, LeaveRequest, LostClaim, RegisterReply, RegisterRequest, ReportReply, ReportRequest,
    SyncTriggersReply, SyncTriggersRequest, TriggerFiredReply, TriggerFiredRequest,
};
use std::time::{Duration, Instant};
use tonic::metadata::MetadataValue;
use tonic::transport::Channel;
use tonic::{Code, Request, Status};

const DEADLINE: Duration = Duration::from_secs(10);
/// Questions of running tasks may take the server's database a while.
const QUESTION: Duration = Duration::from_secs(30);
/// How long a question is asked again while the control plane answers that it cannot say now, and the pauses in between.
const ASK_FOR: Duration = Duration::from_secs(60);
const FIRST_PAUSE: Duration = Duration::from_millis(250);
const LAST_PAUSE: Duration = Duration::from_secs(5);
/// How often a question is asked that the control plane failed over, as the SDK's own client asks
/// (`[workers] execution_api_retries`).
const ATTEMPTS: u32 = 5;

/// The control plane as one worker sees it.
#[derive(Clone)]
pub(crate) struct ControlPlane {
    client: WorkerServiceClient<Channel>,
    passes: Passes,
    address: Address,
    /// Bytes of a message that the control plane accepts.
    message_limit: usize,
}

/// Whether trying the same call again may help.
pub(crate) fn is_transient(status: &Status) -> bool {
    matches!(
        status.code(),
        Code::Unavailable
            | Code::DeadlineExceeded
            | Code::Cancelled
            | Code::Aborted
            | Code::ResourceExhausted
            | Code::Unknown
            | Code::Internal
    )
}

/// Whether no server took the call, or one vanished during it: what a restart looks like from here.
pub(crate) fn is_away(status: &Status) -> bool {
    matches!(status.code(), Code::Unavailable | Code::Cancelled | Code::Unknown)
}

fn claim_of((id, epoch): &Held) -> Claim {
    Claim {
        task_instance_id: id.to_string(),
        epoch: epoch.0,
    }
}

/// The HTTP status of an answer that says that the server failed (5xx).
fn server_error(reply: &AskReply) -> Option<u64> {
    if reply.error.is_empty() {
        return None;
    }
    let error: serde_json::Value = serde_json::from_slice(&reply.error).ok()?;
    let status = error.pointer("/detail/status_code")?.as_u64()?;
    Some(status).filter(|status| (500..600).contains(status))
}

impl ControlPlane {
    /// `limit` is the size in bytes of the largest message of a task.
    pub(crate) fn new(channel: Channel, membership: Membership, address: Address, limit: usize) -> Self {
        let limit = proto::message_limit(limit);
        let client = WorkerServiceClient::new(channel)
            .max_decoding_message_size(limit)
            .max_encoding_message_size(limit);
        Self {
            client,
            passes: Passes::new(membership),
            address,
            message_limit: limit,
        }
    }

    fn signed<T>(&self, message: T, token: &str, deadline: Duration) -> Result<Request<T>, Status> {
        let mut request = Request::new(message);
        let value = MetadataValue::try_from(format!("Bearer {token}"));
        let value = value.map_err(|_| Status::unauthenticated("the token is not text"))?;
        request.metadata_mut().insert("authorization", value);
        request.set_timeout(deadline);
        Ok(request)
    }

    fn as_worker<T>(&self, message: T, id: WorkerId) -> Result<Request<T>, Status> {
        self.signed(message, &self.passes.worker_token(id)?, DEADLINE)
    }

    /// Begins a life; its first tokens are kept.
    pub(crate) async fn register(&self, shared: &Shared, id: WorkerId) -> Result<RegisterReply, Status> {
        let application = self.passes.apply(id, shared.name.mark())?;
        let message = RegisterRequest {
            worker_id: id.to_string(),
            name: shared.name.mark().to_owned(),
            hostname: shared.hostname.clone(),
            queues: shared.config.updraft.queues.clone(),
            concurrency: shared.config.celery.worker_concurrency,
            trigger_capacity: shared.config.triggerer.capacity,
            version: env!("CARGO_PKG_VERSION").to_owned(),
            proof: application.proof.into(),
        };
        let request = self.signed(message, &application.token, DEADLINE)?;
        let mut reply = self.client.clone().register(request).await?.into_inner();
        let pass = reply.pass.take();
        let pass = pass.ok_or_else(|| Status::unauthenticated("the control plane gave no token"))?;
        self.passes.keep(id, pass);
        Ok(reply)
    }

    pub(crate) async fn heartbeat(
        &self,
        id: WorkerId,
        draining: bool,
        named: &Named,
        unwell: Option<String>,
    ) -> Result<HeartbeatReply, Status> {
        let message = HeartbeatRequest {
            worker_id: id.to_string(),
            draining,
            claims: named.held.iter().map(claim_of).collect(),
            number: named.number,
            asked: named.asked.clone(),
            lost: named
                .lost
                .iter()
                .map(|lost| LostClaim {
                    claim: Some(claim_of(&lost.claim)),
                    cause: lost.cause.clone(),
                })
                .collect(),
            unwell: unwell.unwrap_or_default(),
        };
        let request = self.as_worker(message, id)?;
        let mut reply = self.client.clone().heartbeat(request).await?.into_inner();
        if let Some(pass) = reply.pass.take() {
            self.passes.keep(id, pass);
        }
        Ok(reply)
    }

    /// What the watchdog needs to tell of this worker's death; none if that life has not registered.
    pub(crate) fn farewell(&self, id: WorkerId) -> Option<Farewell> {
        Some(Farewell {
            control_plane: self.address.clone(),
            worker: id.to_string(),
            token: self.passes.farewell_token(id)?,
            message_limit: self.message_limit,
        })
    }

    /// Says goodbye, and under which claims user code may have begun. If it is not heard, the lease runs out instead.
    pub(crate) async fn leave(&self, id: WorkerId, held: &[Held]) {
        let message = LeaveRequest {
            worker_id: id.to_string(),
            died: false,
            tells_held: true,
            held: held.iter().map(claim_of).collect(),
        };
        if let Ok(request) = self.as_worker(message, id) {
            self.client.clone().leave(request).await.ok();
        }
    }

    pub(crate) async fn claim(
        &self,
        shared: &Shared,
        wish: &Wish,
        asked: &Asked,
    ) -> Result<ClaimReply, Status> {
        let id = asked.life();
        let message = ClaimRequest {
            worker_id: id.to_string(),
            task_instance_id: wish.id.to_string(),
            try_number: wish.try_number.0,
            any_of_queue: wish.any_of.as_ref().map(ToString::to_string).unwrap_or_default(),
            claim_id: asked.claim_id().to_owned(),
            beat: asked.beat(),
            hostname: shared.hostname.clone(),
            unixname: shared.unixname.clone(),
            pid: i64::from(std::process::id()),
        };
        Ok(self
            .client
            .clone()
            .claim(self.as_worker(message, id)?)
            .await?
            .into_inner())
    }

    /// Asks for a running task. A control plane that answers but cannot say now (its database is away, or takes no more
    /// connections) is asked again, as the SDK's own client does; one that is not there at all is the caller's matter.
    pub(crate) async fn ask(&self, token: &str, request: Vec<u8>) -> Result<AskReply, Status> {
        let begin = Instant::now();
        let mut backoff = Backoff::new(FIRST_PAUSE, LAST_PAUSE);
        let mut attempts = 1;
        loop {
            let reply = self.ask_once(token, request.clone()).await?;
            let again = match server_error(&reply) {
                Some(503) => begin.elapsed() < ASK_FOR,
                Some(_) => attempts < ATTEMPTS && begin.elapsed() < ASK_FOR,
                None => false,
            };
            if !again {
                return Ok(reply);
            }
            backoff.pause().await;
            attempts += 1;
        }
    }

    async fn ask_once(&self, token: &str, request: Vec<u8>) -> Result<AskReply, Status> {
        let request = self.signed(
            AskRequest {
                request: request.into(),
            },
            token,
            QUESTION,
        )?;
        Ok(self.client.clone().ask(request).await?.into_inner())
    }

    /// Asks on behalf of a trigger, which has no claim of its own.
    pub(crate) async fn ask_for_trigger(&self, id: WorkerId, request: Vec<u8>) -> Result<AskReply, Status> {
        self.ask(&self.passes.worker_token(id)?, request).await
    }

    pub(crate) async fn sync_triggers(
        &self,
        id: WorkerId,
        message: SyncTriggersRequest,
    ) -> Result<SyncTriggersReply, Status> {
        let request = self.as_worker(message, id)?;
        Ok(self.client.clone().sync_triggers(request).await?.into_inner())
    }

    pub(crate) async fn trigger_fired(
        &self,
        id: WorkerId,
        message: TriggerFiredRequest,
    ) -> Result<TriggerFiredReply, Status> {
        let request = self.as_worker(message, id)?;
        Ok(self.client.clone().trigger_fired(request).await?.into_inner())
    }

    pub(crate) async fn append_log(
        &self,
        token: &str,
        offset: u64,
        data: Vec<u8>,
    ) -> Result<AppendLogReply, Status> {
        let request = self.signed(
            AppendLogRequest {
                offset,
                data: data.into(),
            },
            token,
            DEADLINE,
        )?;
        Ok(self.client.clone().append_log(request).await?.into_inner())
    }

    pub(crate) async fn report(&self, token: &str, report: ReportRequest) -> Result<ReportReply, Status> {
        let request = self.signed(report, token, DEADLINE)?;
        Ok(self.client.clone().report(request).await?.into_inner())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use python::messages::Answer;

    #[test]
    fn only_failures_of_the_server_are_asked_again() {
        let reply = |answer: Answer| AskReply {
            body: Vec::new().into(),
            error: answer
                .error
                .map(|error| error.to_string())
                .unwrap_or_default()
                .into(),
        };
        assert_eq!(server_error(&reply(Answer::failure(503, "away"))), Some(503));
        assert_eq!(server_error(&reply(Answer::failure(500, "broken"))), Some(500));
        assert_eq!(server_error(&reply(Answer::failure(404, "none"))), None);
        assert_eq!(server_error(&reply(Answer::ok())), None);
    }
}
