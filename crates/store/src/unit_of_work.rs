//! Transactions: named, retried when they lose against others, undone when they are dropped.

use crate::counts::Counts;
use crate::marks::Marks;
use crate::sql::{Affected, Dialect, Driver, Mode, Row, Session, Value};
use crate::{Store, StoreError};
use backoff::Backoff;
use std::sync::Arc;
use std::time::Duration;

/// The name of the counter of statements; `telemetry` has the same.
const STATEMENTS: &str = "updraft_store_statements_total";

/// A session with the store: one read-write transaction, or reads outside of one. The repositories are its methods,
/// one file per noun under `repo/`.
pub struct Tx {
    session: Box<dyn Session>,
    dialect: Dialect,
    /// Counts of large lists, where they need not be of this moment.
    counts: Option<Arc<Counts>>,
    /// Where one is in long lists.
    marks: Option<Arc<Marks>>,
}

impl Tx {
    pub(crate) async fn open(driver: &dyn Driver, mode: Mode) -> Result<Self, StoreError> {
        Ok(Self {
            session: driver.open(mode).await?,
            dialect: driver.dialect(),
            counts: None,
            marks: None,
        })
    }

    /// Takes counts of large lists, and places in them, that are some seconds old.
    pub(crate) fn keep_counts(&mut self, counts: Arc<Counts>, marks: Arc<Marks>) {
        self.counts = Some(counts);
        self.marks = Some(marks);
    }

    /// Where one is in long lists; `None` where every list is to be of this moment.
    pub(crate) fn marks(&self) -> Option<Arc<Marks>> {
        self.marks.clone()
    }

    /// The number that a `SELECT COUNT(*)` says, or said some seconds ago.
    pub(crate) async fn count(&mut self, sql: &str, params: &[Value]) -> Result<i64, StoreError> {
        let counts = self.counts.clone();
        let mut count = async || {
            let row = self.query_one(sql, params).await?;
            row.map_or(Ok(0), |mut row| row.next())
        };
        match counts {
            Some(counts) => counts.get(format!("{sql} {params:?}"), count).await,
            None => count().await,
        }
    }

    pub(crate) const fn dialect(&self) -> Dialect {
        self.dialect
    }

    pub(crate) async fn execute(&mut self, sql: &str, params: &[Value]) -> Result<Affected, StoreError> {
        metrics::counter!(STATEMENTS).increment(1);
        self.session.execute(sql, params).await
    }

    pub(crate) async fn query(&mut self, sql: &str, params: &[Value]) -> Result<Vec<Row>, StoreError> {
        metrics::counter!(STATEMENTS).increment(1);
        self.session.query(sql, params).await
    }

    pub(crate) async fn query_one(&mut self, sql: &str, params: &[Value]) -> Result<Option<Row>, StoreError> {
        Ok(self.query(sql, params).await?.into_iter().next())
    }

    /// The database's clock.
    ///
    /// # Errors
    /// As the database says.
    pub async fn now(&mut self) -> Result<model::Timestamp, StoreError> {
        let sql = format!("SELECT {}", self.dialect.now());
        let row = self.query_one(&sql, &[]).await?;
        row.ok_or_else(|| StoreError::Inconsistent("the database has no clock".to_owned()))?
            .next()
    }

    #[doc(hidden)]
    pub async fn commit(self) -> Result<(), StoreError> {
        self.session.commit().await
    }

    #[doc(hidden)]
    pub async fn rollback(self) {
        self.session.rollback().await;
    }
}

/// Pauses between the attempts of one transaction.
const FIRST_PAUSE: Duration = Duration::from_millis(40);
const LAST_PAUSE: Duration = Duration::from_secs(1);

/// How often a transaction is run before its error is handed on.
const MOST_ATTEMPTS: u32 = 6;

/// Counts the attempts of one transaction and waits between them.
#[doc(hidden)]
#[derive(Debug)]
pub struct Attempts {
    name: &'static str,
    made: u32,
    backoff: Backoff,
}

impl Attempts {
    #[doc(hidden)]
    pub fn new(name: &'static str) -> Self {
        let backoff = Backoff::new(FIRST_PAUSE, LAST_PAUSE).growing_by(4);
        Self {
            name,
            made: 0,
            backoff,
        }
    }

    /// Whether to run the transaction again after this error; waits first if so.
    #[doc(hidden)]
    pub async fn again(&mut self, error: &StoreError) -> bool {
        self.made += 1;
        if !error.is_transient() || self.made >= MOST_ATTEMPTS {
            return false;
        }
        metrics::counter!("updraft_store_retries_total", "transaction" => self.name).increment(1);
        self.backoff.pause().await;
        true
    }
}

impl Store {
    #[doc(hidden)]
    pub async fn begin(&self) -> Result<Tx, StoreError> {
        Tx::open(self.driver(), Mode::Write).await
    }
}

/// Runs a block as one transaction: `transact!(store, "name", |tx| { ...; Ok(value) })`.
///
/// The block sees `tx: &mut Tx`, may borrow from around it, and must do nothing but talk to the store: it is run again
/// when the transaction loses against another one or the outcome of its commit is unknown. So it must be written such
/// that running it after it was in fact applied changes nothing more (guards, keys).
#[macro_export]
macro_rules! transact {
    ($store:expr, $name:literal, |$tx:ident| $body:expr) => {{
        let store: &$crate::Store = &$store;
        let mut attempts = $crate::Attempts::new($name);
        loop {
            let outcome = async {
                let mut unit = store.begin().await?;
                let $tx = &mut unit;
                let done: ::core::result::Result<_, $crate::StoreError> = async { $body }.await;
                match done {
                    Ok(value) => unit.commit().await.map(|()| value),
                    Err(error) => {
                        unit.rollback().await;
                        Err(error)
                    }
                }
            }
            .await;
            match outcome {
                Err(error) if attempts.again(&error).await => {}
                other => break other,
            }
        }
    }};
}
