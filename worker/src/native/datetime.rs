//! Instants in templates, as pendulum shows them.

use super::template::{Arguments, Outcome, Py};
use chrono::{DateTime, Datelike, NaiveDate, TimeZone, Timelike};
use chrono_tz::Tz;

/// A pendulum `DateTime`. Only what is listed here is known; anything else sends the task to Python.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Pendulum(pub(crate) DateTime<Tz>);

fn zone(name: &str) -> Outcome<Tz> {
    name.parse().map_err(|_| format!("unknown time zone {name}"))
}

/// `+09:00`
fn offset(at: DateTime<Tz>, colon: bool) -> String {
    at.format(if colon { "%:z" } else { "%z" }).to_string()
}

impl Pendulum {
    fn micros(self) -> u32 {
        self.0.nanosecond() / 1000
    }

    /// `isoformat()`, with this between date and time.
    pub(crate) fn iso(self, between: char) -> String {
        let fraction = if self.micros() == 0 {
            String::new()
        } else {
            format!(".{:06}", self.micros())
        };
        format!(
            "{}{between}{}{fraction}{}",
            self.0.format("%Y-%m-%d"),
            self.0.format("%H:%M:%S"),
            offset(self.0, true)
        )
    }

    /// Later by so many seconds, where the wall clock never jumps.
    fn plus_seconds(self, seconds: i64) -> Outcome<Self> {
        if seconds == 0 {
            return Ok(self);
        }
        if self.0.timezone() != Tz::UTC {
            return Err("how a clock jumps is left to pendulum".to_owned());
        }
        chrono::Duration::try_seconds(seconds)
            .and_then(|length| self.0.checked_add_signed(length))
            .filter(|at| (1000..=9999).contains(&at.year()))
            .map(Self)
            .ok_or_else(|| "date out of range".to_owned())
    }

    fn plus_days(self, days: i64) -> Outcome<Self> {
        let out_of_range = || "date out of range".to_owned();
        let wall = chrono::Duration::try_days(days)
            .and_then(|length| self.0.naive_local().checked_add_signed(length))
            .filter(|wall| (1000..=9999).contains(&wall.year()))
            .ok_or_else(out_of_range)?;
        // Only where the wall clock is plain: what pendulum does in a gap or twice is left to pendulum.
        self.0
            .timezone()
            .from_local_datetime(&wall)
            .single()
            .map(Self)
            .ok_or_else(out_of_range)
    }
}

/// Python's `strftime`, for the directives that both sides write the same.
fn strftime(at: DateTime<Tz>, format: &str) -> Outcome<String> {
    let mut out = String::new();
    let mut chars = format.chars();
    while let Some(c) = chars.next() {
        if c != '%' {
            out.push(c);
            continue;
        }
        match chars.next() {
            Some('%') => out.push('%'),
            Some('f') => out.push_str(&format!("{:06}", at.nanosecond() / 1000)),
            Some('z') => out.push_str(&offset(at, false)),
            Some(
                d @ ('Y' | 'm' | 'd' | 'H' | 'M' | 'S' | 'y' | 'j' | 'I' | 'p' | 'a' | 'A' | 'b' | 'B' | 'U'
                | 'W' | 'w' | 'u' | 'V' | 'G'),
            ) => {
                out.push_str(&at.format(&format!("%{d}")).to_string());
            }
            other => {
                return Err(format!("strftime directive {other:?} is not known here"));
            }
        }
    }
    Ok(out)
}

/// An attribute of an instant.
pub(super) fn attribute(value: Pendulum, name: &str) -> Option<Py> {
    let at = value.0;
    let number = |number: u32| Py::Int(i64::from(number));
    Some(match name {
        "year" => Py::Int(at.year().into()),
        "month" => number(at.month()),
        "day" => number(at.day()),
        "hour" => number(at.hour()),
        "minute" => number(at.minute()),
        "second" => number(at.second()),
        "microsecond" => number(value.micros()),
        "day_of_year" => number(at.ordinal()),
        "quarter" => number((at.month() - 1) / 3 + 1),
        "int_timestamp" => Py::Int(at.timestamp()),
        "timezone_name" => Py::text(at.timezone().name()),
        _ => return None,
    })
}

/// A method of an instant.
pub(super) fn call(value: Pendulum, name: &str, arguments: &mut Arguments) -> Outcome<Py> {
    let text = |format: &str| Ok(Py::text(value.0.format(format).to_string()));
    match name {
        "in_timezone" | "in_tz" => {
            let name = arguments.required("tz")?;
            let at = value.0.with_timezone(&zone(name.as_str()?)?);
            Ok(Py::Instant(Pendulum(at)))
        }
        "to_date_string" => text("%Y-%m-%d"),
        "to_time_string" => text("%H:%M:%S"),
        "to_datetime_string" => text("%Y-%m-%d %H:%M:%S"),
        "isoformat" => Ok(Py::text(value.iso('T'))),
        "strftime" => {
            let format = arguments.required("fmt")?;
            strftime(value.0, format.as_str()?).map(Py::text)
        }
        "timestamp" if value.micros() == 0 => Ok(Py::Float(value.0.timestamp() as f64)),
        "add" | "subtract" => {
            let sign = if name == "add" { 1 } else { -1 };
            let mut part = |name: &str, seconds: i64| -> Outcome<i64> {
                let count = arguments.named(name).map_or(Ok(0), |count| count.whole())?;
                let product = count.checked_mul(seconds * sign);
                product.ok_or_else(|| "a length of time is too large".to_owned())
            };
            let days = part("days", 1)?.checked_add(part("weeks", 7)?);
            let seconds = part("hours", 3600)?
                .checked_add(part("minutes", 60)?)
                .and_then(|seconds| seconds.checked_add(part("seconds", 1).ok()?));
            let (Some(days), Some(seconds)) = (days, seconds) else {
                return Err("a length of time is too large".to_owned());
            };
            value.plus_days(days)?.plus_seconds(seconds).map(Py::Instant)
        }
        _ => Err(format!("method {name} is not known here")),
    }
}

/// `macros.ds_add(ds, days)`
pub(super) fn ds_add(ds: &str, days: i64) -> Outcome<String> {
    let bad = || "it is no date of the form YYYY-MM-DD".to_owned();
    if days == 0 {
        return Ok(ds.to_owned());
    }
    let is_date = ds.len() == 10
        && ds.bytes().enumerate().all(|(at, byte)| {
            if at == 4 || at == 7 {
                byte == b'-'
            } else {
                byte.is_ascii_digit()
            }
        });
    let date = NaiveDate::parse_from_str(ds, "%Y-%m-%d").ok().filter(|_| is_date);
    let date = date
        .zip(chrono::Duration::try_days(days))
        .and_then(|(date, days)| date.checked_add_signed(days))
        .filter(|date| (1000..=9999).contains(&date.year()))
        .ok_or_else(bad)?;
    Ok(date.format("%Y-%m-%d").to_string())
}
