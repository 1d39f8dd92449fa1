//! Arguments of calls and filters.

use super::value::{Outcome, Py};

/// Arguments, taken one by one: those that are left over are an error.
pub(crate) struct Arguments {
    positional: std::vec::IntoIter<Py>,
    named: Vec<(String, Py)>,
}

impl Arguments {
    pub(crate) fn new(positional: Vec<Py>, named: Vec<(String, Py)>) -> Self {
        Self {
            positional: positional.into_iter(),
            named,
        }
    }

    /// The next argument, by its place or by its name.
    pub(crate) fn next(&mut self, name: &str) -> Option<Py> {
        if let Some(value) = self.positional.next() {
            return Some(value);
        }
        self.named(name)
    }

    /// An argument that has only a name.
    pub(crate) fn named(&mut self, name: &str) -> Option<Py> {
        let at = self.named.iter().position(|(key, _)| key == name)?;
        Some(self.named.swap_remove(at).1)
    }

    /// An argument that must be there.
    pub(crate) fn required(&mut self, name: &str) -> Outcome<Py> {
        self.next(name).ok_or_else(|| format!("there is no {name}"))
    }

    /// A whole number, if it is given.
    pub(crate) fn whole(&mut self, name: &str) -> Outcome<Option<i64>> {
        self.next(name).map(|value| value.whole()).transpose()
    }

    /// # Errors
    /// When there are arguments that nobody took.
    pub(crate) fn end(mut self) -> Outcome<()> {
        if self.positional.next().is_some() || !self.named.is_empty() {
            return Err("it takes other arguments".to_owned());
        }
        Ok(())
    }
}
