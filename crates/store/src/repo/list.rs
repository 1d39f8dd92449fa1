//! Lists as the REST API asks for them: conditions, order, page.
//!
//! Columns are `&'static str`, so no name can come from a request; values are bind parameters.

use crate::StoreError;
use crate::sql::{Dialect, Row, Value, placeholders};
use crate::unit_of_work::Tx;
use model::{DagId, Timestamp};
use std::collections::{HashMap, HashSet};

/// Values in the conditions of one list: SQLite takes 32,766 in a statement.
const MOST_VALUES: usize = 32_000;

/// Names of DAGs that stand in one statement.
const MOST_NAMES: usize = 1000;

/// A condition on one column.
#[derive(Debug, Clone)]
pub enum Condition {
    /// Equal.
    Is(&'static str, Value),
    /// One of these; an empty list matches nothing.
    In(&'static str, Vec<Value>),
    /// `>=`.
    AtLeast(&'static str, Value),
    /// `>`.
    Above(&'static str, Value),
    /// `<=`.
    AtMost(&'static str, Value),
    /// `<`.
    Below(&'static str, Value),
    /// Contains the text, whatever its case; `%` and `_` are wildcards. Several alternatives.
    Contains(&'static str, Vec<String>),
    /// One of these holds; of none, none does.
    Any(Vec<Condition>),
    /// All of these hold.
    All(Vec<Condition>),
    /// The column is NULL.
    IsNull(&'static str),
    /// The condition does not hold.
    Not(Box<Condition>),
    /// The column is NULL, or the condition holds.
    NullOr(&'static str, Box<Condition>),
    /// The condition holds for the DagRun that the row belongs to.
    OfRun(Box<Condition>),
    /// The column is among what this `SELECT ... WHERE` finds with the condition.
    Through(&'static str, &'static str, Box<Condition>),
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
    /// Begin after the row that has these values in the columns of `order`. Does not change the count.
    pub after: Option<Vec<Value>>,
    /// Most entries to return.
    pub limit: u64,
    /// Entries to leave out at the start.
    pub offset: u64,
}

impl Condition {
    fn write(&self, table: &str, dialect: Dialect, sql: &mut String, params: &mut Vec<Value>) {
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
            // Names of DAGs and runs are in every task instance, but each only once among the runs.
            Self::Contains(column @ ("dag_id" | "run_id"), _) if table == "task_instance" => {
                let (own, of_run) = if *column == "dag_id" {
                    ("dag_id", "DISTINCT dag_id")
                } else {
                    ("run_key", "id")
                };
                sql.push_str(&format!("{own} IN (SELECT {of_run} FROM dag_run WHERE "));
                self.write("dag_run", dialect, sql, params);
                sql.push(')');
            }
            Self::Contains(column, texts) => {
                join(texts, "OR", sql, &mut |text, sql| {
                    sql.push_str(&dialect.ilike(column));
                    params.push(Value::Text(format!("%{}%", dialect.like_text(text))));
                });
            }
            Self::Any(inner) => join(inner, "OR", sql, &mut |condition, sql| {
                condition.write(table, dialect, sql, params);
            }),
            Self::All(inner) => join(inner, "AND", sql, &mut |condition, sql| {
                condition.write(table, dialect, sql, params);
            }),
            Self::IsNull(column) => sql.push_str(&format!("{column} IS NULL")),
            Self::Not(inner) => {
                sql.push_str("NOT (");
                inner.write(table, dialect, sql, params);
                sql.push(')');
            }
            Self::NullOr(column, inner) => {
                sql.push_str(&format!("({column} IS NULL OR "));
                inner.write(table, dialect, sql, params);
                sql.push(')');
            }
            Self::OfRun(inner) => {
                sql.push_str("run_key IN (SELECT id FROM dag_run WHERE ");
                inner.write("dag_run", dialect, sql, params);
                sql.push(')');
            }
            Self::Through(column, select, inner) => {
                sql.push_str(&format!("{column} IN ({select} "));
                inner.write("", dialect, sql, params);
                sql.push(')');
            }
        }
    }
}

/// Writes `(a OR b) OR (c OR d)`: in pairs, since the depth of an expression is limited.
fn join<T>(items: &[T], word: &str, sql: &mut String, write: &mut dyn FnMut(&T, &mut String)) {
    match items {
        [] => sql.push_str(if word == "AND" { "1 = 1" } else { "1 = 0" }),
        [item] => write(item, sql),
        items => {
            let (left, right) = items.split_at(items.len() / 2);
            sql.push('(');
            join(left, word, sql, write);
            sql.push_str(&format!(" {word} "));
            join(right, word, sql, write);
            sql.push(')');
        }
    }
}

/// "Comes after the row with these values": larger in the first column, or equal there and after it in the next.
///
/// Both databases sort NULL before everything.
pub(super) fn write_after(order: &[Order], values: &[Value], sql: &mut String, params: &mut Vec<Value>) {
    let mut alternatives = Vec::new();
    for (at, (last, bound)) in order.iter().zip(values).enumerate() {
        let beyond = match (bound, last.descending) {
            (Value::Null, false) => format!("{} IS NOT NULL", last.column),
            // Nothing comes after NULL in this direction.
            (Value::Null, true) => continue,
            (_, false) => format!("{} > ?", last.column),
            (_, true) => format!("({0} < ? OR {0} IS NULL)", last.column),
        };
        let mut parts = Vec::new();
        for (same, value) in order.iter().zip(values).take(at) {
            match value {
                Value::Null => parts.push(format!("{} IS NULL", same.column)),
                value => {
                    parts.push(format!("{} = ?", same.column));
                    params.push(value.clone());
                }
            }
        }
        parts.push(beyond);
        if *bound != Value::Null {
            params.push(bound.clone());
        }
        alternatives.push(format!("({})", parts.join(" AND ")));
    }
    sql.push_str(&if alternatives.is_empty() {
        "1 = 0".to_owned()
    } else {
        format!("({})", alternatives.join(" OR "))
    });
}

/// A table whose lists are paged by cursor.
#[derive(Debug, Clone, Copy)]
pub enum Paged {
    /// `dag_run`
    DagRuns,
    /// `task_instance`
    TaskInstances,
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
        let conditions = self.with_names(table, &listing.conditions).await?;
        for (at, condition) in conditions.iter().enumerate() {
            filter.push_str(if at == 0 { " WHERE " } else { " AND " });
            condition.write(table, self.dialect(), &mut filter, &mut params);
        }
        if params.len() > MOST_VALUES {
            return Err(StoreError::TooLarge {
                what: "the number of values in the conditions of a list",
                bytes: params.len(),
                most: MOST_VALUES,
            });
        }
        let total = self
            .count(&format!("SELECT COUNT(*) FROM {table}{filter}"), &params)
            .await?;
        let rows = self
            .page((table, columns), listing, (filter, params), total)
            .await?;
        Ok((rows, total))
    }

    /// The conditions on task instances, with the names of DAGs in the place of what they are like: there are few of them.
    async fn with_names(
        &mut self,
        table: &str,
        conditions: &[Condition],
    ) -> Result<Vec<Condition>, StoreError> {
        let mut named = conditions.to_vec();
        if table != "task_instance" {
            return Ok(named);
        }
        for condition in &mut named {
            if !matches!(condition, Condition::Contains("dag_id", _)) {
                continue;
            }
            let (mut like, mut params) = (String::new(), Vec::new());
            condition.write("dag_run", self.dialect(), &mut like, &mut params);
            let sql = format!("SELECT dag_id FROM dag_run GROUP BY dag_id HAVING {like}");
            let rows = self.query(&sql, &params).await?;
            if rows.len() <= MOST_NAMES {
                let names = rows
                    .into_iter()
                    .map(|mut row| row.next::<String>().map(Value::from));
                *condition = Condition::In("dag_id", names.collect::<Result<_, _>>()?);
            }
        }
        Ok(named)
    }

    /// State and start of the latest run of each DAG.
    ///
    /// # Errors
    /// As the database says.
    pub async fn latest_runs(&mut self) -> Result<HashMap<DagId, (String, Option<Timestamp>)>, StoreError> {
        let sql = "SELECT dag_id, state, start_date FROM dag_run \
                   WHERE id IN (SELECT MAX(id) FROM dag_run GROUP BY dag_id)";
        let rows = self.query(sql, &[]).await?;
        rows.into_iter()
            .map(|mut row| Ok((row.next()?, (row.next()?, row.next()?))))
            .collect()
    }

    /// The DAGs that have a run for which all of these hold.
    ///
    /// # Errors
    /// As the database says.
    pub async fn dags_with_runs(&mut self, conditions: Vec<Condition>) -> Result<HashSet<DagId>, StoreError> {
        let (mut filter, mut params) = (String::new(), Vec::new());
        Condition::All(conditions).write("dag_run", self.dialect(), &mut filter, &mut params);
        let sql = format!("SELECT DISTINCT dag_id FROM dag_run WHERE {filter}");
        let rows = self.query(&sql, &params).await?;
        rows.into_iter().map(|mut row| row.next()).collect()
    }

    /// The values that place a row in an order, for [`Listing::after`].
    ///
    /// # Errors
    /// As the database says.
    pub async fn place_of(
        &mut self,
        table: Paged,
        order: &[Order],
        id: Value,
    ) -> Result<Option<Vec<Value>>, StoreError> {
        let table = match table {
            Paged::DagRuns => "dag_run",
            Paged::TaskInstances => "task_instance",
        };
        let columns: Vec<&str> = order.iter().map(|order| order.column).collect();
        let sql = format!("SELECT {} FROM {table} WHERE id = ?", columns.join(", "));
        let row = self.query_one(&sql, &[id]).await?;
        Ok(row.map(Row::into_values))
    }
}
