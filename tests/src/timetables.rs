//! Our timetables against Airflow's own: a Python asks the real classes, and every answer must be ours, too.

use anyhow::{Context, ensure};
use model::Timestamp;
use model::time::{from_micros, to_micros};
use model::timetable::{DataInterval, Restriction, Timetable};
use serde_json::{Value, json};
use std::collections::HashMap;
use std::io::{BufRead, BufReader};
use std::process::{Command, Stdio};

/// Differences that are told.
const SHOWN: usize = 20;

/// What came of a comparison.
#[derive(Debug, Default)]
pub struct Tally {
    /// Timetables asked.
    pub timetables: u64,
    /// Pairs of a timetable and an instant, each with several questions.
    pub instants: u64,
    /// Questions asked.
    pub questions: u64,
    /// Questions to which Airflow raised.
    pub raised: u64,
    /// Answers that were not ours.
    pub different: u64,
    /// The first of them, in words.
    pub differences: Vec<String>,
}

impl Tally {
    /// Adds what another comparison came to.
    pub fn add(&mut self, other: Self) {
        self.timetables += other.timetables;
        self.instants += other.instants;
        self.questions += other.questions;
        self.different += other.different;
        self.raised += other.raised;
        self.differences.extend(other.differences);
        self.differences.truncate(SHOWN);
    }
}

/// One part of so many of a comparison over about `count` instants.
#[derive(Debug, Clone, Copy)]
pub struct Portion {
    /// Chooses the instants.
    pub seed: u64,
    /// Instants of this part.
    pub count: u64,
    /// Which part.
    pub part: u64,
    /// Of how many.
    pub parts: u64,
}

/// Asks Airflow's timetables in this interpreter, and ours.
///
/// # Errors
/// When the interpreter has no Airflow, or says something that is no answer.
pub fn compare(python: &str, portion: Portion) -> anyhow::Result<Tally> {
    let arguments = [portion.seed, portion.count, portion.part, portion.parts].map(|n| n.to_string());
    let home = tempfile::tempdir()?;
    let mut child = Command::new(python)
        .args(["-c", include_str!("timetables/ask.py")])
        .args(&arguments)
        .env("AIRFLOW_HOME", home.path())
        .stdout(Stdio::piped())
        .spawn()?;
    let output = child.stdout.take().context("an output")?;
    let mut tally = Tally::default();
    let mut timetables: HashMap<u64, (Timetable, Value)> = HashMap::new();
    for line in BufReader::new(output).lines() {
        let line = line?;
        let said: Vec<Value> = serde_json::from_str(&line).with_context(|| line.clone())?;
        let number = said.get(1).and_then(Value::as_u64).context("a number")?;
        if said[0] == "T" {
            let timetable = Timetable::from_serialized(&said[2]).with_context(|| line.clone())?;
            timetables.insert(number, (timetable, said[2].clone()));
            tally.timetables += 1;
            continue;
        }
        let (timetable, described) = timetables.get(&number).context("an unknown timetable")?;
        let (expected, ours) = if said[0] == "manual" {
            (&said[3], manual(timetable, &said))
        } else if said[0] == "key" {
            let date = said[2].as_str().map(|key| timetable.partition_date(key));
            let date = date.and_then(|date| date.ok().flatten());
            (&said[3], json!(date.map(to_micros)))
        } else {
            // The first question about an instant has no earlier run and makes up for everything.
            tally.instants += u64::from(said[2].is_null() && said[6] == true && said[5].is_null());
            (&said[8], next(timetable, &said))
        };
        tally.questions += 1;
        if expected.is_string() {
            tally.raised += 1;
            // Where Airflow gives up, going on is no difference; staying where the last run was would be.
            let advances = ours[0].as_i64() > said[2].as_i64();
            tally.different += u64::from(!ours.is_null() && !advances);
            continue;
        }
        if *expected != ours {
            tally.different += 1;
            if tally.differences.len() < SHOWN {
                tally
                    .differences
                    .push(format!("{described}\n  {line}\n  ours: {}", in_words(&ours)));
            }
        }
    }
    ensure!(
        child.wait()?.success(),
        "{python} could not ask Airflow's timetables"
    );
    ensure!(tally.questions > 0, "no questions were asked");
    Ok(tally)
}

fn instant(value: &Value) -> Option<Timestamp> {
    value.as_i64().and_then(from_micros)
}

fn manual(timetable: &Timetable, said: &[Value]) -> Value {
    let Some(at) = instant(&said[2]) else {
        return Value::Null;
    };
    match timetable.manual_interval(at) {
        Ok(span) => json!([to_micros(span.start), to_micros(span.end)]),
        Err(_) => Value::Null,
    }
}

fn next(timetable: &Timetable, said: &[Value]) -> Value {
    let last = instant(&said[2])
        .zip(instant(&said[3]))
        .map(|(start, end)| DataInterval { start, end });
    let restriction = Restriction {
        earliest: instant(&said[4]),
        latest: instant(&said[5]),
        catchup: said[6] == true,
    };
    let Some(now) = instant(&said[7]) else {
        return Value::Null;
    };
    match timetable.next_run(last, &restriction, now) {
        Ok(Some(run)) => {
            let mut answer = vec![
                json!(to_micros(run.interval.start)),
                json!(to_micros(run.interval.end)),
                json!(to_micros(run.run_after)),
            ];
            if let Ok(Some(partition)) = timetable.partition_of(run.run_after) {
                answer.push(json!(partition.date.map(to_micros)));
                answer.push(json!(partition.key));
            }
            Value::Array(answer)
        }
        Ok(None) | Err(_) => Value::Null,
    }
}

fn in_words(answer: &Value) -> String {
    let instants = answer.as_array().into_iter().flatten().filter_map(instant);
    let words: Vec<String> = instants.map(|at| at.to_rfc3339()).collect();
    format!("{answer} {}", words.join(" "))
}
