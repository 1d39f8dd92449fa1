//! MariaDB (10.6 or newer) and MySQL 8.

use super::convert::{LIST, bind_all, mysql_row, store_error};
use crate::StoreError;
use crate::sql::{Affected, Dialect, Driver, Mode, Row, Session, Value};
use async_trait::async_trait;
use sqlx::mysql::{MySqlConnectOptions, MySqlPoolOptions};
use sqlx::pool::PoolConnection;
use sqlx::{AssertSqlSafe, ConnectOptions as _, Executor as _, MySql, MySqlConnection, MySqlPool};
use std::time::Duration;

/// How long getting a connection may take.
const ACQUIRE: Duration = Duration::from_secs(5);
/// How long one statement may take, seen from here; the server gives up earlier.
const STATEMENT: Duration = Duration::from_secs(20);

/// Seconds after which the server gives up a statement.
const STATEMENT_LIMIT: u64 = 15;

/// What every connection is set to. Each is a statement of its own, since MySQL lacks MariaDB's time-outs.
const SESSION: [&str; 4] = [
    "SET SESSION TRANSACTION ISOLATION LEVEL READ COMMITTED",
    "SET SESSION innodb_lock_wait_timeout = 5, lock_wait_timeout = 10",
    "SET SESSION sql_mode = CONCAT(@@sql_mode, ',STRICT_TRANS_TABLES')",
    "SET SESSION idle_transaction_timeout = 5",
];

/// Lists at a time. Those that come then wait for a connection of theirs.
const LISTS: u32 = 4;
/// What a packet has beside the statement and its values.
const PACKET_FRAME: usize = 4096;

pub(crate) struct MariaDbDriver {
    pool: MySqlPool,
    /// For lists alone.
    lists: MySqlPool,
    /// Bytes of one statement with its values.
    packet: usize,
}

impl MariaDbDriver {
    pub(crate) async fn open(url: &str, connections: u32) -> Result<Self, StoreError> {
        let options: MySqlConnectOptions = url.parse().map_err(|error: sqlx::Error| StoreError::Refused {
            detail: format!("the database URL cannot be read: {error}"),
        })?;
        let options = options
            .charset("utf8mb4")
            .collation("utf8mb4_bin")
            .statement_cache_capacity(500)
            .disable_statement_logging();
        let mut driver = Self {
            pool: pool(&options, connections, (STATEMENT_LIMIT, ACQUIRE)),
            lists: pool(
                &options,
                LISTS,
                (crate::LIST_SECONDS, Duration::from_secs(crate::LIST_PATIENCE)),
            ),
            packet: usize::MAX,
        };
        // A first connection outside of the pool, whose own error would only be that it timed out.
        let probe = tokio::time::timeout(ACQUIRE, options.connect()).await;
        let mut connection = match probe {
            Ok(Ok(connection)) => connection,
            Ok(Err(error)) => return Err(cannot_connect(&options, &error.to_string())),
            Err(_) => return Err(cannot_connect(&options, "no answer within 5 s")),
        };
        driver.check_durability(&mut connection).await?;
        let sql = "SELECT CAST(@@max_allowed_packet AS SIGNED)";
        let rows = query(&mut connection, sql, &[], "open").await?;
        let packet: i64 = rows
            .into_iter()
            .next()
            .map_or(Ok(i64::MAX), |mut row| row.next())?;
        driver.packet = usize::try_from(packet)
            .unwrap_or(usize::MAX)
            .saturating_sub(PACKET_FRAME);
        Ok(driver)
    }

    /// A server that forgets acknowledged commits breaks every promise of this crate.
    async fn check_durability(&self, connection: &mut MySqlConnection) -> Result<(), StoreError> {
        let sql = "SELECT CAST(@@innodb_flush_log_at_trx_commit AS SIGNED)";
        let rows = query(connection, sql, &[], "open").await?;
        let flush: i64 = rows.into_iter().next().map_or(Ok(1), |mut row| row.next())?;
        match flush {
            0 => Err(StoreError::Refused {
                detail: "the server runs with innodb_flush_log_at_trx_commit = 0, which loses acknowledged \
                         commits; set it to 1"
                    .to_owned(),
            }),
            2 => {
                tracing::warn!(
                    "innodb_flush_log_at_trx_commit = 2: commits can be lost when the server's machine loses power"
                );
                Ok(())
            }
            _ => Ok(()),
        }
    }
}

/// Connections whose statements take at most so many seconds, and for which one waits so long.
fn pool(options: &MySqlConnectOptions, connections: u32, (seconds, patience): (u64, Duration)) -> MySqlPool {
    MySqlPoolOptions::new()
        .max_connections(connections)
        .acquire_timeout(patience)
        .max_lifetime(Duration::from_secs(600))
        .test_before_acquire(false)
        .after_connect(move |connection, _| {
            Box::pin(async move {
                let limit = format!("SET SESSION max_statement_time = {seconds}");
                for statement in SESSION.into_iter().chain([limit.as_str()]) {
                    match connection.execute(AssertSqlSafe(statement)).await {
                        Ok(_) => {}
                        Err(error) if is_unknown_variable(&error) => {}
                        Err(error) => return Err(error),
                    }
                }
                Ok(())
            })
        })
        .connect_lazy_with(options.clone())
}

fn cannot_connect(options: &MySqlConnectOptions, problem: &str) -> StoreError {
    StoreError::Unavailable {
        detail: format!(
            "cannot connect to MariaDB at {}:{}: {problem}",
            options.get_host(),
            options.get_port()
        ),
    }
}

fn is_unknown_variable(error: &sqlx::Error) -> bool {
    let database = error.as_database_error();
    let database = database.and_then(|e| e.try_downcast_ref::<sqlx::mysql::MySqlDatabaseError>());
    database.is_some_and(|e| e.number() == 1193)
}

#[async_trait]
impl Driver for MariaDbDriver {
    fn dialect(&self) -> Dialect {
        Dialect::MariaDb
    }

    async fn open(&self, mode: Mode) -> Result<Box<dyn Session>, StoreError> {
        let pool = match mode {
            Mode::List => &self.lists,
            Mode::Read | Mode::Write => &self.pool,
        };
        let connection = pool
            .acquire()
            .await
            .map_err(|error| store_error("acquire", &error))?;
        // The guard exists before BEGIN is sent: whatever happens from here on, the connection is not handed on
        // with a transaction open.
        let mut session = MariaDbSession {
            connection: Some(connection),
            clean: mode != Mode::Write,
            packet: self.packet,
            name: if mode == Mode::List { LIST } else { "query" },
        };
        if mode == Mode::Write {
            session.plain("BEGIN").await?;
        }
        Ok(Box::new(session))
    }

    async fn close(&self) {
        self.lists.close().await;
        self.pool.close().await;
    }
}

/// A connection in use. Unless `clean`, dropping it closes it.
struct MariaDbSession {
    connection: Option<PoolConnection<MySql>>,
    clean: bool,
    /// Bytes of one statement with its values.
    packet: usize,
    /// What errors of queries are about.
    name: &'static str,
}

impl MariaDbSession {
    /// Refuses what the server would close the connection for.
    fn check_size(&self, sql: &str, params: &[Value]) -> Result<(), StoreError> {
        let size = |param: &Value| match param {
            Value::Null | Value::Integer(_) | Value::Real(_) => 8,
            Value::Text(text) => text.len() + 9,
            Value::Bytes(bytes) => bytes.len() + 9,
        };
        let bytes = sql.len() + params.iter().map(size).sum::<usize>();
        if bytes <= self.packet {
            return Ok(());
        }
        Err(StoreError::TooLarge {
            what: "what is to be stored at once (max_allowed_packet of MariaDB)",
            bytes,
            most: self.packet,
        })
    }

    fn connection(&mut self) -> Result<&mut MySqlConnection, StoreError> {
        let gone = || StoreError::Inconsistent("the session is over".to_owned());
        self.connection.as_deref_mut().ok_or_else(gone)
    }

    /// Runs one step; a step that neither succeeds nor is refused by the server leaves the connection in doubt.
    async fn step<T>(
        &mut self,
        work: impl AsyncFnOnce(&mut MySqlConnection) -> Result<T, StoreError>,
    ) -> Result<T, StoreError> {
        let was_clean = std::mem::replace(&mut self.clean, false);
        let outcome = match tokio::time::timeout(STATEMENT, work(self.connection()?)).await {
            Ok(outcome) => outcome,
            Err(_) => Err(StoreError::Unavailable {
                detail: "no answer to a statement within 20 s".to_owned(),
            }),
        };
        let usable = !matches!(outcome, Err(StoreError::Unavailable { .. }));
        self.clean = was_clean && usable;
        outcome
    }

    async fn plain(&mut self, sql: &'static str) -> Result<(), StoreError> {
        self.step(async |connection| {
            connection
                .execute(sql)
                .await
                .map(|_| ())
                .map_err(|error| store_error(sql, &error))
        })
        .await
    }
}

async fn query(
    connection: &mut MySqlConnection,
    sql: &str,
    params: &[Value],
    name: &'static str,
) -> Result<Vec<Row>, StoreError> {
    let query = bind_all!(sqlx::query::<MySql>(AssertSqlSafe(sql)), params);
    let rows = query
        .fetch_all(connection)
        .await
        .map_err(|error| store_error(name, &error))?;
    rows.iter()
        .map(mysql_row)
        .collect::<Result<_, _>>()
        .map_err(|error| store_error(name, &error))
}

#[async_trait]
impl Session for MariaDbSession {
    async fn execute(&mut self, sql: &str, params: &[Value]) -> Result<Affected, StoreError> {
        debug_assert_eq!(
            sql.matches('?').count(),
            params.len(),
            "placeholders and parameters differ: {sql}"
        );
        self.check_size(sql, params)?;
        self.step(async |connection| {
            let query = bind_all!(sqlx::query::<MySql>(AssertSqlSafe(sql)), params);
            let done = query
                .execute(connection)
                .await
                .map_err(|error| store_error("execute", &error))?;
            Ok(Affected {
                rows: done.rows_affected(),
                last_key: done.last_insert_id().cast_signed(),
            })
        })
        .await
    }

    async fn query(&mut self, sql: &str, params: &[Value]) -> Result<Vec<Row>, StoreError> {
        debug_assert_eq!(
            sql.matches('?').count(),
            params.len(),
            "placeholders and parameters differ: {sql}"
        );
        self.check_size(sql, params)?;
        let name = self.name;
        self.step(async |connection| query(connection, sql, params, name).await)
            .await
    }

    async fn commit(mut self: Box<Self>) -> Result<(), StoreError> {
        if !self.clean {
            self.plain("COMMIT").await?;
            self.clean = true;
        }
        Ok(())
    }

    async fn rollback(mut self: Box<Self>) {
        if !self.clean && self.plain("ROLLBACK").await.is_ok() {
            self.clean = true;
        }
    }
}

impl Drop for MariaDbSession {
    fn drop(&mut self) {
        if let Some(connection) = self.connection.as_mut().filter(|_| !self.clean) {
            connection.close_on_drop();
        }
    }
}
