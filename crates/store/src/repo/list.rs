//! Lists as the REST API asks for them: conditions, order, page.
//!
//! Columns are `&'static str`, so no name can come from a request; values are bind parameters.

use crate::StoreError;
use crate::sql::{Dialect, Row, Value, placeholders};
use crate::unit_of_work::Tx;

/// A condition on one column.
#[derive(Debug, Clone)]
pub enum Condition {
    /// Equal.
    Is(&'static str, Value),
    /// One of these; an empty list matches nothing.
    In(&'static str, Vec<Value>),
    /// `>=`; NULL counts as the given value.
    AtLeast(&'static str, Value),
    /// `>`.
    Above(&'static str, Value),
    /// `<=`.
    AtMost(&'static str, Value),
    /// `<`.
    Below(&'static str, Value),
    /// Contains the text, whatever its case; `%` and `_` are wildcards. Several alternatives.
    Contains(&'static str, Vec<String>),
    /// Starts with the text. Several alternatives.
    StartsWith(&'static str, Vec<String>),
}

/// A column to order by.
#[derive(Debug, Clone, Copy)]
pub struct Order {
    /// The column, or an expression over columns.
    pub column: &'static str,
    /// From high to low.
    pub descending: bool,
}

/// What part of a list is wanted.
#[derive(Debug, Clone, Default)]
pub struct Listing {
    /// All of these must hold.
    pub conditions: Vec<Condition>,
    /// Order; the last should be unique.
    pub order: Vec<Order>,
    /// Most entries to return.
    pub limit: u64,
    /// Entries to leave out at the start.
    pub offset: u64,
}

impl Condition {
    fn write(&self, dialect: Dialect, sql: &mut String, params: &mut Vec<Value>) {
        let compare = |sql: &mut String, params: &mut Vec<Value>, column: &str, sign: &str, value: &Value| {
            sql.push_str(&format!("{column} {sign} ?"));
            params.push(value.clone());
        };
        match self {
            Self::Is(column, value) => compare(sql, params, column, "=", value),
            Self::AtLeast(column, value) => compare(sql, params, column, ">=", value),
            Self::Above(column, value) => compare(sql, params, column, ">", value),
            Self::AtMost(column, value) => compare(sql, params, column, "<=", value),
            Self::Below(column, value) => compare(sql, params, column, "<", value),
            Self::In(_, values) if values.is_empty() => sql.push_str("1 = 0"),
            Self::In(column, values) => {
                sql.push_str(&format!("{column} IN ({})", placeholders(values.len())));
                params.extend(values.iter().cloned());
            }
            Self::Contains(column, texts) => {
                let parts: Vec<String> = texts
                    .iter()
                    .map(|_| format!("{column} {} ?", dialect.ilike()))
                    .collect();
                sql.push_str(&format!("({})", parts.join(" OR ")));
                params.extend(texts.iter().map(|text| Value::Text(format!("%{text}%"))));
            }
            Self::StartsWith(column, texts) => {
                let parts: Vec<String> = texts
                    .iter()
                    .map(|_| format!("SUBSTR({column}, 1, ?) = ?"))
                    .collect();
                sql.push_str(&format!("({})", parts.join(" OR ")));
                for text in texts {
                    params.push(Value::Integer(
                        text.chars().count().try_into().unwrap_or(i64::MAX),
                    ));
                    params.push(Value::Text(text.clone()));
                }
            }
        }
    }
}

impl Tx {
    /// The page of `table` that `listing` asks for, and how many entries there are without paging.
    pub(crate) async fn list(
        &mut self,
        table: &'static str,
        columns: &'static str,
        listing: &Listing,
    ) -> Result<(Vec<Row>, i64), StoreError> {
        let mut filter = String::new();
        let mut params = Vec::new();
        for (at, condition) in listing.conditions.iter().enumerate() {
            filter.push_str(if at == 0 { " WHERE " } else { " AND " });
            condition.write(self.dialect(), &mut filter, &mut params);
        }
        let count = self
            .query_one(&format!("SELECT COUNT(*) FROM {table}{filter}"), &params)
            .await?;
        let total: i64 = count.map_or(Ok(0), |mut row| row.next())?;
        if listing.limit == 0 {
            return Ok((Vec::new(), total));
        }
        let order: Vec<String> = listing
            .order
            .iter()
            .map(|order| {
                format!(
                    "{} {}",
                    order.column,
                    if order.descending { "DESC" } else { "ASC" }
                )
            })
            .collect();
        let order = if order.is_empty() {
            String::new()
        } else {
            format!(" ORDER BY {}", order.join(", "))
        };
        params.push(Value::Integer(listing.limit.try_into().unwrap_or(i64::MAX)));
        params.push(Value::Integer(listing.offset.try_into().unwrap_or(i64::MAX)));
        let sql = format!("SELECT {columns} FROM {table}{filter}{order} LIMIT ? OFFSET ?");
        Ok((self.query(&sql, &params).await?, total))
    }
}
