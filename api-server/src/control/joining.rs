//! How workers come to belong to the installation, and what they prove themselves with then.

use super::{beat, store_status, token_of};
use crate::App;
use identity::TokenError;
use model::WorkerId;
use model::task_instance::LossCause;
use proto::v1::{Pass, RegisterReply, RegisterRequest};
use std::time::Duration;
use store::repo::{Registered, WorkerRecord};
use tonic::{Request, Status};

/// The shortest time that a worker's tokens are good for.
const SHORTEST: Duration = Duration::from_secs(120);

/// Tokens for a worker's life, for as long as it may be without hearing of us, and a little longer.
pub(super) fn pass(app: &App, id: WorkerId) -> Result<Pass, Status> {
    let lifetime = (app.config.scheduler.worker_lease * 2).max(SHORTEST);
    let sign = |token: Result<String, TokenError>| token.map_err(|error| Status::internal(error.to_string()));
    Ok(Pass {
        worker_token: sign(app.tokens.for_worker(id, lifetime))?,
        farewell_token: sign(app.tokens.for_farewell(id, lifetime))?,
    })
}

/// Begins a life of a worker that has the join token of a pool, and binds its name to its key for as long as it lives.
pub(super) async fn register(app: &App, request: Request<RegisterRequest>) -> Result<RegisterReply, Status> {
    let message = request.get_ref();
    let applicant = app
        .pools
        .admit(token_of(&request)?, &message.proof)
        .map_err(|error| {
            Status::unauthenticated(match error {
                TokenError::Expired => "the worker's application is too old; do the clocks differ?",
                TokenError::Invalid => {
                    "the join token is none of this installation's pools ([updraft] join_token, worker_pools)"
                }
            })
        })?;
    if applicant.id.to_string() != message.worker_id || applicant.name != message.name {
        return Err(Status::permission_denied("the application is another worker's"));
    }
    let message = request.into_inner();
    let worker = WorkerRecord {
        id: applicant.id,
        name: message.name,
        hostname: message.hostname,
        queues: message.queues,
        concurrency: message.concurrency,
        trigger_capacity: message.trigger_capacity,
        key: applicant.key,
        pool: applicant.pool,
    };
    let lease = app.config.scheduler.worker_lease;
    let registered = store::transact!(app.store, "register worker", |tx| tx
        .register_worker(&worker, lease)
        .await);
    let earlier = match registered.map_err(|error| store_status(&error))? {
        Registered::Begun(earlier) => earlier,
        Registered::NameTaken => {
            tracing::warn!(name = %worker.name, pool = %worker.pool, "a worker was refused: another one lives under its name");
            return Err(Status::already_exists(
                "another worker lives under this name; it is free when that one has left, or its lease has run out",
            ));
        }
    };
    for life in earlier {
        tracing::info!(name = %worker.name, "a worker is back; what it ran before is tried again");
        beat::lose(app, life, &LossCause::WorkerRestarted).await?;
    }
    Ok(RegisterReply {
        lease_seconds: u32::try_from(lease.as_secs()).unwrap_or(u32::MAX),
        pass: Some(pass(app, worker.id)?),
    })
}
