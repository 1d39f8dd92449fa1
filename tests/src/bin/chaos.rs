//! `cargo xtask chaos`: a campaign of faults against a cluster under load, drawn from a seed.

use anyhow::Context;
use clap::Parser;
use harness::chaos::{Amount, KINDS, Kind, Plan, draw, find, run};
use harness::program::{end, say};
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

/// Faults against a cluster under load, and checks of all that is promised.
#[derive(Parser)]
struct Arguments {
    /// Draws the faults; one that is not named is made of the time
    #[arg(long)]
    seed: Option<u64>,
    /// For how long faults are begun
    #[arg(long, default_value_t = 10)]
    minutes: u64,
    /// Only these kinds of faults, divided by commas
    #[arg(long, value_delimiter = ',')]
    only: Vec<String>,
    /// None of these kinds, divided by commas
    #[arg(long, value_delimiter = ',')]
    without: Vec<String>,
    /// Runs that are in flight all the time
    #[arg(long, default_value_t = 200)]
    runs: u64,
    /// Seconds that a run takes; by default one for each run in flight, so that one begins each second
    #[arg(long)]
    pace: Option<u64>,
    /// Seconds of a worker's lease
    #[arg(long, default_value_t = 30)]
    lease: u64,
    /// Recoveries that take too long do not count as failures
    #[arg(long)]
    patient: bool,
    /// Leaves all files where they are
    #[arg(long)]
    keep: bool,
    /// Writes what was found to this file, as JSON
    #[arg(long)]
    report: Option<PathBuf>,
    /// Tells which kinds there are and which faults the seed draws, and does nothing
    #[arg(long)]
    list: bool,
}

fn main() -> ExitCode {
    end(work(&Arguments::parse()))
}

fn kinds(arguments: &Arguments) -> anyhow::Result<Vec<&'static Kind>> {
    let known = |name: &String| find(name).with_context(|| format!("there is no kind {name}; see --list"));
    let without: Vec<&Kind> = arguments.without.iter().map(known).collect::<Result<_, _>>()?;
    let only: Vec<&'static Kind> = arguments.only.iter().map(known).collect::<Result<_, _>>()?;
    let all = if only.is_empty() {
        KINDS.iter().collect()
    } else {
        only
    };
    Ok(all.into_iter().filter(|kind| !without.contains(kind)).collect())
}

fn plan(arguments: &Arguments) -> anyhow::Result<Plan> {
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH)?;
    let seed = arguments.seed.unwrap_or(now.as_secs());
    let pace = arguments.pace.unwrap_or(arguments.runs).max(8);
    let mut replay = format!(
        "cargo xtask chaos --seed {seed} --minutes {} --runs {} --pace {pace} --lease {}",
        arguments.minutes, arguments.runs, arguments.lease
    );
    for (option, names) in [("only", &arguments.only), ("without", &arguments.without)] {
        if !names.is_empty() {
            replay.push_str(&format!(" --{option} {}", names.join(",")));
        }
    }
    Ok(Plan {
        seed,
        length: Duration::from_secs(arguments.minutes * 60),
        amount: Amount {
            runs: arguments.runs,
            pace,
        },
        lease: Duration::from_secs(arguments.lease),
        kinds: kinds(arguments)?,
        replay,
        keep: arguments.keep,
    })
}

/// Returns `true` if nothing broke and, unless that does not count, nothing took too long.
fn work(arguments: &Arguments) -> anyhow::Result<bool> {
    let plan = plan(arguments)?;
    if arguments.list {
        for kind in &KINDS {
            say(&format!("{:<20} {}", kind.name, kind.targets.join(", ")));
        }
        say(&format!("seed {} draws:", plan.seed));
        for fault in draw(plan.seed, plan.length, plan.lease, &plan.kinds) {
            say(&fault.to_string());
        }
        return Ok(true);
    }
    let report = run(&plan, &say)?;
    say(&report.table());
    if let Some(path) = &arguments.report {
        std::fs::write(path, format!("{:#}\n", report.json()))
            .with_context(|| format!("cannot write {}", path.display()))?;
    }
    let (broken, late) = (report.all_broken().count(), report.late());
    let holds = broken == 0 && (late == 0 || arguments.patient);
    if !holds {
        say(&format!(
            "seed {}: {broken} times an invariant broke, {late} recoveries took too long; the same again: {}",
            plan.seed, plan.replay
        ));
    }
    Ok(holds)
}
