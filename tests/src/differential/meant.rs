//! Differences that are meant: read from `tests/differential/meant.txt`, and no longer there when nothing shows them.

use super::compare::Difference;
use anyhow::{Context, bail, ensure};

/// More would be no list of exceptions any more.
const MOST: usize = 10;

/// A difference that is meant.
#[derive(Debug, Default)]
struct Meant {
    name: String,
    /// Names of the cases that show it.
    cases: Vec<String>,
    /// The pairs of sides between which it shows, such as `Airflow, native`.
    sides: Vec<String>,
    /// What is different there.
    what: Vec<String>,
    /// `true` if the file says why it is meant.
    has_reason: bool,
    shown: usize,
}

/// All differences that are meant.
#[derive(Debug)]
pub struct AllMeant(Vec<Meant>);

impl AllMeant {
    /// Those of `tests/differential/meant.txt`.
    ///
    /// # Errors
    /// When the file is not in its form, or lists too many.
    pub fn load() -> anyhow::Result<Self> {
        Self::read(include_str!("../../differential/meant.txt")).context("tests/differential/meant.txt")
    }

    fn read(text: &str) -> anyhow::Result<Self> {
        let mut all: Vec<Meant> = Vec::new();
        for (number, line) in text.lines().enumerate() {
            let line = line.trim();
            if line.is_empty() || line.starts_with('#') {
                continue;
            }
            if let Some(name) = line.strip_prefix('[').and_then(|rest| rest.strip_suffix(']')) {
                all.push(Meant {
                    name: name.to_owned(),
                    ..Meant::default()
                });
                continue;
            }
            let entry = all
                .last_mut()
                .with_context(|| format!("line {}: no name before", number + 1))?;
            let (key, value) = line
                .split_once(" = ")
                .with_context(|| format!("line {}: neither [name] nor key = value", number + 1))?;
            let list = || value.split(';').map(|part| part.trim().to_owned()).collect();
            match key {
                "cases" => entry.cases = list(),
                "sides" => entry.sides = list(),
                "what" => entry.what = list(),
                "why" => entry.has_reason = !value.trim().is_empty(),
                _ => bail!("line {}: {key} is no key", number + 1),
            }
        }
        ensure!(
            all.len() <= MOST,
            "{} differences, at most {MOST} may be meant",
            all.len()
        );
        for entry in &all {
            let is_whole = [&entry.cases, &entry.sides, &entry.what]
                .iter()
                .all(|list| !list.is_empty());
            ensure!(
                is_whole && entry.has_reason,
                "[{}] needs cases, sides, what, why",
                entry.name
            );
        }
        Ok(Self(all))
    }

    /// Takes out of these the differences that are meant, and counts them.
    pub fn take(&mut self, differences: &mut Vec<Difference>) {
        differences.retain(|difference| {
            let entry = self.0.iter_mut().find(|entry| entry.fits(difference));
            entry.map(|entry| entry.shown += 1).is_none()
        });
    }

    /// The names of those that nothing has shown.
    pub fn unseen(&self) -> Vec<&str> {
        let unseen = self.0.iter().filter(|entry| entry.shown == 0);
        unseen.map(|entry| entry.name.as_str()).collect()
    }

    /// How often each was seen.
    pub fn seen(&self) -> impl Iterator<Item = (&str, usize)> {
        self.0.iter().map(|entry| (entry.name.as_str(), entry.shown))
    }
}

impl Meant {
    fn fits(&self, difference: &Difference) -> bool {
        let any = |patterns: &[String], text: &str| patterns.iter().any(|pattern| is_like(pattern, text));
        any(&self.cases, &difference.case)
            && any(&self.sides, &difference.between())
            && any(&self.what, &difference.what)
    }
}

/// Returns `true` if a text is like a pattern, in which `*` stands for anything.
fn is_like(pattern: &str, text: &str) -> bool {
    let mut parts = pattern.split('*');
    let first = parts.next().unwrap_or_default();
    let Some(mut rest) = text.strip_prefix(first) else {
        return false;
    };
    let mut is_open = false;
    for part in parts {
        is_open = part.is_empty();
        match rest.find(part) {
            Some(at) => rest = &rest[at + part.len()..],
            None => return false,
        }
    }
    is_open || rest.is_empty()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_star_stands_for_anything() {
        for (pattern, text) in [
            ("*", ""),
            ("*", "a"),
            ("log record *", "log record 5"),
            ("a*c", "abc"),
            ("a", "a"),
        ] {
            assert!(is_like(pattern, text), "{pattern} {text}");
        }
        for (pattern, text) in [("a", "ab"), ("a*c", "ab"), ("log *", "a log 1"), ("", "a")] {
            assert!(!is_like(pattern, text), "{pattern} {text}");
        }
    }

    #[test]
    fn what_is_not_whole_is_refused() {
        let one = "[a]\ncases = *\nsides = *\nwhat = state\nwhy = because\n";
        assert!(AllMeant::read(one).is_ok());
        assert!(AllMeant::read(&one.replace("why = because\n", "")).is_err());
        assert!(AllMeant::read("cases = *\n").is_err());
        assert!(AllMeant::read(&one.repeat(11)).is_err());
    }
}
