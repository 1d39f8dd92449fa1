//! What can go wrong between a component and the metadata store.

use thiserror::Error;

/// A store operation that did not happen, or whose outcome is unknown.
#[derive(Debug, Error)]
pub enum StoreError {
    /// The database cannot be reached or refuses service; the operation may be tried again later.
    #[error("the metadata store is unavailable: {detail}")]
    Unavailable {
        /// What the driver said.
        detail: String,
    },
    /// Another transaction was in the way (deadlock, lock time-out); the transaction may be run again at once.
    #[error("the transaction {name} lost against another one: {detail}")]
    Contention {
        /// Name of the transaction.
        name: &'static str,
        /// What the driver said.
        detail: String,
    },
    /// A row with the same key exists.
    #[error("a row with the same key exists: {detail}")]
    Duplicate {
        /// What the driver said.
        detail: String,
    },
    /// What is stored cannot be understood, or is not what was asked for.
    #[error("inconsistent data in the metadata store: {0}")]
    Inconsistent(String),
    /// The database has a schema that this program does not know.
    #[error("the database schema is at version {found}, this program needs {needed}; {advice}")]
    Schema {
        /// Version found; 0 when there is none.
        found: i64,
        /// Version needed.
        needed: i64,
        /// What to do.
        advice: &'static str,
    },
    /// The database refused the statement for a reason that trying again does not cure.
    #[error("the metadata store refused a statement: {detail}")]
    Refused {
        /// What the driver said.
        detail: String,
    },
    /// A text has more characters than its column takes.
    #[error("{what} is too long: it has at most {most} characters")]
    TooLong {
        /// Table and column.
        what: String,
        /// Most characters.
        most: usize,
    },
    /// A value, or a statement with all its values, is larger than may be.
    #[error("{what} is too large: {bytes} bytes, where {most} are allowed")]
    TooLarge {
        /// Table and column, or what else.
        what: &'static str,
        /// Bytes of all values.
        bytes: usize,
        /// Most bytes.
        most: usize,
    },
    /// A list took longer than lists may.
    #[error("the list took longer than {seconds} s")]
    TooSlow {
        /// How long a list may take.
        seconds: u64,
    },
    /// An encrypted value cannot be read.
    #[error("{0}")]
    Secret(String),
}

impl StoreError {
    /// Whether running the same transaction again may succeed.
    pub const fn is_transient(&self) -> bool {
        match self {
            Self::Unavailable { .. } | Self::Contention { .. } => true,
            Self::Duplicate { .. }
            | Self::Inconsistent(_)
            | Self::Schema { .. }
            | Self::Refused { .. }
            | Self::TooLong { .. }
            | Self::TooLarge { .. }
            | Self::TooSlow { .. }
            | Self::Secret(_) => false,
        }
    }
}
