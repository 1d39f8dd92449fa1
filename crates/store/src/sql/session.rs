//! What a driver offers: sessions that run statements, in a transaction or without one.

use super::{Dialect, Row, Value};
use crate::StoreError;
use async_trait::async_trait;

/// What a session is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Mode {
    /// Reads of committed data, each statement by itself.
    Read,
    /// The same for lists, on connections of their own and with a limit of time.
    List,
    /// One read-write transaction.
    Write,
}

/// What a statement did.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Affected {
    /// Rows that matched.
    pub rows: u64,
    /// Key of the row that was inserted last, where the table counts its keys.
    pub last_key: i64,
}

/// One of the two databases.
#[async_trait]
pub trait Driver: Send + Sync {
    /// Which words it understands.
    fn dialect(&self) -> Dialect;

    /// Opens a session.
    ///
    /// # Errors
    /// When no connection can be had in time.
    async fn open(&self, mode: Mode) -> Result<Box<dyn Session>, StoreError>;

    /// Closes all connections.
    async fn close(&self);
}

/// A connection in use. Dropping it without [`Session::commit`] undoes a transaction, whatever state it is in:
/// the connection is closed rather than handed on.
#[async_trait]
pub trait Session: Send {
    /// Runs a statement that returns no rows.
    ///
    /// # Errors
    /// As the database says.
    async fn execute(&mut self, sql: &str, params: &[Value]) -> Result<Affected, StoreError>;

    /// Runs a statement that returns rows.
    ///
    /// # Errors
    /// As the database says.
    async fn query(&mut self, sql: &str, params: &[Value]) -> Result<Vec<Row>, StoreError>;

    /// Ends the transaction; a read session just gives its connection back.
    ///
    /// # Errors
    /// When the outcome is unknown or the commit was refused.
    async fn commit(self: Box<Self>) -> Result<(), StoreError>;

    /// Undoes the transaction.
    async fn rollback(self: Box<Self>);
}
