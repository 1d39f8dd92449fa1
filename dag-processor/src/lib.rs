//! The DAG processor: finds DAG files, has each parsed in a Python child, and stores what they hold.
//!
//! An unchanged file is not parsed again, not even after a restart: what was parsed is known by a fingerprint of the file
//! and of the modules beside it that it imports. A file that hangs, dies or eats memory harms only itself.

mod answers;
mod callbacks;
mod deadlines;
mod files;
mod mutations;
mod news;
mod outcome;
mod partitions;
pub mod service;
mod timetables;
mod watch;

use anyhow::Context;
use bootstrap::Health;
use broker::Broker;
use chrono::Utc;
use config::Config;
use files::{DagFile, Fingerprints};
use lifecycle::{Kind, Lifecycle, Stop};
use model::WorkerId;
use outcome::FileOutcome;
use python::{Bundle, ForkServer, ParseFailure, ParseLimits, ParseRequest, parse_file};
use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use std::time::{Duration, Instant};
use store::repo::FileRecord;
use store::{Cipher, Store, StoreError};
use telemetry::metric;
use tokio::task::JoinSet;

const HEARTBEAT: Duration = Duration::from_secs(5);
/// How long a change is given to settle: editors and `git pull` touch files several times.
const SETTLE: Duration = Duration::from_millis(150);
/// Time beyond that of a file after which another DAG processor may take over what this one has in hand.
const SPARE: Duration = Duration::from_secs(30);
/// Wait after Python itself could not be used.
const PYTHON_AWAY: Duration = Duration::from_secs(5);

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
            python,
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
        let beating = beat(Arc::clone(&self.shared), stop());
        let beating = lifecycle.spawn("dag processor heartbeat", Kind::Service, beating);
        let worked = self.work(&stop()).await;
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

    async fn work(&self, stop: &Stop) -> anyhow::Result<()> {
        let bundles = self.shared.python.config().bundles.clone();
        for bundle in &bundles {
            std::fs::create_dir_all(&bundle.path)
                .with_context(|| format!("cannot make the DAG folder {}", bundle.path.display()))?;
        }
        let (mut changes, watching) = watch::start(&bundles);
        let refresh = self.shared.config.dag_processor.refresh_interval;
        let interval = if watching {
            refresh
        } else {
            refresh.min(self.shared.config.dag_processor.min_file_process_interval)
        };
        let mut fingerprints = Fingerprints::default();
        let mut pause = Duration::ZERO;
        loop {
            tokio::select! {
                () = stop.draining().cancelled() => return Ok(()),
                () = tokio::time::sleep(pause) => {}
                () = changes.changed() => tokio::time::sleep(SETTLE).await,
            }
            let turn = self.turn(&bundles, &mut fingerprints);
            let done = tokio::select! {
                done = turn => done,
                () = stop.draining().cancelled() => return Ok(()),
            };
            pause = match done {
                Ok(true) => {
                    self.health.completed();
                    interval
                }
                Ok(false) => PYTHON_AWAY,
                Err(error) => {
                    tracing::warn!("DAG files could not be processed, trying again: {error:#}");
                    PYTHON_AWAY
                }
            };
        }
    }

    /// One look at all files. False when Python could not be used.
    async fn turn(&self, bundles: &[Bundle], fingerprints: &mut Fingerprints) -> anyhow::Result<bool> {
        let shared = &self.shared;
        let known: HashMap<String, FileRecord> = shared
            .store
            .reader()
            .await?
            .files()
            .await?
            .into_iter()
            .map(|file| (file.path.clone(), file))
            .collect();
        let found = files::find(bundles);
        let present: HashSet<&str> = found.iter().map(|file| file.relative.as_str()).collect();
        for gone in known.keys().filter(|path| !present.contains(path.as_str())) {
            shared.forget(gone).await?;
        }
        let mut parsing = JoinSet::new();
        let mut python_works = true;
        for file in found {
            let record = known.get(&file.relative);
            let imports = record
                .map(|record| files::imports_of(&record.imports))
                .unwrap_or_default();
            let fingerprint = fingerprints.of(&file, &imports);
            if record.is_some_and(|record| record.fingerprint == fingerprint) {
                continue;
            }
            while parsing.len() >= shared.config.dag_processor.parsing_processes {
                python_works &= joined(parsing.join_next().await)?;
            }
            if !python_works {
                break;
            }
            parsing.spawn(Arc::clone(shared).parse(file));
        }
        while !parsing.is_empty() {
            python_works &= joined(parsing.join_next().await)?;
        }
        Ok(python_works)
    }
}

fn joined(ended: Option<Result<anyhow::Result<bool>, tokio::task::JoinError>>) -> anyhow::Result<bool> {
    match ended {
        None => Ok(true),
        Some(ended) => ended.context("parsing a file broke")?,
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

    /// Parses one file and stores what came of it. False when Python could not be used, which is no fault of the file.
    async fn parse(self: Arc<Self>, file: DagFile) -> anyhow::Result<bool> {
        let request = ParseRequest {
            file: file.path.clone(),
            bundle: file.bundle.clone(),
            limits: self.limits(),
            instead: None,
        };
        let begin = Instant::now();
        let parsed = parse_file(&self.python, &request, |question| self.answer(question)).await;
        let seconds = begin.elapsed().as_secs_f64();
        metrics::histogram!(metric::PARSE_SECONDS).record(seconds);
        let outcome = match parsed {
            Ok(parsed) => FileOutcome::read(&file, parsed, seconds, &self.config, &self.cipher),
            Err(ParseFailure::Python(error)) => {
                tracing::error!(file = %file.relative, "{error}");
                return Ok(false);
            }
            Err(failure @ ParseFailure::Lost) => FileOutcome::failed(&file, failure.to_string()).for_now(),
            Err(failure) => FileOutcome::failed(&file, failure.to_string()),
        };
        let word = if outcome.errors.is_empty() {
            "ok"
        } else {
            "import_error"
        };
        metrics::counter!(metric::FILES_PARSED, "outcome" => word).increment(1);
        for error in outcome.errors.values() {
            tracing::warn!(file = %file.relative, "import error: {}", outcome::summary(error));
        }
        self.save(&file, outcome, seconds).await?;
        Ok(true)
    }

    /// Deals with a file that is gone.
    async fn forget(&self, relative: &str) -> anyhow::Result<()> {
        let now = chrono::Utc::now();
        let retired = store::transact!(self.store, "forget file", |tx| {
            let retired = tx.retire_missing_dags(relative, &[], now).await?;
            tx.set_import_error(relative, "", "", None, now).await?;
            tx.forget_file(relative).await?;
            Ok(retired)
        })?;
        tracing::info!(
            file = relative,
            dags = retired.len(),
            "the file is gone; its DAGs are deactivated"
        );
        Ok(())
    }
}
