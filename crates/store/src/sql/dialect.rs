//! The few words in which MariaDB and SQLite differ.

/// Which database speaks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Dialect {
    /// MariaDB from 10.6, MySQL from 8.
    MariaDb,
    /// SQLite.
    Sqlite,
}

impl Dialect {
    /// The database's clock, in microseconds since 1970. Leases are judged by this clock only.
    pub const fn now(self) -> &'static str {
        match self {
            Self::MariaDb => "CAST(UNIX_TIMESTAMP(NOW(6)) * 1000000 AS SIGNED)",
            Self::Sqlite => "CAST((julianday('now') - 2440587.5) * 86400000000 AS INTEGER)",
        }
    }

    /// Locks the rows that are read, waiting for them. SQLite's one writer needs no word for it.
    pub const fn for_update(self) -> &'static str {
        match self {
            Self::MariaDb => " FOR UPDATE",
            Self::Sqlite => "",
        }
    }

    /// Locks the rows that are read, passing over those that are locked.
    pub const fn skip_locked(self) -> &'static str {
        match self {
            Self::MariaDb => " FOR UPDATE SKIP LOCKED",
            Self::Sqlite => "",
        }
    }

    /// Makes a claim query walk the index that gives its order, so that it locks only what it returns.
    pub fn force_index(self, index: &'static str) -> String {
        match self {
            Self::MariaDb => format!(" FORCE INDEX ({index})"),
            Self::Sqlite => format!(" INDEXED BY {index}"),
        }
    }

    /// The head of a SELECT that reads its tables in the order in which they are named. SQLite does so wherever they are
    /// joined by `CROSS JOIN`.
    pub(crate) const fn select_in_order(self) -> &'static str {
        match self {
            Self::MariaDb => "SELECT STRAIGHT_JOIN",
            Self::Sqlite => "SELECT",
        }
    }

    /// The tail of an INSERT that overwrites `columns` where a row with the same `key` exists.
    pub fn on_duplicate(self, key: &'static str, columns: &[&'static str]) -> String {
        let (head, form): (String, fn(&str) -> String) = match self {
            Self::MariaDb => (" ON DUPLICATE KEY UPDATE ".to_owned(), |c| {
                format!("{c} = VALUES({c})")
            }),
            Self::Sqlite => (format!(" ON CONFLICT ({key}) DO UPDATE SET "), |c| {
                format!("{c} = excluded.{c}")
            }),
        };
        let assignments: Vec<String> = columns.iter().map(|c| form(c)).collect();
        head + &assignments.join(", ")
    }

    /// The head of an INSERT that leaves an existing row with the same key as it is.
    pub const fn insert_ignore(self) -> &'static str {
        match self {
            Self::MariaDb => "INSERT IGNORE INTO",
            Self::Sqlite => "INSERT OR IGNORE INTO",
        }
    }

    /// `column LIKE ?` whatever the case, for a parameter that [`Dialect::like_text`] has written.
    pub(crate) fn ilike(self, column: &str) -> String {
        match self {
            Self::MariaDb => format!("LOWER({column}) LIKE LOWER(?) ESCAPE '!'"),
            Self::Sqlite => format!("{column} LIKE ? ESCAPE '!'"),
        }
    }

    /// A text in a LIKE, in which only `%` and `_` mean more than themselves. MariaDB takes a backslash for an escape
    /// unless another one is named, and SQLite takes none.
    pub(crate) fn like_text(self, text: &str) -> String {
        text.replace('!', "!!")
    }
}

/// `?, ?, ?` for `count` parameters.
pub(crate) fn placeholders(count: usize) -> String {
    let mut text = "?, ".repeat(count);
    text.truncate(text.len().saturating_sub(2));
    text
}
