//! Tasks in pods of their own: the KubernetesExecutor.
//!
//! A pod is a worker for one task. It registers, claims its task and reports like any other worker, so a scheduler that
//! dies takes nothing with it. What is left to do is to make the pods, and to look after those that never got as far.
//!
//! Nothing here is remembered: a pod's name follows from the hand-over that it is for, its labels say which that was, and
//! the database and the cluster together say what is to be done.

mod manifest;
mod upkeep;

use crate::Shared;
use chrono::Utc;
use config::Config;
use kube::Error;
use kube::api::PostParams;
use kubernetes::cluster::{ANSWER, Pods, Way};
use lifecycle::Stop;
use manifest::HandOver;
use model::task_instance::StateName;
use serde_json::Value;
use std::collections::HashSet;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;
use store::StoreError;
use store::repo::{Dispatch, TaskInstanceRecord};
use tokio::sync::{OnceCell, Semaphore, mpsc};
pub(crate) use upkeep::look_after;

/// Hand-overs that wait for their pod to be made; more than that wait in the outbox.
const WAITING: usize = 1000;
/// Pods that are made at the same time.
const MAKERS: usize = 8;
/// Where the installation's name among others in one cluster is kept. It is there once pods have been used.
const INSTALLATION: &str = "installation_id";

/// The way to pods.
pub(crate) struct PodExecutor {
    orders: mpsc::Sender<Dispatch>,
    inbox: Mutex<Option<mpsc::Receiver<Dispatch>>>,
    cluster: OnceCell<Cluster>,
    /// Pods that were there at the last look.
    known: Mutex<HashSet<String>>,
    /// Pods that are being made.
    in_the_making: Mutex<HashSet<String>>,
}

/// A cluster, and who we are in it.
pub(crate) struct Cluster {
    pods: Pods,
    installation: String,
}

impl Default for PodExecutor {
    fn default() -> Self {
        let (orders, inbox) = mpsc::channel(WAITING);
        Self {
            orders,
            inbox: Mutex::new(Some(inbox)),
            cluster: OnceCell::new(),
            known: Mutex::default(),
            in_the_making: Mutex::default(),
        }
    }
}

fn lock(set: &Mutex<HashSet<String>>) -> std::sync::MutexGuard<'_, HashSet<String>> {
    set.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Why there is no pod.
enum Failure {
    /// It may work later.
    Transient(String),
    /// It never will.
    ForGood(String),
}

impl From<StoreError> for Failure {
    fn from(error: StoreError) -> Self {
        Self::Transient(error.to_string())
    }
}

impl PodExecutor {
    /// Whether a hand-over is for a pod.
    pub(crate) fn is_for(config: &Config, dispatch: &Dispatch) -> bool {
        let wish = dispatch.executor.as_ref().map(model::ExecutorName::as_str);
        config.core.executors.is_pod(wish)
    }

    /// Takes hand-overs. Those that find no room are in the outbox still, and come again.
    pub(crate) fn order(&self, dispatches: Vec<Dispatch>) {
        for dispatch in dispatches {
            if self.orders.try_send(dispatch).is_err() {
                return;
            }
        }
    }

    /// Whether there is a pod for it, or will be at once.
    pub(crate) fn has(&self, dispatch: &Dispatch) -> bool {
        let name = manifest::name_of(dispatch.id, dispatch.sequence);
        lock(&self.known).contains(&name) || lock(&self.in_the_making).contains(&name)
    }
}

impl Shared {
    /// The cluster, connected to at first use.
    async fn cluster(&self) -> Result<&Cluster, String> {
        self.pods.cluster.get_or_try_init(|| self.connect()).await
    }

    async fn connect(&self) -> Result<Cluster, String> {
        let options = &self.config.kubernetes_executor;
        let way = Way {
            in_cluster: options.in_cluster.then_some(true),
            context: options.cluster_context.clone(),
            config_file: options.config_file.clone().filter(|_| !options.in_cluster),
            extra: Value::Null,
        };
        let (client, _) = way.connect().await.map_err(|why| {
            format!("the KubernetesExecutor has no cluster, see [kubernetes_executor] in_cluster and config_file: {why}")
        })?;
        let installation = store::transact!(self.store, "installation", |tx| tx
            .setting(INSTALLATION, &|| uuid::Uuid::new_v4().to_string())
            .await)
        .map_err(|error| error.to_string())?;
        Ok(Cluster {
            pods: Pods::new(client, &options.namespace),
            installation,
        })
    }

    async fn make_pod(&self, dispatch: &Dispatch) {
        let name = manifest::name_of(dispatch.id, dispatch.sequence);
        if !lock(&self.pods.in_the_making).insert(name.clone()) {
            return;
        }
        match self.try_pod(dispatch, &name).await {
            Ok(()) => {
                lock(&self.pods.known).insert(name.clone());
                self.outgoing.confirmed([dispatch.clone()]);
            }
            Err(Failure::Transient(why)) => {
                tracing::warn!(pod = name, "the pod cannot be made now, trying again: {why}");
            }
            Err(Failure::ForGood(why)) => {
                self.refuse_or_warn(
                    dispatch.id,
                    dispatch.sequence,
                    &format!("its pod cannot be made: {why}"),
                )
                .await;
            }
        }
        lock(&self.pods.in_the_making).remove(&name);
    }

    async fn try_pod(&self, dispatch: &Dispatch, name: &str) -> Result<(), Failure> {
        let mut db = self.store.reader().await?;
        let ti = db.task_instance_by_id(dispatch.id).await?;
        let is_current =
            |ti: &TaskInstanceRecord| ti.state == StateName::Queued && ti.dispatch_seq == dispatch.sequence;
        let Some(ti) = ti.filter(is_current) else {
            return Ok(());
        };
        let graph = self.graphs.get(&mut db, ti.version_id).await?;
        let run = db.run_by_key(ti.run_key).await?;
        drop(db);
        let cluster = match self.cluster().await {
            Ok(cluster) => cluster,
            Err(why) => return self.out_of_patience(&ti, &why),
        };
        let hand_over = HandOver {
            ti: &ti,
            logical_date: run.and_then(|run| run.logical_date),
            installation: &cluster.installation,
        };
        let wish = graph
            .dag
            .task(&ti.task_id)
            .and_then(|task| task.pod_override.as_ref());
        let pod = manifest::pod(&self.config, &hand_over, name, wish).map_err(Failure::ForGood)?;
        let making = cluster.pods.api.create(&PostParams::default(), &pod).await;
        match making {
            Ok(_) => {}
            // Ours, from an answer that was lost: the name is the hand-over's own.
            Err(Error::Api(status)) if status.code == 409 => return Ok(()),
            Err(Error::Api(status)) if matches!(status.code, 400 | 404 | 405 | 415 | 422) => {
                return Err(Failure::ForGood(status.message));
            }
            Err(error) => return self.out_of_patience(&ti, &error.to_string()),
        }
        tracing::debug!(pod = name, task = %ti.task_id, "pod made");
        Ok(())
    }

    /// What may pass is waited for, but not for ever.
    fn out_of_patience(&self, ti: &TaskInstanceRecord, error: &str) -> Result<(), Failure> {
        let patience = self.config.scheduler.task_queued_timeout;
        let waited = Utc::now() - ti.queued_at.unwrap_or_else(Utc::now);
        if waited.to_std().unwrap_or_default() > patience {
            let text = format!("tried for {} s: {error}", patience.as_secs());
            return Err(Failure::ForGood(text));
        }
        Err(Failure::Transient(error.to_owned()))
    }

    /// Ends a try that nobody took. Whether nobody had.
    async fn refuse(
        &self,
        id: model::TaskInstanceId,
        sequence: i64,
        cause: &str,
    ) -> Result<bool, StoreError> {
        let now = Utc::now();
        let mut db = self.store.reader().await?;
        let Some(ti) = db.task_instance_by_id(id).await? else {
            return Ok(true);
        };
        let retry_at = match ti.should_retry() {
            true => {
                let longest = self.config.core.max_retry_delay;
                Some(self.graphs.retry_at(&mut db, &ti, now, None, longest).await?)
            }
            false => None,
        };
        drop(db);
        let refused = store::transact!(self.store, "refuse", |tx| {
            let refused = tx.fail_unstarted(id, sequence, retry_at, cause, now).await?;
            if refused.is_some() {
                tx.add_task_callback(&self.graphs, id, "not_started", now).await?;
            }
            Ok(refused)
        })?;
        if let Some(run) = refused {
            tracing::warn!(dag.id = %ti.dag_id, run.id = %ti.run_id, task.id = %ti.task_id, "the task could not be started: {cause}");
            self.dirty.add(run);
        }
        Ok(refused.is_some())
    }

    async fn refuse_or_warn(&self, id: model::TaskInstanceId, sequence: i64, cause: &str) {
        if let Err(error) = self.refuse(id, sequence, cause).await {
            tracing::warn!("{cause}; that could not be noted, trying again: {error}");
        }
    }
}

/// Makes pods until told to stop.
pub(crate) async fn make(shared: Arc<Shared>, stop: Stop) {
    let inbox = shared
        .pods
        .inbox
        .lock()
        .unwrap_or_else(PoisonError::into_inner)
        .take();
    let Some(mut inbox) = inbox else { return };
    let makers = Arc::new(Semaphore::new(MAKERS));
    let mut making = tokio::task::JoinSet::new();
    loop {
        let next = tokio::select! {
            next = inbox.recv() => next,
            () = stop.draining().cancelled() => None,
        };
        let Some(dispatch) = next else { break };
        while making.try_join_next().is_some() {}
        let Ok(maker) = Arc::clone(&makers).acquire_owned().await else {
            break;
        };
        let shared = Arc::clone(&shared);
        making.spawn(async move {
            let done = tokio::time::timeout(ANSWER, shared.make_pod(&dispatch)).await;
            if done.is_err() {
                lock(&shared.pods.in_the_making).remove(&manifest::name_of(dispatch.id, dispatch.sequence));
                tracing::warn!("the cluster does not answer; trying again");
            }
            drop(maker);
        });
    }
    let rest = async { while making.join_next().await.is_some() {} };
    tokio::time::timeout(Duration::from_secs(5), rest).await.ok();
}
