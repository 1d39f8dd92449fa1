//! How long texts may be.
//!
//! One table for both databases: MariaDB's columns hold exactly so many characters, and SQLite's would hold any number.
//! What a client or a task gives is held against it before it is stored, so that both databases refuse the same. The
//! lengths are those of Airflow's models. What is not held against it before, the databases refuse: MariaDB by its
//! columns, SQLite by triggers that are made from the schema ([`of_columns`]).

use crate::StoreError;

/// How many characters a column takes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limit {
    /// The table.
    pub table: &'static str,
    /// Its column.
    pub column: &'static str,
    /// Most characters.
    pub most: usize,
}

impl Limit {
    const fn new(table: &'static str, column: &'static str, most: usize) -> Self {
        Self { table, column, most }
    }

    /// Refuses a text that is too long.
    ///
    /// # Errors
    /// [`StoreError::TooLong`] when it is.
    pub fn check(&self, text: &str) -> Result<(), StoreError> {
        // Most texts have fewer bytes than they may have characters, and need not be counted.
        if text.len() <= self.most || text.chars().count() <= self.most {
            return Ok(());
        }
        Err(StoreError::TooLong {
            what: format!("{}.{}", self.table, self.column),
            most: self.most,
        })
    }
}

/// Bytes of one value: a variable's, an XCom's, a run's conf. Encrypted, it still fits the 16 MiB that MariaDB takes at
/// once unless it is set otherwise.
pub const VALUE_BYTES: usize = 10 << 20;

/// Refuses a value with more than [`VALUE_BYTES`]. `what` is its table and column.
///
/// # Errors
/// [`StoreError::TooLarge`] when it has more.
pub fn check_value(what: &'static str, value: &str) -> Result<(), StoreError> {
    if value.len() <= VALUE_BYTES {
        return Ok(());
    }
    Err(StoreError::TooLarge {
        what,
        bytes: value.len(),
        most: VALUE_BYTES,
    })
}

/// Characters of descriptions and other prose: what a `TEXT` of Airflow's on MySQL holds of any letters.
pub const PROSE: usize = 16_383;

/// Characters of the note of a run or of a task instance.
pub const NOTE: usize = 1000;

macro_rules! limits {
    ($($(#[$doc:meta])* $name:ident = $table:literal, $column:literal, $most:literal;)*) => {
        $($(#[$doc])* pub const $name: Limit = Limit::new($table, $column, $most);)*
        /// All of them.
        pub const ALL: &[Limit] = &[$($name),*];
    };
}

limits! {
    /// A variable's key.
    VARIABLE_KEY = "variable", "var_key", 250;
    /// A connection's id; over REST it has 200 characters at most.
    CONNECTION_ID = "connection", "conn_id", 250;
    /// A connection's type.
    CONNECTION_TYPE = "connection", "conn_type", 500;
    /// A pool's name.
    POOL = "slot_pool", "pool", 256;
    /// The pool of a task.
    TASK_POOL = "task_instance", "pool", 256;
    /// The queue of a task.
    TASK_QUEUE = "task_instance", "queue", 256;
    /// A run's id.
    RUN_ID = "dag_run", "run_id", 250;
    /// Who started a run.
    TRIGGERING_USER = "dag_run", "triggering_user", 512;
    /// The partition that a run is about.
    PARTITION_KEY = "dag_run", "partition_key", 250;
    /// Who started a backfill.
    BACKFILL_USER = "backfill", "triggering_user", 512;
    /// An XCom's key.
    XCOM_KEY = "xcom", "xcom_key", 512;
    /// An asset's name.
    ASSET_NAME = "asset", "name", 1500;
    /// An asset's URI.
    ASSET_URI = "asset", "uri", 1500;
    /// An asset's group.
    ASSET_GROUP = "asset", "asset_group", 1500;
    /// The name of an alias of assets.
    ALIAS_NAME = "asset_alias", "name", 1500;
    /// The group of an alias of assets.
    ALIAS_GROUP = "asset_alias", "asset_group", 1500;
    /// An asset that a DAG names by its name or URI only.
    ASSET_WORDS = "asset_reference", "words", 1500;
    /// A key in an asset's store of states.
    ASSET_STATE_KEY = "asset_state", "state_key", 250;
    /// A key in a task's store of states.
    TASK_STATE_KEY = "task_state", "state_key", 250;
    /// A task's operator.
    OPERATOR = "task_instance", "operator", 1000;
    /// An operator's own name for itself.
    OPERATOR_NAME = "task_instance", "operator_name", 1000;
    /// The executor that a task asks for.
    EXECUTOR = "task_instance", "executor", 1000;
    /// The machine on which a task runs.
    HOSTNAME = "task_instance", "hostname", 1000;
    /// The user as which a task runs.
    UNIXNAME = "task_instance", "unixname", 1000;
    /// The method with which a deferred task goes on.
    NEXT_METHOD = "task_instance", "next_method", 1000;
}

/// Every column of texts that has a limit, also those that nobody but this program writes.
pub fn of_columns() -> Vec<Limit> {
    crate::schema::lengths()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn characters_are_counted_and_not_bytes() {
        assert!(VARIABLE_KEY.check(&"\u{1d51e}".repeat(250)).is_ok());
        let error = VARIABLE_KEY
            .check(&"a".repeat(251))
            .expect_err("one too many")
            .to_string();
        assert_eq!(
            error,
            "variable.var_key is too long: it has at most 250 characters"
        );
    }
}
