//! The dialect of ini that `airflow.cfg` is written in (Python's `configparser`).

use crate::ConfigError;
use std::path::Path;

/// One `key = value` of a section.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Entry {
    pub(crate) section: String,
    pub(crate) key: String,
    pub(crate) value: String,
}

/// Reads all entries, in order. Indented lines continue the value above them; `%%` stands for `%`.
pub(crate) fn parse(text: &str, path: &Path) -> Result<Vec<Entry>, ConfigError> {
    let mut entries: Vec<Entry> = Vec::new();
    let mut section: Option<String> = None;
    let mut continues = false;
    for (index, line) in text.lines().enumerate() {
        let trimmed = line.trim();
        if trimmed.is_empty() {
            continue;
        }
        if trimmed.starts_with('#') || trimmed.starts_with(';') {
            continue;
        }
        let syntax = |problem: &str| ConfigError::Syntax {
            path: path.to_owned(),
            line: index + 1,
            problem: problem.to_owned(),
        };
        if line.starts_with([' ', '\t']) && continues {
            if let Some(last) = entries.last_mut() {
                last.value.push('\n');
                last.value.push_str(trimmed);
            }
            continue;
        }
        if let Some(name) = trimmed.strip_prefix('[') {
            let name = name
                .strip_suffix(']')
                .ok_or_else(|| syntax("a section needs a closing ]"))?;
            section = Some(name.trim().to_ascii_lowercase());
            continues = false;
            continue;
        }
        let Some(section) = &section else {
            return Err(syntax("an option stands before the first [section]"));
        };
        let Some(at) = trimmed.find(['=', ':']) else {
            return Err(syntax("expected `key = value`"));
        };
        entries.push(Entry {
            section: section.clone(),
            key: trimmed[..at].trim().to_ascii_lowercase(),
            value: trimmed[at + 1..].trim().to_owned(),
        });
        continues = true;
    }
    for entry in &mut entries {
        entry.value = entry.value.replace("%%", "%");
    }
    Ok(entries)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_sections_comments_continuations_and_percent_signs() {
        let text =
            "# top\n[Core]\nParallelism = 7\n; no\n[logging]\nlog_format = %%(message)s\nlist = a,\n  b\n";
        let entries = parse(text, Path::new("airflow.cfg")).unwrap();
        let flat: Vec<_> = entries
            .iter()
            .map(|e| (&*e.section, &*e.key, &*e.value))
            .collect();
        assert_eq!(
            flat,
            [
                ("core", "parallelism", "7"),
                ("logging", "log_format", "%(message)s"),
                ("logging", "list", "a,\nb")
            ]
        );
    }

    #[test]
    fn says_the_line_of_a_mistake() {
        let error = parse("[core]\nnonsense\n", Path::new("airflow.cfg")).unwrap_err();
        assert_eq!(error.to_string(), "airflow.cfg, line 2: expected `key = value`");
    }
}
