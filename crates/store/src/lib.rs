//! The metadata store.
//!
//! One SQL for MariaDB and SQLite, written once in `repo/`, on a small port ([`sql`]) that two drivers implement.
//! [`Store::reader`] gives reads, [`transact!`] gives read-write transactions; both hand out a [`Tx`], whose methods are
//! the repositories.
//!
//! Invariants:
//! - every change of a state is a guarded update whose affected rows are checked;
//! - claims read one table along the index that gives their order, and skip what others hold;
//! - locks are taken in the order dag, dag_run, task_instance, slot_pool, and task instances of other runs only
//!   skipping locked ones;
//! - leases are judged by the database's clock alone.

mod cipher;
mod counts;
mod driver;
mod error;
mod graphs;
pub mod limits;
mod marks;
mod migrate;
pub mod repo;
mod schema;
pub mod side_document;
pub mod sql;
mod unit_of_work;

pub use cipher::Cipher;
pub use error::StoreError;
pub use graphs::{Graph, Graphs};
pub use migrate::SchemaState;
pub use unit_of_work::{Attempts, Tx};

use sql::{Driver, Mode};
use std::path::Path;
use std::sync::Arc;

/// Seconds that a statement of a list may take.
pub const LIST_SECONDS: u64 = 10;

/// Seconds that a list may wait for a connection.
pub const LIST_PATIENCE: u64 = 30;

/// A metadata store; clones share their connections.
#[derive(Clone)]
pub struct Store {
    driver: Arc<dyn Driver>,
    counts: Arc<counts::Counts>,
    marks: Arc<marks::Marks>,
}

impl Store {
    /// Opens (or creates) a SQLite database.
    ///
    /// # Errors
    /// When the file cannot be opened.
    pub async fn open_sqlite(path: &Path) -> Result<Self, StoreError> {
        Ok(Self {
            driver: Arc::new(driver::sqlite::SqliteDriver::open(path).await?),
            counts: Arc::default(),
            marks: Arc::default(),
        })
    }

    /// Connects to MariaDB with at most so many connections.
    ///
    /// # Errors
    /// When the server cannot be reached, or is set to forget acknowledged commits.
    pub async fn open_mariadb(url: &str, connections: u32) -> Result<Self, StoreError> {
        Ok(Self {
            driver: Arc::new(driver::mariadb::MariaDbDriver::open(url, connections).await?),
            counts: Arc::default(),
            marks: Arc::default(),
        })
    }

    pub(crate) fn driver(&self) -> &dyn Driver {
        &*self.driver
    }

    /// A session for reads, each statement by itself.
    ///
    /// # Errors
    /// When no connection can be had.
    pub async fn reader(&self) -> Result<Tx, StoreError> {
        Tx::open(self.driver(), Mode::Read).await
    }

    /// A session for lists that people ask for. Its connections are kept for lists alone, and none of its statements
    /// takes longer than [`LIST_SECONDS`]: slow lists keep nobody else waiting.
    ///
    /// # Errors
    /// When no connection can be had; then or later, [`StoreError::TooSlow`].
    pub async fn lister(&self) -> Result<Tx, StoreError> {
        let mut lister = Tx::open(self.driver(), Mode::List).await?;
        lister.keep_counts(self.counts.clone(), self.marks.clone());
        Ok(lister)
    }

    /// Closes all connections.
    pub async fn close(&self) {
        self.driver.close().await;
    }
}
