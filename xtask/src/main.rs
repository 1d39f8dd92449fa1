//! `cargo xtask`: what developing this project needs.

mod arrows;
mod engine;
mod say;
mod services;
mod test;

use clap::{Parser, Subcommand};
use say::say;
use std::process::ExitCode;

/// The project's chores.
#[derive(Parser)]
struct Arguments {
    #[command(subcommand)]
    chore: Chore,
}

#[derive(Subcommand)]
enum Chore {
    /// Installs what tests need, and runs them all; arguments go to `cargo test`
    Test {
        /// Only the tests themselves, no formatting, lints or arrows
        #[arg(long)]
        quick: bool,
        /// For `cargo test`
        #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
        rest: Vec<String>,
    },
    /// Starts private instances of MariaDB and RabbitMQ and leaves them running; prints how to reach them
    Services {
        /// Stops them instead
        #[arg(long)]
        stop: bool,
    },
    /// Faults drawn from a seed against a cluster under load, on services of its own; checks all that is promised
    Chaos {
        /// Options; see `-- --help`
        #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
        rest: Vec<String>,
    },
    /// Checks which crate may use which
    Arrows,
    /// Runs DAG files on real Airflow and on Updraft and compares them: all examples of Airflow if none is named
    Conformance {
        /// Files and options; see `-- --help`
        #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
        rest: Vec<String>,
    },
    /// Compares timetables with Airflow's own classes, over a million instants if nothing else is said
    Timetables {
        /// Options; see `-- --help`
        #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
        rest: Vec<String>,
    },
    /// Measures: `lists` asks for the lists of a store of a million task instances with 200 clients
    Bench {
        /// What to measure
        what: Bench,
        /// Options; see `-- --help`
        #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
        rest: Vec<String>,
    },
    /// Runs native tasks and the same tasks in Python and compares what a user sees: thousands of generated cases
    Differential {
        /// Options; see `-- --help`
        #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
        rest: Vec<String>,
    },
}

/// What can be measured.
#[derive(Clone, Copy, clap::ValueEnum)]
enum Bench {
    Lists,
}

fn main() -> ExitCode {
    let outcome = match Arguments::parse().chore {
        Chore::Test { quick, rest } => test::run(quick, &rest),
        Chore::Services { stop: true } => services::stop(),
        Chore::Services { stop: false } => services::start().map(|services| {
            for (key, value) in services.environment() {
                say(&format!("export {key}={value}"));
            }
        }),
        Chore::Chaos { rest } => test::chaos(&rest),
        Chore::Arrows => arrows::check(),
        Chore::Conformance { rest } => test::against_airflow("conformance", &rest),
        Chore::Differential { rest } => test::against_airflow("differential", &rest),
        Chore::Bench {
            what: Bench::Lists,
            rest,
        } => test::measure("lists", &rest),
        Chore::Timetables { rest } => test::against_airflow("timetables", &rest),
    };
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            say(&format!("error: {error:#}"));
            ExitCode::FAILURE
        }
    }
}
