//! Whose fault it is that a task has no outcome.

use crate::log::TryLog;
use crate::native::narrate;
use crate::run::{End, Facts};

/// Whose fault it is that a task on an engine or a cluster has no outcome.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Fault {
    /// The task's: it fails, as in Airflow.
    Task,
    /// This worker's, before anything was started.
    Worker,
    /// That of what it was to run on, before anything was started: it does not answer, or cannot do it now.
    Platform,
    /// Likewise, and it is certain that nothing was started, whatever was asked for.
    Unstarted,
    /// That of what it runs on, after something may have been started.
    Lost,
}

impl Fault {
    /// The same fault, once something may have been started.
    pub(super) fn after_the_start(self) -> Self {
        match self {
            Self::Platform => Self::Lost,
            Self::Task | Self::Worker | Self::Unstarted | Self::Lost => self,
        }
    }

    /// The end of a task that has no outcome: `kind` and `text` are those of the exception that Airflow would raise, `cause`
    /// what it does not say.
    pub(super) async fn end(self, facts: &Facts, log: &TryLog, kind: &str, text: &str, cause: &str) -> End {
        match self {
            Self::Task => narrate::failed(facts, log, kind, text, cause).await,
            Self::Worker => End::never_started(text),
            Self::Platform | Self::Unstarted => End::held_up(text),
            Self::Lost => End::lost(text),
        }
    }
}

/// What registries and networks say when they cannot serve an image now, in lower case.
const PASSING: [&str; 20] = [
    "timeout",
    "timed out",
    "deadline exceeded",
    "connection refused",
    "connection reset",
    "no route to host",
    "network is unreachable",
    "no such host",
    "server misbehaving",
    "temporary failure",
    "temporarily unavailable",
    "unexpected eof",
    "too many requests",
    "toomanyrequests",
    "rate limit",
    "quota exceeded",
    "internal server error",
    "bad gateway",
    "service unavailable",
    "gateway time",
];

/// Returns `true` if a registry or the way to it failed, not if it said that there is no such image or that we may not have
/// it.
pub(super) fn may_pass(message: &str) -> bool {
    let message = message.to_lowercase();
    PASSING.iter().any(|text| message.contains(text))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_may_pass_is_tried_again() {
        for passing in [
            "Get \"https://registry-1.docker.io/v2/\": dial tcp: lookup registry-1.docker.io: no such host",
            "Get \"https://r.example/v2/\": net/http: TLS handshake timeout",
            "toomanyrequests: You have reached your pull rate limit",
            "received unexpected HTTP status: 503 Service Unavailable",
        ] {
            assert!(may_pass(passing), "{passing}");
        }
        for lasting in [
            "manifest for busybox:none not found: manifest unknown: manifest unknown",
            "pull access denied for x, repository does not exist or may require 'docker login'",
            "no matching manifest for linux/arm64 in the manifest list entries",
            "unauthorized: authentication required",
        ] {
            assert!(!may_pass(lasting), "{lasting}");
        }
    }
}
