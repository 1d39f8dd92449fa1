//! Operators, as Python defines them.

use super::value::{Outcome, Py};
use minijinja::machinery::ast::{BinOpKind, CompareOpKind};
use std::cmp::Ordering;
use std::rc::Rc;

/// Characters that a text may grow to.
pub(super) const LONGEST: usize = 16 << 20;

/// Numbers of an arithmetic operation: both whole, or both not.
enum Pair {
    Whole(i64, i64),
    Real(f64, f64),
}

/// Whole numbers up to here are exact as floats.
const EXACT: i64 = 1 << 53;

fn pair(left: &Py, right: &Py) -> Option<Pair> {
    let real = |value: &Py| match value {
        Py::Float(number) => Some(*number),
        other => other
            .whole()
            .ok()
            .filter(|number| number.abs() <= EXACT)
            .map(|number| number as f64),
    };
    match (left.whole(), right.whole()) {
        (Ok(left), Ok(right)) => Some(Pair::Whole(left, right)),
        _ => Some(Pair::Real(real(left)?, real(right)?)),
    }
}

fn unknown<T>() -> Outcome<T> {
    Err("what an operator makes of these values is not known here".to_owned())
}

/// An operation on two values that are both evaluated.
pub(super) fn binary(op: BinOpKind, left: &Py, right: &Py) -> Outcome<Py> {
    match op {
        BinOpKind::Concat => {
            let (left, right) = (left.str()?, right.str()?);
            joined(&left, &right)
        }
        BinOpKind::Add => add(left, right),
        BinOpKind::Mul => multiply(left, right),
        BinOpKind::Sub => arithmetic(left, right, i64::checked_sub, |a, b| a - b),
        BinOpKind::Div => match pair(left, right) {
            Some(Pair::Whole(a, b)) if a.abs() <= EXACT && b.abs() <= EXACT && b != 0 => {
                Ok(Py::Float(a as f64 / b as f64))
            }
            Some(Pair::Real(a, b)) if b != 0.0 => Ok(Py::Float(a / b)),
            Some(_) | None => unknown(),
        },
        BinOpKind::FloorDiv => match pair(left, right) {
            Some(Pair::Whole(a, b)) => whole(floor_div(a, b)),
            Some(Pair::Real(..)) | None => unknown(),
        },
        BinOpKind::Rem => match pair(left, right) {
            Some(Pair::Whole(a, b)) => whole(
                floor_div(a, b)
                    .and_then(|quotient| quotient.checked_mul(b))
                    .and_then(|multiple| a.checked_sub(multiple)),
            ),
            Some(Pair::Real(..)) | None => unknown(),
        },
        BinOpKind::Eq => compare(CompareOpKind::Eq, left, right).map(Py::Bool),
        BinOpKind::Ne => compare(CompareOpKind::Ne, left, right).map(Py::Bool),
        BinOpKind::Lt => compare(CompareOpKind::Lt, left, right).map(Py::Bool),
        BinOpKind::Lte => compare(CompareOpKind::Lte, left, right).map(Py::Bool),
        BinOpKind::Gt => compare(CompareOpKind::Gt, left, right).map(Py::Bool),
        BinOpKind::Gte => compare(CompareOpKind::Gte, left, right).map(Py::Bool),
        BinOpKind::In => compare(CompareOpKind::In, left, right).map(Py::Bool),
        BinOpKind::ScAnd | BinOpKind::ScOr | BinOpKind::Pow => unknown(),
    }
}

fn whole(number: Option<i64>) -> Outcome<Py> {
    number
        .map(Py::Int)
        .ok_or_else(|| "a number is too large".to_owned())
}

fn floor_div(a: i64, b: i64) -> Option<i64> {
    let quotient = a.checked_div(b)?;
    let is_inexact = a.checked_rem(b)? != 0;
    Some(if is_inexact && (a < 0) != (b < 0) {
        quotient - 1
    } else {
        quotient
    })
}

fn arithmetic(
    left: &Py,
    right: &Py,
    on_whole: impl Fn(i64, i64) -> Option<i64>,
    on_real: impl Fn(f64, f64) -> f64,
) -> Outcome<Py> {
    match pair(left, right) {
        Some(Pair::Whole(a, b)) => whole(on_whole(a, b)),
        Some(Pair::Real(a, b)) => Ok(Py::Float(on_real(a, b))),
        None => unknown(),
    }
}

fn joined(left: &str, right: &str) -> Outcome<Py> {
    if left.len() + right.len() > LONGEST {
        return Err("a text grows too long".to_owned());
    }
    Ok(Py::text(format!("{left}{right}")))
}

fn add(left: &Py, right: &Py) -> Outcome<Py> {
    let both = |a: &Rc<Vec<Py>>, b: &Rc<Vec<Py>>| Rc::new(a.iter().chain(b.iter()).cloned().collect());
    match (left, right) {
        (Py::Str(a), Py::Str(b)) => joined(a, b),
        (Py::List(a), Py::List(b)) => Ok(Py::List(both(a, b))),
        (Py::Tuple(a), Py::Tuple(b)) => Ok(Py::Tuple(both(a, b))),
        _ => arithmetic(left, right, i64::checked_add, |a, b| a + b),
    }
}

fn multiply(left: &Py, right: &Py) -> Outcome<Py> {
    match (left, right) {
        (Py::Str(text), times) | (times, Py::Str(text)) => {
            let times = usize::try_from(times.whole()?.max(0)).unwrap_or(usize::MAX);
            if text.len().saturating_mul(times) > LONGEST {
                return Err("a text grows too long".to_owned());
            }
            Ok(Py::text(text.repeat(times)))
        }
        _ => arithmetic(left, right, i64::checked_mul, |a, b| a * b),
    }
}

/// One comparison.
pub(super) fn compare(op: CompareOpKind, left: &Py, right: &Py) -> Outcome<bool> {
    let ordered = |wanted: &[Ordering]| Ok(wanted.contains(&order(left, right)?));
    match op {
        CompareOpKind::Eq => equal(left, right),
        CompareOpKind::Ne => equal(left, right).map(|same| !same),
        CompareOpKind::Lt => ordered(&[Ordering::Less]),
        CompareOpKind::Lte => ordered(&[Ordering::Less, Ordering::Equal]),
        CompareOpKind::Gt => ordered(&[Ordering::Greater]),
        CompareOpKind::Gte => ordered(&[Ordering::Greater, Ordering::Equal]),
        CompareOpKind::In => contains(right, left),
        CompareOpKind::NotIn => contains(right, left).map(|found| !found),
    }
}

fn equal(left: &Py, right: &Py) -> Outcome<bool> {
    if let Some(pair) = pair(left, right) {
        return Ok(match pair {
            Pair::Whole(a, b) => a == b,
            Pair::Real(a, b) => a == b,
        });
    }
    match (left, right) {
        (Py::None, Py::None) => Ok(true),
        (Py::Str(a), Py::Str(b)) => Ok(a == b),
        (Py::List(a), Py::List(b)) | (Py::Tuple(a), Py::Tuple(b)) => {
            if a.len() != b.len() {
                return Ok(false);
            }
            for (a, b) in a.iter().zip(b.iter()) {
                if !equal(a, b)? {
                    return Ok(false);
                }
            }
            Ok(true)
        }
        (Py::Dict(a), Py::Dict(_)) => {
            if left.length()? != right.length()? {
                return Ok(false);
            }
            for (key, value) in a.iter() {
                match right.field(key) {
                    Some(other) if equal(value, other)? => {}
                    Some(_) | None => return Ok(false),
                }
            }
            Ok(true)
        }
        _ if is_plain(left) && is_plain(right) => Ok(false),
        _ => unknown(),
    }
}

/// Returns `true` if a value equals nothing of another kind. A number too large to be compared is not plain.
fn is_plain(value: &Py) -> bool {
    match value {
        Py::Int(number) => number.abs() <= EXACT,
        Py::None | Py::Bool(_) | Py::Float(_) | Py::Str(_) | Py::List(_) | Py::Tuple(_) | Py::Dict(_) => true,
        Py::Undefined | Py::Instant(_) | Py::Object(_) | Py::Macros => false,
    }
}

fn order(left: &Py, right: &Py) -> Outcome<Ordering> {
    match (pair(left, right), left, right) {
        (Some(Pair::Whole(a, b)), ..) => Ok(a.cmp(&b)),
        (Some(Pair::Real(a, b)), ..) => a.partial_cmp(&b).map_or_else(unknown, Ok),
        // By characters, which is the order of their bytes in UTF-8.
        (None, Py::Str(a), Py::Str(b)) => Ok(a.cmp(b)),
        (None, ..) => unknown(),
    }
}

fn contains(within: &Py, value: &Py) -> Outcome<bool> {
    match (within, value) {
        (Py::Str(text), Py::Str(part)) => Ok(text.contains(&**part)),
        (Py::Dict(_), Py::Str(key)) => Ok(within.field(key).is_some()),
        (Py::List(items) | Py::Tuple(items), _) => {
            for item in items.iter() {
                if equal(item, value)? {
                    return Ok(true);
                }
            }
            Ok(false)
        }
        _ => unknown(),
    }
}

/// `value[start:stop:step]`
pub(super) fn slice(value: &Py, start: Option<i64>, stop: Option<i64>, step: Option<i64>) -> Outcome<Py> {
    let step = step.unwrap_or(1);
    if step == 0 {
        return unknown();
    }
    let items = match value {
        Py::Str(_) | Py::List(_) | Py::Tuple(_) => value.items()?,
        _ => return unknown(),
    };
    let length = value.length()?;
    let (lowest, highest) = if step > 0 { (0, length) } else { (-1, length - 1) };
    let bound = |at: Option<i64>, otherwise: i64| {
        at.map_or(otherwise, |at| {
            let at = if at < 0 { at.saturating_add(length) } else { at };
            at.clamp(lowest, highest)
        })
    };
    let (first, last) = if step > 0 {
        (lowest, highest)
    } else {
        (highest, lowest)
    };
    let (mut at, stop) = (bound(start, first), bound(stop, last));
    let mut taken = Vec::new();
    while (step > 0 && at < stop) || (step < 0 && at > stop) {
        if let Some(item) = usize::try_from(at).ok().and_then(|at| items.get(at)) {
            taken.push(item.clone());
        }
        at = at.saturating_add(step);
    }
    match value {
        Py::Str(_) => {
            let parts = taken.iter().map(Py::str).collect::<Outcome<Vec<_>>>()?;
            Ok(Py::text(parts.concat()))
        }
        Py::Tuple(_) => Ok(Py::Tuple(Rc::new(taken))),
        _ => Ok(Py::list(taken)),
    }
}
