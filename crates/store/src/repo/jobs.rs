//! Which schedulers and DAG processors are alive.

use super::news::{Hooks, News};
use crate::sql::Row;
use crate::unit_of_work::Tx;
use crate::{StoreError, params};
use model::{Timestamp, WorkerId};
use std::time::Duration;

/// A component's present life.
#[derive(Debug, Clone)]
pub struct JobRecord {
    /// Identity of this life.
    pub id: WorkerId,
    /// `scheduler`, `dag_processor`, `triggerer`.
    pub kind: String,
    /// Its last sign of life, by the database's clock.
    pub heartbeat_at: Timestamp,
}

impl Tx {
    /// A sign of life; the first one registers the component, and listeners are to be told.
    ///
    /// # Errors
    /// As the database says.
    pub async fn beat(
        &mut self,
        id: WorkerId,
        kind: &str,
        hostname: &str,
        now: Timestamp,
    ) -> Result<(), StoreError> {
        let (here, head) = (self.dialect().now(), self.dialect().insert_ignore());
        let sql = format!(
            "{head} job (id, kind, hostname, state, started_at, heartbeat_at) VALUES (?, ?, ?, 'running', {here}, {here})"
        );
        if self.execute(&sql, params![id, kind, hostname]).await?.rows == 1 {
            return self.tell_of_job((kind, hostname), true, now).await;
        }
        let sql = format!("UPDATE job SET heartbeat_at = {here}, state = 'running' WHERE id = ?");
        self.execute(&sql, params![id]).await.map(|_| ())
    }

    /// Notes that a component ends, and that listeners are to be told.
    ///
    /// # Errors
    /// As the database says.
    pub async fn end_job(&mut self, id: WorkerId, now: Timestamp) -> Result<(), StoreError> {
        let sql = "SELECT kind, hostname FROM job WHERE id = ? AND state = 'running'";
        let Some(mut row) = self.query_one(sql, params![id]).await? else {
            return Ok(());
        };
        let (kind, hostname): (String, String) = (row.next()?, row.next()?);
        let sql = "UPDATE job SET state = 'ended' WHERE id = ? AND state = 'running'";
        if self.execute(sql, params![id]).await?.rows == 1 {
            self.tell_of_job((&kind, &hostname), false, now).await?;
        }
        Ok(())
    }

    async fn tell_of_job(
        &mut self,
        (kind, hostname): (&str, &str),
        begins: bool,
        now: Timestamp,
    ) -> Result<(), StoreError> {
        let news = News::Component {
            begins,
            kind,
            hostname,
        };
        // Which hooks there are may not be known yet when the first components begin.
        self.tell(&Hooks::of_components(), &news, now).await
    }

    /// The latest life of each kind of component.
    ///
    /// # Errors
    /// As the database says.
    pub async fn latest_jobs(&mut self) -> Result<Vec<JobRecord>, StoreError> {
        let sql = "SELECT id, kind, heartbeat_at FROM job WHERE state = 'running' ORDER BY heartbeat_at DESC LIMIT 100";
        let read = |mut row: Row| {
            Ok(JobRecord {
                id: row.next()?,
                kind: row.next()?,
                heartbeat_at: row.next()?,
            })
        };
        self.query(sql, &[]).await?.into_iter().map(read).collect()
    }

    /// Components of a kind that gave a sign of life within `within`, by id.
    ///
    /// # Errors
    /// As the database says.
    pub async fn living(&mut self, kind: &str, within: Duration) -> Result<Vec<WorkerId>, StoreError> {
        let now = self.dialect().now();
        let sql = format!(
            "SELECT id FROM job WHERE kind = ? AND state = 'running' AND heartbeat_at > {now} - ? ORDER BY id"
        );
        let within = i64::try_from(within.as_micros()).unwrap_or(i64::MAX);
        self.query(&sql, params![kind, within])
            .await?
            .into_iter()
            .map(|mut row| row.next())
            .collect()
    }

    /// A value kept for the installation as a whole, if it has been made.
    ///
    /// # Errors
    /// As the database says.
    pub async fn known_setting(&mut self, name: &str) -> Result<Option<String>, StoreError> {
        let sql = "SELECT value FROM setting WHERE name = ?";
        self.query_one(sql, params![name])
            .await?
            .map(|mut row| row.next())
            .transpose()
    }

    /// A value kept for the installation as a whole, made with `make` at first use.
    ///
    /// # Errors
    /// As the database says.
    pub async fn setting(
        &mut self,
        name: &str,
        make: &(dyn Fn() -> String + Sync),
    ) -> Result<String, StoreError> {
        let head = self.dialect().insert_ignore();
        let sql = format!("{head} setting (name, value) VALUES (?, ?)");
        self.execute(&sql, params![name, make()]).await?;
        let row = self
            .query_one("SELECT value FROM setting WHERE name = ?", params![name])
            .await?;
        row.ok_or_else(|| StoreError::Inconsistent(format!("setting {name} vanished")))?
            .next()
    }
}
