//! Bringing a database to the schema that this program needs.

use crate::schema::{LATEST, MIGRATIONS, Migration, Step, columns};
use crate::sql::{Dialect, Mode};
use crate::unit_of_work::Tx;
use crate::{Store, StoreError, params};

/// What `db check` tells about a database.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SchemaState {
    /// Version found; 0 when there is none.
    pub found: i64,
    /// Version that this program needs.
    pub needed: i64,
}

/// Name of the lock on MariaDB; names are the server's, so that of the database is part of it.
const LOCK: &str = "CONCAT('updraft_migrate.', MD5(DATABASE()))";

const TABLE_OPTIONS: &str = " ENGINE=InnoDB DEFAULT CHARACTER SET utf8mb4 COLLATE utf8mb4_bin";

impl Store {
    /// Applies what is missing. Running it again, or after a crash in the middle, does the rest. Returns the names of
    /// the migrations applied.
    ///
    /// # Errors
    /// When another migration runs, the database refuses, or its schema is newer than this program.
    pub async fn migrate(&self) -> Result<Vec<&'static str>, StoreError> {
        let mut db = Tx::open(self.driver(), Mode::Read).await?;
        db.lock_migrations().await?;
        let outcome = apply_missing(&mut db).await;
        db.unlock_migrations().await?;
        outcome
    }

    /// Which schema the database has.
    ///
    /// # Errors
    /// When the database cannot be read.
    pub async fn schema_state(&self) -> Result<SchemaState, StoreError> {
        let mut db = Tx::open(self.driver(), Mode::Read).await?;
        Ok(SchemaState {
            found: db.schema_version().await?,
            needed: LATEST,
        })
    }

    /// Refuses a database with another schema than this program's.
    ///
    /// # Errors
    /// [`StoreError::Schema`] when the versions differ.
    pub async fn check_schema(&self) -> Result<(), StoreError> {
        let SchemaState { found, needed } = self.schema_state().await?;
        let advice = match found.cmp(&needed) {
            std::cmp::Ordering::Equal => return Ok(()),
            std::cmp::Ordering::Less => "run `updraft db migrate`",
            std::cmp::Ordering::Greater => "this program is too old for the database",
        };
        Err(StoreError::Schema {
            found,
            needed,
            advice,
        })
    }

    /// Drops every table and migrates anew. All data is lost.
    ///
    /// # Errors
    /// When the database refuses.
    pub async fn reset(&self) -> Result<(), StoreError> {
        let mut db = Tx::open(self.driver(), Mode::Read).await?;
        for migration in MIGRATIONS {
            for step in migration.steps {
                if let Step::Table { name, .. } = step {
                    db.execute(&format!("DROP TABLE IF EXISTS {name}"), &[]).await?;
                }
            }
        }
        db.execute("DROP TABLE IF EXISTS schema_migration", &[]).await?;
        drop(db);
        self.migrate().await.map(|_| ())
    }
}

async fn apply_missing(db: &mut Tx) -> Result<Vec<&'static str>, StoreError> {
    let found = db.schema_version().await?;
    if found > LATEST {
        let advice = "this program is too old for the database";
        return Err(StoreError::Schema {
            found,
            needed: LATEST,
            advice,
        });
    }
    let mut applied = Vec::new();
    for migration in MIGRATIONS.iter().filter(|migration| migration.version > found) {
        db.apply(migration).await?;
        applied.push(migration.name);
    }
    Ok(applied)
}

impl Tx {
    async fn lock_migrations(&mut self) -> Result<(), StoreError> {
        if self.dialect() == Dialect::Sqlite {
            // The one writer; statements are applied one by one and can be run again.
            return Ok(());
        }
        let row = self
            .query_one(
                &format!("SELECT CAST(COALESCE(GET_LOCK({LOCK}, 10), 0) AS SIGNED)"),
                &[],
            )
            .await?;
        let got: i64 = row.map_or(Ok(0), |mut row| row.next())?;
        if got == 1 {
            return Ok(());
        }
        Err(StoreError::Contention {
            name: "migrate",
            detail: "another migration is running".to_owned(),
        })
    }

    async fn unlock_migrations(&mut self) -> Result<(), StoreError> {
        if self.dialect() == Dialect::MariaDb {
            self.query(&format!("SELECT CAST(RELEASE_LOCK({LOCK}) AS SIGNED)"), &[])
                .await?;
        }
        Ok(())
    }

    async fn schema_version(&mut self) -> Result<i64, StoreError> {
        if !self.table_exists("schema_migration").await? {
            return Ok(0);
        }
        let sql = "SELECT COALESCE(MAX(version), 0) FROM schema_migration WHERE applied_at IS NOT NULL";
        self.query_one(sql, &[])
            .await?
            .map_or(Ok(0), |mut row| row.next())
    }

    async fn table_exists(&mut self, name: &str) -> Result<bool, StoreError> {
        let sql = match self.dialect() {
            Dialect::MariaDb => {
                "SELECT COUNT(*) FROM information_schema.tables WHERE table_schema = DATABASE() AND table_name = ?"
            }
            Dialect::Sqlite => "SELECT COUNT(*) FROM sqlite_master WHERE type = 'table' AND name = ?",
        };
        self.query_one(sql, params![name])
            .await?
            .map_or(Ok(false), |mut row| row.next())
    }

    async fn index_exists(&mut self, name: &str) -> Result<bool, StoreError> {
        let sql = match self.dialect() {
            Dialect::MariaDb => {
                "SELECT COUNT(*) FROM information_schema.statistics WHERE table_schema = DATABASE() AND index_name = ?"
            }
            Dialect::Sqlite => "SELECT COUNT(*) FROM sqlite_master WHERE type = 'index' AND name = ?",
        };
        self.query_one(sql, params![name])
            .await?
            .map_or(Ok(false), |mut row| row.next())
    }

    async fn column_exists(&mut self, table: &str, name: &str) -> Result<bool, StoreError> {
        let sql = match self.dialect() {
            Dialect::MariaDb => {
                "SELECT COUNT(*) FROM information_schema.columns \
                 WHERE table_schema = DATABASE() AND table_name = ? AND column_name = ?"
            }
            Dialect::Sqlite => "SELECT COUNT(*) FROM pragma_table_info(?) WHERE name = ?",
        };
        self.query_one(sql, params![table, name])
            .await?
            .map_or(Ok(false), |mut row| row.next())
    }

    async fn apply(&mut self, migration: &Migration) -> Result<(), StoreError> {
        let options = if self.dialect() == Dialect::MariaDb {
            TABLE_OPTIONS
        } else {
            ""
        };
        if !self.table_exists("schema_migration").await? {
            let neutral = "version INT64 NOT NULL PRIMARY KEY, name NAME NOT NULL, begun_at INT64 NOT NULL, applied_at INT64";
            let sql = format!(
                "CREATE TABLE schema_migration ({}){options}",
                columns(self.dialect(), neutral)
            );
            self.execute(&sql, &[]).await?;
        }
        let now = self.dialect().now();
        let sql = format!(
            "{} schema_migration (version, name, begun_at) VALUES (?, ?, {now})",
            self.dialect().insert_ignore()
        );
        self.execute(&sql, params![migration.version, migration.name])
            .await?;
        for step in migration.steps {
            match step {
                Step::Table {
                    name,
                    columns: neutral,
                } if !self.table_exists(name).await? => {
                    let sql = format!(
                        "CREATE TABLE {name} ({}){options}",
                        columns(self.dialect(), neutral)
                    );
                    self.execute(&sql, &[]).await?;
                }
                Step::Index {
                    name,
                    table,
                    columns,
                    unique,
                } if !self.index_exists(name).await? => {
                    let unique = if *unique { "UNIQUE " } else { "" };
                    self.execute(
                        &format!("CREATE {unique}INDEX {name} ON {table} ({columns})"),
                        &[],
                    )
                    .await?;
                }
                Step::Column { table, name, word } if !self.column_exists(table, name).await? => {
                    let column = columns(self.dialect(), word);
                    self.execute(&format!("ALTER TABLE {table} ADD COLUMN {name} {column}"), &[])
                        .await?;
                }
                Step::Table { .. } | Step::Index { .. } | Step::Column { .. } => {}
            }
        }
        let sql = format!("UPDATE schema_migration SET applied_at = {now} WHERE version = ?");
        self.execute(&sql, params![migration.version]).await?;
        Ok(())
    }
}
