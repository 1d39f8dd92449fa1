//! What two observations of one run disagree about.

use super::Observed;
use serde_json::Value;

/// One fact that is not the same.
#[derive(Debug, Clone)]
pub struct Difference {
    /// The DAG.
    pub dag_id: String,
    /// Which fact.
    pub path: String,
    /// As Airflow has it; `None` if it has no such fact.
    pub airflow: Option<Value>,
    /// As Updraft has it.
    pub updraft: Option<Value>,
    /// Why it is meant to be so, if it is.
    pub reason: Option<String>,
}

/// Differences that are meant.
#[derive(Debug, Clone, Default)]
pub struct Chosen(Vec<(String, String, String)>);

impl Chosen {
    /// Reads lines of `DAG | PART OF THE PATH | REASON`; `*` stands for every DAG, lines with `#` and empty ones are skipped.
    pub fn read(text: &str) -> Self {
        let line = |line: &str| {
            let mut parts = line.splitn(3, '|').map(|part| part.trim().to_owned());
            Some((parts.next()?, parts.next()?, parts.next()?))
        };
        let is_entry = |text: &&str| !text.trim().is_empty() && !text.starts_with('#');
        Self(text.lines().filter(is_entry).filter_map(line).collect())
    }

    fn reason(&self, dag_id: &str, path: &str) -> Option<String> {
        let fits = |(dag, part, _): &&(String, String, String)| {
            (dag == "*" || dag == dag_id) && path.contains(part.as_str())
        };
        self.0.iter().find(fits).map(|(_, _, reason)| reason.clone())
    }
}

/// All facts that are not the same.
pub fn compare(dag_id: &str, airflow: &Observed, updraft: &Observed, chosen: &Chosen) -> Vec<Difference> {
    let mut paths: Vec<&String> = airflow.keys().chain(updraft.keys()).collect();
    paths.sort();
    paths.dedup();
    let differs = |path: &&&String| airflow.get(**path) != updraft.get(**path);
    paths
        .iter()
        .filter(differs)
        .map(|path| Difference {
            dag_id: dag_id.to_owned(),
            path: (*path).clone(),
            airflow: airflow.get(*path).cloned(),
            updraft: updraft.get(*path).cloned(),
            reason: chosen.reason(dag_id, path),
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn a_difference_is_told_with_both_sides_and_with_its_reason_if_there_is_one() {
        let side = |state: &str| {
            Observed::from([
                ("task a[-1] / state".to_owned(), json!(state)),
                ("run / state".to_owned(), json!("x")),
            ])
        };
        let chosen = Chosen::read("# why\nother | state | no\n* | task a | because\n");
        let found = compare("dag", &side("success"), &side("failed"), &chosen);
        assert_eq!(found.len(), 1);
        assert_eq!(found[0].airflow, Some(json!("success")));
        assert_eq!(found[0].reason.as_deref(), Some("because"));
        assert!(compare("dag", &side("x"), &side("x"), &chosen).is_empty());
    }
}
