//! Rows, read column by column from the left.

use super::Value;
use crate::StoreError;
use model::Timestamp;
use std::str::FromStr;

/// One row of a result.
#[derive(Debug)]
pub struct Row {
    values: std::vec::IntoIter<Value>,
}

impl Row {
    /// A row of these values.
    pub fn new(values: Vec<Value>) -> Self {
        Self {
            values: values.into_iter(),
        }
    }

    /// All columns that are left.
    pub fn into_values(self) -> Vec<Value> {
        self.values.collect()
    }

    /// The next column.
    ///
    /// # Errors
    /// When there is none, or its value is not of that type.
    #[expect(
        clippy::should_implement_trait,
        reason = "each column has its own type, which an iterator cannot have"
    )]
    pub fn next<T: FromValue>(&mut self) -> Result<T, StoreError> {
        let value = self
            .values
            .next()
            .ok_or_else(|| StoreError::Inconsistent("a row has fewer columns than expected".to_owned()))?;
        T::from_value(value)
    }

    /// The next column, parsed from its text.
    ///
    /// # Errors
    /// When there is none, or the text cannot be parsed.
    pub fn parse<T: FromStr>(&mut self) -> Result<T, StoreError>
    where
        T::Err: std::fmt::Display,
    {
        let text: String = self.next()?;
        text.parse()
            .map_err(|error| StoreError::Inconsistent(format!("{text:?}: {error}")))
    }
}

/// What a column's value can become.
pub trait FromValue: Sized {
    /// Converts.
    ///
    /// # Errors
    /// When the value is of another kind.
    fn from_value(value: Value) -> Result<Self, StoreError>;
}

fn unexpected<T>(wanted: &str, value: &Value) -> Result<T, StoreError> {
    Err(StoreError::Inconsistent(format!(
        "expected {wanted}, found {value:?}"
    )))
}

impl FromValue for i64 {
    fn from_value(value: Value) -> Result<Self, StoreError> {
        match value {
            Value::Integer(n) => Ok(n),
            other => unexpected("a whole number", &other),
        }
    }
}

impl FromValue for f64 {
    fn from_value(value: Value) -> Result<Self, StoreError> {
        match value {
            Value::Real(n) => Ok(n),
            #[expect(
                clippy::cast_precision_loss,
                reason = "durations and counts are far below 2^52"
            )]
            Value::Integer(n) => Ok(n as Self),
            other => unexpected("a number", &other),
        }
    }
}

impl FromValue for String {
    fn from_value(value: Value) -> Result<Self, StoreError> {
        match value {
            Value::Text(text) => Ok(text),
            Value::Bytes(bytes) => Self::from_utf8(bytes)
                .map_err(|e| StoreError::Inconsistent(format!("text is not UTF-8: {e}"))),
            other => unexpected("text", &other),
        }
    }
}

impl FromValue for bool {
    fn from_value(value: Value) -> Result<Self, StoreError> {
        i64::from_value(value).map(|n| n != 0)
    }
}

macro_rules! narrow {
    ($($type:ty),*) => { $(impl FromValue for $type {
        fn from_value(value: Value) -> Result<Self, StoreError> {
            let wide = i64::from_value(value)?;
            Self::try_from(wide).map_err(|_| StoreError::Inconsistent(format!("{wide} is out of range")))
        }
    })* };
}
narrow!(i32, u32, u16, u64);

impl FromValue for Timestamp {
    fn from_value(value: Value) -> Result<Self, StoreError> {
        let micros = i64::from_value(value)?;
        model::time::from_micros(micros)
            .ok_or_else(|| StoreError::Inconsistent(format!("{micros} is not an instant")))
    }
}

impl<T: FromValue> FromValue for Option<T> {
    fn from_value(value: Value) -> Result<Self, StoreError> {
        match value {
            Value::Null => Ok(None),
            other => T::from_value(other).map(Some),
        }
    }
}
