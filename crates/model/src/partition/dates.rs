//! Dates in keys, in the format language of Python's `strftime` and `strptime`.

use crate::timetable::Zone;
use chrono::format::{Item, Parsed, StrftimeItems, parse};
use chrono::{Datelike, NaiveDate, NaiveDateTime, NaiveTime, Timelike};
use std::collections::HashMap;
use std::fmt::Write;
use thiserror::Error;

/// A date that cannot be read or written.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum FormatError {
    /// The text does not fit the format.
    #[error("time data '{text}' does not match format '{format}'")]
    Mismatch {
        /// The text.
        text: String,
        /// The format.
        format: String,
    },
    /// The format has a directive that is not known.
    #[error("'{0}' has a bad directive")]
    Directive(String),
}

/// A format of dates. Beside Python's directives it knows `{quarter}`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DateFormat {
    text: String,
}

impl DateFormat {
    /// The format that is written so.
    pub fn new(text: impl Into<String>) -> Self {
        Self { text: text.into() }
    }

    /// As it is written.
    pub fn as_str(&self) -> &str {
        &self.text
    }

    /// Chrono's form: it means nanoseconds by `%f`.
    fn directives(&self) -> String {
        self.text.replace("%f", "%6f")
    }

    /// Writes a date on the wall clock of a zone; without one, an offset (`%z`) is written as nothing, as in Python.
    ///
    /// # Errors
    /// When the format has a directive that is not known.
    pub fn format(&self, at: NaiveDateTime, zone: Option<Zone>) -> Result<String, FormatError> {
        let mut out = String::new();
        let directives = self.directives();
        let written = match zone {
            Some(zone @ Zone::Named(named)) => {
                let at = zone.instant(at).with_timezone(&named);
                write!(out, "{}", at.format(&directives))
            }
            Some(zone @ Zone::Fixed(offset)) => {
                let at = zone.instant(at).with_timezone(&offset);
                write!(out, "{}", at.format(&directives))
            }
            None => write!(out, "{}", at.and_utc().format(&directives.replace("%z", ""))),
        };
        written.map_err(|_| FormatError::Directive(self.text.clone()))?;
        Ok(out.replace("{quarter}", &(at.month0() / 3 + 1).to_string()))
    }

    /// Reads a date, on the wall clock of a zone. What the format leaves out is that of the first instant of 1900.
    ///
    /// # Errors
    /// When the text does not fit.
    pub fn parse(&self, text: &str, zone: Zone) -> Result<NaiveDateTime, FormatError> {
        let mismatch = || FormatError::Mismatch {
            text: text.to_owned(),
            format: self.text.clone(),
        };
        if self.text.contains("{quarter}") || self.text.contains("%V") {
            return self.scan(text).ok_or_else(mismatch);
        }
        let directives = self.directives();
        let items: Vec<Item<'_>> = StrftimeItems::new(&directives).collect();
        if items.contains(&Item::Error) {
            return Err(FormatError::Directive(self.text.clone()));
        }
        let mut parsed = Parsed::new();
        parse(&mut parsed, text, items.iter()).map_err(|_| mismatch())?;
        // Python's years.
        if parsed.year().is_some_and(|year| !(1..=9999).contains(&year)) {
            return Err(mismatch());
        }
        let date = match parsed.to_naive_date() {
            Ok(date) => date,
            Err(_) => {
                let year = parsed.year().unwrap_or(1900);
                NaiveDate::from_ymd_opt(year, parsed.month().unwrap_or(1), parsed.day().unwrap_or(1))
                    .ok_or_else(mismatch)?
            }
        };
        let hour = match (parsed.hour_div_12(), parsed.hour_mod_12()) {
            (None, None) => 0,
            (half, hour) => half.unwrap_or(0) * 12 + hour.unwrap_or(0),
        };
        let (minute, second) = (parsed.minute().unwrap_or(0), parsed.second().unwrap_or(0));
        let time = NaiveTime::from_hms_nano_opt(hour, minute, second, parsed.nanosecond().unwrap_or(0));
        let at = date.and_time(time.ok_or_else(mismatch)?);
        Ok(match parsed.offset() {
            Some(offset) => zone.wall_clock((at - chrono::Duration::seconds(i64::from(offset))).and_utc()),
            None => at,
        })
    }

    /// Reads a week or a quarter by the fields that tell when it begins; the other ones are only looked past.
    fn scan(&self, text: &str) -> Option<NaiveDateTime> {
        let mut fields: HashMap<String, String> = HashMap::new();
        let (mut format, mut rest) = (self.text.as_str(), text);
        while let Some(next) = format.chars().next() {
            let directive = format.strip_prefix('%').and_then(|rest| rest.chars().next());
            if let Some(letter) = directive.filter(|letter| "YmdHMSVUW".contains(*letter)) {
                let width = if letter == 'Y' { 4 } else { 2 };
                let digits = rest
                    .get(..width)
                    .filter(|digits| digits.chars().all(|c| c.is_ascii_digit()))?;
                fields.insert(letter.to_string(), digits.to_owned());
                (format, rest) = (&format[2..], &rest[width..]);
            } else if let Some((name, after)) = format.strip_prefix('{').and_then(|rest| rest.split_once('}'))
            {
                let width = if name == "quarter" {
                    1
                } else {
                    rest.find(|c: char| !c.is_alphanumeric() && c != '_')
                        .unwrap_or(rest.len())
                };
                fields.insert(name.to_owned(), rest.get(..width)?.to_owned());
                (format, rest) = (after, rest.get(width..)?);
            } else {
                rest = rest.strip_prefix(next)?;
                format = &format[next.len_utf8()..];
            }
        }
        let number = |key: &str| fields.get(key)?.parse::<u32>().ok();
        let year = i32::try_from(number("Y")?).ok()?;
        let date = match number("quarter") {
            Some(quarter @ 1..=4) => NaiveDate::from_ymd_opt(year, quarter * 3 - 2, 1)?,
            Some(_) => return None,
            None => NaiveDate::from_ymd_opt(year, number("m")?, number("d")?)?,
        };
        rest.is_empty().then(|| date.and_time(NaiveTime::MIN))
    }
}

/// As Python's `datetime.isoformat`.
pub(super) fn isoformat(at: NaiveDateTime) -> String {
    let shown = at.format("%Y-%m-%dT%H:%M:%S").to_string();
    match at.nanosecond() / 1000 {
        0 => shown,
        micros => format!("{shown}.{micros:06}"),
    }
}
