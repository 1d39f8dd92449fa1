//! The port between the repositories and the two databases: values, rows, sessions, dialect.
//!
//! Repositories write SQL that both databases read, and ask the [`Dialect`] for the few words that differ. No
//! statement is put together from data: every value is a bind parameter.

mod dialect;
mod ids;
mod row;
mod session;
mod value;

pub use dialect::Dialect;
pub(crate) use dialect::placeholders;
pub use row::{FromValue, Row};
pub use session::{Affected, Driver, Mode, Session};
pub use value::Value;

/// Bind parameters from anything that converts [`Into<Value>`].
#[macro_export]
macro_rules! params {
    ($($value:expr),* $(,)?) => { &[$($crate::sql::Value::from($value)),*] };
}
