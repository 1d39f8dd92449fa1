//! What a campaign found, as a table and as JSON.

use super::checks::{Broken, INVARIANTS};
use super::kinds::KINDS;
use super::schedule::Planned;
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::time::Duration;

/// What became of one fault.
#[derive(Debug, Clone)]
pub struct Happened {
    /// The fault.
    pub fault: Planned,
    /// When it began, counted from the begin of the campaign.
    pub began: Duration,
    /// How long it took until all went on; `None` where that was not measured.
    pub recovery: Option<Duration>,
    /// The longest that it may take.
    pub bound: Duration,
    /// No other fault lasted at the same time: only then the bound counts.
    pub alone: bool,
    /// What was not as before when it was looked at last.
    pub waited_for: Option<String>,
    /// What was not as before in the end, where it took too long to wait for.
    pub stuck: Option<String>,
    /// Why it did not happen.
    pub skipped: Option<String>,
    /// What broke while it lasted or after it.
    pub broken: Vec<Broken>,
}

impl Happened {
    /// Returns `true` if it took longer than it may.
    pub fn is_late(&self) -> bool {
        self.stuck.is_some() || self.alone && self.recovery.is_some_and(|recovery| recovery > self.bound)
    }
}

/// All of a campaign.
#[derive(Debug, Clone, Default)]
pub struct Report {
    /// The seed.
    pub seed: u64,
    /// What happens again with this.
    pub replay: String,
    /// All faults that happened, or were skipped.
    pub happened: Vec<Happened>,
    /// What broke in the end, when no fault lasted any more.
    pub broken: Vec<Broken>,
    /// Runs, task instances and tries of the load; runs in flight at most.
    pub figures: BTreeMap<&'static str, u64>,
}

impl Report {
    /// All broken invariants.
    pub fn all_broken(&self) -> impl Iterator<Item = &Broken> {
        let during = self.happened.iter().flat_map(|happened| &happened.broken);
        during.chain(&self.broken)
    }

    /// Faults from which recovery took too long.
    pub fn late(&self) -> usize {
        self.happened.iter().filter(|happened| happened.is_late()).count()
    }

    /// The report as JSON.
    pub fn json(&self) -> Value {
        let seconds = |time: Duration| (time.as_secs_f64() * 10.0).round() / 10.0;
        let broken = |all: &[Broken]| -> Vec<Value> {
            all.iter()
                .map(|one| json!({"invariant": one.invariant, "seen": one.seen}))
                .collect()
        };
        let happened = self.happened.iter().map(|one| {
            json!({
                "number": one.fault.number,
                "kind": one.fault.kind.name,
                "target": one.fault.target,
                "seconds": seconds(one.fault.span),
                "beside": one.fault.beside,
                "began": seconds(one.began),
                "recovery": one.recovery.map(seconds),
                "bound": seconds(one.bound),
                "alone": one.alone,
                "waited_for": one.waited_for,
                "stuck": one.stuck,
                "skipped": one.skipped,
                "broken": broken(&one.broken),
            })
        });
        json!({
            "seed": self.seed,
            "replay": self.replay,
            "figures": self.figures,
            "faults": happened.collect::<Vec<_>>(),
            "broken_in_the_end": broken(&self.broken),
        })
    }

    /// The report as a table: a line for each kind that was drawn, and one for each invariant that broke.
    pub fn table(&self) -> String {
        let mut text = format!(
            "{:<20} {:>5} {:>8} {:>10} {:>8} {:>5} {:>7}\n",
            "kind", "drawn", "measured", "worst (s)", "bound", "late", "broken"
        );
        for kind in &KINDS {
            let all: Vec<&Happened> = self
                .happened
                .iter()
                .filter(|one| one.fault.kind == kind)
                .collect();
            let drawn: Vec<&&Happened> = all.iter().filter(|one| one.skipped.is_none()).collect();
            let Some(first) = all.first() else { continue };
            let measured: Vec<Duration> = drawn
                .iter()
                .filter(|one| one.alone)
                .filter_map(|one| one.recovery)
                .collect();
            let worst = measured
                .iter()
                .max()
                .map_or_else(|| "-".to_owned(), |worst| format!("{:.1}", worst.as_secs_f64()));
            let late = drawn.iter().filter(|one| one.is_late()).count();
            let broken: usize = all.iter().map(|one| one.broken.len()).sum();
            text.push_str(&format!(
                "{:<20} {:>5} {:>8} {worst:>10} {:>8} {late:>5} {broken:>7}\n",
                kind.name,
                drawn.len(),
                measured.len(),
                first.bound.as_secs(),
            ));
        }
        for (name, number) in &self.figures {
            text.push_str(&format!("{name}: {number}\n"));
        }
        for invariant in INVARIANTS {
            let count = self
                .all_broken()
                .filter(|broken| broken.invariant == invariant)
                .count();
            let verdict = if count == 0 {
                "holds".to_owned()
            } else {
                format!("BROKEN {count} times")
            };
            text.push_str(&format!("{invariant}: {verdict}\n"));
        }
        text
    }
}

#[cfg(test)]
mod tests {
    use super::super::kinds::find;
    use super::*;

    #[test]
    fn the_table_has_the_worst_of_each_kind_and_what_broke() {
        let happened = |number: usize, seconds: u64, broken: Vec<Broken>| Happened {
            fault: Planned {
                number,
                at: Duration::ZERO,
                kind: find("kill-worker").unwrap(),
                target: "worker-1",
                span: Duration::ZERO,
                beside: false,
            },
            began: Duration::ZERO,
            recovery: Some(Duration::from_secs(seconds)),
            bound: Duration::from_secs(5),
            alone: true,
            waited_for: None,
            stuck: None,
            skipped: None,
            broken,
        };
        let twice = Broken {
            invariant: INVARIANTS[0],
            seen: "r1 a".to_owned(),
        };
        let report = Report {
            seed: 7,
            happened: vec![happened(1, 2, Vec::new()), happened(2, 9, vec![twice])],
            ..Report::default()
        };
        let table = report.table();
        let line = table
            .lines()
            .find(|line| line.starts_with("kill-worker"))
            .unwrap();
        let fields: Vec<&str> = line.split_whitespace().collect();
        assert_eq!(fields, ["kill-worker", "2", "2", "9.0", "5", "1", "1"]);
        assert!(table.contains(&format!("{}: BROKEN 1 times", INVARIANTS[0])));
        assert!(table.contains(&format!("{}: holds", INVARIANTS[1])));
        assert_eq!((report.late(), report.all_broken().count()), (1, 1));
        assert_eq!(report.json()["faults"][1]["recovery"], 9.0);
    }
}
