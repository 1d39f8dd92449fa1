//! Signs of life: this scheduler's own, and those of workers.

use crate::Shared;
use chrono::Utc;
use lifecycle::Stop;
use model::WorkerId;
use model::task_instance::LossCause;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;
use store::StoreError;
use store::repo::{LossLimits, LostTask};
use telemetry::metric;
use tokio::time::Instant;

const TURN: Duration = Duration::from_secs(2);
/// A scheduler that was silent for so long does not count as living.
const SILENCE: Duration = Duration::from_secs(10);
/// With at least so many workers, the loss of more than a third of them at once looks like our own fault.
const CROWD: usize = 4;

/// Watches until told to stop.
pub(crate) async fn watch(shared: Arc<Shared>, stop: Stop) {
    let lease = shared.config.scheduler.worker_lease;
    let mut last = Instant::now();
    let mut grace_until = Instant::now();
    loop {
        // After an outage of the database (or of ourselves), workers could not renew their leases either.
        if last.elapsed() > TURN + lease / 3 {
            tracing::warn!("the database was out of reach; workers get one more lease");
            grace_until = Instant::now() + lease;
        }
        match shared.turn(Instant::now() >= grace_until).await {
            Ok(verdict) => {
                last = Instant::now();
                if verdict == Verdict::Suspicious {
                    grace_until = last + lease;
                }
            }
            Err(error) => tracing::warn!("leases could not be looked at, trying again: {error}"),
        }
        tokio::select! {
            () = stop.draining().cancelled() => return,
            () = tokio::time::sleep(TURN) => {}
        }
    }
}

#[derive(PartialEq, Eq)]
enum Verdict {
    Fine,
    Suspicious,
}

impl Shared {
    async fn turn(&self, may_expire: bool) -> Result<Verdict, StoreError> {
        let (hostname, now) = (bootstrap::hostname(), Utc::now());
        let living = store::transact!(self.store, "scheduler heartbeat", |tx| {
            tx.beat(self.id, "scheduler", &hostname, now).await?;
            tx.living("scheduler", SILENCE).await
        })?;
        let place = living.iter().position(|id| *id == self.id).unwrap_or(0);
        let rank = i64::try_from((place << 32) | living.len().max(1)).unwrap_or(1);
        self.rank.store(rank, Ordering::Relaxed);

        let mut db = self.store.reader().await?;
        let (expired, alive) = db.expired_workers().await?;
        let left_over = db.tasks_of_gone_workers().await?;
        drop(db);
        if !left_over.is_empty() {
            self.lose(left_over, &LossCause::WorkerGone).await?;
        }
        if expired.is_empty() || !may_expire {
            return Ok(Verdict::Fine);
        }
        if alive >= CROWD && expired.len() * 3 > alive {
            tracing::error!(
                expired = expired.len(),
                alive,
                "many leases ran out at once; giving all one more lease"
            );
            return Ok(Verdict::Suspicious);
        }
        for worker in expired {
            let lost = store::transact!(self.store, "expire worker", |tx| {
                if tx.expire_worker(worker).await? {
                    tx.tasks_of_worker(worker).await
                } else {
                    Ok(Vec::new())
                }
            })?;
            metrics::counter!(metric::LEASES_EXPIRED).increment(1);
            tracing::warn!(%worker, tasks = lost.len(), "a worker's lease ran out");
            self.lose(lost, &LossCause::WorkerLost).await?;
        }
        Ok(Verdict::Fine)
    }

    /// A worker died, and nothing that it started is left.
    pub(crate) async fn bury(&self, worker: WorkerId) -> Result<(), StoreError> {
        let lost = store::transact!(self.store, "bury worker", |tx| {
            tx.retire_worker(worker).await?;
            tx.tasks_of_worker(worker).await
        })?;
        self.lose(lost, &LossCause::WorkerDied).await
    }

    /// Loses what one worker held.
    async fn lose(&self, mut lost: Vec<LostTask>, cause: &LossCause) -> Result<(), StoreError> {
        let limits = LossLimits {
            infra_retries: self.config.updraft.infra_retries,
            worker_losses: self.config.updraft.worker_losses,
            start_retries: self.config.updraft.start_retries,
        };
        LostTask::accuse(&mut lost, cause, limits);
        let now = Utc::now();
        for task in &lost {
            let one = std::slice::from_ref(task);
            let runs = store::transact!(self.store, "lose task", |tx| tx
                .lose_all(&self.graphs, one, limits, cause, now)
                .await)?;
            metrics::counter!(metric::TASKS_LOST).increment(runs.len() as u64);
            for key in runs {
                self.dirty.add(key);
            }
        }
        Ok(())
    }
}
