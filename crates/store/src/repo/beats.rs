//! Heartbeats of workers: leases, and claims that one side has and the other has not.

use super::workers::micros;
use crate::sql::Row;
use crate::unit_of_work::Tx;
use crate::{StoreError, params};
use model::task_instance::{BeatNumber, Finding, HeldClaim, NamedClaims};
use model::{ClaimEpoch, TaskInstanceId, WorkerId};
use std::collections::HashSet;
use std::time::Duration;

/// A worker's heartbeat.
#[derive(Debug, Clone)]
pub struct Beat {
    /// The worker's present life.
    pub worker: WorkerId,
    /// `true` if it is to leave, and takes nothing more.
    pub draining: bool,
    /// Why it takes no tasks although it serves its queues; `None` when it is well.
    pub unwell: Option<String>,
    /// What it holds, and what it has asked for.
    pub named: NamedClaims,
}

/// What a heartbeat led to.
#[derive(Debug, Default)]
pub struct HeardBeat {
    /// `true` if the worker's life goes on. Otherwise it must register anew.
    pub alive: bool,
    /// Claims that the worker named and may not go on with.
    pub void: Vec<(TaskInstanceId, ClaimEpoch)>,
    /// Claims that the database has, by what the heartbeat says of them; those of which it says nothing new are left out.
    pub findings: Vec<(HeldClaim, Finding)>,
}

impl Tx {
    /// Renews a lease that has not ended, and compares claims. A heartbeat that is older than the last one changes nothing.
    ///
    /// # Errors
    /// As the database says.
    pub async fn hear_beat(&mut self, beat: &Beat, lease: Duration) -> Result<HeardBeat, StoreError> {
        let now = self.dialect().now();
        let sql = format!(
            "UPDATE worker SET seen_at = {now}, lease_expires_at = {now} + ?, state = ?, unwell = ?, beat = ? \
             WHERE id = ? AND state IN ('active', 'draining') AND COALESCE(beat, 0) <= ?"
        );
        let state = if beat.draining { "draining" } else { "active" };
        let number = beat.named.number.0;
        let values = params![
            micros(lease),
            state,
            beat.unwell.clone(),
            number,
            beat.worker,
            number
        ];
        if self.execute(&sql, values).await?.rows != 1 {
            let sql = "SELECT 1 FROM worker WHERE id = ? AND state IN ('active', 'draining')";
            let alive = self.query_one(sql, params![beat.worker]).await?.is_some();
            return Ok(HeardBeat {
                alive,
                ..HeardBeat::default()
            });
        }
        let held = self.held_claims(beat.worker).await?;
        let running: HashSet<(TaskInstanceId, ClaimEpoch)> = held
            .iter()
            .filter(|(_, runs)| *runs)
            .map(|(claim, _)| (claim.id, claim.epoch))
            .collect();
        let void = beat.named.held.difference(&running).copied().collect();
        let findings = held
            .into_iter()
            .map(|(claim, _)| {
                let finding = claim.compare(&beat.named);
                (claim, finding)
            })
            .filter(|(_, finding)| *finding != Finding::Nothing)
            .collect();
        Ok(HeardBeat {
            alive: true,
            void,
            findings,
        })
    }

    /// The claims of a worker, and whether each may go on: one of a cleared task instance may not.
    async fn held_claims(&mut self, worker: WorkerId) -> Result<Vec<(HeldClaim, bool)>, StoreError> {
        let sql = "SELECT id, claim_epoch, claim_id, COALESCE(claim_beat, 0), unnamed_beat, state = 'running' \
                   FROM task_instance WHERE worker_id = ? AND state IN ('running', 'restarting')";
        let read = |mut row: Row| {
            let claim = HeldClaim {
                id: row.next()?,
                epoch: row.next()?,
                claim_id: row.next()?,
                asked_after: BeatNumber(row.next()?),
                unnamed_since: row.next::<Option<i64>>()?.map(BeatNumber),
            };
            Ok((claim, row.next()?))
        };
        let rows = self.query(sql, params![worker]).await?;
        rows.into_iter().map(read).collect()
    }

    /// Remembers since which heartbeat a claim is not named; `None` when it is named again.
    ///
    /// # Errors
    /// As the database says.
    pub async fn note_unnamed(
        &mut self,
        claim: &HeldClaim,
        since: Option<BeatNumber>,
    ) -> Result<(), StoreError> {
        let sql = "UPDATE task_instance SET unnamed_beat = ? WHERE id = ? AND claim_epoch = ? \
                   AND state IN ('running', 'restarting')";
        // One that ended meanwhile has nothing to be remembered.
        self.execute(sql, params![since.map(|beat| beat.0), claim.id, claim.epoch])
            .await
            .map(|_| ())
    }
}
