//! Instants in templates, as pendulum shows them.

use chrono::{DateTime, Datelike, NaiveDate, TimeZone, Timelike};
use chrono_tz::Tz;
use minijinja::value::{Object, ObjectRepr, from_args};
use minijinja::{Error, ErrorKind, State, Value};
use std::fmt;
use std::sync::Arc;

/// A pendulum `DateTime`. Only what is listed here is known; anything else sends the task to Python.
#[derive(Debug, Clone, Copy)]
pub(super) struct Pendulum(pub(super) DateTime<Tz>);

fn zone(name: &str) -> Result<Tz, Error> {
    name.parse()
        .map_err(|_| Error::new(ErrorKind::InvalidOperation, format!("unknown time zone {name}")))
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
    pub(super) fn iso(self, between: char) -> String {
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

    fn plus_days(self, days: i64) -> Result<Self, Error> {
        let out_of_range = || Error::new(ErrorKind::InvalidOperation, "date out of range");
        let wall = self
            .0
            .naive_local()
            .checked_add_signed(chrono::Duration::days(days))
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
pub(super) fn strftime(at: DateTime<Tz>, format: &str) -> Result<String, Error> {
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
                let detail = format!("strftime directive {other:?} is not known here");
                return Err(Error::new(ErrorKind::InvalidOperation, detail));
            }
        }
    }
    Ok(out)
}

impl Object for Pendulum {
    fn repr(self: &Arc<Self>) -> ObjectRepr {
        ObjectRepr::Plain
    }

    fn get_value(self: &Arc<Self>, key: &Value) -> Option<Value> {
        let at = self.0;
        Some(match key.as_str()? {
            "year" => Value::from(at.year()),
            "month" => Value::from(at.month()),
            "day" => Value::from(at.day()),
            "hour" => Value::from(at.hour()),
            "minute" => Value::from(at.minute()),
            "second" => Value::from(at.second()),
            "microsecond" => Value::from(self.micros()),
            "day_of_year" => Value::from(at.ordinal()),
            "quarter" => Value::from((at.month() - 1) / 3 + 1),
            "timezone_name" => Value::from(at.timezone().name()),
            _ => return None,
        })
    }

    fn call_method(
        self: &Arc<Self>,
        _: &mut State<'_, '_>,
        method: &str,
        args: &[Value],
    ) -> Result<Value, Error> {
        let none = || from_args::<()>(args);
        let text = |text: String| Ok(Value::from(text));
        match method {
            "in_timezone" | "in_tz" | "astimezone" => {
                let (name,): (&str,) = from_args(args)?;
                Ok(Value::from_object(Self(self.0.with_timezone(&zone(name)?))))
            }
            "to_date_string" => none().and_then(|()| text(self.0.format("%Y-%m-%d").to_string())),
            "to_time_string" => none().and_then(|()| text(self.0.format("%H:%M:%S").to_string())),
            "to_datetime_string" => {
                none().and_then(|()| text(self.0.format("%Y-%m-%d %H:%M:%S").to_string()))
            }
            "isoformat" => none().and_then(|()| text(self.iso('T'))),
            "strftime" => {
                let (format,): (&str,) = from_args(args)?;
                text(strftime(self.0, format)?)
            }
            "timestamp" if self.micros() == 0 => none().map(|()| Value::from(self.0.timestamp() as f64)),
            "add" | "subtract" => {
                let (kwargs,): (minijinja::value::Kwargs,) = from_args(args)?;
                let days: i64 = kwargs.get::<Option<i64>>("days")?.unwrap_or(0);
                let weeks: i64 = kwargs.get::<Option<i64>>("weeks")?.unwrap_or(0);
                kwargs.assert_all_used()?;
                let sign = if method == "add" { 1 } else { -1 };
                Ok(Value::from_object(self.plus_days(sign * (days + 7 * weeks))?))
            }
            _ => Err(ErrorKind::UnknownMethod.into()),
        }
    }

    fn render(self: &Arc<Self>, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.iso(' '))
    }
}

/// `macros.ds_add(ds, days)`
pub(super) fn ds_add(ds: &str, days: i64) -> Result<String, Error> {
    let bad = || Error::new(ErrorKind::InvalidOperation, "not a date of the form YYYY-MM-DD");
    let date = NaiveDate::parse_from_str(ds, "%Y-%m-%d").map_err(|_| bad())?;
    let date = date
        .checked_add_signed(chrono::Duration::try_days(days).ok_or_else(bad)?)
        .ok_or_else(bad)?;
    Ok(date.format("%Y-%m-%d").to_string())
}
