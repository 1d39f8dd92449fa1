//! Which executor a task's wish means (`[core] executor`).

use std::collections::HashMap;

/// Where tasks run.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Executor {
    /// On our workers: `LocalExecutor`, `CeleryExecutor` (and `SequentialExecutor`, from before Airflow 3).
    Workers,
    /// In a pod of their own: `KubernetesExecutor`.
    Pods,
}

/// The executors of an installation. The three that we have may be asked for by their own names at any time.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Executors {
    first: Executor,
    aliases: HashMap<String, Executor>,
}

/// What the last part of an executor's name stands for.
fn known(name: &str) -> Option<Executor> {
    match name.rsplit('.').next().unwrap_or(name) {
        "LocalExecutor" | "CeleryExecutor" | "SequentialExecutor" => Some(Executor::Workers),
        "KubernetesExecutor" => Some(Executor::Pods),
        _ => None,
    }
}

impl Executors {
    /// Reads the entries of `[core] executor`: a name, or `alias:name`.
    ///
    /// # Errors
    /// What is allowed, when one is none of ours.
    pub(crate) fn read(entries: &[String]) -> Result<Self, String> {
        let allowed =
            || "LocalExecutor, CeleryExecutor, KubernetesExecutor, or ALIAS: before one of them".to_owned();
        let mut first = None;
        let mut aliases = HashMap::new();
        for entry in entries {
            let (alias, name) = entry
                .split_once(':')
                .map_or((None, entry.as_str()), |(a, n)| (Some(a), n));
            let executor = known(name.trim()).ok_or_else(allowed)?;
            first.get_or_insert(executor);
            if let Some(alias) = alias {
                aliases.insert(alias.trim().to_owned(), executor);
            }
        }
        Ok(Self {
            first: first.ok_or_else(allowed)?,
            aliases,
        })
    }

    /// Whether a task that asks for this runs in a pod of its own.
    pub fn is_pod(&self, wish: Option<&str>) -> bool {
        self.resolve(wish) == Some(Executor::Pods)
    }

    /// Where a task runs that asks for this; `None` for a name that means nothing here.
    pub fn resolve(&self, wish: Option<&str>) -> Option<Executor> {
        let Some(name) = wish.filter(|name| !name.is_empty()) else {
            return Some(self.first);
        };
        self.aliases.get(name).copied().or_else(|| known(name))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(text: &str) -> Result<Executors, String> {
        Executors::read(&text.split(',').map(str::to_owned).collect::<Vec<_>>())
    }

    #[test]
    fn wishes_are_names_paths_and_aliases() {
        let executors = read("CeleryExecutor,big:KubernetesExecutor").unwrap();
        assert_eq!(executors.resolve(None), Some(Executor::Workers));
        assert_eq!(executors.resolve(Some("big")), Some(Executor::Pods));
        let path = "airflow.providers.cncf.kubernetes.executors.kubernetes_executor.KubernetesExecutor";
        assert_eq!(executors.resolve(Some(path)), Some(Executor::Pods));
        assert_eq!(executors.resolve(Some("EcsExecutor")), None);
        assert_eq!(read(path).unwrap().resolve(None), Some(Executor::Pods));
        assert!(read("EcsExecutor").unwrap_err().contains("LocalExecutor"));
    }
}
