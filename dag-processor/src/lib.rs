//! The DAG processor: finds DAG files, has each parsed in a Python child, and stores what they hold.
//!
//! An unchanged file is not parsed again, not even after a restart: what was parsed is known by a fingerprint of the file
//! and of all that its parse was seen to depend on. What cannot be seen (the clock, a service) is why each file is parsed
//! again in idle time. A file that hangs, dies or eats memory harms only itself.

mod answers;
mod bundles;
mod callbacks;
mod deadlines;
mod dependencies;
mod files;
mod looks;
mod mutations;
mod news;
mod outcome;
mod pace;
mod parsing;
mod partitions;
pub mod service;
mod timetables;
mod watch;
mod work;

use bootstrap::Health;
use broker::Broker;
use bundles::Bundles;
use chrono::Utc;
use config::Config;
use lifecycle::{Kind, Lifecycle, Stop};
use looks::Looks;
use model::WorkerId;
use python::{ForkServer, OldForm, ParseLimits};
use std::collections::HashSet;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;
use store::repo::FileKey;
use store::{Cipher, Store, StoreError};

const HEARTBEAT: Duration = Duration::from_secs(5);
/// Time beyond that of a file after which another DAG processor may take over what this one has in hand.
const SPARE: Duration = Duration::from_secs(30);

/// A DAG processor.
pub struct DagProcessor {
    shared: Arc<Shared>,
    health: Health,
}

struct Shared {
    id: WorkerId,
    config: Config,
    store: Store,
    cipher: Cipher,
    broker: Arc<dyn Broker>,
    python: ForkServer,
    bundles: Bundles,
    /// All paths that DAG files depend on, as they were last seen.
    looks: Mutex<Looks>,
    /// Old forms of modules that DAG files import, and of plugins, that were told of.
    told: Mutex<HashSet<OldForm>>,
}

impl DagProcessor {
    /// A DAG processor with these adapters; the bundles are the fork server's.
    pub fn new(
        config: &Config,
        store: Store,
        cipher: Cipher,
        broker: Arc<dyn Broker>,
        python: ForkServer,
        health: Health,
    ) -> Self {
        let id = WorkerId::new(uuid::Uuid::now_v7());
        let shared = Shared {
            id,
            config: config.clone(),
            store,
            cipher,
            broker,
            bundles: Bundles::new(python.config().bundles.clone()),
            python,
            looks: Mutex::default(),
            told: Mutex::default(),
        };
        Self {
            shared: Arc::new(shared),
            health,
        }
    }

    /// Works until told to stop.
    ///
    /// # Errors
    /// When the folders can never be looked at.
    pub async fn run(self, lifecycle: Lifecycle) -> anyhow::Result<()> {
        let stop = || lifecycle.stop().clone();
        let mut answering = lifecycle.parts();
        let calls = callbacks::call(Arc::clone(&self.shared), stop());
        answering.spawn("callbacks", Kind::Service, calls);
        let answers = timetables::answer(Arc::clone(&self.shared), stop());
        answering.spawn("questions", Kind::Service, answers);
        let refreshing = bundles::refresh(Arc::clone(&self.shared), stop());
        answering.spawn("bundles", Kind::Service, refreshing);
        let beating = beat(Arc::clone(&self.shared), stop());
        let beating = lifecycle.spawn("dag processor heartbeat", Kind::Service, beating);
        let worked = work::work(&self.shared, &self.health, lifecycle.stop()).await;
        if worked.is_err() {
            // The others only end when they are told.
            lifecycle.stop().drain();
        }
        // A callback or a question in hand is taken up again if it does not end now.
        tokio::time::timeout(HEARTBEAT, answering.ended()).await.ok();
        beating.ended().await;
        let (id, now) = (self.shared.id, Utc::now());
        let ended = store::transact!(self.shared.store, "end job", |tx| tx.end_job(id, now).await);
        if let Err(error) = ended {
            tracing::warn!("cannot note that this DAG processor ended: {error}");
        }
        worked
    }
}

async fn beat(shared: Arc<Shared>, stop: Stop) {
    let hostname = bootstrap::hostname();
    while !stop.draining().is_cancelled() {
        let (id, now) = (shared.id, Utc::now());
        let beaten = store::transact!(shared.store, "dag processor heartbeat", |tx| tx
            .beat(id, "dag_processor", &hostname, now)
            .await);
        if let Err(error) = beaten {
            tracing::warn!("no heartbeat: {error}");
        }
        tokio::select! {
            () = tokio::time::sleep(HEARTBEAT) => {}
            () = stop.draining().cancelled() => {}
        }
    }
}

/// Whether to go on: at once when something was done, after a turn otherwise, not at all when told to stop.
async fn goes_on(what: &str, done: Result<bool, StoreError>, turn: Duration, stop: &Stop) -> bool {
    match done {
        Ok(true) => return !stop.draining().is_cancelled(),
        Ok(false) => {}
        Err(error) => tracing::warn!("{what}, trying again: {error}"),
    }
    tokio::select! {
        () = stop.draining().cancelled() => false,
        () = tokio::time::sleep(turn) => true,
    }
}

/// Takes a lock; whoever panicked under it left nothing half done that matters.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Shared {
    /// What one child may use.
    fn limits(&self) -> ParseLimits {
        ParseLimits {
            time: self.config.dag_processor.file_timeout,
            memory_mb: self.config.dag_processor.file_memory_mb,
        }
    }

    /// How long a thing in hand is held before another DAG processor may take it over.
    fn hold(&self) -> Duration {
        self.config.dag_processor.file_timeout + SPARE
    }

    /// Deals with a file that is gone.
    async fn forget(&self, file: &FileKey) -> anyhow::Result<()> {
        let now = chrono::Utc::now();
        let retired = store::transact!(self.store, "forget file", |tx| {
            let retired = tx.retire_missing_dags(file, &[], now).await?;
            tx.wake_duplicates(&retired).await?;
            tx.set_import_error(file, "", None, now).await?;
            tx.forget_file(file).await?;
            Ok(retired)
        })?;
        tracing::info!(
            %file,
            dags = retired.len(),
            "the file is gone; its DAGs are deactivated"
        );
        Ok(())
    }
}
