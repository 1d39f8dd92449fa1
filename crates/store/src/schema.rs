//! The schema, as numbered migrations that both databases understand.
//!
//! MariaDB commits each DDL statement by itself, so every step can be run again: it looks whether its table, index or
//! column is there. A migration is only ever added, never changed.

mod steps;

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
    /// Adds a column that may be empty.
    Column {
        table: &'static str,
        name: &'static str,
        word: &'static str,
    },
}

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

/// Columns of an index. `name(250)` is an index over the beginning of a long text, which SQLite does not need.
pub(crate) fn index_columns(dialect: Dialect, columns: &str) -> String {
    match dialect {
        Dialect::MariaDb => columns.to_owned(),
        Dialect::Sqlite => {
            let parts = columns
                .split('(')
                .map(|part| part.split_once(')').map_or(part, |(_, rest)| rest));
            parts.collect()
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

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
    }

    #[test]
    fn versions_go_up_by_one() {
        for (at, migration) in MIGRATIONS.iter().enumerate() {
            assert_eq!(migration.version, at as i64 + 1);
        }
    }
}
