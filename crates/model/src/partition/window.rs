//! Which keys make up a period, and how many of them a run waits for.

use super::{Decoded, PartitionError};
use chrono::{Datelike, Duration, Months, NaiveDateTime};
use serde_json::Value;
use std::collections::BTreeSet;

/// What a period is made of.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Window {
    /// Periods of time, one after another.
    Periods {
        /// How many, and of which length.
        span: Span,
        /// Whether the period's begin is the last of them, not the first.
        backward: bool,
    },
    /// Words.
    Segments(BTreeSet<String>),
    /// A class that only Python knows.
    Foreign(String),
}

/// How many periods of time of which length.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Span {
    /// The 60 minutes of an hour.
    Hour,
    /// The 24 hours of a day.
    Day,
    /// The seven days of a week.
    Week,
    /// The days of a month.
    Month,
    /// The three months of a quarter.
    Quarter,
    /// The twelve months of a year.
    Year,
}

impl Window {
    /// Reads the serialized form.
    ///
    /// # Errors
    /// When a known window has parts that make no sense.
    pub fn from_serialized(value: &Value) -> Result<Self, PartitionError> {
        let class = value.get("__type").and_then(Value::as_str).unwrap_or_default();
        let body = value.get("__var").unwrap_or(&Value::Null);
        let name = class
            .strip_prefix("airflow.partition_mappers.window.")
            .unwrap_or(class);
        let span = match name {
            "HourWindow" => Span::Hour,
            "DayWindow" => Span::Day,
            "WeekWindow" => Span::Week,
            "MonthWindow" => Span::Month,
            "QuarterWindow" => Span::Quarter,
            "YearWindow" => Span::Year,
            "SegmentWindow" => {
                let words = body.get("segments").and_then(Value::as_array);
                let words = words.into_iter().flatten().filter_map(Value::as_str);
                return Ok(Self::Segments(words.map(str::to_owned).collect()));
            }
            _ => return Ok(Self::Foreign(class.to_owned())),
        };
        let backward = match body.get("direction").and_then(Value::as_str) {
            Some("forward") => false,
            Some("backward") => true,
            other => {
                let text = format!("{class}: {other:?} is no direction");
                return Err(PartitionError::Malformed(text));
            }
        };
        Ok(Self::Periods { span, backward })
    }

    pub(super) const fn is_foreign(&self) -> bool {
        matches!(self, Self::Foreign(_))
    }

    /// What makes up a period, in order.
    ///
    /// # Errors
    /// When the window does not fit what the key stands for.
    pub fn members(&self, whole: &Decoded) -> Result<Vec<Decoded>, PartitionError> {
        match (self, whole) {
            (Self::Segments(words), _) => Ok(words.iter().cloned().map(Decoded::Text).collect()),
            (Self::Periods { span, backward }, Decoded::Moment(begin)) => {
                let members = span.members(*begin, *backward);
                let members = members.ok_or_else(|| {
                    PartitionError::Key(format!(
                        "{span:?}Window expects a period start on day 1 of the month, got {begin}"
                    ))
                })?;
                Ok(members.into_iter().map(Decoded::Moment).collect())
            }
            (Self::Periods { span, .. }, Decoded::Text(key)) => Err(PartitionError::Key(format!(
                "{span:?}Window expects a point in time, got the key {key:?}"
            ))),
            (Self::Foreign(class), _) => Err(PartitionError::Foreign(class.clone())),
        }
    }
}

impl Span {
    /// `None` where a month does not begin, or the calendar ends.
    fn members(self, begin: NaiveDateTime, backward: bool) -> Option<Vec<NaiveDateTime>> {
        let in_months = |count: u32| {
            if begin.day() != 1 {
                return None;
            }
            let first = if backward {
                begin.checked_sub_months(Months::new(count - 1))?
            } else {
                begin
            };
            (0..count)
                .map(|n| first.checked_add_months(Months::new(n)))
                .collect()
        };
        let in_steps = |count: i32, step: Duration| {
            let first = if backward {
                begin - step * (count - 1)
            } else {
                begin
            };
            Some((0..count).map(|n| first + step * n).collect())
        };
        match self {
            Self::Hour => in_steps(60, Duration::minutes(1)),
            Self::Day => in_steps(24, Duration::hours(1)),
            Self::Week => in_steps(7, Duration::days(1)),
            Self::Month => {
                // Backward: every day after the first of the month before, up to this one.
                let (from, to) = if backward {
                    let day = Duration::days(1);
                    (begin.checked_sub_months(Months::new(1))? + day, begin + day)
                } else {
                    (begin, begin.checked_add_months(Months::new(1))?)
                };
                let days = i32::try_from((to - from).num_days()).ok()?;
                let all = (0..days).map(|n| from + Duration::days(1) * n).collect();
                (begin.day() == 1).then_some(all)
            }
            Self::Quarter => in_months(3),
            Self::Year => in_months(12),
        }
    }
}

/// When the keys that have come are enough.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum WaitPolicy {
    /// When all have.
    All,
    /// When so many have; all but so many, below zero.
    AtLeast(i64),
}

impl WaitPolicy {
    /// Reads the serialized form.
    ///
    /// # Errors
    /// When it is none that is known.
    pub fn from_serialized(value: &Value) -> Result<Self, PartitionError> {
        let class = value.get("__type").and_then(Value::as_str).unwrap_or_default();
        match class.rsplit('.').next() {
            Some("WaitForAll") => Ok(Self::All),
            Some("MinimumCount") => {
                let n = value.pointer("/__var/n").and_then(Value::as_i64);
                let n = n.ok_or_else(|| PartitionError::Malformed(format!("{class}: `n` is missing")))?;
                Ok(Self::AtLeast(n))
            }
            _ => Err(PartitionError::Foreign(class.to_owned())),
        }
    }

    /// Whether what has come is enough of what is expected.
    pub fn is_satisfied(self, come: &BTreeSet<String>, expected: &BTreeSet<String>) -> bool {
        match self {
            Self::All => expected.is_subset(come),
            Self::AtLeast(n) => {
                let matched = i64::try_from(come.intersection(expected).count()).unwrap_or(i64::MAX);
                let expected = i64::try_from(expected.len()).unwrap_or(i64::MAX);
                matched >= if n > 0 { n } else { (expected + n).max(0) }
            }
        }
    }
}
