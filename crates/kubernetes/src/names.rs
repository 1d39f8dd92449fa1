//! Names and labels that Kubernetes takes.

use md5::{Digest, Md5};

/// Longest name of a pod, and longest value of a label.
const LONGEST: usize = 63;
/// Random letters at the end of a pod's name.
const SUFFIX: usize = 8;

/// A name that Kubernetes takes (`KubernetesPodOperator._set_name`), with a random end if that is wanted.
pub fn name(name: &str, with_suffix: bool) -> String {
    let mut safe = String::new();
    for c in name.to_lowercase().chars() {
        if c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-' {
            safe.push(c);
        } else if !safe.ends_with('\u{0}') {
            // Any number of other letters becomes one dash.
            safe.push('\u{0}');
        }
    }
    let safe = safe.replace('\u{0}', "-");
    if !with_suffix {
        return safe;
    }
    let letters = b"abcdefghijklmnopqrstuvwxyz0123456789";
    let suffix: String = (0..SUFFIX)
        .map(|_| char::from(letters[rand::random_range(0..letters.len())]))
        .collect();
    let kept = &safe[..safe.len().min(LONGEST - SUFFIX - 1)];
    format!("{}-{suffix}", kept.trim_matches(['-', '.']))
}

/// A value that Kubernetes takes for a label (`make_safe_label_value`).
pub fn label_value(text: &str) -> String {
    let allowed = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.');
    let trimmed = text.trim_matches(|c: char| !c.is_ascii_alphanumeric());
    let safe: String = trimmed.chars().filter(|c| allowed(*c)).collect();
    if safe.len() <= LONGEST && safe == text {
        return safe;
    }
    let hash: String = Md5::digest(text.as_bytes())
        .iter()
        .map(|byte| format!("{byte:02x}"))
        .collect();
    format!("{}-{}", &safe[..safe.len().min(LONGEST - 10)], &hash[..9])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_and_labels_are_made_safe_as_airflow_does() {
        assert_eq!(name("My Pod_2025", false), "my-pod-2025");
        let long = name(&"x".repeat(80), true);
        assert_eq!(long.len(), LONGEST);
        assert_ne!(name("a", true), name("a", true));
        assert_eq!(label_value("plain_1.2"), "plain_1.2");
        assert_eq!(
            label_value("manual__2025-01-01T00:00:00+00:00"),
            "manual__2025-01-01T0000000000-b9830f919"
        );
        assert!(label_value(&"y".repeat(100)).len() <= LONGEST);
    }
}
