//! What this worker proves itself with: the join token of its pool and its own key when it registers, and then what the
//! control plane gives it for a while with every heartbeat.

use crate::WorkerName;
use anyhow::Context;
use identity::{Application, JoinToken, Membership};
use model::WorkerId;
use proto::v1::Pass;
use std::sync::{Arc, Mutex, PoisonError};
use tonic::Status;

/// The tokens of the present life. Clones share them.
#[derive(Clone)]
pub(crate) struct Passes {
    membership: Membership,
    current: Arc<Mutex<Option<(WorkerId, Pass)>>>,
}

/// How a worker belongs to its installation.
///
/// # Errors
/// When the join token cannot be used, or the worker's file cannot be read or written.
pub fn membership(token: &JoinToken, name: &WorkerName) -> anyhow::Result<Membership> {
    let seed = name.seed().context("the worker's key cannot be kept")?;
    Ok(Membership::new(token, &seed)?)
}

impl Passes {
    pub(crate) fn new(membership: Membership) -> Self {
        Self {
            membership,
            current: Arc::default(),
        }
    }

    /// What registers a life of the worker of that name.
    pub(crate) fn apply(&self, id: WorkerId, name: &str) -> Result<Application, Status> {
        self.membership
            .apply(id, name)
            .map_err(|error| Status::unauthenticated(error.to_string()))
    }

    /// Keeps what the control plane gave to that life.
    pub(crate) fn keep(&self, id: WorkerId, pass: Pass) {
        *self.current.lock().unwrap_or_else(PoisonError::into_inner) = Some((id, pass));
    }

    fn of<T>(&self, id: WorkerId, choose: impl FnOnce(&Pass) -> T) -> Option<T> {
        let current = self.current.lock().unwrap_or_else(PoisonError::into_inner);
        current
            .as_ref()
            .filter(|(life, _)| *life == id)
            .map(|(_, pass)| choose(pass))
    }

    /// The token for calls of that life.
    pub(crate) fn worker_token(&self, id: WorkerId) -> Result<String, Status> {
        self.of(id, |pass| pass.worker_token.clone())
            .ok_or_else(|| Status::unauthenticated("this life of the worker has not registered"))
    }

    /// The token that can only tell of the death of that life.
    pub(crate) fn farewell_token(&self, id: WorkerId) -> Option<String> {
        self.of(id, |pass| pass.farewell_token.clone())
    }
}
