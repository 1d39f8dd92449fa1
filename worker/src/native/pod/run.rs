//! One pod, from its manifest to its deletion.

use super::startup::{self, Patience};
use super::watch::Watched;
use super::{Containers, MANAGER, OPERATOR, OnFinish, OnKill, PodTask, Problem, logs, manifest, xcom};
use crate::log::TryLog;
use crate::native::fault::Fault;
use crate::permission;
use crate::run::Facts;
use k8s_openapi::api::core::v1::Pod;
use kubernetes::cluster::{Pods, Way};
use kubernetes::{names, state};
use serde_json::{Value, json};
use std::sync::OnceLock;
use std::time::Duration;
use tokio_util::sync::CancellationToken;

/// The namespace of the pod that we run in, if we do.
const OWN_NAMESPACE: &str = "/var/run/secrets/kubernetes.io/serviceaccount/namespace";

/// The container that Istio injects.
const ISTIO: &str = "istio-proxy";

/// What became of a pod.
pub(super) enum Outcome {
    Success(Option<Value>),
    Skipped(String),
    Failure {
        text: String,
        cause: String,
        value: Option<Value>,
    },
}

/// A running KubernetesPodOperator.
pub(super) struct Run<'a> {
    pub(super) facts: &'a Facts,
    pub(super) task: &'a PodTask,
    pub(super) log: &'a TryLog,
    pub(super) stop: &'a CancellationToken,
    /// The pod's name and its namespace's pods, once there is one.
    pub(super) pod: OnceLock<(Pods, String)>,
}

impl Run<'_> {
    async fn say(&self, level: &str, text: &str) {
        self.log.record(level, OPERATOR, text).await;
    }

    fn base(&self) -> String {
        self.task.text(&self.task.document.base)
    }

    /// Everything that the operator does in `execute`.
    pub(super) async fn to_the_end(&self, way: &Way) -> Result<Outcome, Problem> {
        let (client, inside) = way.connect().await.map_err(Problem::unreachable)?;
        let wanted = self.manifest(way, inside)?;
        let pods = Pods::new(client, wanted.metadata.namespace.as_deref().unwrap_or("default"));
        let name = wanted.metadata.name.clone().unwrap_or_default();
        let labels = python_dict(manifest::labels(self.facts, true));
        let text = format!("Building pod {name} with labels: {labels}");
        self.say("info", &text).await;
        let pod = Box::pin(self.find_or_create(&pods, wanted)).await?;
        let name = pod.metadata.name.clone().unwrap_or_default();
        // Only this function sets it, and it runs once.
        self.pod.set((pods.clone(), name.clone())).ok();
        match Box::pin(self.through(&pods, &name)).await {
            Ok((last, value)) => self.finish(&pods, &last, value).await,
            Err(problem) => {
                if let Ok(last) = pods.get(&name).await {
                    self.clean_up(&pods, &last).await;
                }
                Err(problem.after_the_start())
            }
        }
    }

    /// What the cluster is asked for.
    fn manifest(&self, way: &Way, inside: bool) -> Result<Pod, Problem> {
        let document = &self.task.document;
        let text = |name: &str| way.field(name).and_then(Value::as_str).map(str::to_owned);
        let namespace = text("namespace")
            .or_else(|| std::fs::read_to_string(OWN_NAMESPACE).ok())
            .unwrap_or_else(|| "default".to_owned());
        let image = text("xcom_sidecar_container_image").unwrap_or_else(|| document.sidecar_image.clone());
        let mut texts = self.task.texts.clone();
        texts.push(("updraft-namespace-".to_owned(), namespace.trim().to_owned()));
        texts.push(("updraft-sidecar-image-".to_owned(), image));
        let mut pod = manifest::substitute(&document.pod, &texts);
        let given = pod["metadata"]["name"].as_str().unwrap_or_default();
        pod["metadata"]["name"] = names::name(given, document.name_suffix).into();
        let labels = &mut pod["metadata"]["labels"];
        for (key, value) in manifest::labels(self.facts, true) {
            labels[key] = value.into();
        }
        labels["airflow_kpo_in_cluster"] = if inside { "True" } else { "False" }.into();
        let sidecar = pod["spec"]["containers"].as_array_mut().and_then(|all| {
            all.iter_mut()
                .find(|container| container["name"] == xcom::SIDECAR)
        });
        if let Some(sidecar) = sidecar {
            let parsed = |name: &str| text(name).and_then(|text| serde_json::from_str::<Value>(&text).ok());
            if let Some(resources) = parsed("xcom_sidecar_container_resources") {
                sidecar["resources"] = resources;
            }
            if let Some(context) =
                parsed("xcom_sidecar_container_security_context").filter(|_| !document.sidecar_context)
            {
                sidecar["securityContext"] = context;
            }
        }
        serde_json::from_value(pod)
            .map_err(|error| Problem::airflow(format!("the pod is not one that Kubernetes knows: {error}")))
    }

    /// The pod that an earlier try left running, or a new one.
    async fn find_or_create(&self, pods: &Pods, wanted: Pod) -> Result<Pod, Problem> {
        if self.task.document.reattach {
            let own = manifest::substitute(&self.task.document.labels, &self.task.texts);
            let selector = manifest::selector(&own, self.facts);
            let mut found = pods.find(&selector).await?;
            found.retain(|pod| pod.metadata.deletion_timestamp.is_none());
            if found.len() > 1 {
                let text = format!("More than one pod running with labels {selector}");
                return Err(Problem::of("FoundMoreThanOnePodFailure", text));
            }
            if let Some(pod) = found.pop() {
                self.tell_match(&pod).await;
                let name = pod.metadata.name.clone().unwrap_or_default();
                let labels = shown_labels(&pod);
                let phase = state::phase(&pod);
                if !state::is_over(&pod) {
                    let text = format!(
                        "Reusing existing pod '{name}' (phase={phase}) since it is not terminated or evicted."
                    );
                    self.say("info", &text).await;
                    return Ok(pod);
                }
                let text = format!("Found terminated old matching pod {name} with labels {labels}");
                self.say("info", &text).await;
                if !self.delete_if_wanted(pods, &pod).await {
                    return Ok(pod);
                }
                self.say("info", "Deleted pod to handle rerun and create new pod!")
                    .await;
            }
        }
        processes::pause::point("pod");
        let begins = permission::begins(self.facts, self.stop).await;
        begins.map_err(|why| Problem::airflow(why.cause).by(Fault::Worker))?;
        let pod = pods.create(&wanted).await?;
        if !self.facts.permit.holds() {
            // We were stopped while the cluster was asked; the next try makes a pod of its own.
            let name = pod.metadata.name.as_deref().unwrap_or_default();
            pods.delete_exactly(name, pod.metadata.uid.clone()).await.ok();
            return Err(Problem::airflow("the claim became void while its pod was made").by(Fault::Worker));
        }
        self.tell_match(&pod).await;
        Ok(pod)
    }

    async fn tell_match(&self, pod: &Pod) {
        let name = pod.metadata.name.as_deref().unwrap_or_default();
        let text = format!("Found matching pod {name} with labels {}", shown_labels(pod));
        self.say("info", &text).await;
        let own = self.facts.try_number();
        self.say("info", &format!("`try_number` of task_instance: {own}"))
            .await;
        let labels = pod.metadata.labels.as_ref();
        let its = labels.and_then(|labels| labels.get("try_number"));
        let text = format!("`try_number` of pod: {}", its.map_or("None", String::as_str));
        self.say("info", &text).await;
    }

    /// Follows a pod from its start to its end.
    async fn through(&self, pods: &Pods, name: &str) -> Result<(Pod, Option<Value>), Problem> {
        let document = &self.task.document;
        let patience = Patience {
            to_schedule: Duration::from_secs(document.schedule_timeout),
            to_start: Duration::from_secs(document.startup_timeout),
            events: document.events_on_startup,
        };
        let started = startup::wait(pods, name, &patience, self.log).await?;
        let base = self.base();
        let init: Vec<String> = spec_names(&started, true);
        for container in self.chosen(&document.init_logs_of, &init) {
            self.follow(pods, name, &container).await?;
        }
        let mut followed = Vec::new();
        if document.get_logs {
            let all = spec_names(&started, false);
            for container in self.chosen(&document.logs_of, &all) {
                self.follow(pods, name, &container).await?;
                followed.push(container);
            }
        }
        if !followed.contains(&base) {
            self.until(pods, name, |pod| state::terminated(pod, &base).is_some())
                .await?;
        }
        let mut value = None;
        if document.do_xcom_push {
            value = xcom::extract(pods, name, self.log).await?;
        }
        let with_sidecar = document.do_xcom_push || has_istio(&started);
        let last = self
            .until(pods, name, |pod| {
                let base_is_done = state::terminated(pod, &base).is_some();
                (with_sidecar && base_is_done) || state::hopeless(pod).is_some()
            })
            .await?;
        Ok((last, value))
    }

    fn chosen(&self, wanted: &Containers, all: &[String]) -> Vec<String> {
        match wanted {
            Containers::All(true) => all.to_vec(),
            Containers::All(false) => Vec::new(),
            Containers::Named(names) => {
                let names = names.iter().map(|name| self.task.text(name));
                names.filter(|name| all.contains(name)).collect()
            }
        }
    }

    async fn follow(&self, pods: &Pods, name: &str, container: &str) -> Result<(), Problem> {
        // An init container may have to wait for the one before it.
        let has_begun =
            |pod: &Pod| state::is_running(pod, container) || state::terminated(pod, container).is_some();
        let pod = self.until(pods, name, has_begun).await?;
        if !has_begun(&pod) {
            let text = format!("container {container} of pod {name} never started, it has no log");
            self.say("warning", &text).await;
            return Ok(());
        }
        logs::follow(pods, name, container, self.task.document.prefix, self.log).await?;
        Ok(())
    }

    /// Waits until the pod is over, or something else holds.
    async fn until(&self, pods: &Pods, name: &str, holds: impl Fn(&Pod) -> bool) -> Result<Pod, Problem> {
        let mut watched = Watched::new(pods, name);
        while let Some(pod) = watched.next().await? {
            if state::is_over(&pod) || holds(&pod) {
                return Ok(pod);
            }
        }
        let text = format!("Pod {name} was deleted while it ran");
        Err(Problem::of("PodNotFoundException", text))
    }

    /// What the operator does in `cleanup`.
    async fn finish(&self, pods: &Pods, pod: &Pod, value: Option<Value>) -> Result<Outcome, Problem> {
        let document = &self.task.document;
        let base = self.base();
        let end = state::terminated(pod, &base);
        let failed = if document.do_xcom_push || has_istio(pod) {
            end.is_none_or(|end| end.exit_code != 0)
        } else {
            state::phase(pod) != "Succeeded"
        };
        self.clean_up(pods, pod).await;
        let name = pod.metadata.name.as_deref().unwrap_or_default();
        if let Some(code) = end
            .map(|end| end.exit_code)
            .filter(|code| document.skip_on_exit_code.contains(code))
        {
            return Ok(Outcome::Skipped(format!(
                "Pod {name} returned exit code {code}. Skipping."
            )));
        }
        if !failed {
            return Ok(Outcome::Success(value));
        }
        let mut text = format!("Pod {name} returned a failure.");
        if let Some(message) = end.and_then(|end| end.message.as_deref()) {
            text.push_str(&format!("\n{message}"));
        }
        if document.spec_on_failure {
            let shown = manifest::without_secrets(self.log.masker().names(), &json!(pod));
            text.push_str(&format!("\nremote_pod: {shown}"));
        }
        Ok(Outcome::Failure {
            text,
            cause: state::cause(pod, &base),
            value,
        })
    }

    async fn clean_up(&self, pods: &Pods, pod: &Pod) {
        let document = &self.task.document;
        let name = pod.metadata.name.as_deref().unwrap_or_default();
        let is_kept = matches!(document.on_finish, OnFinish::Keep | OnFinish::DeleteActive);
        let has_succeeded = state::phase(pod) == "Succeeded";
        if (!has_succeeded || is_kept)
            && let Err(error) = pods.label(name, manifest::CHECKED, "True").await
        {
            tracing::debug!("pod {name} cannot be marked: {error}");
        }
        if !has_succeeded && document.events_on_failure {
            self.tell_events(pods, pod).await;
        }
        self.delete_if_wanted(pods, pod).await;
    }

    async fn tell_events(&self, pods: &Pods, pod: &Pod) {
        let name = pod.metadata.name.as_deref().unwrap_or_default();
        let status = pod.status.as_ref().and_then(|status| status.reason.as_deref());
        let text = format!(
            "Pod phase: {}, reason: {}",
            state::phase(pod),
            status.unwrap_or("None")
        );
        self.say("info", &text).await;
        for event in pods.events(name).await.unwrap_or_default() {
            let level = if event.type_.as_deref() == Some("Warning") {
                "warning"
            } else {
                "info"
            };
            let text = format!(
                "Pod Event: {} - {}",
                event.reason.as_deref().unwrap_or("None"),
                event.message.as_deref().unwrap_or("None")
            );
            self.say(level, &text).await;
        }
    }

    /// Deletes the pod if `on_finish_action` says so. Whether it did.
    async fn delete_if_wanted(&self, pods: &Pods, pod: &Pod) -> bool {
        let name = pod.metadata.name.as_deref().unwrap_or_default();
        let base = self.base();
        let phase = state::phase(pod);
        let base_succeeded = state::terminated(pod, &base).is_some_and(|end| end.exit_code == 0);
        let wanted = match self.task.document.on_finish {
            OnFinish::Keep => false,
            OnFinish::Delete => true,
            OnFinish::DeleteSucceeded => phase == "Succeeded" || base_succeeded,
            OnFinish::DeleteActive => phase == "Running" || phase == "Pending",
        };
        if !wanted {
            self.say("info", &format!("Skipping deleting pod: {name}")).await;
            return false;
        }
        self.say("info", &format!("Deleting pod: {name}")).await;
        if let Err(error) = pods.delete(name, None).await {
            self.say("error", &format!("Unable to delete pod {name}: {error}"))
                .await;
        }
        true
    }

    /// What the operator does in `on_kill`.
    pub(super) async fn kill(&self) {
        let document = &self.task.document;
        let Some((pods, name)) = self.pod.get() else {
            return;
        };
        if document.on_kill == OnKill::Keep {
            let text = "Skipping pod deletion since on_kill_action is set to 'keep_pod'.";
            return self.say("info", text).await;
        }
        self.log
            .record("info", MANAGER, &format!("Deleting pod: {name}"))
            .await;
        // It takes its time to go; the next try must not follow it.
        if let Err(error) = pods.label(name, manifest::CHECKED, "True").await {
            tracing::debug!("pod {name} cannot be marked: {error}");
        }
        if let Err(error) = pods.delete(name, document.grace).await {
            self.say("error", &format!("Unable to delete pod {name}: {error}"))
                .await;
        }
    }
}

fn shown_labels(pod: &Pod) -> String {
    python_dict(pod.metadata.labels.iter().flatten())
}

/// Whether a proxy was injected that goes on when everything else has ended.
fn has_istio(pod: &Pod) -> bool {
    spec_names(pod, false).iter().any(|name| name == ISTIO)
}

/// Labels as Python prints them.
fn python_dict(labels: impl IntoIterator<Item = (impl std::fmt::Display, impl std::fmt::Display)>) -> String {
    let pairs = labels
        .into_iter()
        .map(|(key, value)| format!("'{key}': '{value}'"));
    format!("{{{}}}", pairs.collect::<Vec<_>>().join(", "))
}

/// Names of a pod's containers, or of its init containers; not the sidecar's.
fn spec_names(pod: &Pod, init: bool) -> Vec<String> {
    let Some(spec) = &pod.spec else {
        return Vec::new();
    };
    let containers = if init {
        spec.init_containers.as_deref().unwrap_or_default()
    } else {
        &spec.containers
    };
    let names = containers.iter().map(|container| container.name.clone());
    names.filter(|name| name != xcom::SIDECAR).collect()
}
