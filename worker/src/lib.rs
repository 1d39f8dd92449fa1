//! The worker: takes references to task instances from queues, claims them, runs and supervises them, and tells how
//! they ended.
//!
//! A worker has no database. All it knows comes with a claim, and everything that a running task asks for goes through
//! the control plane. What runs is either a native task (Rust) or a child of the Python fork server.

mod address;
mod claims;
mod containers;
mod control;
mod heartbeat;
mod log;
mod name;
mod native;
mod pass;
mod permission;
mod python_task;
mod run;
mod running;
pub mod service;
mod spool;
pub mod trial;
mod triggers;
pub mod watchdog;
mod wellness;

pub use address::Address;
use bootstrap::Health;
use broker::Broker;
use config::Config;
use containers::Engines;
use control::ControlPlane;
use identity::Membership;
use lifecycle::{Kind, Lifecycle, Stop};
use model::{QueueName, TaskInstanceId, TryNumber, WorkerId};
pub use name::WorkerName;
pub use pass::membership;
use processes::lease::{BootInstant, Lease};
use proto::v1::Ending;
use python::ForkServer;
use python::frames::{FrameReader, Room};
use running::Running;
use spool::Spool;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;
use tokio::sync::{Notify, Semaphore};
use tonic::transport::Channel;
use watchdog::Watchdog;
use wellness::Wellness;

/// What others know a worker's life by.
pub struct Life {
    /// Its name.
    pub name: WorkerName,
    /// Who ends what it started, should it die.
    pub watchdog: Watchdog,
    /// Who asks whether it is well.
    pub health: Health,
}

/// How long tasks get to end when the worker itself must.
const LAST_MOMENTS: Duration = Duration::from_secs(5);
/// How long the watchdog waits for the process to end once the worker has left.
const AFTERWARDS: Duration = Duration::from_secs(60);

/// Pauses between calls of a control plane that is away.
const FIRST_PAUSE: Duration = Duration::from_millis(50);
const LONGEST_PAUSE: Duration = Duration::from_secs(3);

/// A worker. Clones share everything.
#[derive(Clone)]
pub struct Worker {
    shared: Arc<Shared>,
}

pub(crate) struct Shared {
    config: Config,
    name: WorkerName,
    hostname: String,
    unixname: String,
    control: ControlPlane,
    broker: Arc<dyn Broker>,
    /// `None` when there is no Python: then only native tasks can run.
    python: Option<ForkServer>,
    slots: Arc<Semaphore>,
    running: Running,
    wellness: Wellness,
    spool: Spool,
    identity: Mutex<WorkerId>,
    /// Set when the worker must register anew.
    register: Notify,
    /// Set when there may be a trigger to run.
    triggers: Notify,
    watchdog: Watchdog,
    /// What may be started now.
    lease: Lease,
    engines: Engines,
    /// What native tasks heed of the options.
    native: native::Settings,
    /// Memory for large messages of tasks, all together.
    large_frames: Room,
    /// Good while heartbeats are acknowledged.
    health: Health,
}

impl Worker {
    /// A worker with these adapters. `channel` leads to the control plane at `address`.
    pub fn new(
        config: &Config,
        channel: Channel,
        (membership, address): (Membership, Address),
        broker: Arc<dyn Broker>,
        python: Option<ForkServer>,
        life: Life,
    ) -> Self {
        let Life {
            name,
            watchdog,
            health,
        } = life;
        let hostname = name.machine().to_owned();
        let concurrency = config.celery.worker_concurrency as usize;
        let spool = Spool::new(&config.home, name.mark(), membership.clone(), watchdog.clone());
        let shared = Shared {
            spool,
            native: native::Settings::of(config),
            control: ControlPlane::new(channel, membership, address, config.updraft.max_message_bytes),
            large_frames: FrameReader::room_for(4 * config.updraft.max_message_bytes),
            config: config.clone(),
            name,
            hostname,
            unixname: bootstrap::username(),
            broker,
            python,
            slots: Arc::new(Semaphore::new(concurrency)),
            running: Running::default(),
            wellness: Wellness::default(),
            identity: Mutex::new(WorkerId::new(uuid::Uuid::now_v7())),
            register: Notify::new(),
            triggers: Notify::new(),
            lease: watchdog.lease().clone(),
            watchdog,
            engines: Engines::default(),
            health,
        };
        Self {
            shared: Arc::new(shared),
        }
    }

    /// Runs one task: what a pod of the KubernetesExecutor does.
    ///
    /// # Errors
    /// When the task fails, so that the pod is seen to have failed.
    pub async fn run_one(
        self,
        id: TaskInstanceId,
        try_number: TryNumber,
        lifecycle: Lifecycle,
    ) -> anyhow::Result<()> {
        let (shared, stop) = (self.shared, lifecycle.stop().clone());
        let lease = tokio::select! {
            lease = heartbeat::register(&shared) => lease,
            () = stop.draining().cancelled() => return Ok(()),
        };
        let beating = heartbeat::beat(Arc::clone(&shared), lease, stop.clone());
        let beating = lifecycle.spawn("worker heartbeat", Kind::Background, beating);
        let running = claims::run_one(&shared, id, try_number, &stop);
        tokio::pin!(running);
        let ending = tokio::select! {
            ending = &mut running => ending,
            () = stop.draining().cancelled() => {
                // The task goes on while it is waited for.
                let ((), ending) = tokio::join!(shared.drain(&stop), running);
                ending
            }
        };
        beating.abort();
        leave(&shared).await;
        match ending {
            Some(Ending::Failed | Ending::UpForRetry) => anyhow::bail!("the task failed; its log says why"),
            Some(_) | None => Ok(()),
        }
    }

    /// Works until told to stop; then lets running tasks end.
    ///
    /// # Errors
    /// When a queue can never be consumed.
    pub async fn run(self, lifecycle: Lifecycle) -> anyhow::Result<()> {
        let (shared, stop) = (self.shared, lifecycle.stop().clone());
        let lease = tokio::select! {
            lease = heartbeat::register(&shared) => lease,
            () = stop.draining().cancelled() => return Ok(()),
        };
        let beating = heartbeat::beat(Arc::clone(&shared), lease, stop.clone());
        let beating = lifecycle.spawn("worker heartbeat", Kind::Background, beating);
        // Warm before it is needed; and a worker that cannot start tasks takes none.
        let checking = wellness::watch(Arc::clone(&shared));
        let checking = lifecycle.spawn("start check", Kind::Background, checking);
        tracing::info!(name = shared.name.as_str(), queues = ?shared.config.updraft.queues, slots = shared.slots.available_permits(), "worker is ready");
        let mut parts = lifecycle.parts();
        for queue in &shared.config.updraft.queues {
            let queue = QueueName::new(queue.as_str());
            let consuming = claims::consume(Arc::clone(&shared), queue, lifecycle.clone());
            parts.spawn("queue consumer", Kind::Service, consuming);
        }
        if shared.config.triggerer.capacity > 0 {
            let hosting = triggers::host(Arc::clone(&shared), stop.clone());
            parts.spawn("triggers", Kind::Service, hosting);
        }
        stop.draining().cancelled().await;
        // Others take its triggers when it has left.
        parts.ended().await;
        shared.drain(&stop).await;
        checking.abort();
        beating.abort();
        leave(&shared).await;
        Ok(())
    }
}

/// Ends the worker's life in order.
async fn leave(shared: &Shared) {
    shared.lease.end();
    let mut held = shared.running.heard();
    held.retain(|claim| shared.watchdog.has_begun(*claim));
    shared.control.leave(shared.id(), &held).await;
    // Nothing is left to be told of this worker's end.
    shared
        .watchdog
        .renew(BootInstant::now().after(AFTERWARDS), None, shared.engines.all());
    if let Some(python) = &shared.python {
        python.stop().await;
    }
}

impl Shared {
    fn id(&self) -> WorkerId {
        *self.identity.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn set_id(&self, id: WorkerId) {
        *self.identity.lock().unwrap_or_else(PoisonError::into_inner) = id;
    }

    /// Time between SIGTERM and SIGKILL for a task that is being stopped.
    fn kill_patience(&self) -> Duration {
        let usual = self.config.core.killed_task_cleanup_time;
        if self.running.has_given_up() {
            usual.min(LAST_MOMENTS)
        } else {
            usual
        }
    }

    /// What a command of a native task needs of this worker.
    fn surroundings(&self) -> native::Surroundings<'_> {
        native::Surroundings {
            marks: self.watchdog.environment(&self.name).to_vec(),
            patience: Box::new(|| self.kill_patience()),
        }
    }

    /// Waits until no task runs any more, or the grace is over; then stops the rest.
    async fn drain(&self, stop: &Stop) {
        let count = self.running.len();
        if count > 0 {
            tracing::info!(
                count,
                grace = self.config.updraft.drain_grace.as_secs(),
                "waiting for running tasks"
            );
        }
        tokio::select! {
            () = self.running.empty() => return,
            () = stop.now().cancelled() => {}
            () = tokio::time::sleep(self.config.updraft.drain_grace) => {}
        }
        tracing::warn!(
            count = self.running.len(),
            "stopping running tasks; they will be tried again elsewhere"
        );
        self.running.give_up();
        tokio::time::timeout(Duration::from_secs(10), self.running.empty())
            .await
            .ok();
    }
}
