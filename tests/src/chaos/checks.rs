//! The invariants, over what the witness and the database say. Pure: records in, what is broken out.

use super::witness::{Record, TryId, Witness, Word};
use std::collections::{BTreeMap, BTreeSet};

/// The clock of the witness has steps of 10 ms.
const STEP: u64 = 20;

/// An invariant that does not hold.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Broken {
    /// Which.
    pub invariant: &'static str,
    /// What was seen.
    pub seen: String,
}

/// All invariants, as they are told.
pub(super) const INVARIANTS: [&str; 15] = [
    STARTED_TWICE,
    OVERLAP,
    LATE,
    RUN_AGAIN,
    ORDER,
    LIMIT,
    NEVER_RAN,
    LOST,
    UNFINISHED,
    FAILED,
    LEFT_OVER,
    XCOMS,
    DATES,
    LEFT,
    SAID,
];
const STARTED_TWICE: &str = "a try starts at most once";
const OVERLAP: &str = "tries of a task instance do not overlap";
const LATE: &str = "no try starts after a later one";
const RUN_AGAIN: &str = "a finished try is not run again";
const ORDER: &str = "a task starts after those before it";
const LIMIT: &str = "a pool is never exceeded";
const NEVER_RAN: &str = "what succeeded has run to its end";
const LOST: &str = "no run is lost";
const UNFINISHED: &str = "every run ends";
const FAILED: &str = "no task instance fails by a fault";
/// A row, a slot or a process that nobody needs any more.
pub(super) const LEFT_OVER: &str = "nothing is left over";
const XCOMS: &str = "no XCom is lost";
const DATES: &str = "one run for each date";
/// A component that ends although nobody told it to.
pub(super) const LEFT: &str = "components stay up";

const SAID: &str = "nothing panics, and no statement is refused";

/// What a component says only when something is wrong with the program itself.
const WRONG: [&str; 3] = [
    "panicked at",
    "the metadata store refused a statement",
    "inconsistent data",
];

/// Where panics are made that a campaign asks for.
const ASKED_FOR: &str = "crates/lifecycle/src/lifecycle.rs";

/// Checks what a component said.
pub(super) fn of_lines(name: &str, text: &str) -> Vec<Broken> {
    let is_wrong = |line: &&str| WRONG.iter().any(|wrong| line.contains(wrong)) && !line.contains(ASKED_FOR);
    let lines = text.lines().filter(is_wrong);
    lines
        .map(|line| broken(SAID, format!("{name}: {line}")))
        .collect()
}

/// What the tasks of the load are like.
pub(super) struct Rules {
    /// Tasks of which one try starts several times, each time with a claim of its own.
    pub(super) in_parts: &'static [&'static str],
    /// Which task comes before which.
    pub(super) order: &'static [(&'static str, &'static str)],
    /// The task of a pool, and the slots of the pool.
    pub(super) pooled: (&'static str, usize),
}

fn broken(invariant: &'static str, seen: String) -> Broken {
    Broken { invariant, seen }
}

/// Checks what the tasks wrote down. `excused` says of a finished try whether it may have been run again: its machine was
/// lost before it could say that it was done.
pub(super) fn of_witness(witness: &Witness, rules: &Rules, excused: &dyn Fn(&Record) -> bool) -> Vec<Broken> {
    let mut found: Vec<Broken> = Vec::new();
    let mut instances = Instances::new();
    for (id, records) in &witness.tries {
        found.extend(of_try(id, records, rules));
        let instance = (id.run.as_str(), id.task.as_str(), id.map_index);
        instances.entry(instance).or_default().push((id, records));
    }
    for tries in instances.values() {
        found.extend(of_instance(tries, rules, excused));
    }
    found.extend(of_order(&instances, rules));
    found.extend(of_pool(witness, rules.pooled));
    found
}

/// The parts of a try, each from its start. What two of them wrote at the same time is told apart by process and claim.
fn parts(records: &[Record]) -> Vec<Vec<Record>> {
    let mut parts: Vec<Vec<Record>> = Vec::new();
    for record in records {
        if record.word == Word::Start {
            parts.push(vec![record.clone()]);
            continue;
        }
        let mine = |part: &&mut Vec<Record>| part[0].pid == record.pid && part[0].epoch == record.epoch;
        if let Some(part) = parts.iter_mut().rev().find(mine) {
            part.push(record.clone());
        }
    }
    parts
}

fn last_sign(records: &[Record]) -> u64 {
    records.iter().map(|record| record.at).max().unwrap_or(0)
}

fn of_try(id: &TryId, records: &[Record], rules: &Rules) -> Vec<Broken> {
    let parts = parts(records);
    if parts.len() < 2 {
        return Vec::new();
    }
    let epochs: BTreeSet<i64> = parts.iter().map(|part| part[0].epoch).collect();
    let said = || {
        let starts = parts.iter().map(|part| {
            let start = &part[0];
            format!("{} ms by {} with claim {}", start.at, start.worker, start.epoch)
        });
        starts.collect::<Vec<_>>().join(", ")
    };
    if !rules.in_parts.contains(&id.task.as_str()) || epochs.len() < parts.len() {
        return vec![broken(STARTED_TWICE, format!("{id}: {}", said()))];
    }
    let overlap = parts
        .windows(2)
        .any(|pair| last_sign(&pair[0]) > pair[1][0].at + STEP);
    let late = parts.windows(2).any(|pair| pair[0][0].epoch > pair[1][0].epoch);
    let mut found = Vec::new();
    if overlap {
        found.push(broken(OVERLAP, format!("{id}, in its parts: {}", said())));
    }
    if late {
        found.push(broken(LATE, format!("{id}, in its parts: {}", said())));
    }
    found
}

fn of_instance(
    tries: &[(&TryId, &[Record])],
    rules: &Rules,
    excused: &dyn Fn(&Record) -> bool,
) -> Vec<Broken> {
    let mut found = Vec::new();
    for (place, (id, records)) in tries.iter().enumerate() {
        let first_start = |records: &[Record]| records.iter().find(|r| r.word == Word::Start).map(|r| r.at);
        let later: Vec<&(&TryId, &[Record])> = tries
            .iter()
            .skip(place + 1)
            .filter(|(_, records)| !records.is_empty())
            .collect();
        let Some((next, next_start)) = later
            .iter()
            .filter_map(|(id, records)| first_start(records).map(|at| (id, at)))
            .min_by_key(|(_, at)| *at)
        else {
            continue;
        };
        let starts = records.iter().filter(|record| record.word == Word::Start);
        for start in starts.filter(|start| start.at > next_start + STEP) {
            let seen = format!(
                "{id} started at {} ms with claim {}, by {}; try {} at {next_start} ms",
                start.at, start.epoch, start.worker, next.number
            );
            found.push(broken(LATE, seen));
        }
        let sign = last_sign(records);
        if sign > next_start + STEP {
            let seen = format!(
                "{id} still lived at {sign} ms; try {} started at {next_start} ms",
                next.number
            );
            found.push(broken(OVERLAP, seen));
        }
        let ended = records.iter().rev().find(|record| record.word == Word::End);
        // The end of a part is the end of the try only where the try has no parts.
        if let Some(end) = ended
            && !rules.in_parts.contains(&id.task.as_str())
            && !excused(end)
        {
            let seen = format!(
                "{id} ended at {} ms, run by {}; try {} started at {next_start} ms",
                end.at, end.worker, next.number
            );
            found.push(broken(RUN_AGAIN, seen));
        }
    }
    found
}

type Instances<'a> = BTreeMap<(&'a str, &'a str, i64), Vec<(&'a TryId, &'a [Record])>>;

fn of_order(instances: &Instances<'_>, rules: &Rules) -> Vec<Broken> {
    let mut ends: BTreeMap<(&str, &str), Option<u64>> = BTreeMap::new();
    let mut starts: BTreeMap<(&str, &str), u64> = BTreeMap::new();
    for ((run, task, _), tries) in instances {
        let records = || tries.iter().flat_map(|(_, records)| records.iter());
        let first = records()
            .filter(|record| record.word == Word::Start)
            .map(|record| record.at)
            .min();
        // Of what ran again, the first end counts: whoever waited may have started then.
        let end = records()
            .filter(|record| record.word == Word::End)
            .map(|record| record.at)
            .min();
        if let Some(first) = first {
            let earliest = starts.entry((run, task)).or_insert(first);
            *earliest = first.min(*earliest);
        }
        // All of a mapped task must have ended.
        let latest = ends.entry((run, task)).or_insert(end);
        *latest = latest.zip(end).map(|(one, other)| one.max(other));
    }
    let mut found = Vec::new();
    for ((run, task), start) in &starts {
        for (before, _) in rules.order.iter().filter(|(_, after)| after == task) {
            match ends.get(&(*run, *before)).copied().flatten() {
                Some(end) if end <= start + STEP => {}
                Some(end) => found.push(broken(
                    ORDER,
                    format!("{run}: {task} started at {start} ms, {before} ended at {end} ms"),
                )),
                None => found.push(broken(
                    ORDER,
                    format!("{run}: {task} started at {start} ms, {before} has not ended"),
                )),
            }
        }
    }
    found
}

fn of_pool(witness: &Witness, (task, slots): (&str, usize)) -> Vec<Broken> {
    let mut changes: Vec<(u64, i64, &TryId)> = Vec::new();
    for (id, records) in witness.tries.iter().filter(|(id, _)| id.task == task) {
        for part in parts(records) {
            let end = last_sign(&part);
            // What is shorter than a step of the clock cannot be told from what does not overlap.
            if end > part[0].at + STEP {
                changes.push((part[0].at + STEP, 1, id));
                changes.push((end, -1, id));
            }
        }
    }
    changes.sort();
    let mut taken = 0;
    for (at, change, id) in changes {
        taken += change;
        if taken > slots as i64 {
            return vec![broken(
                LIMIT,
                format!("{taken} of {slots} slots are taken at {at} ms, by {id} last"),
            )];
        }
    }
    Vec::new()
}

/// What the database says in the end.
#[derive(Debug, Clone, Default)]
pub(super) struct Ending {
    /// State of each run of the load.
    pub(super) runs: BTreeMap<String, String>,
    /// Of each task instance of the load: run, task, map index, state, try.
    pub(super) tasks: Vec<(String, String, i64, String, u32)>,
    /// Runs whose trigger was acknowledged.
    pub(super) acknowledged: BTreeSet<String>,
    /// What is left over: the name of a count that should be zero, and the count.
    pub(super) counts: Vec<(String, u64)>,
    /// Runs of which an XCom is absent or wrong.
    pub(super) without_xcom: Vec<String>,
    /// Logical dates of the DAG with a schedule, in seconds; and its interval.
    pub(super) dates: (Vec<i64>, i64),
    /// Tasks that leave no witness.
    pub(super) silent: Vec<&'static str>,
}

/// Checks what the database says in the end.
pub(super) fn of_ending(ending: &Ending, witness: &Witness) -> Vec<Broken> {
    let mut found = Vec::new();
    for run in ending
        .acknowledged
        .iter()
        .filter(|run| !ending.runs.contains_key(*run))
    {
        found.push(broken(LOST, format!("{run} was acknowledged, and is not there")));
    }
    for (run, state) in &ending.runs {
        match state.as_str() {
            "success" => {}
            "failed" => found.push(broken(FAILED, format!("run {run} has failed"))),
            state => found.push(broken(UNFINISHED, format!("run {run} is {state}"))),
        }
    }
    for task in &ending.tasks {
        found.extend(of_task(task, witness, &ending.silent));
    }
    for (name, count) in ending.counts.iter().filter(|(_, count)| *count > 0) {
        found.push(broken(LEFT_OVER, format!("{count} {name}")));
    }
    for run in &ending.without_xcom {
        found.push(broken(XCOMS, format!("run {run}")));
    }
    found.extend(of_dates(&ending.dates));
    found
}

fn of_task(
    (run, task, map_index, state, number): &(String, String, i64, String, u32),
    witness: &Witness,
    silent: &[&str],
) -> Vec<Broken> {
    let id = TryId {
        run: run.clone(),
        task: task.clone(),
        map_index: *map_index,
        number: *number,
    };
    match state.as_str() {
        "success" if silent.contains(&task.as_str()) => Vec::new(),
        "success" => {
            let records = witness.tries.get(&id).map_or(&[][..], Vec::as_slice);
            // Of a try with parts, the last one counts.
            let last = parts(records).pop().unwrap_or_default();
            if last.iter().any(|record| record.word == Word::End) {
                return Vec::new();
            }
            vec![broken(NEVER_RAN, format!("{id} is a success, but has not ended"))]
        }
        "failed" | "upstream_failed" => vec![broken(FAILED, format!("{id} is {state}"))],
        state => vec![broken(UNFINISHED, format!("{id} is {state}"))],
    }
}

fn of_dates((dates, interval): &(Vec<i64>, i64)) -> Vec<Broken> {
    let mut sorted = dates.clone();
    sorted.sort_unstable();
    let wrong = sorted.windows(2).find(|pair| pair[1] - pair[0] != *interval);
    let Some(pair) = wrong else { return Vec::new() };
    let seen = format!(
        "dates {} and {} follow each other, {interval} s should be between them",
        pair[0], pair[1]
    );
    vec![broken(DATES, seen)]
}

#[cfg(test)]
#[path = "checks/tests.rs"]
mod tests;
