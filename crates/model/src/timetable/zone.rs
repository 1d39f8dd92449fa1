//! Time zones and the two ways between wall clock and UTC.

use super::TimetableError;
use crate::time::Timestamp;
use chrono::{Duration, FixedOffset, LocalResult, NaiveDateTime, Offset, TimeZone, Utc};
use chrono_tz::Tz;
use serde_json::Value;

/// A time zone: an IANA one, or a fixed offset.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Zone {
    /// IANA time zone.
    Named(Tz),
    /// Fixed offset from UTC.
    Fixed(FixedOffset),
}

impl Zone {
    /// UTC.
    pub const UTC: Self = Self::Named(Tz::UTC);

    /// Reads the serialized form: an IANA name, or an offset in seconds.
    pub(crate) fn from_serialized(value: Option<&Value>) -> Result<Self, TimetableError> {
        let bad = |what: String| TimetableError::Malformed(format!("unknown time zone {what}"));
        match value {
            None | Some(Value::Null) => Ok(Self::UTC),
            Some(Value::String(name)) => name.parse().map(Self::Named).map_err(|_| bad(name.clone())),
            Some(Value::Number(n)) => n
                .as_f64()
                .and_then(|seconds| FixedOffset::east_opt(seconds as i32))
                .map(Self::Fixed)
                .ok_or_else(|| bad(n.to_string())),
            Some(other) => Err(bad(other.to_string())),
        }
    }

    /// The wall clock at that instant.
    pub fn wall_clock(&self, at: Timestamp) -> NaiveDateTime {
        match self {
            Self::Named(zone) => at.with_timezone(zone).naive_local(),
            Self::Fixed(zone) => at.with_timezone(zone).naive_local(),
        }
    }

    /// The instant at which the wall clock shows `wall`. Where it shows it twice, the second time counts; where it
    /// never does, the clock is read with the offset before the change (`airflow.utils.timezone.make_aware`).
    pub fn instant(&self, wall: NaiveDateTime) -> Timestamp {
        match self {
            Self::Named(zone) => named_instant(*zone, wall),
            Self::Fixed(zone) => match zone.from_local_datetime(&wall) {
                LocalResult::Single(at) | LocalResult::Ambiguous(_, at) => at.with_timezone(&Utc),
                LocalResult::None => wall.and_utc(),
            },
        }
    }
}

fn named_instant(zone: Tz, wall: NaiveDateTime) -> Timestamp {
    match zone.from_local_datetime(&wall) {
        LocalResult::Single(at) | LocalResult::Ambiguous(_, at) => at.with_timezone(&Utc),
        LocalResult::None => {
            // No clock change is longer than a day, and none follows another within two.
            let day_before = wall - Duration::hours(27);
            let offset = zone.offset_from_utc_datetime(&day_before).fix();
            (wall - offset).and_utc()
        }
    }
}
