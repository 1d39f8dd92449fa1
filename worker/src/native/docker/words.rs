//! Splits a command as Python's `shlex.split` does, which docker-py uses. Other shell splitters know comments, and treat
//! escapes within double quotes otherwise.

/// The words of a command; `None` where Python would raise (an open quotation, nothing after a backslash).
pub(super) fn split(text: &str) -> Option<Vec<String>> {
    let mut words = Vec::new();
    let mut word: Option<String> = None;
    let mut chars = text.chars();
    while let Some(c) = chars.next() {
        match c {
            ' ' | '\t' | '\r' | '\n' => words.extend(word.take()),
            '\\' => word.get_or_insert_default().push(chars.next()?),
            '\'' | '"' => quoted(c, &mut chars, word.get_or_insert_default())?,
            c => word.get_or_insert_default().push(c),
        }
    }
    words.extend(word);
    Some(words)
}

/// Reads to the end of a quotation.
fn quoted(quote: char, chars: &mut std::str::Chars<'_>, word: &mut String) -> Option<()> {
    loop {
        match chars.next()? {
            c if c == quote => return Some(()),
            '\\' if quote == '"' => {
                let next = chars.next()?;
                if next != '"' && next != '\\' {
                    word.push('\\');
                }
                word.push(next);
            }
            c => word.push(c),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn commands_are_split_as_python_splits_them() {
        // Each pair is what `shlex.split` of Python 3.11 gives.
        for (text, words) in [
            ("sh -c 'echo \"a b\"'", vec!["sh", "-c", "echo \"a b\""]),
            ("echo #1 a", vec!["echo", "#1", "a"]),
            (
                r#"sh -c "echo \$HOME \"x\" \\ \`y\`""#,
                vec!["sh", "-c", r#"echo \$HOME "x" \ \`y\`"#],
            ),
            ("a\\ b '' c\r\nd", vec!["a b", "", "c", "d"]),
            ("x'y'\"z\"\\\nw", vec!["xyz\nw"]),
            ("  ", vec![]),
        ] {
            assert_eq!(
                split(text),
                Some(words.into_iter().map(str::to_owned).collect()),
                "{text}"
            );
        }
        for text in ["echo 'a", "echo \"a", "echo \\", "echo \"a\\"] {
            assert_eq!(split(text), None, "{text}");
        }
    }
}
