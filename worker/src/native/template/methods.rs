//! Attributes and methods of values.

use super::super::datetime::{self, ds_add};
use super::arguments::Arguments;
use super::operators::LONGEST;
use super::value::{Outcome, Py};
use model::python_text::is_space;

/// Methods of Python's `dict`: an attribute of that name is the method, not a key.
const OF_DICT: [&str; 11] = [
    "clear",
    "copy",
    "fromkeys",
    "get",
    "items",
    "keys",
    "pop",
    "popitem",
    "setdefault",
    "update",
    "values",
];

/// `value.name`, as Jinja looks it up: attributes first, then items.
pub(super) fn attribute(value: &Py, name: &str) -> Outcome<Py> {
    match value {
        Py::Dict(_) if OF_DICT.contains(&name) || name.starts_with("__") => {
            Err(format!("{name} is a method"))
        }
        Py::Dict(_) => Ok(value.field(name).cloned().unwrap_or(Py::Undefined)),
        Py::Object(_) => value
            .field(name)
            .cloned()
            .ok_or_else(|| format!("attribute {name} is not known here")),
        Py::Instant(at) => {
            datetime::attribute(*at, name).ok_or_else(|| format!("attribute {name} is not known here"))
        }
        _ => Err(format!("attribute {name} is not known here")),
    }
}

/// `value[key]`, as Jinja looks it up: items first, then attributes.
pub(super) fn item(value: &Py, key: &Py) -> Outcome<Py> {
    match (value, key) {
        (Py::Dict(_) | Py::Object(_), Py::Str(name)) => match value.field(name) {
            Some(found) => Ok(found.clone()),
            None => attribute(value, name),
        },
        (Py::Str(_) | Py::List(_) | Py::Tuple(_), Py::Int(at)) => {
            let items = value.items()?;
            let length = value.length()?;
            let at = if *at < 0 { at.saturating_add(length) } else { *at };
            let found = usize::try_from(at).ok().and_then(|at| items.get(at));
            Ok(found.cloned().unwrap_or(Py::Undefined))
        }
        _ => Err("what this item is is not known here".to_owned()),
    }
}

/// `value.name(...)`
pub(super) fn call(value: &Py, name: &str, mut arguments: Arguments) -> Outcome<Py> {
    let result = match value {
        Py::Str(text) => of_text(text, name, &mut arguments)?,
        Py::Dict(_) => of_dict(value, name, &mut arguments)?,
        Py::Instant(at) => datetime::call(*at, name, &mut arguments)?,
        Py::Macros if name == "ds_add" => {
            let ds = arguments.required("ds")?;
            Py::text(ds_add(ds.as_str()?, arguments.required("days")?.whole()?)?)
        }
        _ => return Err(format!("method {name} is not known here")),
    };
    arguments.end()?;
    Ok(result)
}

fn of_text(text: &str, name: &str, arguments: &mut Arguments) -> Outcome<Py> {
    Ok(match name {
        "upper" => Py::text(text.to_uppercase()),
        "lower" => Py::text(text.to_lowercase()),
        "strip" => strip(text, arguments.next(""), true, true)?,
        "lstrip" => strip(text, arguments.next(""), true, false)?,
        "rstrip" => strip(text, arguments.next(""), false, true)?,
        "startswith" => Py::Bool(text.starts_with(arguments.required("")?.as_str()?)),
        "endswith" => Py::Bool(text.ends_with(arguments.required("")?.as_str()?)),
        "replace" => {
            let (from, to) = (arguments.required("")?, arguments.required("")?);
            let count = arguments.whole("")?.unwrap_or(-1);
            replace(text, from.as_str()?, to.as_str()?, count)?
        }
        "split" => {
            let by = arguments.required("sep")?;
            let by = by.as_str()?;
            if by.is_empty() {
                return Err("the separator is empty".to_owned());
            }
            let most = usize::try_from(arguments.whole("maxsplit")?.unwrap_or(-1));
            let most = most.map_or(usize::MAX, |most| most.saturating_add(1));
            Py::list(text.splitn(most, by).map(Py::text).collect())
        }
        "join" => {
            let parts = arguments.required("")?.items()?;
            let parts = parts.iter().map(Py::as_str).collect::<Outcome<Vec<_>>>()?;
            Py::text(parts.join(text))
        }
        _ => return Err(format!("method {name} is not known here")),
    })
}

fn of_dict(value: &Py, name: &str, arguments: &mut Arguments) -> Outcome<Py> {
    // Views of keys and items print as nothing else does: loops alone know them.
    Ok(match name {
        "get" => {
            let key = arguments.required("")?;
            let otherwise = arguments.next("").unwrap_or(Py::None);
            value.field(key.as_str()?).cloned().unwrap_or(otherwise)
        }
        _ => return Err(format!("method {name} is not known here")),
    })
}

/// `text.strip(chars)` at one end or both.
pub(super) fn strip(text: &str, chars: Option<Py>, left: bool, right: bool) -> Outcome<Py> {
    let chars = match &chars {
        None | Some(Py::None) => None,
        Some(chars) => Some(chars.as_str()?),
    };
    let goes = |c: char| chars.map_or_else(|| is_space(c), |chars| chars.contains(c));
    let text = if left { text.trim_start_matches(goes) } else { text };
    let text = if right { text.trim_end_matches(goes) } else { text };
    Ok(Py::text(text))
}

/// `text.replace(from, to, count)`
pub(super) fn replace(text: &str, from: &str, to: &str, count: i64) -> Outcome<Py> {
    let longest = text
        .len()
        .saturating_add((text.len() + 1).saturating_mul(to.len()));
    if longest > LONGEST {
        return Err("a text grows too long".to_owned());
    }
    if from.is_empty() && text.is_empty() && count >= 0 {
        return Err("what it replaces is empty".to_owned());
    }
    Ok(Py::text(match usize::try_from(count) {
        Ok(count) => text.replacen(from, to, count),
        Err(_) => text.replace(from, to),
    }))
}
