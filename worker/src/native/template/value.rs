//! Values as Python has them in templates.

use super::super::datetime::Pendulum;
use model::json::{Text, key_text};
use model::python_text::{repr_float, repr_text};
use serde_json::Value;
use std::rc::Rc;

/// Why a template is left to Python.
pub(crate) type Declined = String;

/// Shorthand for what every step of rendering gives.
pub(crate) type Outcome<T> = Result<T, Declined>;

/// A value in a template. What is not listed here is left to Python.
#[derive(Debug, Clone)]
pub(crate) enum Py {
    /// What Jinja calls undefined: only `default` and `is defined` bear it.
    Undefined,
    None,
    Bool(bool),
    Int(i64),
    Float(f64),
    Str(Rc<str>),
    List(Rc<Vec<Self>>),
    Tuple(Rc<Vec<Self>>),
    /// A dict with texts as keys, in its order.
    Dict(Rc<Vec<(Rc<str>, Self)>>),
    Instant(Pendulum),
    /// An object of Airflow's: a few attributes by name.
    Object(Rc<Vec<(&'static str, Self)>>),
    /// The module `macros`.
    Macros,
}

impl Py {
    pub(crate) fn text(text: impl AsRef<str>) -> Self {
        Self::Str(Rc::from(text.as_ref()))
    }

    pub(crate) fn list(items: Vec<Self>) -> Self {
        Self::List(Rc::new(items))
    }

    /// A value of JSON.
    pub(crate) fn of_json(value: &Value) -> Outcome<Self> {
        Ok(match value {
            Value::Null => Self::None,
            Value::Bool(truth) => Self::Bool(*truth),
            Value::Number(number) => match (number.as_i64(), number.as_f64()) {
                (Some(number), _) => Self::Int(number),
                (None, Some(float)) if number.is_f64() => Self::Float(float),
                (None, _) => return Err("a number is too large".to_owned()),
            },
            Value::String(text) => match Text::of(text) {
                Text::Plain(text) => Self::text(text),
                Text::Integer(_) => return Err("a number is too large".to_owned()),
            },
            Value::Array(items) => Self::list(items.iter().map(Self::of_json).collect::<Outcome<_>>()?),
            Value::Object(fields) => {
                let pair =
                    |(key, value): (&String, &Value)| Ok((Rc::from(key_text(key)), Self::of_json(value)?));
                Self::Dict(Rc::new(fields.iter().map(pair).collect::<Outcome<_>>()?))
            }
        })
    }

    /// `bool(value)`
    pub(crate) fn truth(&self) -> Outcome<bool> {
        Ok(match self {
            Self::Undefined => return Err("a value is undefined".to_owned()),
            Self::None => false,
            Self::Bool(truth) => *truth,
            Self::Int(number) => *number != 0,
            Self::Float(number) => *number != 0.0,
            Self::Str(text) => !text.is_empty(),
            Self::List(items) | Self::Tuple(items) => !items.is_empty(),
            Self::Dict(fields) => !fields.is_empty(),
            Self::Instant(_) | Self::Object(_) | Self::Macros => true,
        })
    }

    /// `str(value)`
    pub(crate) fn str(&self) -> Outcome<Rc<str>> {
        match self {
            Self::Str(text) => Ok(Rc::clone(text)),
            Self::Instant(at) => Ok(at.iso(' ').into()),
            other => other.repr().map(Rc::from),
        }
    }

    /// `repr(value)`
    pub(crate) fn repr(&self) -> Outcome<String> {
        let joined = |items: &[Self]| -> Outcome<String> {
            let items = items.iter().map(Self::repr).collect::<Outcome<Vec<_>>>()?;
            Ok(items.join(", "))
        };
        Ok(match self {
            Self::None => "None".to_owned(),
            Self::Bool(true) => "True".to_owned(),
            Self::Bool(false) => "False".to_owned(),
            Self::Int(number) => number.to_string(),
            Self::Float(number) => repr_float(*number),
            Self::Str(text) => repr_text(text),
            Self::List(items) => format!("[{}]", joined(items)?),
            Self::Tuple(items) if items.len() == 1 => format!("({},)", joined(items)?),
            Self::Tuple(items) => format!("({})", joined(items)?),
            Self::Dict(fields) => {
                let pair =
                    |(key, value): &(Rc<str>, Self)| Ok(format!("{}: {}", repr_text(key), value.repr()?));
                let pairs = fields.iter().map(pair).collect::<Outcome<Vec<_>>>()?;
                format!("{{{}}}", pairs.join(", "))
            }
            Self::Undefined => return Err("a value is undefined".to_owned()),
            Self::Instant(_) | Self::Object(_) | Self::Macros => {
                return Err("how an object prints is not known here".to_owned());
            }
        })
    }

    /// What iterating over it gives.
    pub(crate) fn items(&self) -> Outcome<Vec<Self>> {
        match self {
            Self::List(items) | Self::Tuple(items) => Ok(items.to_vec()),
            Self::Dict(fields) => Ok(fields.iter().map(|(key, _)| Self::Str(Rc::clone(key))).collect()),
            Self::Str(text) => Ok(text
                .chars()
                .map(|c| Self::text(c.encode_utf8(&mut [0; 4])))
                .collect()),
            _ => Err("it cannot be iterated over".to_owned()),
        }
    }

    /// `len(value)`
    pub(crate) fn length(&self) -> Outcome<i64> {
        let length = match self {
            Self::List(items) | Self::Tuple(items) => items.len(),
            Self::Dict(fields) => fields.len(),
            Self::Str(text) => text.chars().count(),
            _ => return Err("it has no length".to_owned()),
        };
        i64::try_from(length).map_err(|error| error.to_string())
    }

    /// A field of a dict.
    pub(crate) fn field(&self, key: &str) -> Option<&Self> {
        match self {
            Self::Dict(fields) => fields
                .iter()
                .find(|(name, _)| &**name == key)
                .map(|(_, value)| value),
            Self::Object(fields) => fields
                .iter()
                .find(|(name, _)| *name == key)
                .map(|(_, value)| value),
            _ => None,
        }
    }

    /// A whole number; `True` is one, too.
    pub(crate) fn whole(&self) -> Outcome<i64> {
        match self {
            Self::Int(number) => Ok(*number),
            Self::Bool(truth) => Ok(i64::from(*truth)),
            _ => Err("it is no whole number".to_owned()),
        }
    }

    /// A text.
    pub(crate) fn as_str(&self) -> Outcome<&str> {
        match self {
            Self::Str(text) => Ok(text),
            _ => Err("it is no text".to_owned()),
        }
    }
}
