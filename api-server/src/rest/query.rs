//! Query parameters.

use super::error::{ApiError, ApiResult, problem, problem_with};
use super::pattern::{Pattern, Pipe, Prefix};
use crate::App;
use axum::extract::FromRequestParts;
use axum::http::StatusCode;
use axum::http::request::Parts;
use chrono::{DateTime, NaiveDate, NaiveDateTime};
use model::Timestamp;
use serde_json::{Value, json};
use store::repo::{Condition, DURATION, Listing, Order};
use store::sql::Value as Stored;

const MOST_ORDERS: usize = 10;
/// Bytes of a query. Longer ones would meet limits of the databases: parameters of a statement, length of a pattern.
const LONGEST: usize = 24 << 10;

/// Decodes `a=b&c=d`.
pub(crate) fn pairs(text: &str) -> Vec<(String, String)> {
    text.split('&')
        .filter(|pair| !pair.is_empty())
        .map(|pair| pair.split_once('=').unwrap_or((pair, "")))
        .map(|(key, value)| (decode(key), decode(value)))
        .collect()
}

fn decode(text: &str) -> String {
    let bytes = text.as_bytes();
    let mut out = Vec::with_capacity(bytes.len());
    let mut at = 0;
    while at < bytes.len() {
        let hex = |from: usize| {
            bytes
                .get(from..from + 2)
                .and_then(|two| std::str::from_utf8(two).ok())
        };
        match (
            bytes[at],
            hex(at + 1).and_then(|two| u8::from_str_radix(two, 16).ok()),
        ) {
            (b'+', _) => out.push(b' '),
            (b'%', Some(byte)) => {
                out.push(byte);
                at += 2;
            }
            (byte, _) => out.push(byte),
        }
        at += 1;
    }
    String::from_utf8_lossy(&out).into_owned()
}

/// A truth in one of pydantic's words.
pub(crate) fn truth(word: &str) -> Option<bool> {
    match word.to_ascii_lowercase().as_str() {
        "true" | "1" | "yes" | "on" | "t" | "y" => Some(true),
        "false" | "0" | "no" | "off" | "f" | "n" => Some(false),
        _ => None,
    }
}

/// An instant and whether it named its time zone; without one it is taken as UTC.
pub(crate) fn read_instant(text: &str) -> Result<(Timestamp, bool), &'static str> {
    // A plus sign that was not escaped arrives as a space.
    let text = text
        .trim()
        .replace(' ', if text.contains('T') { "+" } else { " " });
    if let Ok(at) = DateTime::parse_from_rfc3339(&text) {
        return Ok((at.to_utc(), true));
    }
    for format in ["%Y-%m-%dT%H:%M:%S%.f%z", "%Y-%m-%d %H:%M:%S%.f%z"] {
        if let Ok(at) = DateTime::parse_from_str(&text, format) {
            return Ok((at.to_utc(), true));
        }
    }
    for format in ["%Y-%m-%dT%H:%M:%S%.f", "%Y-%m-%d %H:%M:%S%.f", "%Y-%m-%dT%H:%M"] {
        if let Ok(at) = NaiveDateTime::parse_from_str(&text, format) {
            return Ok((at.and_utc(), false));
        }
    }
    if let Some(at) = NaiveDate::parse_from_str(&text, "%Y-%m-%d")
        .ok()
        .and_then(|date| date.and_hms_opt(0, 0, 0))
    {
        return Ok((at.and_utc(), false));
    }
    Err(if text.len() < 10 {
        "input is too short"
    } else {
        "invalid character in year"
    })
}

/// Seconds as the database keeps durations.
#[expect(
    clippy::cast_possible_truncation,
    reason = "a bound beyond 2^63 microseconds is as good as 2^63"
)]
pub(crate) fn micros(seconds: f64) -> Stored {
    Stored::Integer((seconds * 1e6) as i64)
}

/// A bound of a range.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Bound {
    AtLeast,
    Above,
    AtMost,
    Below,
}

/// Bounds by the end of a parameter's name.
pub(crate) const BOUNDS: [(&str, Bound); 4] = [
    ("gte", Bound::AtLeast),
    ("gt", Bound::Above),
    ("lte", Bound::AtMost),
    ("lt", Bound::Below),
];

impl Bound {
    /// The condition. A start or an end that has not come yet counts as now, so it is above any lower bound.
    pub(crate) fn of(self, key: &str, column: &'static str, value: Stored) -> Condition {
        let open_ended = matches!(key, "start_date" | "end_date");
        let lower = |condition| {
            if open_ended {
                Condition::NullOr(column, Box::new(condition))
            } else {
                condition
            }
        };
        match self {
            Self::AtLeast => lower(Condition::AtLeast(column, value)),
            Self::Above => lower(Condition::Above(column, value)),
            Self::AtMost => Condition::AtMost(column, value),
            Self::Below => Condition::Below(column, value),
        }
    }
}

/// The query of a request.
#[derive(Debug)]
pub(crate) struct Query {
    pairs: Vec<(String, String)>,
    problems: Vec<Value>,
}

impl FromRequestParts<App> for Query {
    type Rejection = ApiError;

    async fn from_request_parts(parts: &mut Parts, _: &App) -> Result<Self, ApiError> {
        let query = parts.uri.query().unwrap_or_default();
        if query.len() > LONGEST {
            let text = format!("The query of a request has at most {LONGEST} bytes");
            return Err(ApiError::detail(StatusCode::URI_TOO_LONG, text));
        }
        Ok(Self {
            pairs: pairs(query),
            problems: Vec::new(),
        })
    }
}

impl Query {
    /// The last value of a parameter.
    pub(crate) fn text(&self, key: &str) -> Option<&str> {
        self.pairs
            .iter()
            .rev()
            .find(|(k, _)| k == key)
            .map(|(_, value)| value.as_str())
    }

    /// All values of a parameter, empty ones left out.
    pub(crate) fn all(&self, key: &str) -> Vec<&str> {
        self.pairs
            .iter()
            .filter(|(k, v)| k == key && !v.is_empty())
            .map(|(_, value)| value.as_str())
            .collect()
    }

    fn integer(&mut self, key: &str, default: i64, least: i64) -> i64 {
        let Some(text) = self.text(key).map(str::to_owned) else {
            return default;
        };
        let location = [json!("query"), json!(key)];
        match text.trim().parse::<i128>() {
            Ok(n) if n >= i128::from(least) => i64::try_from(n).unwrap_or(i64::MAX),
            Ok(_) => {
                let message = format!("Input should be greater than or equal to {least}");
                let context = json!({"ge": least});
                self.problems.push(problem_with(
                    "greater_than_equal",
                    &location,
                    &message,
                    json!(text),
                    context,
                ));
                default
            }
            Err(_) => {
                let message = "Input should be a valid integer, unable to parse string as an integer";
                self.problems
                    .push(problem("int_parsing", &location, message, json!(text)));
                default
            }
        }
    }

    /// A whole number of at least `least`.
    pub(crate) fn number(&mut self, key: &str, default: i64, least: i64) -> ApiResult<i64> {
        let number = self.integer(key, default, least);
        self.checked().map(|()| number)
    }

    /// A truth.
    pub(crate) fn boolean(&mut self, key: &str) -> Option<bool> {
        let text = self.text(key)?.to_owned();
        let read = truth(&text);
        if read.is_none() {
            let message = "Input should be a valid boolean, unable to interpret input";
            self.problems.push(problem(
                "bool_parsing",
                &[json!("query"), json!(key)],
                message,
                json!(text),
            ));
        }
        read
    }

    /// An instant.
    pub(crate) fn instant(&mut self, key: &str) -> Option<Timestamp> {
        let text = self.text(key)?.to_owned();
        match read_instant(&text) {
            Ok((at, _)) => Some(at),
            Err(why) => {
                let message = format!("Input should be a valid datetime or date, {why}");
                let location = [json!("query"), json!(key)];
                let context = json!({"error": why});
                self.problems.push(problem_with(
                    "datetime_from_date_parsing",
                    &location,
                    &message,
                    json!(text),
                    context,
                ));
                None
            }
        }
    }

    /// Tells what was wrong with the parameters asked for so far.
    pub(crate) fn checked(&mut self) -> ApiResult<()> {
        if self.problems.is_empty() {
            Ok(())
        } else {
            Err(ApiError::invalid(std::mem::take(&mut self.problems)))
        }
    }

    /// `limit` and `offset`, within the configured bounds.
    pub(crate) fn page(&mut self, app: &App) -> ApiResult<(u64, u64)> {
        let fallback = i64::try_from(app.config.api.fallback_page_limit).unwrap_or(50);
        let limit = self.integer("limit", fallback, 0);
        let offset = self.integer("offset", 0, 0);
        self.checked()?;
        let limit = u64::try_from(limit)
            .unwrap_or(0)
            .min(app.config.api.maximum_page_limit);
        Ok((limit, u64::try_from(offset).unwrap_or(0)))
    }

    /// `order_by`, each name mapped by `known`; the unique `last` breaks ties.
    pub(crate) fn order(
        &self,
        known: &dyn Fn(&str) -> Option<&'static str>,
        default: &'static str,
        last: &'static str,
    ) -> ApiResult<Vec<Order>> {
        order_of(&self.all("order_by"), known, default, last)
    }

    /// A number.
    fn float(&mut self, key: &str) -> Option<f64> {
        let text = self.text(key)?.to_owned();
        let number = text.trim().parse().ok();
        if number.is_none() {
            let message = "Input should be a valid number, unable to parse string as a number";
            let location = [json!("query"), json!(key)];
            self.problems
                .push(problem("float_parsing", &location, message, json!(text)));
        }
        number
    }

    /// Adds `KEY_gte`, `_gt`, `_lte`, `_lt` of an instant.
    pub(crate) fn range(&mut self, key: &str, column: &'static str, conditions: &mut Vec<Condition>) {
        for (suffix, bound) in BOUNDS {
            if let Some(at) = self.instant(&format!("{key}_{suffix}")) {
                conditions.push(bound.of(key, column, at.into()));
            }
        }
    }

    /// Adds the same for the run that a task instance belongs to.
    pub(crate) fn range_of_run(&mut self, column: &'static str, conditions: &mut Vec<Condition>) {
        let mut of_run = Vec::new();
        self.range(column, column, &mut of_run);
        conditions.extend(of_run.into_iter().map(|inner| Condition::OfRun(Box::new(inner))));
    }

    /// Adds `duration_gte` and so on, in seconds.
    pub(crate) fn duration(&mut self, conditions: &mut Vec<Condition>) {
        for (suffix, bound) in BOUNDS {
            if let Some(seconds) = self.float(&format!("duration_{suffix}")) {
                conditions.push(bound.of("duration", DURATION, micros(seconds)));
            }
        }
    }

    /// Adds `KEY_pattern` and `KEY_prefix_pattern`.
    pub(crate) fn pattern(&self, key: &str, column: &'static str, conditions: &mut Vec<Condition>) {
        self.pattern_with(key, column, Pipe::Or, conditions);
    }

    /// The same, where `|` may be a letter.
    pub(crate) fn pattern_with(
        &self,
        key: &str,
        column: &'static str,
        pipe: Pipe,
        conditions: &mut Vec<Condition>,
    ) {
        if let Some(text) = self.text(&format!("{key}_pattern")) {
            conditions.push(Pattern::read(text, pipe).condition(column));
        }
        if let Some(text) = self.text(&format!("{key}_prefix_pattern")) {
            conditions.push(Prefix::read(text, pipe).condition(column));
        }
    }

    /// The same for a list that is in memory: keeps what fits `KEY_pattern` and `KEY_prefix_pattern`.
    pub(crate) fn retain<T>(&self, key: &str, items: &mut Vec<T>, name: impl Fn(&T) -> &str) {
        if let Some(text) = self.text(&format!("{key}_pattern")) {
            let pattern = Pattern::read(text, Pipe::Or);
            items.retain(|item| pattern.fits(name(item)));
        }
        if let Some(text) = self.text(&format!("{key}_prefix_pattern")) {
            let prefix = Prefix::read(text, Pipe::Or);
            items.retain(|item| prefix.fits(name(item)));
        }
    }

    /// Adds "of one of these versions of its DAG" for a repeated parameter.
    pub(crate) fn versions(&self, key: &str, conditions: &mut Vec<Condition>) {
        let numbers: Vec<Stored> = self
            .all(key)
            .iter()
            .filter_map(|text| text.parse::<i64>().ok())
            .map(Stored::from)
            .collect();
        if !numbers.is_empty() {
            conditions.push(Condition::Through(
                "version_id",
                "SELECT id FROM dag_version WHERE",
                Box::new(Condition::In("version_number", numbers)),
            ));
        }
    }

    /// Adds "is of this bundle's version": nothing is, as bundles have no versions here.
    pub(crate) fn bundle_version(&self, conditions: &mut Vec<Condition>) {
        if self
            .text("bundle_version")
            .is_some_and(|version| !version.is_empty())
        {
            conditions.push(Condition::Any(Vec::new()));
        }
    }

    /// Adds "one of these" for a repeated parameter.
    pub(crate) fn one_of(&self, key: &str, column: &'static str, conditions: &mut Vec<Condition>) {
        let values = self.all(key);
        if !values.is_empty() {
            conditions.push(Condition::In(
                column,
                values.into_iter().map(Stored::from).collect(),
            ));
        }
    }
}

/// An order by these names, each mapped by `known`, `-` in front for descending; the unique `last` breaks ties.
pub(crate) fn order_of(
    names: &[&str],
    known: &dyn Fn(&str) -> Option<&'static str>,
    default: &'static str,
    last: &'static str,
) -> ApiResult<Vec<Order>> {
    if names.len() > MOST_ORDERS {
        let shown: Vec<String> = names.iter().map(|name| format!("'{name}'")).collect();
        return Err(ApiError::bad_request(format!(
            "Ordering with more than 10 parameters is not allowed. Provided: [{}]",
            shown.join(", ")
        )));
    }
    let mut order = Vec::new();
    for name in names {
        let bare = name.trim_start_matches('-');
        let column = known(bare).ok_or_else(|| {
            ApiError::bad_request(format!(
                "Ordering with '{bare}' is disallowed or the attribute does not exist on the model"
            ))
        })?;
        order.push(Order {
            column,
            descending: name.starts_with('-'),
        });
    }
    if order.is_empty() {
        order.push(Order {
            column: default,
            descending: false,
        });
    }
    let descending = order[0].descending;
    order.push(Order {
        column: last,
        descending,
    });
    Ok(order)
}

/// A part of an in-memory list, as `limit` and `offset` want it.
pub(crate) fn cut<T>(items: Vec<T>, (limit, offset): (u64, u64)) -> Vec<T> {
    let skip = usize::try_from(offset).unwrap_or(usize::MAX);
    items
        .into_iter()
        .skip(skip)
        .take(usize::try_from(limit).unwrap_or(usize::MAX))
        .collect()
}

/// A listing of these conditions.
pub(crate) fn listing(conditions: Vec<Condition>, order: Vec<Order>, (limit, offset): (u64, u64)) -> Listing {
    Listing {
        conditions,
        order,
        after: None,
        limit,
        offset,
    }
}

/// A whole number in a path.
pub(crate) fn path_number(key: &str, text: &str, least: i64) -> ApiResult<i64> {
    let location = [json!("path"), json!(key)];
    match text.parse::<i64>() {
        Ok(n) if n >= least => Ok(n),
        Ok(_) => {
            let message = format!("Input should be greater than or equal to {least}");
            Err(ApiError::invalid(vec![problem_with(
                "greater_than_equal",
                &location,
                &message,
                json!(text),
                json!({"ge": least}),
            )]))
        }
        Err(_) => {
            let message = "Input should be a valid integer, unable to parse string as an integer";
            Err(ApiError::invalid(vec![problem(
                "int_parsing",
                &location,
                message,
                json!(text),
            )]))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn queries_are_decoded_and_instants_read_in_all_their_forms() {
        assert_eq!(
            pairs("a=b%20c&d=1+2&e"),
            [
                ("a".into(), "b c".into()),
                ("d".into(), "1 2".into()),
                ("e".into(), String::new())
            ]
        );
        for (text, aware) in [
            ("2025-01-02T03:04:05Z", true),
            ("2025-01-02T03:04:05 00:00", true),
            ("2025-01-02T03:04:05", false),
            ("2025-01-02", false),
        ] {
            assert_eq!(read_instant(text).unwrap().1, aware, "{text}");
        }
        assert_eq!(read_instant("bogus"), Err("input is too short"));
    }
}
