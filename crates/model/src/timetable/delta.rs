//! Differences between dates: a fixed length of time, or calendar months and years.

use super::TimetableError;
use crate::time::Timestamp;
use chrono::{Duration, Months};
use serde_json::Value;

/// A difference between dates.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Delta {
    months: i32,
    fixed: Duration,
}

impl Delta {
    /// No difference.
    pub const ZERO: Self = Self {
        months: 0,
        fixed: Duration::zero(),
    };

    /// Reads seconds, or the parts of a `relativedelta`.
    pub(super) fn from_serialized(value: Option<&Value>) -> Result<Self, TimetableError> {
        match value {
            None | Some(Value::Null) => Ok(Self::ZERO),
            Some(Value::Number(n)) => Ok(Self {
                months: 0,
                fixed: seconds(n.as_f64().unwrap_or(0.0)),
            }),
            Some(Value::Object(parts)) => {
                if let Some(inner) = parts.get("__var") {
                    return Self::from_serialized(Some(inner));
                }
                let mut delta = Self::ZERO;
                for (name, value) in parts {
                    let n = value.as_f64().unwrap_or(0.0);
                    match name.as_str() {
                        "years" => delta.months += (n * 12.0) as i32,
                        "months" => delta.months += n as i32,
                        "weeks" => delta.fixed += seconds(n * 604_800.0),
                        "days" => delta.fixed += seconds(n * 86_400.0),
                        "hours" => delta.fixed += seconds(n * 3_600.0),
                        "minutes" => delta.fixed += seconds(n * 60.0),
                        "seconds" => delta.fixed += seconds(n),
                        "microseconds" => delta.fixed += Duration::microseconds(n as i64),
                        other => {
                            return Err(TimetableError::Malformed(format!(
                                "relativedelta with {other} is not supported"
                            )));
                        }
                    }
                }
                Ok(delta)
            }
            Some(other) => Err(TimetableError::Malformed(format!(
                "{other} is not a time difference"
            ))),
        }
    }

    /// Whether adding it moves a date on.
    pub fn is_positive(&self) -> bool {
        self.months > 0 || (self.months == 0 && self.fixed > Duration::zero())
    }

    /// The date this much later; months are clamped to the last day of the month, as `relativedelta` does.
    pub fn after(&self, at: Timestamp) -> Timestamp {
        let months = self.months.unsigned_abs();
        let shifted = match self.months {
            0 => Some(at),
            1.. => at.checked_add_months(Months::new(months)),
            _ => at.checked_sub_months(Months::new(months)),
        };
        shifted
            .and_then(|at| at.checked_add_signed(self.fixed))
            .unwrap_or(at)
    }

    /// The date this much earlier.
    pub fn before(&self, at: Timestamp) -> Timestamp {
        Self {
            months: -self.months,
            fixed: -self.fixed,
        }
        .after(at)
    }

    /// The grid point at or before `at`, on the grid of this width through 1970 (fixed) or through `anchor` (months).
    pub(super) fn floor(&self, at: Timestamp, anchor: Timestamp) -> Timestamp {
        if self.months == 0 {
            let width = self.fixed.num_microseconds().unwrap_or(1).max(1);
            return at - Duration::microseconds(at.timestamp_micros().rem_euclid(width));
        }
        let mut point = anchor;
        while self.after(point) <= at {
            point = self.after(point);
        }
        point
    }
}

fn seconds(n: f64) -> Duration {
    Duration::microseconds((n * 1e6).round() as i64)
}
