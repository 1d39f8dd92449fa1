//! Pages of the large tables.
//!
//! Which way is short depends on how many rows fit, which is counted anyway: few are found by their conditions and
//! sorted; of many, the page is read along the index that gives the order, and its rows are looked up by their ids
//! at the end, so that those that are passed over cost an entry of an index each. A page beyond the middle is read
//! from the other end.

use super::list::{Listing, Order, write_after};
use crate::StoreError;
use crate::schema::{DURATION, KEPT, LABEL, OPERATOR};
use crate::sql::{Dialect, Row, Value};
use crate::unit_of_work::Tx;

/// Up to so many rows that fit are sorted.
const FEW: i64 = 5000;

/// The run's date by which a task instance is placed.
macro_rules! date_of_run {
    ($column:literal) => {
        concat!("(SELECT ", $column, " FROM dag_run WHERE dag_run.id = run_key)")
    };
}
/// A task instance's order by the `run_after` of its run.
pub const RUN_AFTER: &str = date_of_run!("run_after");
/// By the logical date of its run.
pub const LOGICAL_DATE: &str = date_of_run!("logical_date");
/// By the start of the data interval of its run.
pub const INTERVAL_START: &str = date_of_run!("data_interval_start");
/// By the end of the data interval of its run.
pub const INTERVAL_END: &str = date_of_run!("data_interval_end");

/// An order that an index gives.
struct Way {
    /// The column that is ordered by.
    column: &'static str,
    /// The index, of the table or of `dag_run`.
    index: &'static str,
    /// The columns of the index, from the first one to one that makes them unique.
    columns: &'static [&'static str],
    /// The column of `dag_run` that the index begins with.
    through_run: Option<&'static str>,
}

const fn own(column: &'static str, index: &'static str, columns: &'static [&'static str]) -> Way {
    Way {
        column,
        index,
        columns,
        through_run: None,
    }
}

const fn of_run(column: &'static str, index: &'static str, run_column: &'static str) -> Way {
    Way {
        column,
        index,
        columns: &["date_of_run", "key_of_run", "task_id", "map_index"],
        through_run: Some(run_column),
    }
}

const TASK_INSTANCES: &[Way] = &[
    own("map_index", "ix_ti_map_index", &["map_index", "id"]),
    own("start_date", "ix_ti_start", &["start_date", "id"]),
    own("end_date", "ix_ti_end", &["end_date", "id"]),
    own(DURATION, "ix_ti_duration", &[DURATION, "id"]),
    own("try_number", "ix_ti_try", &["try_number", "id"]),
    own("operator", "ix_ti_operator", &[OPERATOR, "id"]),
    own("rendered_map_index", "ix_ti_label", &[LABEL, "id"]),
    own(
        "state",
        "ix_ti_dispatch",
        &["state", "pool", "dispatch_order", "id"],
    ),
    of_run(RUN_AFTER, "ix_dag_run_due", "run_after"),
    of_run(LOGICAL_DATE, "ix_dag_run_logical", "logical_date"),
    of_run(INTERVAL_START, "ix_dag_run_from", "data_interval_start"),
    of_run(INTERVAL_END, "ix_dag_run_to", "data_interval_end"),
];

const DAG_RUNS: &[Way] = &[
    own("start_date", "ix_dag_run_start", &["start_date", "id"]),
    own("end_date", "ix_dag_run_end", &["end_date", "id"]),
    own(DURATION, "ix_dag_run_duration", &[DURATION, "id"]),
    own("run_after", "ix_dag_run_due", &["run_after", "id"]),
    own("logical_date", "ix_dag_run_logical", &["logical_date", "id"]),
    own(
        "state",
        "ix_dag_run_state",
        &["state", "dag_id", "run_after", "id"],
    ),
    own("dag_id", "ux_dag_run_id", &["dag_id", "run_id"]),
];

/// The expression as the database has it in an index.
fn indexed(dialect: Dialect, expression: &'static str) -> &'static str {
    let kept = KEPT.iter().find(|kept| kept.expression == expression);
    match (dialect, kept) {
        (Dialect::MariaDb, Some(kept)) => kept.column,
        (Dialect::MariaDb | Dialect::Sqlite, _) => expression,
    }
}

fn ways(table: &str) -> Option<&'static [Way]> {
    match table {
        "task_instance" => Some(TASK_INSTANCES),
        "dag_run" => Some(DAG_RUNS),
        _ => None,
    }
}

fn order_by(columns: impl Iterator<Item = String>) -> String {
    let columns: Vec<String> = columns.collect();
    if columns.is_empty() {
        return String::new();
    }
    format!(" ORDER BY {}", columns.join(", "))
}

fn direction(descending: bool) -> &'static str {
    if descending { "DESC" } else { "ASC" }
}

/// The order as it was asked for.
fn plain(order: &[Order]) -> String {
    order_by(
        order
            .iter()
            .map(|order| format!("{} {}", order.column, direction(order.descending))),
    )
}

fn count(number: u64) -> Value {
    Value::Integer(number.try_into().unwrap_or(i64::MAX))
}

/// The conditions of a list, as SQL beginning with ` WHERE` or empty, and their values.
pub(super) type Filter = (String, Vec<Value>);

impl Tx {
    /// The rows of the page, of a list in which `total` rows fit.
    pub(super) async fn page(
        &mut self,
        (table, columns): (&'static str, &'static str),
        listing: &Listing,
        filter: Filter,
        total: i64,
    ) -> Result<Vec<Row>, StoreError> {
        let total_rows = u64::try_from(total).unwrap_or(0);
        if listing.limit == 0 || (listing.after.is_none() && listing.offset >= total_rows) {
            return Ok(Vec::new());
        }
        let Some(ways) = ways(table) else {
            return self.plain_page((table, columns), listing, filter).await;
        };
        let way = match listing.order.as_slice() {
            [first, last] if last.column == "id" && first.descending == last.descending => {
                ways.iter().find(|way| way.column == first.column)
            }
            _ => None,
        };
        match way {
            _ if total <= FEW && listing.after.is_none() && !filter.0.is_empty() => {
                self.sorted_page((table, columns), listing, filter).await
            }
            Some(way) if listing.after.is_none() => {
                self.page_along((table, columns), way, listing, filter, total_rows)
                    .await
            }
            _ => self.plain_page((table, columns), listing, filter).await,
        }
    }

    /// Leaves it to the database how the page is found.
    async fn plain_page(
        &mut self,
        (table, columns): (&'static str, &'static str),
        listing: &Listing,
        (mut filter, mut params): Filter,
    ) -> Result<Vec<Row>, StoreError> {
        if let Some(values) = &listing.after {
            filter.push_str(if filter.is_empty() { " WHERE " } else { " AND " });
            write_after(&listing.order, values, &mut filter, &mut params);
        }
        let order = plain(&listing.order);
        params.extend([count(listing.limit), count(listing.offset)]);
        let sql = format!("SELECT {columns} FROM {table}{filter}{order} LIMIT ? OFFSET ?");
        self.query(&sql, &params).await
    }

    /// Finds all that fit, and sorts them. The limit within keeps the databases from trying another way.
    async fn sorted_page(
        &mut self,
        (table, columns): (&'static str, &'static str),
        listing: &Listing,
        (filter, mut params): Filter,
    ) -> Result<Vec<Row>, StoreError> {
        let order = plain(&listing.order);
        params.extend([
            Value::Integer(FEW * 2),
            count(listing.limit),
            count(listing.offset),
        ]);
        let sql = format!(
            "SELECT {columns} FROM (SELECT id AS id_of_page FROM {table}{filter} LIMIT ?) page \
             CROSS JOIN {table} ON id = id_of_page{order} LIMIT ? OFFSET ?"
        );
        self.query(&sql, &params).await
    }

    /// Goes along an index, from the nearer end.
    async fn page_along(
        &mut self,
        (table, columns): (&'static str, &'static str),
        way: &Way,
        listing: &Listing,
        (filter, params): Filter,
        total: u64,
    ) -> Result<Vec<Row>, StoreError> {
        let descending = listing.order.first().is_some_and(|order| order.descending);
        let wanted = listing.limit.min(total - listing.offset);
        let backward = listing.offset > total / 2 && way.through_run.is_none();
        let offset = match backward {
            true => total - listing.offset - wanted,
            false => listing.offset,
        };
        let mut walk = way.walk(self.dialect(), table, descending != backward, (filter, params));
        let left = self.go_along(&mut walk, offset).await?;
        let shown = order_by(way.shown(self.dialect(), descending));
        let Walk {
            select,
            from,
            along,
            filter: (filter, mut params),
            ..
        } = walk;
        params.extend([count(wanted), count(left)]);
        let sql = format!(
            "SELECT {columns} FROM ({select} id AS id_of_page FROM {from}{filter}{along} LIMIT ? OFFSET ?) page \
             CROSS JOIN {table} ON id = id_of_page{shown}"
        );
        self.query(&sql, &params).await
    }

    /// Goes along an index until at most [`STEP`] rows are left to be passed over; how many that are. SQLite passes over
    /// a million entries of an index in the time that MariaDB takes for fifty thousand, and needs no marks.
    async fn go_along(&mut self, walk: &mut Walk, offset: u64) -> Result<u64, StoreError> {
        let Some(marks) = self
            .marks()
            .filter(|_| offset > STEP && self.dialect() == Dialect::MariaDb)
        else {
            return Ok(offset);
        };
        let list = marks.of(walk.key());
        let mut list = list.lock().await;
        let (mut passed, mut row) = match list.before(offset) {
            Some((passed, row)) => (passed, Some(row)),
            None => (0, None),
        };
        while offset - passed > STEP {
            let (filter, mut params) = walk.after(row.as_deref());
            params.push(count(STEP - 1));
            let Walk {
                select, from, along, ..
            } = &*walk;
            let names: Vec<&str> = walk.order.iter().map(|order| order.column).collect();
            let sql = format!(
                "{select} {} FROM {from}{filter}{along} LIMIT 1 OFFSET ?",
                names.join(", ")
            );
            // The list has become shorter.
            let Some(next) = self.query_one(&sql, &params).await? else {
                break;
            };
            let next = next.into_values();
            passed += STEP;
            list.note(passed, next.clone());
            row = Some(next);
        }
        walk.filter = walk.after(row.as_deref());
        Ok(offset - passed)
    }
}

/// Rows from one mark of a list to the next.
const STEP: u64 = 10_000;

/// A way along an index, in one direction, past those that do not fit.
struct Walk {
    select: &'static str,
    from: String,
    filter: Filter,
    along: String,
    /// The columns by which a row has its place.
    order: Vec<Order>,
    /// Only task instances of runs have a place of their own within their run.
    through_run: bool,
}

impl Way {
    fn walk(&self, dialect: Dialect, table: &str, descending: bool, filter: Filter) -> Walk {
        let order: Vec<Order> = self
            .columns
            .iter()
            .enumerate()
            .map(|(at, column)| Order {
                column: indexed(dialect, column),
                descending: descending && !self.is_within_run(at),
            })
            .collect();
        // MariaDB would sort by the columns of the second table, which come in their order anyway.
        let written = match (dialect, self.through_run) {
            (Dialect::MariaDb, Some(_)) => &order[..2],
            (Dialect::MariaDb | Dialect::Sqlite, _) => &order[..],
        };
        let along = plain(written);
        let index = dialect.force_index(self.index);
        let (select, from) = match self.through_run {
            None => ("SELECT", format!("{table}{index}")),
            Some(column) => (
                dialect.select_in_order(),
                format!(
                    "(SELECT id AS key_of_run, {column} AS date_of_run FROM dag_run{index}) run \
                     CROSS JOIN {table}{} ON run_key = key_of_run",
                    dialect.force_index("ux_task_instance")
                ),
            ),
        };
        Walk {
            select,
            from,
            filter,
            along,
            order,
            through_run: self.through_run.is_some(),
        }
    }

    /// Returns `true` for columns that place a task instance within its run, which always go up.
    fn is_within_run(&self, at: usize) -> bool {
        self.through_run.is_some() && at >= 2
    }

    /// The order of the rows of a page.
    fn shown(&self, dialect: Dialect, descending: bool) -> impl Iterator<Item = String> {
        let own: Vec<String> = match self.through_run {
            None => self
                .columns
                .iter()
                .map(|column| format!("{} {}", indexed(dialect, column), direction(descending)))
                .collect(),
            Some(_) => vec![
                format!("{} {}", self.column, direction(descending)),
                format!("run_key {}", direction(descending)),
                "task_id ASC".to_owned(),
                "map_index ASC".to_owned(),
            ],
        };
        own.into_iter()
    }
}

impl Walk {
    /// What tells this way from others.
    fn key(&self) -> String {
        let (filter, params) = &self.filter;
        format!("{}{filter}{} {params:?}", self.from, self.along)
    }

    /// The conditions for the rows after this one.
    fn after(&self, row: Option<&[Value]>) -> Filter {
        let (mut filter, mut params) = self.filter.clone();
        let Some(row) = row else {
            return (filter, params);
        };
        filter.push_str(if filter.is_empty() { " WHERE " } else { " AND " });
        // The index of runs is entered by what is said of it alone.
        if let (true, Some(first), Some(value)) = (self.through_run, self.order.first(), row.first())
            && *value != Value::Null
        {
            filter.push_str(match first.descending {
                true => "(date_of_run <= ? OR date_of_run IS NULL) AND ",
                false => "date_of_run >= ? AND ",
            });
            params.push(value.clone());
        }
        write_after(&self.order, row, &mut filter, &mut params);
        (filter, params)
    }
}
