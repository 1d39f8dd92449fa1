//! Cron expressions in Airflow's dialect, which is croniter's.
//!
//! An expression is read once into sets of values and written anew in the words that croner shares with it; croner
//! then walks the calendar. Differences that this takes care of: a sixth field holds seconds and comes last, 0 and 7
//! are Sunday, ranges may wrap (`22-2`), `5/15` means from 5 on, `L5` is the last Friday.

use super::TimetableError;
use chrono::NaiveDateTime;
use croner::Cron;
use croner::parser::{CronParser, Seconds, Year};
use std::collections::BTreeSet;

/// A cron expression that can be walked.
#[derive(Debug, Clone)]
pub struct CronExpression {
    text: String,
    schedule: Cron,
    every_hour: bool,
}

const PRESETS: [(&str, &str); 8] = [
    ("@hourly", "0 * * * *"),
    ("@daily", "0 0 * * *"),
    ("@midnight", "0 0 * * *"),
    ("@weekly", "0 0 * * 0"),
    ("@monthly", "0 0 1 * *"),
    ("@quarterly", "0 0 1 */3 *"),
    ("@yearly", "0 0 1 1 *"),
    ("@annually", "0 0 1 1 *"),
];
const MONTHS: [&str; 12] = [
    "jan", "feb", "mar", "apr", "may", "jun", "jul", "aug", "sep", "oct", "nov", "dec",
];
const DAYS: [&str; 7] = ["sun", "mon", "tue", "wed", "thu", "fri", "sat"];

/// The range of one field.
struct Span {
    what: &'static str,
    first: u32,
    last: u32,
    names: &'static [&'static str],
}

const SECOND: Span = Span {
    what: "second",
    first: 0,
    last: 59,
    names: &[],
};
const MINUTE: Span = Span {
    what: "minute",
    first: 0,
    last: 59,
    names: &[],
};
const HOUR: Span = Span {
    what: "hour",
    first: 0,
    last: 23,
    names: &[],
};
const DAY: Span = Span {
    what: "day of the month",
    first: 1,
    last: 31,
    names: &[],
};
const MONTH: Span = Span {
    what: "month",
    first: 1,
    last: 12,
    names: &MONTHS,
};
const WEEKDAY: Span = Span {
    what: "day of the week",
    first: 0,
    last: 6,
    names: &DAYS,
};

impl CronExpression {
    /// Reads an expression of five fields, or six with seconds at the end, or a preset such as `@daily`.
    ///
    /// # Errors
    /// When a field is missing, unknown or out of range.
    pub fn parse(text: &str) -> Result<Self, TimetableError> {
        let bad = |problem: String| TimetableError::Cron {
            expression: text.to_owned(),
            problem,
        };
        let expression = PRESETS
            .iter()
            .find(|(name, _)| *name == text)
            .map_or(text, |(_, meaning)| meaning);
        let fields: Vec<String> = expression
            .split_whitespace()
            .map(str::to_ascii_lowercase)
            .collect();
        let (fields, seconds) = match fields.as_slice() {
            [five @ .., seconds] if fields.len() == 6 => (five.to_vec(), seconds.clone()),
            _ if fields.len() == 5 => (fields.clone(), "0".to_owned()),
            _ => return Err(bad("expected 5 fields, or 6 with seconds at the end".to_owned())),
        };
        let [minute, hour, day, month, weekday] = fields.as_slice() else {
            return Err(bad("expected 5 fields".to_owned()));
        };
        let hour = normal(hour, &HOUR).map_err(bad)?;
        let pattern = [
            normal(&seconds, &SECOND).map_err(bad)?,
            normal(minute, &MINUTE).map_err(bad)?,
            hour.clone(),
            day_field(day, weekday).map_err(bad)?,
            normal(month, &MONTH).map_err(bad)?,
            weekday_field(weekday, day).map_err(bad)?,
        ]
        .join(" ");
        let parser = CronParser::builder()
            .seconds(Seconds::Required)
            .year(Year::Disallowed)
            .build();
        let schedule = parser.parse(&pattern).map_err(|error| bad(error.to_string()))?;
        let text = PRESETS
            .iter()
            .find(|(name, _)| *name == text)
            .map_or(text, |(_, meaning)| meaning);
        Ok(Self {
            text: text.to_owned(),
            schedule,
            every_hour: hour == "*",
        })
    }

    /// The expression as it is shown; presets are written out.
    pub fn as_str(&self) -> &str {
        &self.text
    }

    /// Whether it fires in every hour, in which case it walks along elapsed time rather than along the wall clock.
    pub const fn covers_every_hour(&self) -> bool {
        self.every_hour
    }

    /// The first wall clock time after `from`.
    ///
    /// # Errors
    /// When there is none in the calendar.
    pub fn after(&self, from: NaiveDateTime) -> Result<NaiveDateTime, TimetableError> {
        self.schedule
            .find_next_occurrence(&from, false)
            .map_err(|error| self.no_date(&error.to_string()))
    }

    /// The last wall clock time before `from`.
    ///
    /// # Errors
    /// When there is none in the calendar.
    pub fn before(&self, from: NaiveDateTime) -> Result<NaiveDateTime, TimetableError> {
        self.schedule
            .find_previous_occurrence(&from, false)
            .map_err(|error| self.no_date(&error.to_string()))
    }

    fn no_date(&self, problem: &str) -> TimetableError {
        TimetableError::Cron {
            expression: self.text.clone(),
            problem: format!("no such date: {problem}"),
        }
    }
}

fn number(text: &str, span: &Span) -> Result<u32, String> {
    let named = span
        .names
        .iter()
        .position(|name| *name == text)
        .map(|at| at as u32 + span.first);
    let value = named
        .or_else(|| text.parse().ok())
        .ok_or_else(|| format!("{text:?} is not a {}", span.what))?;
    // 7 is Sunday, too.
    let value = if span.what == WEEKDAY.what && value == 7 {
        0
    } else {
        value
    };
    if (span.first..=span.last).contains(&value) {
        Ok(value)
    } else {
        Err(format!(
            "{value} is not a {} ({} to {})",
            span.what, span.first, span.last
        ))
    }
}

/// The values that one item of a field names: `*`, `7`, `1-5`, `22-2`, each with an optional `/step`.
fn item(text: &str, span: &Span) -> Result<BTreeSet<u32>, String> {
    let (range, step) = match text.split_once('/') {
        Some((range, step)) => (
            range,
            step.parse::<u32>()
                .map_err(|_| format!("{step:?} is not a step"))?,
        ),
        None => (text, 1),
    };
    if step == 0 {
        return Err("a step of 0".to_owned());
    }
    let (first, last) = match range.split_once('-') {
        _ if range == "*" || range == "?" => (span.first, span.last),
        // `5-7` of weekdays ends on the Sunday after.
        Some((first, "7")) if span.what == WEEKDAY.what => (number(first, span)?, 7),
        Some((first, last)) => (number(first, span)?, number(last, span)?),
        None if text.contains('/') => (number(range, span)?, span.last),
        None => (number(range, span)?, number(range, span)?),
    };
    let width = span.last - span.first + 1;
    let last = if last < first { last + width } else { last };
    Ok((first..=last)
        .step_by(step as usize)
        .map(|n| (n - span.first) % width + span.first)
        .collect())
}

fn values(text: &str, span: &Span) -> Result<BTreeSet<u32>, String> {
    let mut all = BTreeSet::new();
    for part in text.split(',') {
        all.extend(item(part, span)?);
    }
    Ok(all)
}

fn listed(values: &BTreeSet<u32>) -> String {
    values.iter().map(u32::to_string).collect::<Vec<_>>().join(",")
}

fn normal(text: &str, span: &Span) -> Result<String, String> {
    let values = values(text, span)?;
    let full = values.len() as u32 == span.last - span.first + 1;
    Ok(if full { "*".to_owned() } else { listed(&values) })
}

fn is_special(text: &str) -> bool {
    text.contains(['l', 'w', '#'])
}

/// The day of the month. A full range counts as "any day" only where the other day field says so in a star: croniter's
/// rule, which decides whether the two fields are added.
fn day_field(text: &str, weekday: &str) -> Result<String, String> {
    if text == "*" || text == "?" {
        return Ok("*".to_owned());
    }
    if is_special(text) {
        return special_days(text);
    }
    let values = values(text, &DAY)?;
    Ok(if values.len() == 31 && weekday.contains('*') {
        "*".to_owned()
    } else {
        listed(&values)
    })
}

fn special_days(text: &str) -> Result<String, String> {
    let mut parts = Vec::new();
    for part in text.split(',') {
        match part.strip_suffix('w') {
            _ if part == "l" => parts.push("L".to_owned()),
            Some(day) => parts.push(format!("{}W", number(day, &DAY)?)),
            None => parts.push(listed(&item(part, &DAY)?)),
        }
    }
    Ok(parts.join(","))
}

fn weekday_field(text: &str, day: &str) -> Result<String, String> {
    if text == "*" || text == "?" {
        return Ok("*".to_owned());
    }
    let is_nth = |part: &str| part.contains('#') || (part.starts_with('l') && part.len() > 1);
    if text.split(',').any(is_nth) {
        let mut parts = Vec::new();
        for part in text.split(',') {
            parts.push(match (part.split_once('#'), part.strip_prefix('l')) {
                (Some((weekday, nth)), _) => format!("{}#{nth}", number(weekday, &WEEKDAY)?),
                (None, Some(weekday)) => format!("{}L", number(weekday, &WEEKDAY)?),
                (None, None) => listed(&item(part, &WEEKDAY)?),
            });
        }
        return Ok(parts.join(","));
    }
    let values = values(text, &WEEKDAY)?;
    Ok(if values.len() == 7 && day.contains('*') {
        "*".to_owned()
    } else {
        listed(&values)
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use chrono::{DateTime, Utc};
    use proptest::prelude::*;
    use std::str::FromStr;

    fn at(text: &str) -> NaiveDateTime {
        NaiveDateTime::parse_from_str(text, "%Y-%m-%dT%H:%M:%S").unwrap()
    }

    fn after(expression: &str, from: &str) -> String {
        CronExpression::parse(expression)
            .unwrap()
            .after(at(from))
            .unwrap()
            .format("%Y-%m-%dT%H:%M:%S")
            .to_string()
    }

    #[test]
    fn the_dialect_is_croniters() {
        // 2024-05-01 is a Wednesday.
        for (expression, expected) in [
            ("@daily", "2024-05-02T00:00:00"),
            ("0 0 * * * 30", "2024-05-01T00:00:30"),
            ("0 0 * * 7", "2024-05-05T00:00:00"),
            ("0 0 * * 5-7", "2024-05-03T00:00:00"),
            ("0 0 * * sun", "2024-05-05T00:00:00"),
            ("0 0 * * 6-1", "2024-05-04T00:00:00"),
            ("0 22-2 * * *", "2024-05-01T01:00:00"),
            ("5/15 * * * *", "2024-05-01T00:05:00"),
            ("0 0 13 * 5", "2024-05-03T00:00:00"),
            ("0 0 L * *", "2024-05-31T00:00:00"),
            ("0 0 * * L5", "2024-05-31T00:00:00"),
            ("0 12 * * MON#2", "2024-05-13T12:00:00"),
            ("0 0 15W * *", "2024-05-15T00:00:00"),
            ("0 0 ? * 2", "2024-05-07T00:00:00"),
        ] {
            assert_eq!(after(expression, "2024-05-01T00:00:00"), expected, "{expression}");
        }
    }

    #[test]
    fn nonsense_is_refused_with_the_reason() {
        for bad in [
            "bad",
            "60 * * * *",
            "* * * *",
            "* * 0 * *",
            "*/0 * * * *",
            "* * * foo *",
            "",
        ] {
            assert!(CronExpression::parse(bad).is_err(), "{bad}");
        }
    }

    proptest! {
        /// A second opinion: the crate `cron`, on expressions that both can say.
        #[test]
        fn agrees_with_another_implementation(
            minute in 0u32..60, step in 1u32..24, day in prop::option::of(1u32..29), month in prop::option::of(1u32..13),
            start in 1_600_000_000i64..1_900_000_000,
        ) {
            let word = |n: Option<u32>| n.map_or_else(|| "*".to_owned(), |n| n.to_string());
            let (day, month) = (word(day), word(month));
            let ours = CronExpression::parse(&format!("{minute} */{step} {day} {month} *")).unwrap();
            let other = cron::Schedule::from_str(&format!("0 {minute} */{step} {day} {month} *")).unwrap();
            let from: DateTime<Utc> = DateTime::from_timestamp(start, 0).unwrap();
            let expected = other.after(&from).next().unwrap().naive_utc();
            prop_assert_eq!(ours.after(from.naive_utc()).unwrap(), expected);
        }

        #[test]
        fn before_undoes_after(minute in 0u32..60, hour in 0u32..24, weekday in 0u32..7, start in 1_600_000_000i64..1_900_000_000) {
            let cron = CronExpression::parse(&format!("{minute} {hour} * * {weekday}")).unwrap();
            let from = DateTime::from_timestamp(start, 0).unwrap().naive_utc();
            let next = cron.after(from).unwrap();
            prop_assert!(next > from);
            prop_assert!(cron.before(next).unwrap() <= from);
            prop_assert_eq!(cron.after(cron.before(next).unwrap()).unwrap(), next);
        }
    }
}
