//! Search parameters: `KEY_pattern` and `KEY_prefix_pattern`, with the meaning that Airflow's `_SearchParam` and
//! `_PrefixSearchParam` give them.

use store::repo::Condition;
use store::sql::Value as Stored;

/// What stands between `|`, or the whole text where there is no `|` or nothing beside it.
fn alternatives(text: &str, pipe: Pipe) -> Vec<String> {
    let mut terms: Vec<String> = Vec::new();
    if pipe == Pipe::Or && text.contains('|') {
        let mut seen = std::collections::HashSet::new();
        let parts = text.split('|').map(str::trim).filter(|term| !term.is_empty());
        terms.extend(parts.filter(|term| seen.insert(*term)).map(str::to_owned));
    }
    if terms.is_empty() {
        terms.push(text.to_owned());
    }
    terms
}

/// What `|` means in a pattern.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Pipe {
    /// It separates alternatives.
    Or,
    /// It is a letter like any other.
    Letter,
}

/// `KEY_pattern`: the text contains one of the terms, whatever its case. `%` and `_` are wildcards; `~` alone matches
/// every text.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Pattern {
    terms: Vec<String>,
}

impl Pattern {
    pub(crate) fn read(text: &str, pipe: Pipe) -> Self {
        let text = if text == "~" { "%" } else { text };
        Self {
            terms: alternatives(text, pipe),
        }
    }

    /// The same in SQL. A NULL matches no pattern.
    pub(crate) fn condition(self, column: &'static str) -> Condition {
        Condition::Contains(column, self.terms)
    }

    /// Returns `true` if this text matches.
    pub(crate) fn fits(&self, text: &str) -> bool {
        let text: Vec<char> = text.to_lowercase().chars().collect();
        self.terms.iter().any(|term| {
            let term: Vec<char> = format!("%{}%", term.to_lowercase()).chars().collect();
            is_like(&text, &term)
        })
    }
}

/// SQL's LIKE without an escape character, in at most text times pattern steps.
fn is_like(text: &[char], pattern: &[char]) -> bool {
    let (mut at, mut in_pattern) = (0, 0);
    // The last `%`, and where the text after it was tried.
    let mut again: Option<(usize, usize)> = None;
    while at < text.len() {
        match (pattern.get(in_pattern), again) {
            (Some('%'), _) => {
                again = Some((in_pattern + 1, at));
                in_pattern += 1;
            }
            (Some(c), _) if *c == '_' || *c == text[at] => {
                at += 1;
                in_pattern += 1;
            }
            (_, Some((after, tried))) => {
                again = Some((after, tried + 1));
                in_pattern = after;
                at = tried + 1;
            }
            (_, None) => return false,
        }
    }
    pattern[in_pattern..].iter().all(|c| *c == '%')
}

/// `KEY_prefix_pattern`: the text begins with one of the terms, in this case. What stands at the end of a term and is
/// neither letter nor digit is left out, so that an index can be used in every collation.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Prefix {
    ranges: Vec<Range>,
}

/// Texts from one on, and below another.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Range {
    from: String,
    below: Option<String>,
}

impl Range {
    fn of(term: &str) -> Self {
        let from = term.trim_end_matches(|c: char| !c.is_alphanumeric());
        Self {
            from: from.to_owned(),
            below: beyond(from),
        }
    }

    fn condition(self, column: &'static str) -> Condition {
        if self.from.is_empty() {
            return Condition::Not(Box::new(Condition::IsNull(column)));
        }
        let mut both = vec![Condition::AtLeast(column, Stored::from(self.from))];
        both.extend(
            self.below
                .map(|below| Condition::Below(column, Stored::from(below))),
        );
        Condition::All(both)
    }

    fn has(&self, text: &str) -> bool {
        text >= self.from.as_str() && self.below.as_deref().is_none_or(|below| text < below)
    }
}

/// The first text after all that begin with `term`: its last letter one higher. Letters for which there is no next
/// letter or digit are left out.
fn beyond(term: &str) -> Option<String> {
    let mut letters: Vec<char> = term.chars().collect();
    while let Some(last) = letters.pop() {
        let next = last
            .is_alphanumeric()
            .then(|| char::from_u32(u32::from(last) + 1))
            .flatten();
        if let Some(next) = next.filter(|next| next.is_alphanumeric()) {
            letters.push(next);
            return Some(letters.into_iter().collect());
        }
    }
    None
}

impl Prefix {
    pub(crate) fn read(text: &str, pipe: Pipe) -> Self {
        let text = if text == "~" { "" } else { text };
        let terms = alternatives(text, pipe);
        Self {
            ranges: terms.iter().map(|term| Range::of(term)).collect(),
        }
    }

    /// The same in SQL. A NULL has no prefix.
    pub(crate) fn condition(self, column: &'static str) -> Condition {
        Condition::Any(
            self.ranges
                .into_iter()
                .map(|range| range.condition(column))
                .collect(),
        )
    }

    /// Returns `true` if this text matches.
    pub(crate) fn fits(&self, text: &str) -> bool {
        self.ranges.iter().any(|range| range.has(text))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// LIKE as it is defined, letter by letter.
    fn like(text: &[char], pattern: &[char]) -> bool {
        match (pattern.split_first(), text.split_first()) {
            (None, _) => text.is_empty(),
            (Some(('%', rest)), first) => {
                like(text, rest) || first.is_some_and(|(_, text)| like(text, pattern))
            }
            (Some((c, rest)), Some((t, text))) => (*c == '_' || c == t) && like(text, rest),
            (Some(_), None) => false,
        }
    }

    #[test]
    fn a_pattern_of_separators_alone_is_a_text_like_any_other() {
        for text in ["|", "||", " | ", "| |"] {
            assert!(Pattern::read(text, Pipe::Or).fits(&format!("a{text}b")));
            assert!(!Pattern::read(text, Pipe::Or).fits("ab"));
        }
        assert!(Pattern::read("x | B|", Pipe::Or).fits("abc"));
        assert!(!Pattern::read("b|c", Pipe::Letter).fits("abc"));
        assert!(Pattern::read("~", Pipe::Or).fits("") && !Pattern::read("~|x", Pipe::Or).fits("a"));
    }

    #[test]
    fn a_prefix_is_a_range_that_ends_with_a_letter_or_digit() {
        let prefix = Prefix::read("test_|B", Pipe::Or);
        assert!(prefix.fits("tests") && prefix.fits("B1") && !prefix.fits("atest") && !prefix.fits("b"));
        assert_eq!(beyond("az"), Some("b".to_owned()));
        assert_eq!(beyond("zz"), None);
        assert!(Prefix::read("~", Pipe::Or).fits("anything"));
    }

    #[test]
    fn a_pattern_of_many_wildcards_takes_no_time_to_speak_of() {
        let pattern = Pattern::read(&"%a".repeat(200), Pipe::Or);
        assert!(!pattern.fits(&"b".repeat(250)));
    }

    proptest! {
        #[test]
        fn like_is_what_it_is_defined_to_be(text in "[ab%_]{0,8}", pattern in "[ab%_]{0,8}") {
            let (text, pattern): (Vec<char>, Vec<char>) = (text.chars().collect(), pattern.chars().collect());
            prop_assert_eq!(is_like(&text, &pattern), like(&text, &pattern));
        }

        #[test]
        fn every_text_that_begins_with_a_term_of_letters_matches_it(term in "[a-c0-9]{1,5}", tail in "[a-c|%_ ~]{0,5}") {
            let text = format!("{term}{tail}");
            prop_assert!(Prefix::read(&term, Pipe::Or).fits(&text));
        }
    }
}
