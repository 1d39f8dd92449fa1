//! Bringing a database to the schema that this program needs.

use crate::schema::{self, KEPT, Kept, LATEST, MIGRATIONS, Migration, Step, Wider, columns, index_columns};
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

/// Collations in which texts differ by every letter and by blanks at their end: MariaDB's and MySQL's.
const EXACT: [&str; 2] = ["utf8mb4_nopad_bin", "utf8mb4_0900_bin"];

/// The lock under which a database is migrated: its name is the server's, so it tells the database, in few letters.
const LOCK: &str = "CONCAT('updraft_migrate_', MD5(DATABASE()))";

fn table_options(collation: &str) -> String {
    if collation.is_empty() {
        return String::new();
    }
    format!(" ENGINE=InnoDB DEFAULT CHARACTER SET utf8mb4 COLLATE {collation}")
}

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
    if !applied.is_empty() && db.dialect() == Dialect::Sqlite {
        for statement in schema::guards() {
            db.execute(&statement, &[]).await?;
        }
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
            let sql = format!("SELECT CAST(RELEASE_LOCK({LOCK}) AS SIGNED)");
            self.query(&sql, &[]).await?;
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

    /// The collation that all tables have; empty for SQLite.
    async fn collation(&mut self) -> Result<&'static str, StoreError> {
        if self.dialect() == Dialect::Sqlite {
            return Ok("");
        }
        for name in EXACT {
            let sql = "SELECT COUNT(*) FROM information_schema.collations WHERE collation_name = ?";
            let known: bool = self
                .query_one(sql, params![name])
                .await?
                .map_or(Ok(false), |mut row| row.next())?;
            if known {
                return Ok(name);
            }
        }
        Err(StoreError::Refused {
            detail: format!("the server has none of the collations {}", EXACT.join(", ")),
        })
    }

    /// Gives a table that is there, and all its columns, a collation.
    async fn collate(&mut self, table: &str, collation: &str) -> Result<(), StoreError> {
        let sql = "SELECT COUNT(*) FROM information_schema.columns WHERE table_schema = DATABASE() AND table_name = ? \
                   AND collation_name <> ?";
        let others: bool = self
            .query_one(sql, params![table, collation])
            .await?
            .map_or(Ok(0), |mut row| row.next::<i64>())
            .map(|count| count > 0)?;
        if others {
            let sql = format!("ALTER TABLE {table} CONVERT TO CHARACTER SET utf8mb4 COLLATE {collation}");
            self.execute(&sql, &[]).await?;
        }
        Ok(())
    }

    async fn length_of(&mut self, table: &str, column: &str) -> Result<Option<i64>, StoreError> {
        let sql = "SELECT CAST(character_maximum_length AS SIGNED) FROM information_schema.columns \
                   WHERE table_schema = DATABASE() AND table_name = ? AND column_name = ?";
        self.query_one(sql, params![table, column])
            .await?
            .map_or(Ok(None), |mut row| row.next())
    }

    async fn apply(&mut self, migration: &Migration) -> Result<(), StoreError> {
        let collation = self.collation().await?;
        let options = table_options(collation);
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
            self.take(step, collation).await?;
        }
        let sql = format!("UPDATE schema_migration SET applied_at = {now} WHERE version = ?");
        self.execute(&sql, params![migration.version]).await?;
        Ok(())
    }

    /// Takes one step, unless it has been taken.
    async fn take(&mut self, step: &Step, collation: &str) -> Result<(), StoreError> {
        let dialect = self.dialect();
        let sql = match step {
            Step::Table {
                name,
                columns: neutral,
            } if !self.table_exists(name).await? => {
                let options = table_options(collation);
                format!("CREATE TABLE {name} ({}){options}", columns(dialect, neutral))
            }
            Step::Index {
                name,
                table,
                columns,
                unique,
            } if !self.index_exists(name).await? => {
                let unique = if *unique { "UNIQUE " } else { "" };
                let columns = index_columns(dialect, columns);
                format!("CREATE {unique}INDEX {name} ON {table} ({columns})")
            }
            Step::Drop { name, table } if self.index_exists(name).await? => match dialect {
                Dialect::MariaDb => format!("DROP INDEX {name} ON {table}"),
                Dialect::Sqlite => format!("DROP INDEX {name}"),
            },
            Step::Column { table, name, word } if !self.column_exists(table, name).await? => {
                let column = columns(dialect, word);
                format!("ALTER TABLE {table} ADD COLUMN {name} {column}")
            }
            Step::Keep { table, columns } if dialect == Dialect::MariaDb => {
                let mut kept = Vec::new();
                for Kept {
                    column,
                    expression,
                    word,
                } in KEPT.iter().filter(|kept| columns.contains(&kept.column))
                {
                    if !self.column_exists(table, column).await? {
                        let word = schema::columns(dialect, word);
                        kept.push(format!(
                            "ADD COLUMN {column} {word} GENERATED ALWAYS AS ({expression}) STORED"
                        ));
                    }
                }
                if kept.is_empty() {
                    return Ok(());
                }
                // All at once: the table is written anew.
                format!("ALTER TABLE {table} {}", kept.join(", "))
            }
            Step::ExactTexts if dialect == Dialect::MariaDb => {
                let own = MIGRATIONS
                    .iter()
                    .flat_map(|migration| migration.steps)
                    .filter_map(|step| match step {
                        Step::Table { name, .. } => Some(*name),
                        Step::Index { .. }
                        | Step::Drop { .. }
                        | Step::ExactTexts
                        | Step::Widen { .. }
                        | Step::Keep { .. }
                        | Step::Column { .. } => None,
                    });
                for table in own.chain(["schema_migration"]) {
                    self.collate(table, collation).await?;
                }
                return Ok(());
            }
            Step::Widen { table, columns } if dialect == Dialect::MariaDb => {
                let mut changes = Vec::new();
                for Wider { column, to, required } in *columns {
                    let wanted = i64::try_from(*to).unwrap_or(i64::MAX);
                    if self
                        .length_of(table, column)
                        .await?
                        .is_some_and(|now| now < wanted)
                    {
                        let word = if *required { "NOT NULL" } else { "NULL" };
                        changes.push(format!("MODIFY {column} VARCHAR({to}) {word}"));
                    }
                }
                if changes.is_empty() {
                    return Ok(());
                }
                // All at once: the table is written anew.
                format!("ALTER TABLE {table} {}", changes.join(", "))
            }
            Step::Table { .. }
            | Step::Index { .. }
            | Step::Drop { .. }
            | Step::Column { .. }
            | Step::ExactTexts
            | Step::Keep { .. }
            | Step::Widen { .. } => return Ok(()),
        };
        self.execute(&sql, &[]).await.map(|_| ())
    }
}
