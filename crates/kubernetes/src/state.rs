//! What the status of a pod says.

use k8s_openapi::api::core::v1::{ContainerState, ContainerStateTerminated, ContainerStatus, Pod};

/// Errors of an image registry that pass: the kubelet tries again (Airflow's list).
const PASSING: [&str; 10] = [
    "pull qps exceeded",
    "rate limit",
    "too many requests",
    "quota exceeded",
    "temporarily unavailable",
    "timeout",
    "account limit",
    "bad gateway",
    "service unavailable",
    "gateway timeout",
];

/// Its phase.
pub fn phase(pod: &Pod) -> &str {
    let status = pod.status.as_ref();
    status
        .and_then(|status| status.phase.as_deref())
        .unwrap_or("Unknown")
}

/// Whether nothing of the pod runs or will run.
pub fn is_over(pod: &Pod) -> bool {
    matches!(phase(pod), "Succeeded" | "Failed")
}

/// What is known of its containers.
pub fn containers(pod: &Pod) -> &[ContainerStatus] {
    let status = pod.status.as_ref();
    status
        .and_then(|status| status.container_statuses.as_deref())
        .unwrap_or_default()
}

fn state<'a>(pod: &'a Pod, name: &str) -> Option<&'a ContainerState> {
    let status = pod.status.as_ref()?;
    let init = status.init_container_statuses.iter().flatten();
    let mut all = containers(pod).iter().chain(init);
    all.find(|container| container.name == name)?.state.as_ref()
}

/// How a container ended, if it has.
pub fn terminated<'a>(pod: &'a Pod, name: &str) -> Option<&'a ContainerStateTerminated> {
    state(pod, name)?.terminated.as_ref()
}

/// Whether that container runs.
pub fn is_running(pod: &Pod, name: &str) -> bool {
    state(pod, name).is_some_and(|state| state.running.is_some())
}

/// Whether it has a node.
pub fn is_scheduled(pod: &Pod) -> bool {
    let conditions = pod.status.iter().filter_map(|status| status.conditions.as_ref());
    conditions
        .flatten()
        .any(|condition| condition.type_ == "PodScheduled" && condition.status == "True")
}

/// Why the pod can never start, if that is certain.
pub fn hopeless(pod: &Pod) -> Option<String> {
    containers(pod).iter().find_map(|container| {
        let waiting = container.state.as_ref()?.waiting.as_ref()?;
        let reason = waiting.reason.as_deref()?;
        let message = waiting.message.as_deref().unwrap_or_default();
        let lower = message.to_lowercase();
        let is_certain = match reason {
            "InvalidImageName" | "ErrImageNeverPull" => true,
            "ErrImagePull" | "ImagePullBackOff" => !PASSING.iter().any(|text| lower.contains(text)),
            _ => false,
        };
        is_certain.then(|| format!("Image cannot be pulled, unable to start: {reason}\n{message}"))
    })
}

/// The reasons for which its containers wait, in Kubernetes' own words.
pub fn waiting_reasons(pod: &Pod) -> impl Iterator<Item = &str> {
    let init = pod
        .status
        .iter()
        .flat_map(|status| status.init_container_statuses.iter().flatten());
    init.chain(containers(pod))
        .filter_map(|container| container.state.as_ref()?.waiting.as_ref()?.reason.as_deref())
}

/// Why the pod has not started, as the cluster says it.
pub fn waits_for(pod: &Pod) -> Option<String> {
    let status = pod.status.as_ref()?;
    let unscheduled = status.conditions.iter().flatten().find_map(|condition| {
        let message = condition
            .message
            .as_deref()
            .filter(|message| !message.is_empty())?;
        let reason = condition.reason.as_deref().unwrap_or("PodScheduled");
        let is_it = condition.type_ == "PodScheduled" && condition.status == "False";
        is_it.then(|| format!("{reason}: {message}"))
    });
    unscheduled.or_else(|| {
        let init = status.init_container_statuses.iter().flatten();
        init.chain(containers(pod)).find_map(|container| {
            let waiting = container.state.as_ref()?.waiting.as_ref()?;
            let reason = waiting.reason.as_deref()?;
            let usual = matches!(reason, "ContainerCreating" | "PodInitializing");
            let message = waiting.message.as_deref().filter(|message| !message.is_empty());
            (!usual || message.is_some()).then(|| match message {
                Some(message) => format!("container {} waits, {reason}: {message}", container.name),
                None => format!("container {} waits: {reason}", container.name),
            })
        })
    })
}

/// Why the pod failed, where its exit code alone does not say it.
pub fn cause(pod: &Pod, base: &str) -> String {
    let status = pod.status.as_ref();
    let said = status.and_then(|status| {
        let reason = status.reason.as_deref()?;
        Some(format!(
            "{reason}: {}",
            status.message.as_deref().unwrap_or_default()
        ))
    });
    let ended = terminated(pod, base).map(|end| {
        let reason = end.reason.as_deref().unwrap_or("Error");
        match reason {
            "OOMKilled" => format!(
                "container {base} ran out of memory and was killed: exit code {}",
                end.exit_code
            ),
            "Error" | "Completed" => format!("container {base} ended with exit code {}", end.exit_code),
            other => format!("container {base} ended with {other}: exit code {}", end.exit_code),
        }
    });
    said.into_iter().chain(ended).collect::<Vec<_>>().join("; ")
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn pod(status: serde_json::Value) -> Pod {
        serde_json::from_value(json!({"metadata": {"name": "p"}, "status": status})).unwrap()
    }

    #[test]
    fn what_a_pending_pod_waits_for_is_told_in_the_clusters_words() {
        let unscheduled = json!({"phase": "Pending", "conditions": [
            {"type": "PodScheduled", "status": "False", "reason": "Unschedulable", "message": "0/3 nodes are available: 3 Insufficient cpu."}]});
        assert_eq!(
            waits_for(&pod(unscheduled)).as_deref(),
            Some("Unschedulable: 0/3 nodes are available: 3 Insufficient cpu.")
        );
        let pulling = |reason: &str, message: &str| {
            pod(
                json!({"phase": "Pending", "containerStatuses": [{"name": "base", "image": "x", "imageID": "", "ready": false,
                "restartCount": 0, "state": {"waiting": {"reason": reason, "message": message}}}]}),
            )
        };
        assert!(hopeless(&pulling("ErrImageNeverPull", "no")).is_some());
        assert!(hopeless(&pulling("ErrImagePull", "429 Too Many Requests")).is_none());
        assert!(hopeless(&pulling("ErrImagePull", "not found")).is_some());
        assert!(waits_for(&pulling("CrashLoopBackOff", "back-off")).is_some());
        assert_eq!(waits_for(&pulling("ContainerCreating", "")), None);
    }

    #[test]
    fn memory_and_eviction_are_named() {
        let status = json!({"phase": "Failed", "reason": "Evicted", "message": "low on disk", "containerStatuses": [
            {"name": "base", "image": "x", "imageID": "", "ready": false, "restartCount": 0,
             "state": {"terminated": {"exitCode": 137, "reason": "OOMKilled"}}}]});
        let cause = cause(&pod(status), "base");
        assert_eq!(
            cause,
            "Evicted: low on disk; container base ran out of memory and was killed: exit code 137"
        );
    }
}
