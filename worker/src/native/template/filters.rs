//! Filters and tests of Jinja, and those of Airflow.

use super::arguments::Arguments;
use super::methods;
use super::value::{Outcome, Py};

/// Applies a filter.
pub(super) fn filter(name: &str, value: &Py, mut arguments: Arguments) -> Outcome<Py> {
    let result = match name {
        "ds" | "ds_nodash" | "ts" | "ts_nodash" | "ts_nodash_with_tz" => date(name, value)?,
        "default" | "d" => {
            let other = arguments.next("default_value").unwrap_or_else(|| Py::text(""));
            let by_truth = arguments
                .next("boolean")
                .is_some_and(|flag| flag.truth() == Ok(true));
            match value {
                Py::Undefined => other,
                value if by_truth && !value.truth()? => other,
                value => value.clone(),
            }
        }
        "upper" => Py::text(value.str()?.to_uppercase()),
        "lower" => Py::text(value.str()?.to_lowercase()),
        "string" => Py::Str(value.str()?),
        "trim" => {
            let text = value.str()?;
            methods::strip(&text, arguments.next("chars"), true, true)?
        }
        "replace" => {
            let (text, from) = (value.str()?, arguments.required("old")?.str()?);
            let to = arguments.required("new")?.str()?;
            let count = match arguments.next("count") {
                None | Some(Py::None) => -1,
                Some(count) => count.whole()?,
            };
            methods::replace(&text, &from, &to, count)?
        }
        "length" | "count" => Py::Int(value.length()?),
        "join" => {
            let between = arguments.next("d").map_or_else(|| Ok("".into()), |d| d.str())?;
            let parts = value.items()?;
            let parts = parts.iter().map(Py::str).collect::<Outcome<Vec<_>>>()?;
            Py::text(parts.join(&*between))
        }
        "first" => edge(value, true)?,
        "last" => edge(value, false)?,
        "list" => Py::list(value.items()?),
        "abs" => match value {
            Py::Float(number) => Py::Float(number.abs()),
            other => Py::Int(other.whole()?.checked_abs().ok_or("a number is too large")?),
        },
        "int" => int(value, &mut arguments)?,
        _ => return Err(format!("filter {name} is not known here")),
    };
    arguments.end()?;
    Ok(result)
}

/// Airflow's filters of an instant; none stays none.
fn date(name: &str, value: &Py) -> Outcome<Py> {
    let at = match value {
        Py::None => return Ok(Py::None),
        Py::Instant(at) => at,
        _ => return Err("it is no instant".to_owned()),
    };
    Ok(match name {
        "ds" => Py::text(at.0.format("%Y-%m-%d").to_string()),
        "ds_nodash" => Py::text(at.0.format("%Y%m%d").to_string()),
        "ts" => Py::text(at.iso('T')),
        "ts_nodash" => Py::text(at.0.format("%Y%m%dT%H%M%S").to_string()),
        _ => Py::text(at.iso('T').replace(['-', ':'], "")),
    })
}

/// The first or the last item.
fn edge(value: &Py, first: bool) -> Outcome<Py> {
    // The last item of a dict or of a text is taken by reversing it, which a dict allows too.
    let mut items = value.items()?.into_iter();
    let item = if first { items.next() } else { items.next_back() };
    Ok(item.unwrap_or(Py::Undefined))
}

fn int(value: &Py, arguments: &mut Arguments) -> Outcome<Py> {
    let otherwise = arguments.next("default");
    match value {
        Py::Int(_) | Py::Bool(_) => Ok(Py::Int(value.whole()?)),
        Py::Float(number) if number.abs() < 9e15 => Ok(Py::Int(number.trunc() as i64)),
        Py::Str(text) if is_digits(text) => text
            .parse()
            .map(Py::Int)
            .map_err(|_| "a number is too large".to_owned()),
        Py::None => Ok(otherwise.unwrap_or(Py::Int(0))),
        _ => Err("what number it is is not known here".to_owned()),
    }
}

fn is_digits(text: &str) -> bool {
    let digits = text.strip_prefix('-').unwrap_or(text);
    !digits.is_empty() && digits.len() < 19 && digits.bytes().all(|byte| byte.is_ascii_digit())
}

/// Asks a test.
pub(super) fn test(name: &str, value: &Py, mut arguments: Arguments) -> Outcome<bool> {
    let answer = match (name, value) {
        ("defined", value) => !matches!(value, Py::Undefined),
        ("undefined", value) => matches!(value, Py::Undefined),
        (_, Py::Undefined) => return Err("a value is undefined".to_owned()),
        ("none", value) => matches!(value, Py::None),
        ("string", value) => matches!(value, Py::Str(_)),
        ("boolean", value) => matches!(value, Py::Bool(_)),
        ("true", value) => matches!(value, Py::Bool(true)),
        ("false", value) => matches!(value, Py::Bool(false)),
        ("integer", value) => matches!(value, Py::Int(_)),
        ("float", value) => matches!(value, Py::Float(_)),
        ("number", value) => matches!(value, Py::Int(_) | Py::Float(_) | Py::Bool(_)),
        ("odd", value) => value.whole()?.rem_euclid(2) == 1,
        ("even", value) => value.whole()?.rem_euclid(2) == 0,
        ("divisibleby", value) => {
            let by = arguments.required("num")?.whole()?;
            value.whole()?.checked_rem(by).ok_or("it divides by zero")? == 0
        }
        _ => return Err(format!("test {name} is not known here")),
    };
    arguments.end()?;
    Ok(answer)
}
