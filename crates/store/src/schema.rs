//! The schema, as numbered migrations that both databases understand.
//!
//! MariaDB commits each DDL statement by itself, so every step can be run again: it looks whether its table, index or
//! column is there. A migration is only ever added, never changed.

mod steps;

use crate::limits::Limit;
use crate::sql::Dialect;
use steps::*;

/// One migration.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Migration {
    pub(crate) version: i64,
    pub(crate) name: &'static str,
    pub(crate) steps: &'static [Step],
}

/// How long a column of texts becomes.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Wider {
    pub(crate) column: &'static str,
    /// Most characters.
    pub(crate) to: usize,
    /// It is never NULL.
    pub(crate) required: bool,
}

/// One step of a migration.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Step {
    /// Creates a table.
    Table {
        name: &'static str,
        columns: &'static str,
    },
    /// Creates an index.
    Index {
        name: &'static str,
        table: &'static str,
        columns: &'static str,
        unique: bool,
    },
    /// Drops an index.
    Drop { name: &'static str, table: &'static str },
    /// Gives all tables the collation in which texts are the same only if every letter, its case and every blank at the end
    /// are. SQLite knows no other.
    ExactTexts,
    /// Makes columns of texts longer. SQLite's have no length.
    Widen {
        table: &'static str,
        columns: &'static [Wider],
    },
    /// Has MariaDB keep expressions that are ordered by in columns, by the names they have in [`KEPT`]: it has indexes of
    /// columns only, where SQLite has them of expressions.
    Keep {
        table: &'static str,
        columns: &'static [&'static str],
    },
    /// Adds a column that may be empty.
    Column {
        table: &'static str,
        name: &'static str,
        word: &'static str,
    },
}

/// An expression that lists are ordered by.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Kept {
    /// The column in which MariaDB keeps it.
    pub(crate) column: &'static str,
    pub(crate) expression: &'static str,
    /// Its neutral type.
    pub(crate) word: &'static str,
}

/// How long something took, as an expression over columns of a run or a task instance.
pub const DURATION: &str = "end_date - start_date";
/// The beginning of an operator's name: all of it is too long for an index of MariaDB.
pub(crate) const OPERATOR: &str = "substr(operator, 1, 250)";
/// The beginning of a map index's label.
pub(crate) const LABEL: &str = "substr(rendered_map_index, 1, 250)";

/// All of them.
pub(crate) const KEPT: [Kept; 3] = [
    Kept {
        column: "duration_kept",
        expression: DURATION,
        word: "INT64",
    },
    Kept {
        column: "operator_kept",
        expression: OPERATOR,
        word: "NAME",
    },
    Kept {
        column: "label_kept",
        expression: LABEL,
        word: "NAME",
    },
];

/// The version that this program works with.
pub(crate) const LATEST: i64 = MIGRATIONS[MIGRATIONS.len() - 1].version;

pub(crate) const MIGRATIONS: &[Migration] = &[
    Migration {
        version: 1,
        name: "initial",
        steps: INITIAL,
    },
    Migration {
        version: 2,
        name: "task states",
        steps: TASK_STATES,
    },
    Migration {
        version: 3,
        name: "executors",
        steps: EXECUTORS,
    },
    Migration {
        version: 4,
        name: "callbacks",
        steps: CALLBACKS,
    },
    Migration {
        version: 5,
        name: "assets",
        steps: ASSETS,
    },
    Migration {
        version: 6,
        name: "triggers",
        steps: TRIGGERS,
    },
    Migration {
        version: 7,
        name: "backfills",
        steps: BACKFILLS,
    },
    Migration {
        version: 8,
        name: "human input",
        steps: HUMAN_INPUT,
    },
    Migration {
        version: 9,
        name: "events of task instances",
        steps: TASK_EVENTS,
    },
    Migration {
        version: 10,
        name: "timetables of users",
        steps: TIMETABLE_QUESTIONS,
    },
    Migration {
        version: 11,
        name: "callbacks of tasks",
        steps: TASK_CALLBACKS,
    },
    Migration {
        version: 12,
        name: "partitions",
        steps: PARTITIONS,
    },
    Migration {
        version: 13,
        name: "deadlines",
        steps: DEADLINES,
    },
    Migration {
        version: 14,
        name: "listeners",
        steps: LISTENERS,
    },
    Migration {
        version: 15,
        name: "names of runs",
        steps: RUN_NAMES,
    },
    Migration {
        version: 16,
        name: "news",
        steps: NEWS,
    },
    Migration {
        version: 17,
        name: "answers of plugins",
        steps: FOREIGN_ANSWERS,
    },
    Migration {
        version: 18,
        name: "limits over pools, and mutations",
        steps: MUTATIONS,
    },
    Migration {
        version: 19,
        name: "dependencies of DAG files",
        steps: DEPENDENCIES,
    },
    Migration {
        version: 20,
        name: "claims beside heartbeats",
        steps: BEATS,
    },
    Migration {
        version: 21,
        name: "lengths and indexes of lists",
        steps: LENGTHS,
    },
    Migration {
        version: 22,
        name: "keys of workers",
        steps: WORKER_KEYS,
    },
    Migration {
        version: 23,
        name: "bundles of DAG files",
        steps: BUNDLES,
    },
    Migration {
        version: 24,
        name: "orders of lists",
        steps: ORDERS,
    },
];

/// Translates the neutral type words of a table's columns.
pub(crate) fn columns(dialect: Dialect, neutral: &str) -> String {
    let words: &[(&str, &str)] = match dialect {
        Dialect::MariaDb => &[
            ("KEY64", "BIGINT NOT NULL AUTO_INCREMENT PRIMARY KEY"),
            ("INT64", "BIGINT"),
            ("FLOAT64", "DOUBLE"),
            ("NAME", "VARCHAR(250)"),
            ("PATH", "VARCHAR(700)"),
            ("UUID", "CHAR(36)"),
            ("WORD", "VARCHAR(50)"),
            ("TEXT", "LONGTEXT"),
        ],
        Dialect::Sqlite => &[
            ("KEY64", "INTEGER PRIMARY KEY AUTOINCREMENT"),
            ("INT64", "INTEGER"),
            ("FLOAT64", "REAL"),
            ("NAME", "TEXT"),
            ("PATH", "TEXT"),
            ("UUID", "TEXT"),
            ("WORD", "TEXT"),
            ("TEXT", "TEXT"),
        ],
    };
    let mut out = String::new();
    for token in neutral.split_inclusive([' ', ',', '\n']) {
        let word = token.trim_end_matches([' ', ',', '\n']);
        let tail = &token[word.len()..];
        out.push_str(
            words
                .iter()
                .find(|(neutral, _)| *neutral == word)
                .map_or(word, |(_, own)| own),
        );
        out.push_str(tail);
    }
    out
}

/// Most characters of a column of that neutral type; `None` if it takes any number, or is none of texts.
fn length(word: &str) -> Option<usize> {
    match word {
        "NAME" => Some(250),
        "PATH" => Some(700),
        "UUID" => Some(36),
        "WORD" => Some(50),
        _ => None,
    }
}

/// How many characters each column of texts takes.
pub(crate) fn lengths() -> Vec<Limit> {
    let mut all: Vec<Limit> = Vec::new();
    let mut add = |table, column: &'static str, word: &str| {
        all.extend(length(word).map(|most| Limit { table, column, most }));
    };
    let mut wider = Vec::new();
    for step in MIGRATIONS.iter().flat_map(|migration| migration.steps) {
        match step {
            Step::Table { name, columns } => {
                for column in columns.split(',') {
                    let mut words = column.split_whitespace();
                    if let (Some(column), Some(word)) = (words.next(), words.next()) {
                        add(*name, column, word);
                    }
                }
            }
            Step::Column { table, name, word } => add(*table, name, word),
            Step::Widen { table, columns } => wider.extend(columns.iter().map(|wider| (*table, *wider))),
            Step::Index { .. } | Step::Drop { .. } | Step::ExactTexts | Step::Keep { .. } => {}
        }
    }
    for (table, Wider { column, to, .. }) in wider {
        let widened = all
            .iter_mut()
            .find(|limit| (limit.table, limit.column) == (table, column));
        if let Some(limit) = widened {
            limit.most = to;
        }
    }
    all
}

/// What [`guards`] has SQLite say of a text that is too long, before the table, the column and its length.
pub(crate) const TOO_LONG: &str = "too long: ";

/// Statements that have SQLite refuse texts that are too long for MariaDB, so that both refuse the same.
pub(crate) fn guards() -> Vec<String> {
    let all = lengths();
    let mut tables: Vec<&str> = all.iter().map(|limit| limit.table).collect();
    tables.dedup();
    let mut statements = Vec::new();
    for table in tables {
        let own: Vec<&Limit> = all.iter().filter(|limit| limit.table == table).collect();
        let each =
            |write: &dyn Fn(&Limit) -> String| own.iter().map(|limit| write(limit)).collect::<Vec<_>>();
        let columns = each(&|limit| limit.column.to_owned()).join(", ");
        let is_long =
            each(&|Limit { column, most, .. }| format!("length(NEW.{column}) > {most}")).join(" OR ");
        let refuse = each(&|Limit { column, most, .. }| {
            format!(
                "WHEN length(NEW.{column}) > {most} THEN RAISE(ABORT, '{TOO_LONG}{table}.{column}: {most}')"
            )
        })
        .join(" ");
        for (name, moment) in [
            (format!("guard_insert_{table}"), "INSERT".to_owned()),
            (format!("guard_update_{table}"), format!("UPDATE OF {columns}")),
        ] {
            statements.push(format!("DROP TRIGGER IF EXISTS {name}"));
            statements.push(format!(
                "CREATE TRIGGER {name} BEFORE {moment} ON {table} WHEN {is_long} BEGIN SELECT CASE {refuse} END; END"
            ));
        }
    }
    statements
}

const fn index(name: &'static str, table: &'static str, columns: &'static str) -> Step {
    Step::Index {
        name,
        table,
        columns,
        unique: false,
    }
}

const fn unique(name: &'static str, table: &'static str, columns: &'static str) -> Step {
    Step::Index {
        name,
        table,
        columns,
        unique: true,
    }
}

const fn widen(table: &'static str, columns: &'static [Wider]) -> Step {
    Step::Widen { table, columns }
}

/// Columns of an index. `name(250)` is an index over the beginning of a long text, which SQLite does not need; it has no
/// columns that keep expressions, but indexes of these.
pub(crate) fn index_columns(dialect: Dialect, columns: &str) -> String {
    match dialect {
        Dialect::MariaDb => columns.to_owned(),
        Dialect::Sqlite => {
            let parts = columns
                .split('(')
                .map(|part| part.split_once(')').map_or(part, |(_, rest)| rest));
            let columns: String = parts.collect();
            KEPT.iter().fold(columns, |columns, kept| {
                columns.replace(kept.column, kept.expression)
            })
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sql::Value;
    use crate::{Store, StoreError};

    #[test]
    fn type_words_are_translated_and_nothing_else() {
        let neutral = "id KEY64, name NAME NOT NULL, PRIMARY KEY (id, name)";
        assert_eq!(
            columns(Dialect::MariaDb, neutral),
            "id BIGINT NOT NULL AUTO_INCREMENT PRIMARY KEY, name VARCHAR(250) NOT NULL, PRIMARY KEY (id, name)"
        );
        assert_eq!(
            columns(Dialect::Sqlite, neutral),
            "id INTEGER PRIMARY KEY AUTOINCREMENT, name TEXT NOT NULL, PRIMARY KEY (id, name)"
        );
    }

    #[test]
    fn indexes_over_the_beginning_of_a_text_are_over_all_of_it_in_sqlite() {
        let columns = "kind, name(250), uri(10), id";
        assert_eq!(index_columns(Dialect::MariaDb, columns), columns);
        assert_eq!(index_columns(Dialect::Sqlite, columns), "kind, name, uri, id");
        let columns = index_columns(Dialect::Sqlite, "operator_kept, id");
        assert_eq!(columns, "substr(operator, 1, 250), id");
    }

    #[test]
    fn versions_go_up_by_one() {
        for (at, migration) in MIGRATIONS.iter().enumerate() {
            assert_eq!(migration.version, at as i64 + 1);
        }
    }

    /// A row of a table with this text in a column, and the shortest values elsewhere.
    fn row(limit: &Limit, count: usize, columns: &[(String, String, bool)]) -> (String, Vec<Value>) {
        let mut names = Vec::new();
        let mut values = Vec::new();
        for (name, kind, is_required) in columns {
            let is_key = kind == "INTEGER" && name == "id";
            let value = match kind.as_str() {
                "TEXT" if name == limit.column => Value::Text("\u{1d51e}".repeat(count)),
                _ if !is_required || is_key => continue,
                "TEXT" => Value::Text("x".to_owned()),
                _ => Value::Integer(0),
            };
            names.push(name.as_str());
            values.push(value);
        }
        let sql = format!(
            "INSERT INTO {} ({}) VALUES ({})",
            limit.table,
            names.join(", "),
            crate::sql::placeholders(values.len())
        );
        (sql, values)
    }

    #[tokio::test]
    async fn every_text_at_its_limit_is_stored_by_sqlite_and_one_letter_more_is_refused() {
        let folder = tempfile::tempdir().expect("a folder");
        let store = Store::open_sqlite(&folder.path().join("db"))
            .await
            .expect("a store");
        store.migrate().await.expect("a schema");
        let all = lengths();
        assert!(all.len() > 100, "{}", all.len());
        for limit in all {
            let mut db = store.begin().await.expect("a transaction");
            let sql = format!(
                "SELECT name, type, \"notnull\" FROM pragma_table_info('{}')",
                limit.table
            );
            let columns: Vec<(String, String, bool)> = db
                .query(&sql, &[])
                .await
                .expect("columns")
                .into_iter()
                .map(|mut row| {
                    let (name, kind, required) = (row.next(), row.next(), row.next::<i64>());
                    (
                        name.expect("a name"),
                        kind.expect("a type"),
                        required.expect("a number") == 1,
                    )
                })
                .collect();
            let (sql, values) = row(&limit, limit.most, &columns);
            let stored = db.execute(&sql, &values).await;
            assert!(stored.is_ok(), "{limit:?}: {stored:?}");
            let update = format!("UPDATE {0} SET {1} = {1} || 'x'", limit.table, limit.column);
            let what = format!("{}.{}", limit.table, limit.column);
            let (sql, values) = row(&limit, limit.most + 1, &columns);
            for refused in [db.execute(&update, &[]).await, db.execute(&sql, &values).await] {
                assert!(
                    matches!(&refused, Err(StoreError::TooLong { what: told, most }) if *told == what && *most == limit.most),
                    "{limit:?}: {refused:?}"
                );
            }
            db.rollback().await;
        }
    }
}
