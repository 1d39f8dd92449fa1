//! Registering, and staying registered.

use crate::Shared;
use backoff::Backoff;
use lifecycle::Stop;
use model::{ClaimEpoch, WorkerId};
use processes::lease::BootInstant;
use std::sync::Arc;
use std::time::Duration;
use tonic::Code;

/// Part of a lease after which the worker fences itself if nobody acknowledged a heartbeat.
const FENCE: f64 = 0.75;

/// Registers a new life of this worker; tries until it succeeds. Returns the lease.
pub(crate) async fn register(shared: &Shared) -> Duration {
    // What an earlier life of this worker left running must not run beside its next try.
    shared
        .watchdog
        .sweep_earlier(&shared.name, &shared.engines.all())
        .await;
    // By registering, the claims of earlier lives end; what these have in hand is told before.
    shared.spool.deliver_earlier(&shared.control).await;
    let mut backoff = Backoff::new(Duration::from_millis(200), crate::LONGEST_PAUSE);
    let mut told = String::new();
    loop {
        let id = WorkerId::new(uuid::Uuid::now_v7());
        let sent = BootInstant::now();
        match shared.control.register(shared, id).await {
            Ok(reply) => {
                let lease = Duration::from_secs(u64::from(reply.lease_seconds.max(1)));
                shared.set_id(id);
                let until = sent.after(lease.mul_f64(FENCE));
                shared.lease.begin(until);
                shared.keep_lease(id, until);
                return lease;
            }
            Err(status) => {
                // Each reason once: a control plane that is away may refuse us when it is back.
                if told != status.message() {
                    tracing::warn!(
                        "cannot register with the control plane at {}, trying again: {status}",
                        shared.config.updraft.control_plane
                    );
                    told = status.message().to_owned();
                }
                backoff.pause().await;
            }
        }
    }
}

impl Shared {
    /// The control plane said that this worker lives: passes it on to all who ask.
    fn keep_lease(&self, id: WorkerId, deadline: BootInstant) {
        // One that takes no tasks is not healthy, however well it is heard.
        match self.wellness.problem() {
            Some(problem) => self.health.unwell(problem),
            None => self.health.completed(),
        }
        self.lease.keep(deadline);
        self.watchdog
            .renew(deadline, self.control.farewell(id), self.engines.all());
    }
}

/// Renews the lease until told to stop.
pub(crate) async fn beat(shared: Arc<Shared>, mut lease: Duration, stop: Stop) {
    loop {
        let anew = tokio::select! {
            () = tokio::time::sleep(lease / 6) => false,
            () = shared.running.pressing() => false,
            () = shared.register.notified() => true,
        };
        if anew {
            lease = start_over(&shared).await;
            continue;
        }
        let sent = BootInstant::now();
        let draining = stop.draining().is_cancelled();
        let named = shared.running.begin_beat();
        let unwell = shared.wellness.problem();
        match shared
            .control
            .heartbeat(shared.id(), draining, &named, unwell)
            .await
        {
            Ok(reply) if reply.alive => {
                shared.running.forget_lost(&named.lost);
                shared.keep_lease(shared.id(), sent.after(lease.mul_f64(FENCE)));
                for claim in reply.stop {
                    // One that ended while the heartbeat was under way is no longer there.
                    if let Ok(id) = claim.task_instance_id.parse()
                        && shared.running.stop(id, ClaimEpoch(claim.epoch))
                    {
                        tracing::info!(task_instance = %id, "this task is not to run any more; stopping it");
                    }
                }
            }
            Ok(_) if draining => {}
            Ok(_) => {
                tracing::warn!("the lease has run out; stopping everything and registering anew");
                lease = start_over(&shared).await;
            }
            Err(status) if status.code() == Code::Unauthenticated && !draining => {
                // It is good for longer than the lease, so all that ran has been stopped.
                tracing::warn!(
                    "the worker's token has run out; stopping everything and registering anew: {status}"
                );
                lease = start_over(&shared).await;
            }
            Err(status) => {
                tracing::warn!("a heartbeat was not acknowledged: {status}");
                if !named.lost.is_empty() {
                    // It is named again, but not in a hurry.
                    tokio::time::sleep(Duration::from_secs(1)).await;
                }
            }
        }
    }
}

/// The claims of the present life are void: stops what runs, then begins a new life.
async fn start_over(shared: &Shared) -> Duration {
    shared.lease.end();
    shared.running.give_up();
    tokio::time::timeout(Duration::from_secs(10), shared.running.empty())
        .await
        .ok();
    let lease = register(shared).await;
    shared.running.resume();
    lease
}
