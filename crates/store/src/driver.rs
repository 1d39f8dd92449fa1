//! The two adapters; the only places that know sqlx.

mod convert;
pub(crate) mod mariadb;
pub(crate) mod sqlite;
