//! Workers and their leases.

use crate::unit_of_work::Tx;
use crate::{StoreError, params};
use model::{Timestamp, WorkerId};
use std::time::Duration;

/// A worker's present life.
#[derive(Debug, Clone)]
pub struct WorkerRecord {
    /// Identity of this life.
    pub id: WorkerId,
    /// Name, the same after a restart.
    pub name: String,
    /// Its machine.
    pub hostname: String,
    /// Queues that it serves.
    pub queues: Vec<String>,
    /// Tasks that it runs at the same time.
    pub concurrency: u32,
    /// Triggers that it runs at the same time.
    pub trigger_capacity: u32,
    /// Its public key, as text.
    pub key: String,
    /// The pool whose join token it has.
    pub pool: String,
}

/// What became of a registration.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Registered {
    /// The life has begun; these earlier lives of the worker ended by it.
    Begun(Vec<WorkerId>),
    /// A worker with another key lives under this name, or the life is another's or has ended. Nothing was changed.
    NameTaken,
}

pub(super) fn micros(duration: Duration) -> i64 {
    i64::try_from(duration.as_micros()).unwrap_or(i64::MAX)
}

impl Tx {
    /// Registers a worker's new life. Earlier lives of the same name end by this, since the worker stops everything that
    /// they left running before it registers. Where one of them still lives, only the worker with the same key may do so.
    ///
    /// # Errors
    /// As the database says.
    pub async fn register_worker(
        &mut self,
        worker: &WorkerRecord,
        lease: Duration,
    ) -> Result<Registered, StoreError> {
        let (now, lock) = (self.dialect().now(), self.dialect().for_update());
        let sql = format!("SELECT name, worker_key, state <> 'gone' FROM worker WHERE id = ?{lock}");
        if let Some(mut row) = self.query_one(&sql, params![worker.id]).await? {
            let (name, key): (String, Option<String>) = (row.next()?, row.next()?);
            let lives: bool = row.next()?;
            if !lives || name != worker.name || key.as_ref() != Some(&worker.key) {
                return Ok(Registered::NameTaken);
            }
        }
        self.write_worker(worker, lease).await?;
        // Read after writing and with locks: of two that register at the same time, one sees the other.
        let sql = format!(
            "SELECT id, worker_key, lease_expires_at >= {now} FROM worker WHERE name = ? \
             AND state IN ('active', 'draining') AND id <> ?{lock}"
        );
        let mut earlier = Vec::new();
        for mut row in self.query(&sql, params![&worker.name, worker.id]).await? {
            let (id, key, lives): (WorkerId, Option<String>, bool) = (row.next()?, row.next()?, row.next()?);
            if lives && key.is_some_and(|key| key != worker.key) {
                self.execute("DELETE FROM worker WHERE id = ?", params![worker.id])
                    .await?;
                return Ok(Registered::NameTaken);
            }
            earlier.push(id);
        }
        for id in &earlier {
            self.execute("UPDATE worker SET state = 'gone' WHERE id = ?", params![*id])
                .await?;
        }
        Ok(Registered::Begun(earlier))
    }

    async fn write_worker(&mut self, worker: &WorkerRecord, lease: Duration) -> Result<(), StoreError> {
        let now = self.dialect().now();
        let tail = self
            .dialect()
            .on_duplicate("id", &["state", "seen_at", "lease_expires_at"]);
        let sql = format!(
            "INSERT INTO worker (id, name, hostname, queues, concurrency, trigger_capacity, worker_key, worker_pool, state, \
             registered_at, seen_at, lease_expires_at) \
             VALUES (?, ?, ?, ?, ?, ?, ?, ?, 'active', {now}, {now}, {now} + ?){tail}"
        );
        let queues = serde_json::to_string(&worker.queues).unwrap_or_else(|_| "[]".to_owned());
        let values = params![
            worker.id,
            &worker.name,
            &worker.hostname,
            queues,
            worker.concurrency,
            worker.trigger_capacity,
            &worker.key,
            &worker.pool,
            micros(lease)
        ];
        self.execute(&sql, values).await.map(|_| ())
    }

    /// Returns `true` if that life of a worker has not ended.
    ///
    /// # Errors
    /// As the database says.
    pub async fn worker_lives(&mut self, id: WorkerId) -> Result<bool, StoreError> {
        Ok(self.worker_name(id).await?.is_some())
    }

    /// Ends a worker's life: it left, or its lease ran out. Whether it was alive.
    ///
    /// # Errors
    /// As the database says.
    pub async fn retire_worker(&mut self, id: WorkerId) -> Result<bool, StoreError> {
        let sql = "UPDATE worker SET state = 'gone' WHERE id = ? AND state IN ('active', 'draining')";
        Ok(self.execute(sql, params![id]).await?.rows == 1)
    }

    /// Ends a worker's life if its lease has run out by the database's clock. Whether it had.
    ///
    /// # Errors
    /// As the database says.
    pub async fn expire_worker(&mut self, id: WorkerId) -> Result<bool, StoreError> {
        let now = self.dialect().now();
        let sql = format!(
            "UPDATE worker SET state = 'gone' WHERE id = ? AND state IN ('active', 'draining') AND lease_expires_at < {now}"
        );
        Ok(self.execute(&sql, params![id]).await?.rows == 1)
    }

    /// Workers whose lease has run out, and how many are alive in all.
    ///
    /// # Errors
    /// As the database says.
    pub async fn expired_workers(&mut self) -> Result<(Vec<WorkerId>, usize), StoreError> {
        let now = self.dialect().now();
        let sql =
            format!("SELECT id, lease_expires_at < {now} FROM worker WHERE state IN ('active', 'draining')");
        let rows = self.query(&sql, &[]).await?;
        let alive = rows.len();
        let mut expired = Vec::new();
        for mut row in rows {
            let id = row.next()?;
            if row.next::<bool>()? {
                expired.push(id);
            }
        }
        Ok((expired, alive))
    }

    /// The last sign of life of those that run triggers.
    ///
    /// # Errors
    /// As the database says.
    pub async fn triggerers_seen(&mut self) -> Result<Option<Timestamp>, StoreError> {
        let sql = "SELECT MAX(seen_at) FROM worker WHERE state = 'active' AND trigger_capacity > 0";
        self.query_one(sql, &[])
            .await?
            .map_or(Ok(None), |mut row| row.next())
    }

    /// The name of a worker that is not gone.
    pub(super) async fn worker_name(&mut self, id: WorkerId) -> Result<Option<String>, StoreError> {
        let sql = "SELECT name FROM worker WHERE id = ? AND state <> 'gone'";
        let row = self.query_one(sql, params![id]).await?;
        row.map(|mut row| row.next()).transpose()
    }
}
