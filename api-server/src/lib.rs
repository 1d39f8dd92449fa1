//! The API server: Airflow's REST API v2 and login, and the gRPC control plane.
//!
//! It never loads user code, and never decides what runs next: it reads and changes the store, and hints to the
//! schedulers that something changed.

mod backfill;
mod clearing;
mod control;
mod foreign_timetable;
mod login_guard;
mod logs;
mod params;
mod partitions;
mod rest;
mod revoked;
mod serve;
pub mod service;
mod trigger;
mod watch;

pub use backfill::{BackfillDate, BackfillError, BackfillRequest, Reprocess, create_backfill, dry_run};
pub use clearing::{ClearChoice, clear_tasks};
pub use params::check as check_conf;
pub use partitions::{ClearedPartitions, PartitionClearing, clear_partitions};
pub use trigger::{TriggerError, TriggerRequest, trigger_run};

use anyhow::Context;
use bootstrap::Health;
use broker::Broker;
use config::Config;
use identity::{Passwords, Pools, Tokens};
use lifecycle::{Lifecycle, Stop};
use logs::LogFiles;
use std::sync::Arc;
use store::{Cipher, Graphs, Store};
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;
use watch::Watchers;

/// How old may be what is known about other components and about logged-out users.
const REFRESH: std::time::Duration = std::time::Duration::from_secs(2);

/// The Airflow version whose REST API is served.
pub const AIRFLOW_VERSION: &str = "3.3.2";

/// What is known of a DAG, as the REST API shows it.
pub fn dag_facts(dag: &store::repo::DagRecord) -> serde_json::Value {
    rest::dags::response(dag)
}

/// An API server. Clones share everything.
#[derive(Clone)]
pub struct ApiServer {
    app: App,
}

/// What every handler can use.
#[derive(Clone)]
pub(crate) struct App {
    pub(crate) inner: Arc<Inner>,
}

pub(crate) struct Inner {
    pub(crate) config: Config,
    pub(crate) store: Store,
    pub(crate) broker: Arc<dyn Broker>,
    pub(crate) cipher: Cipher,
    pub(crate) tokens: Tokens,
    pub(crate) pools: Pools,
    pub(crate) passwords: Passwords,
    pub(crate) graphs: Graphs,
    pub(crate) logs: LogFiles,
    pub(crate) names: sensitive::Names,
    pub(crate) watchers: Watchers,
    pub(crate) metrics: Box<dyn Fn() -> String + Send + Sync>,
    pub(crate) health: Health,
    pub(crate) revoked: revoked::Revoked,
    pub(crate) logins: login_guard::LoginGuard,
    /// What was last known of the other components.
    pub(crate) parts: rest::Parts,
    /// Lists that wait for their turn.
    pub(crate) sharing: rest::Sharing,
    /// Cancelled when the server wants to end: answers that go on for long end with it.
    pub(crate) closing: CancellationToken,
}

impl std::ops::Deref for App {
    type Target = Inner;
    fn deref(&self) -> &Inner {
        &self.inner
    }
}

impl ApiServer {
    /// An API server with these adapters; `metrics` gives the text of `/metrics`.
    ///
    /// # Errors
    /// When no pool of workers can have a name of `[updraft] worker_pools`.
    pub fn new(
        config: &Config,
        store: Store,
        broker: Arc<dyn Broker>,
        cipher: Cipher,
        tokens: Tokens,
        metrics: impl Fn() -> String + Send + Sync + 'static,
    ) -> anyhow::Result<Self> {
        let pools = Pools::new(&config.api_auth.jwt_secret, &config.updraft.worker_pools)
            .context("[updraft] worker_pools")?;
        let inner = Inner {
            passwords: Passwords::new(&config.core.passwords_file),
            names: sensitive::Names::new(config.core.hide_sensitive, &config.core.sensitive_names),
            logs: LogFiles::new(&config.logging.base_log_folder),
            config: config.clone(),
            store,
            broker,
            cipher,
            tokens,
            pools,
            graphs: Graphs::default(),
            watchers: Watchers::default(),
            metrics: Box::new(metrics),
            health: Health::default(),
            revoked: revoked::Revoked::default(),
            logins: login_guard::LoginGuard::default(),
            parts: rest::Parts::default(),
            sharing: rest::Sharing::default(),
            closing: CancellationToken::new(),
        };
        Ok(Self {
            app: App {
                inner: Arc::new(inner),
            },
        })
    }

    /// Serves the REST API until `end`.
    ///
    /// # Errors
    /// When the listener breaks.
    pub async fn serve_rest(
        self,
        listener: TcpListener,
        lifecycle: Lifecycle,
        end: CancellationToken,
    ) -> anyhow::Result<()> {
        let router = rest::router(self.app.clone());
        let closing = self.app.closing.clone();
        let ending = async {
            end.cancelled().await;
            closing.cancel();
        };
        tokio::select! {
            ((), ()) = async { tokio::join!(serve::serve(listener, router, &lifecycle, end.clone()), ending) } => {}
            () = self.keep_up_to_date() => {}
        }
        Ok(())
    }

    /// Reads again and again what every request needs, and none is to wait for: which tokens are good no more, and how the
    /// other components are.
    async fn keep_up_to_date(&self) {
        loop {
            if let Err(error) = revoked::refresh(&self.app).await {
                tracing::warn!("it cannot be read who has logged out: {error}");
            }
            self.app.parts.refresh(&self.app).await;
            tokio::time::sleep(REFRESH).await;
        }
    }

    /// Serves the gRPC control plane until `end`; answers that go on for long are parts of `lifecycle`, and end with it.
    ///
    /// # Errors
    /// When the listener breaks.
    pub async fn serve_control(
        self,
        listener: TcpListener,
        lifecycle: Lifecycle,
        end: CancellationToken,
    ) -> anyhow::Result<()> {
        control::serve(self.app, listener, lifecycle, end).await
    }

    /// Passes hints on to those who watch runs, until told to stop.
    ///
    /// # Errors
    /// When hints can never be listened to.
    pub async fn pass_hints_on(self, stop: Stop) -> anyhow::Result<()> {
        let mut hints = self.app.broker.hints().await?;
        loop {
            tokio::select! {
                () = stop.draining().cancelled() => return Ok(()),
                hint = hints.next() => self.app.watchers.tell(&hint),
            }
        }
    }
}

/// An RFC 3339 instant.
pub(crate) fn rest_instant(text: &str) -> Option<model::Timestamp> {
    chrono::DateTime::parse_from_rfc3339(text)
        .ok()
        .map(|at| at.to_utc())
}
