//! Everything that a change must pass.

use crate::say::say;
use crate::{arrows, services};
use anyhow::{Context, ensure};
use std::path::PathBuf;
use std::process::Command;
use std::time::Instant;

fn cargo() -> Command {
    Command::new(std::env::var("CARGO").unwrap_or_else(|_| "cargo".to_owned()))
}

fn step(name: &str, command: &mut Command) -> anyhow::Result<()> {
    say(&format!("== {name}"));
    let begin = Instant::now();
    let status = command
        .status()
        .with_context(|| format!("{name} cannot be started"))?;
    ensure!(status.success(), "{name} failed");
    say(&format!("== {name}: {} s", begin.elapsed().as_secs()));
    Ok(())
}

/// The environment for DAGs in tests: the one that `updraft standalone` makes.
fn python() -> anyhow::Result<PathBuf> {
    if let Ok(python) = std::env::var("UPDRAFT_TEST_PYTHON") {
        return Ok(PathBuf::from(python));
    }
    let home = services::build_folder()?.join("python");
    std::fs::create_dir_all(&home)?;
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?;
    Ok(runtime.block_on(python::environment::ensure(&home, &say))?)
}

/// Licences, bans and sources of the dependencies, where cargo-deny is installed: building it takes longer than our own build.
fn dependencies() -> anyhow::Result<()> {
    let found = cargo().args(["deny", "--version"]).output();
    if !found.is_ok_and(|output| output.status.success()) {
        say("== dependencies: not checked; `cargo install --locked cargo-deny` adds this");
        return Ok(());
    }
    step(
        "dependencies",
        cargo().args([
            "deny",
            "--log-level",
            "error",
            "check",
            "bans",
            "licenses",
            "sources",
        ]),
    )
}

pub(crate) fn run(quick: bool, rest: &[String]) -> anyhow::Result<()> {
    if !quick {
        step("formatting", cargo().args(["fmt", "--all", "--check"]))?;
        say("== arrows");
        arrows::check()?;
        step(
            "lints",
            cargo().args([
                "clippy",
                "--workspace",
                "--all-targets",
                "--quiet",
                "--",
                "-D",
                "warnings",
            ]),
        )?;
    }
    if !quick {
        dependencies()?;
    }
    let python = python()?;
    let services = services::start()?;
    step("build", cargo().args(["build", "--workspace", "--quiet"]))?;
    let tested = step(
        "tests",
        cargo()
            .args(["test", "--workspace"])
            .args(rest)
            .envs(services.environment())
            .env("UPDRAFT_TEST_PYTHON", python)
            .env("UPDRAFT_TEST_REQUIRED", "1"),
    );
    services::stop()?;
    tested
}

/// Runs one of the programs that compare with real Airflow; with the services where it asks for a cluster.
pub(crate) fn against_airflow(program: &'static str, rest: &[String]) -> anyhow::Result<()> {
    let python = python()?;
    let services = if rest.iter().any(|argument| argument == "--cluster") {
        Some(services::start()?)
    } else {
        None
    };
    step("build", cargo().args(["build", "--workspace", "--quiet"]))?;
    let compared = step(
        program,
        cargo()
            .args(["run", "--quiet", "-p", "updraft-tests", "--bin", program, "--"])
            .args(rest)
            .envs(
                services
                    .iter()
                    .flat_map(services::Services::environment)
                    .collect::<Vec<_>>(),
            )
            .env("UPDRAFT_TEST_PYTHON", python),
    );
    if services.is_some() {
        services::stop()?;
    }
    compared
}

/// Runs a program that measures, built as for users; with the services where it asks for MariaDB.
pub(crate) fn measure(program: &'static str, rest: &[String]) -> anyhow::Result<()> {
    let services = if rest.iter().any(|argument| argument == "--mariadb") {
        Some(services::start()?)
    } else {
        None
    };
    step(
        "build",
        cargo().args(["build", "--workspace", "--release", "--quiet"]),
    )?;
    let measured = step(
        program,
        cargo()
            .args([
                "run",
                "--release",
                "--quiet",
                "-p",
                "updraft-tests",
                "--bin",
                program,
                "--",
            ])
            .args(rest)
            .envs(
                services
                    .iter()
                    .flat_map(services::Services::environment)
                    .collect::<Vec<_>>(),
            ),
    );
    if services.is_some() {
        services::stop()?;
    }
    measured
}

/// Runs a campaign of faults, on MariaDB and RabbitMQ of its own.
pub(crate) fn chaos(rest: &[String]) -> anyhow::Result<()> {
    step("build", cargo().args(["build", "--workspace", "--quiet"]))?;
    let mut campaign = cargo();
    campaign
        .args(["run", "--quiet", "-p", "updraft-tests", "--bin", "chaos", "--"])
        .args(rest);
    if rest
        .iter()
        .any(|argument| matches!(argument.as_str(), "--list" | "--help" | "-h"))
    {
        return step("chaos", &mut campaign);
    }
    let python = python()?;
    let services = services::start_for_chaos()?;
    let done = step(
        "chaos",
        campaign
            .envs(services.environment())
            .env("UPDRAFT_TEST_PYTHON", python),
    );
    services.kill();
    done
}
