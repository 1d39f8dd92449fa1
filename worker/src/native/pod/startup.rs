//! From the creation of a pod to its first container: what it waits for is told while it waits.

use super::watch::Watched;
use super::{MANAGER, Problem};
use crate::log::TryLog;
use crate::native::fault::Fault;
use k8s_openapi::api::core::v1::Pod;
use kubernetes::cluster::Pods;
use kubernetes::state;
use std::collections::HashSet;
use std::time::Duration;
use tokio::time::Instant;

/// How often events are looked at.
const LOOK: Duration = Duration::from_secs(5);

/// How long a pod may take to start.
pub(super) struct Patience {
    pub(super) to_schedule: Duration,
    pub(super) to_start: Duration,
    /// Whether the pod's events are written to the log.
    pub(super) events: bool,
}

/// Waits until a pod runs (or has run).
pub(super) async fn wait(pods: &Pods, name: &str, patience: &Patience, log: &TryLog) -> Result<Pod, Problem> {
    let text = format!(
        "::group::Waiting up to {}s to get the POD scheduled...",
        patience.to_schedule.as_secs()
    );
    say(log, &text).await;
    let outcome = until_started(pods, name, patience, log).await;
    if let Ok(pod) = &outcome {
        let text = format!(
            "Pod has reached {} phase before launch timeout",
            state::phase(pod)
        );
        say(log, &text).await;
    }
    say(log, "::endgroup::").await;
    outcome
}

async fn say(log: &TryLog, text: &str) {
    log.record("info", MANAGER, text).await;
}

async fn until_started(pods: &Pods, name: &str, patience: &Patience, log: &TryLog) -> Result<Pod, Problem> {
    let mut watched = Watched::new(pods, name);
    let mut events = Events::default();
    let mut deadline = Instant::now() + patience.to_schedule;
    let (mut was_scheduled, mut waits_for) = (false, None);
    let mut next_look = Instant::now();
    loop {
        tokio::select! {
            changed = watched.next() => {
                let Some(pod) = changed? else {
                    return Err(Problem::of("PodNotFoundException", format!("Pod {name} was deleted before it started")));
                };
                match state::phase(&pod) {
                    "Pending" | "Unknown" => {}
                    "Failed" if state::containers(&pod).is_empty() => {
                        // Evicted, refused by its node, or lost with it.
                        let cause = state::cause(&pod, "");
                        let text = format!("Pod failed before containers started: {cause}");
                        return Err(Problem::of("PodLaunchFailedException", text).by(Fault::Unstarted));
                    }
                    _ => return Ok(pod),
                }
                if !was_scheduled && state::is_scheduled(&pod) {
                    was_scheduled = true;
                    deadline = Instant::now() + patience.to_start;
                    say(log, &format!("Waiting {}s to get the POD running...", patience.to_start.as_secs())).await;
                }
                if let Some(why) = state::hopeless(&pod) {
                    return Err(Problem::of("PodLaunchFailedException", why));
                }
                let reason = state::waits_for(&pod);
                if reason.is_some() && reason != waits_for {
                    let text = format!("The Pod is pending: {}", reason.as_deref().unwrap_or_default());
                    log.record("warning", MANAGER, &text).await;
                }
                waits_for = reason.or(waits_for);
            }
            () = tokio::time::sleep_until(next_look), if patience.events => {
                events.tell(pods, name, log).await;
                next_look = Instant::now() + LOOK;
            }
            () = tokio::time::sleep_until(deadline) => {
                events.tell(pods, name, log).await;
                let text = if was_scheduled {
                    format!("Pod took too long to start. More than {}s. Check the pod events in kubernetes.", patience.to_start.as_secs())
                } else {
                    format!("Pod took too long to be scheduled on the cluster, giving up. More than {}s. Check the pod events in kubernetes.", patience.to_schedule.as_secs())
                };
                let why = waits_for.or(events.last_warning).map(|why| format!("the pod was pending: {why}"));
                return Err(Problem::of("PodLaunchTimeoutException", text).because(why.unwrap_or_default()));
            }
        }
    }
}

/// The events that have been told.
#[derive(Default)]
struct Events {
    seen: HashSet<String>,
    last_warning: Option<String>,
}

impl Events {
    async fn tell(&mut self, pods: &Pods, name: &str, log: &TryLog) {
        let Ok(events) = pods.events(name).await else {
            return;
        };
        for event in events {
            let key = event.metadata.uid.or(event.metadata.name).unwrap_or_default();
            if !self.seen.insert(key) {
                continue;
            }
            let message = event.message.unwrap_or_default();
            let place = event
                .involved_object
                .field_path
                .unwrap_or_else(|| "None".to_owned());
            say(log, &format!("The Pod has an Event: {message} from {place}")).await;
            if event.type_.as_deref() == Some("Warning") {
                self.last_warning = Some(message);
            }
        }
    }
}
