//! The example DAGs that come with the program.

use anyhow::Context;
use std::path::{Path, PathBuf};

const FILES: [(&str, &str); 3] = [
    (
        "example_bash.py",
        include_str!("../../../examples/dags/example_bash.py"),
    ),
    (
        "example_taskflow.py",
        include_str!("../../../examples/dags/example_taskflow.py"),
    ),
    (
        "example_branches_and_retries.py",
        include_str!("../../../examples/dags/example_branches_and_retries.py"),
    ),
];

/// Writes the examples where Python can read them, and returns their folder. Each component that runs Python does so for
/// itself: it may be alone on its machine. Those that share a home may do so at once, so a file appears whole or not at all.
///
/// # Errors
/// When they cannot be written.
pub(crate) fn write(home: &Path) -> anyhow::Result<PathBuf> {
    let folder = home.join(".updraft/examples");
    let inner = folder.join("updraft_examples");
    std::fs::create_dir_all(&inner).with_context(|| format!("cannot make {}", inner.display()))?;
    for (name, text) in FILES {
        let path = inner.join(name);
        if std::fs::read_to_string(&path).ok().as_deref() == Some(text) {
            continue;
        }
        let part = inner.join(format!(".{name}.{}", std::process::id()));
        std::fs::write(&part, text)
            .and_then(|()| std::fs::rename(&part, &path))
            .with_context(|| format!("cannot write {}", path.display()))?;
    }
    Ok(folder)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_example_that_was_changed_is_put_right() {
        let home = std::env::temp_dir().join(format!("updraft-examples-{}", uuid::Uuid::new_v4().simple()));
        let folder = write(&home).unwrap();
        let path = folder.join("updraft_examples/example_bash.py");
        std::fs::write(&path, "half").unwrap();
        write(&home).unwrap();
        assert!(std::fs::read_to_string(&path).unwrap().contains("example_bash"));
        std::fs::remove_dir_all(&home).unwrap();
    }
}
