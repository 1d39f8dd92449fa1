//! Where a cluster is, and calls of its API that outlive what is transient.

use backoff::Backoff;
use k8s_openapi::api::core::v1::{Event, Pod};
use kube::api::{Api, DeleteParams, ListParams, Patch, PatchParams, PostParams, Preconditions};
use kube::config::{KubeConfigOptions, Kubeconfig};
use kube::{Client, Config, Error};
use serde_json::{Value, json};
use std::future::Future;
use std::time::Duration;

/// How often a call is tried (`[workers] api_retries`).
const TRIES: u32 = 5;
/// The first and the longest pause between tries.
const FIRST_PAUSE: Duration = Duration::from_secs(1);
const LAST_PAUSE: Duration = Duration::from_secs(15);
/// How long one answer may take.
pub const ANSWER: Duration = Duration::from_secs(60);

/// How the cluster is found: the operator's arguments, and what the connection says.
#[derive(Debug, Clone)]
pub struct Way {
    /// Whether it is the cluster that this runs in.
    pub in_cluster: Option<bool>,
    /// Context of the kubeconfig.
    pub context: Option<String>,
    /// Path of the kubeconfig.
    pub config_file: Option<String>,
    /// `extra` of the connection.
    pub extra: Value,
}

impl Way {
    /// A field of the connection, also under its name before Airflow 2.3.
    pub fn field(&self, name: &str) -> Option<&Value> {
        let old = format!("extra__kubernetes__{name}");
        let found = self.extra.get(name).or_else(|| self.extra.get(&old));
        found.filter(|value| !value.is_null() && *value != "" && *value != false)
    }

    fn text(&self, name: &str) -> Option<String> {
        self.field(name).and_then(Value::as_str).map(str::to_owned)
    }

    /// Connects in the order of Airflow's hook. Tells also whether this runs in the cluster itself.
    ///
    /// # Errors
    /// When nothing says where the cluster is, or what says so cannot be used.
    pub async fn connect(&self) -> Result<(Client, bool), String> {
        let (mut config, inside) = self.config().await?;
        if let Some(flag) = self.field("disable_verify_ssl") {
            config.accept_invalid_certs =
                *flag == json!(true) || *flag == json!("true") || *flag == json!("True");
        }
        // A log may be silent for long; the watch and the calls have limits of their own.
        config.read_timeout = None;
        let client = Client::try_from(config).map_err(|error| error.to_string())?;
        Ok((client, inside))
    }

    async fn config(&self) -> Result<(Config, bool), String> {
        let in_cluster = self.in_cluster.or_else(|| self.field("in_cluster").map(|_| true));
        let file = self.config_file.clone().or_else(|| self.text("kube_config_path"));
        let inline = self.field("kube_config").map(|value| match value {
            Value::String(text) => text.clone(),
            other => other.to_string(),
        });
        let chosen = [in_cluster == Some(true), file.is_some(), inline.is_some()];
        if chosen.iter().filter(|chosen| **chosen).count() > 1 {
            return Err(
                "Invalid connection configuration. Options kube_config_path, kube_config, in_cluster, \
                        config_dict are mutually exclusive. You can only use one option at a time."
                    .to_owned(),
            );
        }
        if in_cluster == Some(true) {
            let config = Config::incluster().map_err(|error| error.to_string())?;
            return Ok((config, true));
        }
        let known = match (file, inline) {
            (Some(file), _) => Kubeconfig::read_from(&file).map_err(|error| format!("{file}: {error}"))?,
            // The error could quote what is secret.
            (None, Some(text)) => Kubeconfig::from_yaml(&text)
                .map_err(|_| "the kube_config of the connection is not a valid kubeconfig".to_owned())?,
            (None, None) => {
                if in_cluster.is_none()
                    && let Ok(config) = Config::incluster()
                {
                    return Ok((config, true));
                }
                Kubeconfig::read().map_err(|error| error.to_string())?
            }
        };
        let options = KubeConfigOptions {
            context: self.context.clone().or_else(|| self.text("cluster_context")),
            ..KubeConfigOptions::default()
        };
        let config = Config::from_custom_kubeconfig(known, &options).await;
        Ok((config.map_err(|error| error.to_string())?, false))
    }
}

/// Whether trying a call again may help.
pub fn is_transient(error: &Error) -> bool {
    match error {
        Error::Api(status) => matches!(status.code, 409 | 429 | 500 | 502 | 503 | 504),
        Error::HyperError(_) | Error::Service(_) | Error::ReadEvents(_) => true,
        _ => false,
    }
}

/// Whether there is no such object.
pub fn is_absent(error: &Error) -> bool {
    matches!(error, Error::Api(status) if status.code == 404)
}

/// Pauses between calls of a cluster that fails.
pub fn pauses() -> Backoff {
    Backoff::new(FIRST_PAUSE, LAST_PAUSE)
}

/// Tries a call again while its failures are transient.
///
/// # Errors
/// The last failure.
pub async fn persistently<T, F>(mut call: impl FnMut() -> F) -> Result<T, Error>
where
    F: Future<Output = Result<T, Error>>,
{
    let mut pauses = pauses();
    for _ in 1..TRIES {
        match tokio::time::timeout(ANSWER, call()).await {
            Ok(Err(error)) if is_transient(&error) => tracing::debug!("trying again: {error}"),
            Ok(done) => return done,
            Err(_) => tracing::debug!("trying again: no answer"),
        }
        pauses.pause().await;
    }
    call().await
}

/// The pods of one namespace.
#[derive(Clone)]
pub struct Pods {
    /// Their API.
    pub api: Api<Pod>,
    events: Api<Event>,
    namespace: String,
}

impl Pods {
    /// The pods of that namespace.
    pub fn new(client: Client, namespace: &str) -> Self {
        Self {
            api: Api::namespaced(client.clone(), namespace),
            events: Api::namespaced(client, namespace),
            namespace: namespace.to_owned(),
        }
    }

    /// The namespace.
    pub fn namespace(&self) -> &str {
        &self.namespace
    }

    /// The pod of that name.
    ///
    /// # Errors
    /// As the cluster says.
    pub async fn get(&self, name: &str) -> Result<Pod, Error> {
        persistently(|| self.api.get(name)).await
    }

    /// Pods with these labels.
    ///
    /// # Errors
    /// As the cluster says.
    pub async fn find(&self, selector: &str) -> Result<Vec<Pod>, Error> {
        let wanted = ListParams::default().labels(selector);
        Ok(persistently(|| self.api.list(&wanted)).await?.items)
    }

    /// Creates a pod. One of that name that is there already is ours: an answer was lost.
    ///
    /// # Errors
    /// As the cluster says.
    pub async fn create(&self, pod: &Pod) -> Result<Pod, Error> {
        let name = pod.metadata.name.as_deref().unwrap_or_default();
        let params = PostParams::default();
        let mut sent = 0;
        persistently(|| {
            sent += 1;
            let again = sent > 1;
            let params = &params;
            async move {
                match self.api.create(params, pod).await {
                    Err(Error::Api(status)) if again && status.code == 409 => {
                        let found = self.api.get(name).await?;
                        // Another's pod has the name.
                        if found.metadata.labels == pod.metadata.labels {
                            Ok(found)
                        } else {
                            Err(Error::Api(status))
                        }
                    }
                    other => other,
                }
            }
        })
        .await
    }

    /// Deletes a pod; one that is gone is what we want.
    ///
    /// # Errors
    /// As the cluster says.
    pub async fn delete(&self, name: &str, grace: Option<u32>) -> Result<(), Error> {
        let params = DeleteParams {
            grace_period_seconds: grace,
            ..DeleteParams::default()
        };
        self.delete_with(name, &params).await
    }

    /// Deletes this very pod, and no later one of the same name.
    ///
    /// # Errors
    /// As the cluster says.
    pub async fn delete_exactly(&self, name: &str, uid: Option<String>) -> Result<(), Error> {
        let params = DeleteParams {
            preconditions: Some(Preconditions {
                uid,
                resource_version: None,
            }),
            ..DeleteParams::default()
        };
        match tokio::time::timeout(ANSWER, self.api.delete(name, &params)).await {
            Ok(Ok(_)) => Ok(()),
            // The name is another's by now.
            Ok(Err(Error::Api(status))) if status.code == 409 => Ok(()),
            Ok(Err(_)) | Err(_) => self.delete_with(name, &params).await,
        }
    }

    async fn delete_with(&self, name: &str, params: &DeleteParams) -> Result<(), Error> {
        match persistently(|| self.api.delete(name, params)).await {
            Err(error) if !is_absent(&error) => Err(error),
            Ok(_) | Err(_) => Ok(()),
        }
    }

    /// Puts a label on a pod.
    ///
    /// # Errors
    /// As the cluster says.
    pub async fn label(&self, name: &str, key: &str, value: &str) -> Result<(), Error> {
        let labels = json!({key: value});
        let patch = Patch::Strategic(json!({"metadata": {"labels": labels}}));
        let params = PatchParams::default();
        persistently(|| self.api.patch(name, &params, &patch)).await?;
        Ok(())
    }

    /// The events of a pod.
    ///
    /// # Errors
    /// As the cluster says.
    pub async fn events(&self, name: &str) -> Result<Vec<Event>, Error> {
        let wanted = ListParams::default().fields(&format!("involvedObject.name={name}"));
        Ok(persistently(|| self.events.list(&wanted)).await?.items)
    }
}
