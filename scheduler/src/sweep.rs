//! The safety net: finds what hints and timers missed.

use crate::Shared;
use chrono::Utc;
use lifecycle::Stop;
use std::sync::Arc;
use std::time::Duration;
use store::StoreError;
use telemetry::metric;

const TURN: Duration = Duration::from_secs(1);
/// A run event this old was not acted upon through its hint.
const OVERLOOKED: chrono::Duration = chrono::Duration::milliseconds(800);
/// Turns between two looks at every running run.
const FULL_EVERY: u64 = 60;
const BATCH: i64 = 500;

/// Sweeps until told to stop.
pub(crate) async fn sweeper(shared: Arc<Shared>, stop: Stop) {
    // The first turn looks at everything: nobody knows what happened before we came.
    let mut turn = 0;
    loop {
        match shared.sweep(turn % FULL_EVERY == 0).await {
            Ok(()) => {
                turn += 1;
                shared.health.completed();
                #[expect(clippy::cast_precision_loss, reason = "seconds since 1970 are far below 2^52")]
                metrics::gauge!(metric::LAST_SWEEP).set(Utc::now().timestamp() as f64);
            }
            Err(error) => tracing::warn!("the sweep did not complete, trying again: {error}"),
        }
        tokio::select! {
            () = stop.draining().cancelled() => return,
            () = tokio::time::sleep(TURN) => {}
        }
    }
}

impl Shared {
    async fn sweep(&self, full: bool) -> Result<(), StoreError> {
        let now = Utc::now();
        let mut db = self.store.reader().await?;
        let mut runs = db.overlooked_runs(now - OVERLOOKED, BATCH).await?;
        runs.extend(db.runs_with_due_tasks(now, BATCH).await?);
        for id in db.unanswered(now, BATCH).await? {
            let run = store::transact!(self.store, "give up asking", |tx| tx
                .give_up_asking(id, now)
                .await)?;
            runs.extend(run);
        }
        let exhausted = db.exhausted_backfills().await?;
        for id in exhausted {
            store::transact!(self.store, "complete backfill", |tx| tx
                .complete_backfill(id, now)
                .await)?;
            tracing::info!(backfill = %id, "the backfill is complete");
        }
        for id in db.passed_deadlines(now, BATCH).await? {
            let run = store::transact!(self.store, "miss deadline", |tx| tx.miss_deadline(id, now).await)?;
            if let Some(run) = run {
                tracing::warn!(run = %run, deadline = id, "a run has missed a deadline");
            }
        }
        if full {
            runs.extend(db.running_runs().await?);
        }
        for key in runs {
            self.dirty.add(key);
        }
        Ok(())
    }
}
