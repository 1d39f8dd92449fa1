//! Instants in UTC with microseconds, as Airflow keeps and prints them.

use chrono::{DateTime, Timelike, Utc};

/// An instant in UTC.
pub type Timestamp = DateTime<Utc>;

/// Microseconds since 1970-01-01T00:00:00Z, the form in which the store keeps an instant.
pub fn to_micros(at: Timestamp) -> i64 {
    at.timestamp_micros()
}

/// The instant `micros` microseconds after 1970-01-01T00:00:00Z; `None` outside of chrono's range.
pub fn from_micros(micros: i64) -> Option<Timestamp> {
    DateTime::from_timestamp_micros(micros)
}

/// ISO-8601 with `Z`, microseconds only when they are not zero: what Airflow's REST API prints.
pub fn rest_format(at: Timestamp) -> String {
    if at.nanosecond() / 1000 == 0 {
        at.format("%Y-%m-%dT%H:%M:%SZ").to_string()
    } else {
        at.format("%Y-%m-%dT%H:%M:%S%.6fZ").to_string()
    }
}

/// Python's `datetime.isoformat()` of an aware UTC datetime: `+00:00`, microseconds only when not zero.
pub fn python_isoformat(at: Timestamp) -> String {
    if at.nanosecond() / 1000 == 0 {
        at.format("%Y-%m-%dT%H:%M:%S+00:00").to_string()
    } else {
        at.format("%Y-%m-%dT%H:%M:%S%.6f+00:00").to_string()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn prints_microseconds_only_when_there_are_some() {
        let whole = from_micros(1_735_776_245_000_000).unwrap();
        assert_eq!(rest_format(whole), "2025-01-02T00:04:05Z");
        let part = from_micros(1_735_776_245_000_120).unwrap();
        assert_eq!(rest_format(part), "2025-01-02T00:04:05.000120Z");
        assert_eq!(python_isoformat(part), "2025-01-02T00:04:05.000120+00:00");
    }
}
