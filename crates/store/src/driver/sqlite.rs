//! SQLite: one writer, a few readers, write-ahead log.

use super::convert::{LIST, bind_all, sqlite_row, store_error};
use crate::StoreError;
use crate::sql::{Affected, Dialect, Driver, Mode, Row, Session, Value};
use async_trait::async_trait;
use sqlx::pool::PoolConnection;
use sqlx::sqlite::{SqliteConnectOptions, SqliteJournalMode, SqlitePoolOptions, SqliteSynchronous};
use sqlx::{
    AssertSqlSafe, ConnectOptions as _, Connection as _, Executor as _, Sqlite, SqliteConnection, SqlitePool,
};
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio::sync::{Mutex, OwnedMutexGuard};

const READERS: u32 = 4;
/// Lists at a time. Those that come then wait for a connection of theirs.
const LISTS: u32 = 4;
/// Steps of SQLite's machine after which a list looks at the clock.
const STEPS: i32 = 10_000;
/// How long a statement waits for another process (a command line) that writes.
const BUSY: Duration = Duration::from_secs(10);
const WRITER_PATIENCE: Duration = Duration::from_secs(30);

pub(crate) struct SqliteDriver {
    options: SqliteConnectOptions,
    /// `None` after a session was dropped in the middle of its work: the next writer opens a new connection.
    writer: Arc<Mutex<Option<SqliteConnection>>>,
    readers: SqlitePool,
    /// For lists alone.
    lists: SqlitePool,
}

impl SqliteDriver {
    pub(crate) async fn open(path: &Path) -> Result<Self, StoreError> {
        if let Some(folder) = path.parent() {
            std::fs::create_dir_all(folder).map_err(|error| StoreError::Unavailable {
                detail: format!("cannot create {}: {error}", folder.display()),
            })?;
        }
        create(path).map_err(|error| StoreError::Unavailable {
            detail: format!("cannot create the SQLite database {}: {error}", path.display()),
        })?;
        let options = SqliteConnectOptions::new()
            .filename(path)
            .create_if_missing(true)
            .journal_mode(SqliteJournalMode::Wal)
            .synchronous(SqliteSynchronous::Full)
            .busy_timeout(BUSY)
            .foreign_keys(true)
            .statement_cache_capacity(500)
            .disable_statement_logging();
        let describe = |error: &sqlx::Error| StoreError::Unavailable {
            detail: format!("cannot open the SQLite database {}: {error}", path.display()),
        };
        // The writer comes first: it creates the file and switches on the write-ahead log.
        let writer = options.connect().await.map_err(|error| describe(&error))?;
        let pool = |connections: u32, patience: u64| {
            SqlitePoolOptions::new()
                .max_connections(connections)
                .acquire_timeout(Duration::from_secs(patience))
                .test_before_acquire(false)
        };
        let readers = pool(READERS, 10)
            .connect_with(options.clone())
            .await
            .map_err(|error| describe(&error))?;
        let lists = pool(LISTS, crate::LIST_PATIENCE).connect_lazy_with(options.clone());
        Ok(Self {
            options,
            writer: Arc::new(Mutex::new(Some(writer))),
            readers,
            lists,
        })
    }
}

/// Makes the file, for its owner alone: it holds what people and tasks keep secret. One that is there stays as it is.
fn create(path: &Path) -> std::io::Result<()> {
    use std::os::unix::fs::OpenOptionsExt;
    let made = std::fs::OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(0o600)
        .open(path);
    match made {
        Err(error) if error.kind() != std::io::ErrorKind::AlreadyExists => Err(error),
        Ok(_) | Err(_) => Ok(()),
    }
}

#[async_trait]
impl Driver for SqliteDriver {
    fn dialect(&self) -> Dialect {
        Dialect::Sqlite
    }

    async fn open(&self, mode: Mode) -> Result<Box<dyn Session>, StoreError> {
        match mode {
            Mode::Read => {
                let connection = self
                    .readers
                    .acquire()
                    .await
                    .map_err(|error| store_error("read", &error))?;
                Ok(Box::new(Reader { connection }))
            }
            Mode::List => {
                let connection = self
                    .lists
                    .acquire()
                    .await
                    .map_err(|error| store_error(LIST, &error))?;
                Ok(Box::new(Lister { connection }))
            }
            Mode::Write => {
                let waiting = tokio::time::timeout(WRITER_PATIENCE, Arc::clone(&self.writer).lock_owned());
                let mut slot = waiting.await.map_err(|_| StoreError::Contention {
                    name: "write",
                    detail: format!("no turn within {} s", WRITER_PATIENCE.as_secs()),
                })?;
                let mut connection = match slot.take() {
                    Some(connection) => connection,
                    None => self
                        .options
                        .connect()
                        .await
                        .map_err(|error| store_error("write", &error))?,
                };
                connection
                    .execute("BEGIN IMMEDIATE")
                    .await
                    .map_err(|error| store_error("begin", &error))?;
                Ok(Box::new(Writer { slot, connection }))
            }
        }
    }

    async fn close(&self) {
        self.lists.close().await;
        self.readers.close().await;
        if let Some(connection) = self.writer.lock().await.take() {
            // Closing folds the write-ahead log into the database; failing to is harmless.
            connection.close().await.ok();
        }
    }
}

async fn execute(
    connection: &mut SqliteConnection,
    sql: &str,
    params: &[Value],
) -> Result<Affected, StoreError> {
    let query = bind_all!(sqlx::query::<Sqlite>(AssertSqlSafe(sql)), params);
    let done = query
        .execute(connection)
        .await
        .map_err(|error| store_error("execute", &error))?;
    Ok(Affected {
        rows: done.rows_affected(),
        last_key: done.last_insert_rowid(),
    })
}

async fn query(
    connection: &mut SqliteConnection,
    sql: &str,
    params: &[Value],
    name: &'static str,
) -> Result<Vec<Row>, StoreError> {
    let query = bind_all!(sqlx::query::<Sqlite>(AssertSqlSafe(sql)), params);
    let rows = query
        .fetch_all(connection)
        .await
        .map_err(|error| store_error(name, &error))?;
    rows.iter()
        .map(sqlite_row)
        .collect::<Result<_, _>>()
        .map_err(|error| store_error(name, &error))
}

struct Reader {
    connection: PoolConnection<Sqlite>,
}

#[async_trait]
impl Session for Reader {
    async fn execute(&mut self, sql: &str, params: &[Value]) -> Result<Affected, StoreError> {
        execute(&mut self.connection, sql, params).await
    }

    async fn query(&mut self, sql: &str, params: &[Value]) -> Result<Vec<Row>, StoreError> {
        query(&mut self.connection, sql, params, "query").await
    }

    async fn commit(self: Box<Self>) -> Result<(), StoreError> {
        Ok(())
    }

    async fn rollback(self: Box<Self>) {}
}

/// A reader whose statements are interrupted when they take too long.
struct Lister {
    connection: PoolConnection<Sqlite>,
}

#[async_trait]
impl Session for Lister {
    async fn execute(&mut self, sql: &str, params: &[Value]) -> Result<Affected, StoreError> {
        execute(&mut self.connection, sql, params).await
    }

    async fn query(&mut self, sql: &str, params: &[Value]) -> Result<Vec<Row>, StoreError> {
        let end = Instant::now() + Duration::from_secs(crate::LIST_SECONDS);
        let mut handle = self
            .connection
            .lock_handle()
            .await
            .map_err(|error| store_error(LIST, &error))?;
        handle.set_progress_handler(STEPS, move || Instant::now() < end);
        drop(handle);
        query(&mut self.connection, sql, params, LIST).await
    }

    async fn commit(self: Box<Self>) -> Result<(), StoreError> {
        Ok(())
    }

    async fn rollback(self: Box<Self>) {}
}

/// The writer's turn. The connection goes back into its slot only after a clean end; otherwise it is dropped, which
/// undoes the transaction.
struct Writer {
    slot: OwnedMutexGuard<Option<SqliteConnection>>,
    connection: SqliteConnection,
}

#[async_trait]
impl Session for Writer {
    async fn execute(&mut self, sql: &str, params: &[Value]) -> Result<Affected, StoreError> {
        execute(&mut self.connection, sql, params).await
    }

    async fn query(&mut self, sql: &str, params: &[Value]) -> Result<Vec<Row>, StoreError> {
        query(&mut self.connection, sql, params, "query").await
    }

    async fn commit(mut self: Box<Self>) -> Result<(), StoreError> {
        self.connection
            .execute("COMMIT")
            .await
            .map_err(|error| store_error("commit", &error))?;
        let Self { mut slot, connection } = *self;
        *slot = Some(connection);
        Ok(())
    }

    async fn rollback(mut self: Box<Self>) {
        if self.connection.execute("ROLLBACK").await.is_ok() {
            let Self { mut slot, connection } = *self;
            *slot = Some(connection);
        }
    }
}
