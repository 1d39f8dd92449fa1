//! `cargo xtask timetables`: our timetables against Airflow's own, over as many instants as wanted.

use anyhow::Context;
use clap::Parser;
use harness::timetables::{Portion, Tally, compare};
use std::io::Write;
use std::process::ExitCode;
use std::time::Instant;

/// Compares timetables with Airflow's own.
#[derive(Parser)]
struct Arguments {
    /// Pairs of a timetable (with its zone) and an instant
    #[arg(long, default_value_t = 1_000_000)]
    count: u64,
    /// Chooses the instants
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// Processes that ask
    #[arg(long, default_value_t = 2)]
    parts: u64,
}

fn main() -> anyhow::Result<ExitCode> {
    let arguments = Arguments::parse();
    let python = std::env::var("UPDRAFT_TEST_PYTHON").context("UPDRAFT_TEST_PYTHON is not set")?;
    let begin = Instant::now();
    let tally = std::thread::scope(|scope| -> anyhow::Result<Tally> {
        let ask = |part| {
            let portion = Portion {
                seed: arguments.seed,
                count: arguments.count / arguments.parts,
                part,
                parts: arguments.parts,
            };
            let python = &python;
            scope.spawn(move || compare(python, portion))
        };
        let asking: Vec<_> = (0..arguments.parts).map(ask).collect();
        let mut all = Tally::default();
        for one in asking {
            let tally = one.join().map_err(|_| anyhow::anyhow!("a comparison broke"))??;
            all.add(tally);
        }
        Ok(all)
    })?;
    let mut out = std::io::stdout();
    for difference in &tally.differences {
        writeln!(out, "{difference}")?;
    }
    writeln!(
        out,
        "{} timetables in their zones, {} instants, {} questions ({} raised in Airflow), {} different answers, {:.0} s",
        tally.timetables,
        tally.instants,
        tally.questions,
        tally.raised,
        tally.different,
        begin.elapsed().as_secs_f64()
    )?;
    Ok(if tally.different == 0 {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    })
}
