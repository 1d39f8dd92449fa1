//! `cargo xtask differential`: runs tasks natively and in Python and tells what is not the same.

use anyhow::Context;
use clap::Parser;
use harness::differential::{Case, Tally, compare, generated, listed, record, recorded, write};
use std::io::Write;
use std::process::ExitCode;
use std::time::Instant;

/// The seed of the cases that real Airflow has answered.
const RECORDED: u64 = 1;
/// How many generated cases real Airflow is asked about.
const ASKED: u64 = 60;

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
    match run(&Arguments::parse()) {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            say(&format!("error: {error:#}"));
            ExitCode::from(2)
        }
    }
}

fn say(text: &str) {
    // A closed standard output is no reason to fail.
    writeln!(std::io::stdout(), "{text}").ok();
}

fn run(arguments: &Arguments) -> anyhow::Result<bool> {
    let python = std::env::var("UPDRAFT_TEST_PYTHON").context("UPDRAFT_TEST_PYTHON is not set")?;
    let mut known = listed()?;
    known.extend((0..ASKED).map(|number| generated(RECORDED, number)));
    if arguments.record {
        write(&record(&python, &known, say)?)?;
        return Ok(true);
    }
    let seed = arguments
        .seed
        .unwrap_or_else(|| chrono::Utc::now().timestamp() as u64);
    let (known, generated): (Vec<Case>, Vec<Case>) = match &arguments.only {
        Some(only) => match only.parse() {
            Ok(number) => (Vec::new(), vec![generated(seed, number)]),
            Err(_) => (
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
    for case in known
        .iter()
        .chain(&generated)
        .filter(|_| arguments.only.is_some())
    {
        say(&format!("{}: {:#}", case.name, case.body));
    }
    let begin = Instant::now();
    let replay = format!("--seed {seed}");
    let nothing = std::collections::BTreeMap::new();
    let mut tally = compare(&python, &known, &recorded()?, &format!("--seed {RECORDED}"))?;
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
    Ok(tell(&tally, seed, begin))
}

/// Tells what came out. Returns `true` if nothing differs.
fn tell(tally: &Tally, seed: u64, begin: Instant) -> bool {
    for difference in tally.differences.iter().take(40) {
        say(difference);
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
    tally.differences.is_empty()
}
