//! The scheduler: creates runs when their time has come, decides what becomes of their tasks, and hands those that may
//! run to the broker.
//!
//! Any number of schedulers work side by side. None owns anything: each piece of work is one short transaction that locks
//! what it decides about. Work is found in three ways: hints from other components (at once), timers (on time), and a
//! sweep of the database (which finds whatever the first two missed).

mod create;
mod dirty;
mod dispatch;
mod leases;
mod outgoing;
mod partitions;
mod plan;
mod pods;
pub mod service;
mod snapshots;
mod sweep;

use bootstrap::Health;
use broker::{Broker, Hint};
use config::Config;
use dirty::DirtyRuns;
use lifecycle::{Kind, Lifecycle, Stop};
use model::WorkerId;
use outgoing::Outgoing;
use pods::PodExecutor;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicI64, Ordering};
use std::time::Duration;
use store::repo::DispatchLimits;
use store::{Graphs, Store};
use tokio::sync::Notify;

/// Runs that are planned at the same time.
const PLANNERS: usize = 4;
/// Time that another scheduler gets to deal with a hint that is rather its business.
const COURTESY: Duration = Duration::from_millis(100);

/// A scheduler. Clones share everything.
#[derive(Clone)]
pub struct Scheduler {
    shared: Arc<Shared>,
}

struct Shared {
    id: WorkerId,
    store: Store,
    broker: Arc<dyn Broker>,
    config: Config,
    graphs: Graphs,
    snapshots: snapshots::Snapshots,
    dirty: DirtyRuns,
    outgoing: Outgoing,
    pods: PodExecutor,
    /// Asks for a look at the runs to be created and started.
    look: Notify,
    /// This scheduler's place among the living ones, and their number: `place << 32 | number`.
    rank: AtomicI64,
    /// Whether listeners of plugins want to hear of runs, as far as is known.
    listens: AtomicBool,
    health: Health,
}

impl Shared {
    fn has_listeners(&self) -> bool {
        self.listens.load(Ordering::Relaxed)
    }

    fn set_listeners(&self, listens: bool) {
        self.listens.store(listens, Ordering::Relaxed);
    }
}

impl Scheduler {
    /// A scheduler with these adapters.
    pub fn new(config: &Config, store: Store, broker: Arc<dyn Broker>, health: Health) -> Self {
        let shared = Shared {
            id: WorkerId::new(uuid::Uuid::now_v7()),
            store,
            broker,
            config: config.clone(),
            graphs: Graphs::default(),
            snapshots: snapshots::Snapshots::default(),
            dirty: DirtyRuns::default(),
            outgoing: Outgoing::default(),
            pods: PodExecutor::default(),
            look: Notify::new(),
            rank: AtomicI64::new(1),
            listens: AtomicBool::new(false),
            health,
        };
        Self {
            shared: Arc::new(shared),
        }
    }

    /// Works until told to stop.
    ///
    /// # Errors
    /// When the broker's hints can never be listened to.
    pub async fn run(self, lifecycle: Lifecycle) -> anyhow::Result<()> {
        let shared = self.shared;
        let stop = || lifecycle.stop().clone();
        let mut parts = lifecycle.parts();
        let mut start = |name: &'static str, work: Work| parts.spawn(name, Kind::Service, work);
        for _ in 0..PLANNERS {
            start("planner", Box::pin(plan::planner(Arc::clone(&shared), stop())));
        }
        start("sweeper", Box::pin(sweep::sweeper(Arc::clone(&shared), stop())));
        start("creator", Box::pin(create::creator(Arc::clone(&shared), stop())));
        start("relay", Box::pin(dispatch::relay(Arc::clone(&shared), stop())));
        start("pod maker", Box::pin(pods::make(Arc::clone(&shared), stop())));
        start(
            "pod upkeep",
            Box::pin(pods::look_after(Arc::clone(&shared), stop())),
        );
        start("leases", Box::pin(leases::watch(Arc::clone(&shared), stop())));
        let listening = listen(Arc::clone(&shared), stop());
        parts.spawn("hint listener", Kind::Service, listening);
        let publishing = dispatch::publisher(Arc::clone(&shared));
        let publishing = lifecycle.spawn("publisher", Kind::Service, publishing);
        parts.ended().await;
        shared.outgoing.close();
        publishing.ended().await;
        shared.say_goodbye().await;
        Ok(())
    }
}

/// What a part of the scheduler does until it is told to stop.
type Work = std::pin::Pin<Box<dyn Future<Output = ()> + Send>>;

/// Takes hints until told to stop.
async fn listen(shared: Arc<Shared>, stop: Stop) -> anyhow::Result<()> {
    let mut hints = shared.broker.hints().await?;
    loop {
        let hint = tokio::select! {
            () = stop.draining().cancelled() => return Ok(()),
            hint = hints.next() => hint,
        };
        match hint {
            Hint::Run(key) if shared.is_mine(key.0) => shared.dirty.add(key),
            Hint::Run(key) => shared.dirty.add_later(key, COURTESY),
            Hint::Dag(_) | Hint::Timetables => shared.look.notify_one(),
        }
    }
}

impl Shared {
    fn limits(&self) -> DispatchLimits {
        DispatchLimits {
            scheduler: self.id,
            parallelism: self.config.core.parallelism,
        }
    }

    /// Whether hints about this run are rather for this scheduler than for another living one.
    fn is_mine(&self, run: i64) -> bool {
        let rank = self.rank.load(std::sync::atomic::Ordering::Relaxed);
        let (place, number) = (rank >> 32, (rank & 0xffff_ffff).max(1));
        run.rem_euclid(number) == place
    }

    async fn say_goodbye(&self) {
        let now = chrono::Utc::now();
        let ended = store::transact!(self.store, "end scheduler", |tx| tx.end_job(self.id, now).await);
        if let Err(error) = ended {
            tracing::warn!("cannot note that this scheduler ended: {error}");
        }
    }
}

/// Ids for new task instances: ordered by time, so that older ones come first in queues.
pub(crate) fn new_task_instance_id() -> model::TaskInstanceId {
    model::TaskInstanceId::new(uuid::Uuid::now_v7())
}
