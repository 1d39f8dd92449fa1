//! A pod as it changes: a watch that survives resets, expired versions and silence.

use backoff::Backoff;
use futures_util::StreamExt;
use futures_util::stream::BoxStream;
use k8s_openapi::api::core::v1::Pod;
use kube::Error;
use kube::api::{WatchEvent, WatchParams};
use kubernetes::cluster::{ANSWER, Pods, is_absent, pauses};
use std::time::Duration;
use tokio::time::Instant;

/// Seconds after which the server ends a watch, and time after which we do if it does not: what a half-dead connection
/// hides shows then.
const ROUND: u32 = 60;
const SILENCE: Duration = Duration::from_secs(75);

/// One pod, watched.
pub(super) struct Watched<'a> {
    pods: &'a Pods,
    name: String,
    /// The last version seen.
    version: Option<String>,
    stream: Option<BoxStream<'static, Result<WatchEvent<Pod>, Error>>>,
    pauses: Backoff,
    /// When silence has lasted too long. It outlives a caller who does not wait to the end.
    quiet_until: Instant,
}

impl<'a> Watched<'a> {
    pub(super) fn new(pods: &'a Pods, name: &str) -> Self {
        Self {
            pods,
            name: name.to_owned(),
            version: None,
            stream: None,
            pauses: pauses(),
            quiet_until: Instant::now() + SILENCE,
        }
    }

    /// The pod as it is first, then after each change; `None` when it is gone.
    ///
    /// # Errors
    /// When the server refuses for good.
    pub(super) async fn next(&mut self) -> Result<Option<Pod>, Error> {
        loop {
            let Some(stream) = &mut self.stream else {
                match self.look().await? {
                    Looked::New(pod) => return Ok(Some(*pod)),
                    Looked::Gone => return Ok(None),
                    Looked::Same => continue,
                }
            };
            let heard = tokio::time::timeout_at(self.quiet_until, stream.next()).await;
            self.quiet_until = Instant::now() + SILENCE;
            match heard {
                Ok(Some(Ok(WatchEvent::Added(pod) | WatchEvent::Modified(pod)))) => {
                    let version = pod.metadata.resource_version.clone();
                    if version != self.version {
                        self.version = version;
                        self.pauses.reset();
                        return Ok(Some(pod));
                    }
                }
                Ok(Some(Ok(WatchEvent::Deleted(_)))) => return Ok(None),
                Ok(Some(Ok(WatchEvent::Bookmark(_)))) => {}
                // The end of a round is usual.
                Ok(None) | Err(_) => self.stream = None,
                // An expired version, a reset connection: what was missed is looked up.
                Ok(Some(Ok(WatchEvent::Error(_)) | Err(_))) => {
                    self.stream = None;
                    self.pauses.pause().await;
                }
            }
        }
    }

    /// Reads the pod, and watches it from there on.
    async fn look(&mut self) -> Result<Looked, Error> {
        let pod = match self.pods.get(&self.name).await {
            Ok(pod) => pod,
            Err(error) if is_absent(&error) => return Ok(Looked::Gone),
            Err(error) => return Err(error),
        };
        let version = pod.metadata.resource_version.clone();
        let params = WatchParams::default()
            .fields(&format!("metadata.name={}", self.name))
            .timeout(ROUND);
        let from = version.as_deref().unwrap_or("0");
        match tokio::time::timeout(ANSWER, self.pods.api.watch(&params, from)).await {
            Ok(Ok(stream)) => {
                self.stream = Some(stream.boxed());
                self.quiet_until = Instant::now() + SILENCE;
            }
            // The next look tells whether it is for good.
            Ok(Err(_)) | Err(_) => self.pauses.pause().await,
        }
        if version == self.version {
            return Ok(Looked::Same);
        }
        self.version = version;
        Ok(Looked::New(Box::new(pod)))
    }
}

enum Looked {
    New(Box<Pod>),
    Same,
    Gone,
}
