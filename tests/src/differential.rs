//! Native tasks against the same tasks in Python: cases are generated from a seed or listed in a file, run both ways, and
//! everything that a user sees of them must be the same. Some are held against real Airflow's recorded answers, too.

mod cases;
mod commands;
mod compare;
mod expressions;
mod meant;
mod operators;
mod record;
mod schemas;
mod sides;

pub use cases::{Case, generated, listed};
pub use compare::{Difference, differences};
pub use meant::AllMeant;
pub use record::{Recorded, record, recorded, write};
pub use sides::{NativeSide, PythonSide};

use serde_json::Value;
use std::collections::BTreeMap;

/// What came of a comparison.
#[derive(Debug, Default)]
pub struct Tally {
    /// Cases that were run.
    pub cases: usize,
    /// Cases that ran natively; the others were left to Python, which is always right.
    pub native: usize,
    /// Cases that Airflow itself refuses to build.
    pub refused: usize,
    /// Why cases were left to Python, and how many.
    pub declined: BTreeMap<String, usize>,
    /// What was not the same.
    pub differences: Vec<Difference>,
}

impl Tally {
    /// Adds what another comparison came to.
    pub fn add(&mut self, other: Self) {
        self.cases += other.cases;
        self.native += other.native;
        self.refused += other.refused;
        self.differences.extend(other.differences);
        for (why, count) in other.declined {
            *self.declined.entry(why).or_default() += count;
        }
    }

    /// The differences, one text for each.
    pub fn texts(&self) -> Vec<String> {
        self.differences.iter().map(Difference::to_string).collect()
    }
}

/// Runs cases on both sides and, where there is a recorded answer, holds both against it. `replay` tells how a case is
/// run again.
///
/// # Errors
/// When a side cannot run at all.
pub fn compare(
    python: &str,
    cases: &[Case],
    recorded: &BTreeMap<String, Value>,
    replay: &str,
) -> anyhow::Result<Tally> {
    let mut tally = Tally::default();
    let mut native = NativeSide::new()?;
    let mut python = PythonSide::start(python)?;
    if let Some(first) = cases.first() {
        python.ask(first)?;
    }
    for (index, case) in cases.iter().enumerate() {
        let answer = python.answer()?;
        // The next case runs in Python while this one runs natively.
        if let Some(next) = cases.get(index + 1) {
            python.ask(next)?;
        }
        tally.cases += 1;
        let again = format!("{replay} --only {}", case.name);
        let of = (case.name.as_str(), again.as_str());
        if answer.get("refused").is_some() {
            tally.refused += 1;
            continue;
        }
        let mut in_python = answer["python"].clone();
        if let Some(written) = answer["python"]["written"].as_str() {
            let records = written.lines().filter(|line| !line.is_empty());
            let records = records
                .map(serde_json::from_str)
                .collect::<Result<Vec<Value>, _>>()?;
            in_python["records"] = records.into();
            let seen = native.supervise(case, &in_python, written)?;
            let [sent, seen] = [&in_python, &seen].map(compare::Outcome::read);
            let found = differences(of, "Python", &sent, "worker", &seen);
            tally.differences.extend(found);
        }
        let in_python = compare::Outcome::read(&in_python);
        let expected = recorded.get(&case.name).map(compare::Outcome::read);
        if let Some(expected) = &expected {
            let found = differences(of, "Airflow", expected, "Python", &in_python);
            tally.differences.extend(found);
        }
        if !answer["native"].is_object() {
            *tally.declined.entry("when it was parsed".to_owned()).or_default() += 1;
            continue;
        }
        let ended = native.run(case, answer["startup"].clone(), &answer["native"])?;
        if let Some(why) = ended["declined"].as_str() {
            *tally.declined.entry(reason(why)).or_default() += 1;
            continue;
        }
        tally.native += 1;
        let natively = compare::Outcome::read(&ended);
        let found = differences(of, "Python", &in_python, "native", &natively);
        tally.differences.extend(found);
        if let Some(expected) = &expected {
            let found = differences(of, "Airflow", expected, "native", &natively);
            tally.differences.extend(found);
        }
    }
    Ok(tally)
}

/// A reason without what is particular to the case.
fn reason(why: &str) -> String {
    why.split_whitespace().take(6).collect::<Vec<_>>().join(" ")
}
