//! Looking after pods: those that never got as far as their task, those that died with it, and those that are done.

use super::manifest::{self, BASE, SEEN};
use super::{INSTALLATION, lock};
use crate::Shared;
use chrono::Utc;
use config::KubernetesExecutor;
use k8s_openapi::api::core::v1::Pod;
use kubernetes::state;
use lifecycle::Stop;
use model::task_instance::StateName;
use model::{TaskInstanceId, Timestamp, WorkerId};
use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;
use store::repo::TaskInstanceRecord;

const TURN: Duration = Duration::from_secs(1);
/// Turns between two looks while there are no pods.
const QUIET: u32 = 30;

/// What is to be done about a pod.
#[derive(Debug, PartialEq, Eq)]
enum Action {
    /// Its task will never be taken.
    Refuse {
        id: TaskInstanceId,
        sequence: i64,
        cause: String,
    },
    /// The worker in it died with its task.
    Bury(WorkerId),
    Delete,
    /// It stays for people to look at.
    Keep,
}

/// Looks after pods until told to stop.
pub(crate) async fn look_after(shared: Arc<Shared>, stop: Stop) {
    let mut waits_for = HashMap::new();
    let mut quiet = QUIET;
    loop {
        tokio::select! {
            () = stop.draining().cancelled() => return,
            () = tokio::time::sleep(TURN) => {}
        }
        let is_busy = !lock(&shared.pods.known).is_empty();
        quiet += 1;
        if !is_busy && quiet < QUIET {
            continue;
        }
        quiet = 0;
        let look = async {
            if shared.uses_pods().await
                && let Err(why) = shared.look_after_pods(&mut waits_for).await
            {
                tracing::warn!("the pods of tasks cannot be looked after, trying again: {why}");
            }
        };
        // All of it may be broken off, and done again by another scheduler.
        tokio::select! {
            () = look => {}
            () = stop.draining().cancelled() => return,
        }
    }
}

impl Shared {
    /// Whether any task of this installation may ever have had a pod.
    async fn uses_pods(&self) -> bool {
        if self.pods.cluster.initialized() || self.config.core.executors.is_pod(None) {
            return true;
        }
        let Ok(mut db) = self.store.reader().await else {
            return false;
        };
        matches!(db.known_setting(INSTALLATION).await, Ok(Some(_)))
    }

    async fn look_after_pods(&self, waits_for: &mut HashMap<String, String>) -> Result<(), String> {
        let cluster = self.cluster().await?;
        let selector = manifest::selector(&cluster.installation);
        let pods = cluster
            .pods
            .find(&selector)
            .await
            .map_err(|error| error.to_string())?;
        let ids: Vec<TaskInstanceId> = pods
            .iter()
            .filter_map(|pod| Some(manifest::hand_over_of(pod)?.0))
            .collect();
        // Read after the pods: what a pod did before it ended is in here.
        let mut db = self.store.reader().await.map_err(|error| error.to_string())?;
        let found = db
            .task_instances_by_id(&ids)
            .await
            .map_err(|error| error.to_string())?;
        drop(db);
        let tis: HashMap<TaskInstanceId, TaskInstanceRecord> =
            found.into_iter().map(|ti| (ti.id, ti)).collect();
        let names = pods.iter().filter_map(|pod| pod.metadata.name.clone()).collect();
        *lock(&self.pods.known) = names;
        waits_for.retain(|name, _| lock(&self.pods.known).contains(name));
        let now = Utc::now();
        for pod in &pods {
            tell_what_it_waits_for(pod, waits_for);
            let Some((id, sequence)) = manifest::hand_over_of(pod) else {
                continue;
            };
            let seen = Seen {
                pod,
                sequence,
                ti: tis.get(&id),
                now,
            };
            let patience = self.config.scheduler.task_queued_timeout;
            for action in seen.actions(&self.config.kubernetes_executor, patience) {
                match self.act(action, pod).await {
                    Ok(true) => {}
                    // Somebody took the task meanwhile.
                    Ok(false) => break,
                    Err(why) => {
                        let name = pod.metadata.name.as_deref().unwrap_or_default();
                        tracing::warn!(pod = name, "a pod cannot be looked after, trying again: {why}");
                        break;
                    }
                }
            }
        }
        Ok(())
    }

    /// Does one thing about a pod. Whether what was to follow it still holds.
    async fn act(&self, action: Action, pod: &Pod) -> Result<bool, String> {
        let cluster = self.cluster().await?;
        let name = pod.metadata.name.as_deref().unwrap_or_default();
        match action {
            Action::Refuse { id, sequence, cause } => self
                .refuse(id, sequence, &cause)
                .await
                .map_err(|error| error.to_string()),
            Action::Bury(worker) => {
                self.bury(worker).await.map_err(|error| error.to_string())?;
                Ok(true)
            }
            Action::Delete => {
                let deleted = cluster.pods.delete_exactly(name, pod.metadata.uid.clone()).await;
                deleted.map_err(|error| error.to_string())?;
                Ok(true)
            }
            Action::Keep => match cluster.pods.label(name, SEEN, "True").await {
                Err(error) if !kubernetes::cluster::is_absent(&error) => Err(error.to_string()),
                Ok(()) | Err(_) => Ok(true),
            },
        }
    }
}

fn tell_what_it_waits_for(pod: &Pod, told: &mut HashMap<String, String>) {
    let name = pod.metadata.name.as_deref().unwrap_or_default();
    if let Some(reason) = state::waits_for(pod).filter(|_| state::phase(pod) == "Pending")
        && told.get(name) != Some(&reason)
    {
        tracing::warn!(pod = name, "the pod of a task is pending: {reason}");
        told.insert(name.to_owned(), reason);
    }
}

/// A pod, and what the database says of its task instance.
struct Seen<'a> {
    pod: &'a Pod,
    /// The hand-over that it was made for.
    sequence: i64,
    ti: Option<&'a TaskInstanceRecord>,
    now: Timestamp,
}

impl Seen<'_> {
    fn name(&self) -> &str {
        self.pod.metadata.name.as_deref().unwrap_or_default()
    }

    /// The task instance, if it still waits for this very pod.
    fn waiting(&self) -> Option<&TaskInstanceRecord> {
        self.ti
            .filter(|ti| ti.state == StateName::Queued && ti.dispatch_seq == self.sequence)
    }

    /// The worker in this pod, if it holds the task.
    fn holder(&self) -> Option<WorkerId> {
        let ti = self.ti?;
        let runs = matches!(ti.state, StateName::Running | StateName::Restarting);
        // The worker in a pod has the pod's name for a machine.
        let is_here = ti.hostname.as_deref() == Some(self.name());
        (runs && is_here).then_some(ti.worker_id)?
    }

    /// The worker that died in this pod with its task. A later pod has the same name; this one ended after the claim
    /// (Kubernetes tells whole seconds).
    fn fallen(&self) -> Option<WorkerId> {
        let ended = state::terminated(self.pod, BASE)?
            .finished_at
            .as_ref()?
            .0
            .as_second();
        let claimed = self.ti?.start_date?.timestamp();
        self.holder()
            .filter(|_| state::phase(self.pod) == "Failed" && ended >= claimed)
    }

    /// Whether the pod ended for no fault of its own: told to go, evicted, lost with its node.
    fn was_sent_away(&self) -> bool {
        let status = self.pod.status.as_ref();
        let reason = status.and_then(|status| status.reason.as_deref());
        let moved = [
            "Evicted",
            "Preempting",
            "NodeLost",
            "NodeShutdown",
            "Terminated",
            "NodeAffinity",
        ];
        state::phase(self.pod) == "Succeeded" || reason.is_some_and(|reason| moved.contains(&reason))
    }

    fn refusal(&self, ti: &TaskInstanceRecord, why: &str) -> Action {
        Action::Refuse {
            id: ti.id,
            sequence: self.sequence,
            cause: format!("its pod {} {why}", self.name()),
        }
    }

    /// How long its task has waited.
    fn waited(&self) -> Duration {
        let since = self.waiting().and_then(|ti| ti.queued_at).unwrap_or(self.now);
        (self.now - since).to_std().unwrap_or_default()
    }

    /// How long the pod has been there; it may be the second one for its hand-over.
    fn age(&self) -> Duration {
        let made = self.pod.metadata.creation_timestamp.as_ref();
        let age = made.map(|made| self.now.timestamp() - made.0.as_second());
        age.map_or_else(
            || self.waited(),
            |age| Duration::from_secs(age.try_into().unwrap_or(0)),
        )
    }

    fn actions(&self, options: &KubernetesExecutor, patience: Duration) -> Vec<Action> {
        if state::is_over(self.pod) {
            return self.after_its_end(options, self.waited() > patience);
        }
        let is_pending = state::phase(self.pod) == "Pending";
        let Some(ti) = self.waiting() else {
            // Cleared, marked or deleted before it began.
            let is_unwanted = is_pending && self.holder().is_none();
            return is_unwanted.then_some(Action::Delete).into_iter().collect();
        };
        let reason = state::waits_for(self.pod);
        let is_fatal = |reason: &&str| options.fatal_reasons.iter().any(|fatal| fatal == reason);
        let fatal = state::waiting_reasons(self.pod).find(is_fatal);
        let why = if let Some(fatal) = fatal.filter(|_| is_pending) {
            format!("cannot start: {}", reason.as_deref().unwrap_or(fatal))
        } else if self.age() > patience {
            let reason = reason.unwrap_or_else(|| "no reason is known".to_owned());
            format!("did not take the task within {} s: {reason}", patience.as_secs())
        } else {
            return Vec::new();
        };
        vec![self.refusal(ti, &why), Action::Delete]
    }

    fn after_its_end(&self, options: &KubernetesExecutor, is_late: bool) -> Vec<Action> {
        let was_sent_away = self.was_sent_away();
        let mut actions = Vec::new();
        if let Some(ti) = self.waiting() {
            if was_sent_away && !is_late {
                // Without its pod, the task is handed over again.
                return vec![Action::Delete];
            }
            let why = format!("ended before it took the task: {}", state::cause(self.pod, BASE));
            actions.push(self.refusal(ti, &why));
        }
        actions.extend(self.fallen().map(Action::Bury));
        let failed = state::phase(self.pod) == "Failed" && !was_sent_away;
        let is_cleared_away =
            options.delete_worker_pods && (!failed || options.delete_worker_pods_on_failure);
        actions.push(if is_cleared_away {
            Action::Delete
        } else {
            Action::Keep
        });
        actions
    }
}
