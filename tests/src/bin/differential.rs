//! `cargo xtask differential`: runs tasks natively and in Python and tells what is not the same.

use anyhow::Context;
use clap::Parser;
use harness::differential::{
    AllMeant, Case, Recorded, Tally, compare, generated, listed, record, recorded, write,
};
use harness::program::{end, say};
use serde_json::Value;
use std::collections::{BTreeMap, BTreeSet};
use std::process::ExitCode;
use std::time::Instant;

/// The seed of the cases that real Airflow has answered.
const RECORDED: u64 = 1;
/// How many generated cases real Airflow is asked about.
const ASKED: u64 = 80;

/// Runs tasks natively and in Python and compares what a user sees of each. A failing case is run again with `--seed` and
/// `--only`.
#[derive(Parser)]
struct Arguments {
    /// Chooses the generated cases; the time of day if it is not given
    #[arg(long)]
    seed: Option<u64>,
    /// Generated cases
    #[arg(long, default_value_t = 4000)]
    count: u64,
    /// Only this case: the number of a generated one, or the name of a listed one
    #[arg(long)]
    only: Option<String>,
    /// Pythons at the same time
    #[arg(long, default_value_t = 2)]
    jobs: usize,
    /// Asks real Airflow about the listed cases and some generated ones and writes its answers to
    /// tests/differential/recorded.json
    #[arg(long)]
    record: bool,
}

fn main() -> ExitCode {
    end(run(&Arguments::parse()))
}

fn run(arguments: &Arguments) -> anyhow::Result<bool> {
    let python = std::env::var("UPDRAFT_TEST_PYTHON").context("UPDRAFT_TEST_PYTHON is not set")?;
    if arguments.record {
        let mut cases: Vec<Case> = listed()?.into_iter().filter(is_for_airflow).collect();
        let more = (0..ASKED).map(|number| generated(RECORDED, number));
        cases.extend(more.filter(|case| case.body.get("options").is_none() && is_for_airflow(case)));
        write(&record(&python, &cases, say)?)?;
        return Ok(true);
    }
    let seed = arguments
        .seed
        .unwrap_or_else(|| chrono::Utc::now().timestamp() as u64);
    let recorded = recorded()?;
    let answers: BTreeMap<String, Value> = recorded
        .iter()
        .map(|known| (known.case.name.clone(), known.answer.clone()))
        .collect();
    let known = known_cases(recorded)?;
    let (known, generated): (Vec<Case>, Vec<Case>) = match &arguments.only {
        Some(only) => match only.parse() {
            Ok(number) if seed != RECORDED => (Vec::new(), vec![generated(seed, number)]),
            Ok(_) | Err(_) => (
                known.into_iter().filter(|case| case.name == *only).collect(),
                Vec::new(),
            ),
        },
        None => (
            known,
            (0..arguments.count)
                .map(|number| generated(seed, number))
                .collect(),
        ),
    };
    let shown = known.iter().chain(&generated);
    for case in shown.filter(|_| arguments.only.is_some()) {
        say(&format!("{}: {:#}", case.name, case.body));
    }
    let begin = Instant::now();
    let replay = format!("--seed {seed}");
    let nothing = BTreeMap::new();
    let mut tally = compare(&python, &known, &answers, &format!("--seed {RECORDED}"))?;
    let size = generated.len().div_ceil(arguments.jobs.max(1)).max(1);
    let parts = std::thread::scope(|scope| {
        let parts: Vec<_> = generated
            .chunks(size)
            .map(|part| scope.spawn(|| compare(&python, part, &nothing, &replay)))
            .collect();
        parts
            .into_iter()
            .map(|part| part.join().map_err(|_| anyhow::anyhow!("a part panicked"))?)
            .collect::<anyhow::Result<Vec<Tally>>>()
    })?;
    parts.into_iter().for_each(|part| tally.add(part));
    let mut meant = AllMeant::load()?;
    meant.take(&mut tally.differences);
    Ok(tell(&tally, &meant, arguments, seed, begin))
}

/// Returns `true` if real Airflow can be asked about a case: its runs are in their first try, all have the same id, and it
/// has no containers.
fn is_for_airflow(case: &Case) -> bool {
    case.body["try_number"].as_u64().unwrap_or(1) == 1
        && case.body["run_id"].as_str().unwrap_or("r") == "r"
        && matches!(case.kind(), "bash" | "trigger")
}

/// Cases that real Airflow has answered, and those that are listed without an answer.
fn known_cases(recorded: Vec<Recorded>) -> anyhow::Result<Vec<Case>> {
    let mut known: Vec<Case> = recorded.into_iter().map(|known| known.case).collect();
    let names: BTreeSet<String> = known.iter().map(|case| case.name.clone()).collect();
    known.extend(listed()?.into_iter().filter(|case| !names.contains(&case.name)));
    Ok(known)
}

/// Tells what came out. Returns `true` if nothing differs but what is meant to, and that does.
fn tell(tally: &Tally, meant: &AllMeant, arguments: &Arguments, seed: u64, begin: Instant) -> bool {
    for difference in tally.differences.iter().take(40) {
        say(&difference.to_string());
    }
    // One case cannot show them all.
    let unseen = if arguments.only.is_some() {
        Vec::new()
    } else {
        meant.unseen()
    };
    for name in &unseen {
        say(&format!(
            "[{name}] of meant.txt is no difference any more: take it out"
        ));
    }
    for (name, count) in meant.seen().filter(|(_, count)| *count > 0) {
        say(&format!("{count:6} differences that are meant: {name}"));
    }
    let mut reasons: Vec<_> = tally.declined.iter().collect();
    reasons.sort_by_key(|(_, count)| std::cmp::Reverse(**count));
    for (why, count) in reasons.into_iter().take(12) {
        say(&format!("{count:6} left to Python: {why}"));
    }
    let seconds = begin.elapsed().as_secs_f64();
    say(&format!(
        "seed {seed}: {} cases in {seconds:.0} s ({:.0} a minute), {} of them natively, {} refused by Airflow; {} differences",
        tally.cases,
        tally.cases as f64 * 60.0 / seconds.max(0.001),
        tally.native,
        tally.refused,
        tally.differences.len()
    ));
    tally.differences.is_empty() && unseen.is_empty()
}
