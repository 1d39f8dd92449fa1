//! What both adapters translate: errors, parameters, rows.

use crate::StoreError;
use crate::schema::TOO_LONG;
use crate::sql::{Row, Value};
use sqlx::mysql::{MySqlDatabaseError, MySqlRow, MySqlTypeInfo};
use sqlx::sqlite::{SqliteError, SqliteRow};
use sqlx::{MySql, Row as _, Type, TypeInfo as _, ValueRef as _};

/// Binds all parameters to a query; a macro because the two databases' queries are different types.
macro_rules! bind_all {
    ($query:expr, $params:expr) => {{
        let mut query = $query;
        for param in $params {
            query = match param {
                // Of type text, as a NULL that is written out: MariaDB compares a text with a number as numbers, and
                // refuses to change rows where the text is none.
                $crate::sql::Value::Null => query.bind(None::<String>),
                $crate::sql::Value::Integer(n) => query.bind(*n),
                $crate::sql::Value::Real(n) => query.bind(*n),
                $crate::sql::Value::Text(text) => query.bind(text.as_str()),
                $crate::sql::Value::Bytes(bytes) => query.bind(bytes.as_slice()),
            };
        }
        query
    }};
}
pub(super) use bind_all;

/// The name under which lists are run.
pub(super) const LIST: &str = "list";

/// What an error of the driver means to us; `name` is the transaction that met it.
pub(super) fn store_error(name: &'static str, error: &sqlx::Error) -> StoreError {
    let detail = error.to_string();
    let Some(database) = error.as_database_error() else {
        return match error {
            sqlx::Error::ColumnDecode { .. } | sqlx::Error::Decode(_) | sqlx::Error::Encode(_) => {
                StoreError::Inconsistent(detail)
            }
            _ => StoreError::Unavailable { detail },
        };
    };
    if database.is_unique_violation() {
        return StoreError::Duplicate { detail };
    }
    let mysql = database
        .try_downcast_ref::<MySqlDatabaseError>()
        .map(MySqlDatabaseError::number);
    let sqlite = database
        .try_downcast_ref::<SqliteError>()
        .and_then(|_| database.code().and_then(|code| code.parse::<i32>().ok()))
        .map(|code| code & 0xff);
    if let Some(refused) = too_long(&detail, mysql) {
        return refused;
    }
    match (mysql, sqlite) {
        // Statement time-out; interrupted.
        (Some(1969), _) | (_, Some(9)) if name == LIST => StoreError::TooSlow {
            seconds: crate::LIST_SECONDS,
        },
        // Lock wait time-out, deadlock, snapshot conflict; busy, locked.
        (Some(1205 | 1213 | 1020), _) | (_, Some(5 | 6)) => StoreError::Contention { name, detail },
        // Shutdown, read-only, too many connections (in all, of the user, in its hour), killed, statement time-out; I/O, full
        // disk, cannot open.
        (Some(1040 | 1053 | 1077 | 1203 | 1226 | 1290 | 1317 | 1792 | 1836 | 1927 | 1969), _)
        | (_, Some(8 | 10 | 13 | 14)) => StoreError::Unavailable { detail },
        _ => StoreError::Refused { detail },
    }
}

/// The error of a text that is too long for its column.
fn too_long(detail: &str, mysql: Option<u16>) -> Option<StoreError> {
    if let Some((_, told)) = detail.split_once(TOO_LONG) {
        let (what, most) = told.split_once(": ")?;
        return Some(StoreError::TooLong {
            what: what.to_owned(),
            most: most.trim().parse().ok()?,
        });
    }
    if mysql != Some(1406) {
        return None;
    }
    let column = detail.split('\'').nth(1)?;
    // The server does not name the table.
    let all = crate::limits::of_columns();
    let most = all
        .iter()
        .filter(|limit| limit.column == column)
        .map(|limit| limit.most)
        .max()?;
    Some(StoreError::TooLong {
        what: column.to_owned(),
        most,
    })
}

fn mysql_value(row: &MySqlRow, at: usize) -> Result<Value, sqlx::Error> {
    let raw = row.try_get_raw(at)?;
    if raw.is_null() {
        return Ok(Value::Null);
    }
    let kind: MySqlTypeInfo = raw.type_info().into_owned();
    // Text in a binary collation goes by misleading names; the type's own check does not fall for them.
    if <i64 as Type<MySql>>::compatible(&kind) {
        row.try_get(at).map(Value::Integer)
    } else if <u64 as Type<MySql>>::compatible(&kind) {
        let n: u64 = row.try_get(at)?;
        i64::try_from(n)
            .map(Value::Integer)
            .map_err(|error| sqlx::Error::Decode(error.into()))
    } else if <f64 as Type<MySql>>::compatible(&kind) {
        row.try_get(at).map(Value::Real)
    } else if <str as Type<MySql>>::compatible(&kind) {
        row.try_get(at).map(Value::Text)
    } else if <[u8] as Type<MySql>>::compatible(&kind) {
        row.try_get(at).map(Value::Bytes)
    } else {
        Err(sqlx::Error::Decode(
            format!("column {at} has the unsupported type {}", kind.name()).into(),
        ))
    }
}

pub(super) fn mysql_row(row: &MySqlRow) -> Result<Row, sqlx::Error> {
    (0..row.len())
        .map(|at| mysql_value(row, at))
        .collect::<Result<_, _>>()
        .map(Row::new)
}

fn sqlite_value(row: &SqliteRow, at: usize) -> Result<Value, sqlx::Error> {
    let raw = row.try_get_raw(at)?;
    if raw.is_null() {
        return Ok(Value::Null);
    }
    let kind = raw.type_info().name().to_owned();
    match kind.as_str() {
        "INTEGER" => row.try_get_unchecked(at).map(Value::Integer),
        "REAL" => row.try_get_unchecked(at).map(Value::Real),
        "TEXT" => row.try_get_unchecked(at).map(Value::Text),
        "BLOB" => row.try_get_unchecked(at).map(Value::Bytes),
        other => Err(sqlx::Error::Decode(
            format!("column {at} has the unsupported type {other}").into(),
        )),
    }
}

pub(super) fn sqlite_row(row: &SqliteRow) -> Result<Row, sqlx::Error> {
    (0..row.len())
        .map(|at| sqlite_value(row, at))
        .collect::<Result<_, _>>()
        .map(Row::new)
}
