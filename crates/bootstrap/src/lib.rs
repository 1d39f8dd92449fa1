//! What every component does at its start and at its end: adapters from configuration, signals, health.

mod adapters;
mod examples;
mod health;

pub use adapters::{
    DEFAULT_POOL, EXAMPLES_BUNDLE, fork_server, is_secret_variable, join_token, open_broker,
    open_broker_for_command, open_cipher, open_store, shared_secret, tokens,
};
pub use health::{Health, HealthPage};

use lifecycle::Lifecycle;
use std::time::Duration;

/// Exit code for arguments that are not understood, as of `updraft` and Airflow's command line.
const USAGE_ERROR: u8 = 2;

/// The machine's name.
pub fn hostname() -> String {
    nix::unistd::gethostname().map_or_else(
        |_| "localhost".to_owned(),
        |name| name.to_string_lossy().into_owned(),
    )
}

/// The user that this process runs as.
pub fn username() -> String {
    let user = nix::unistd::User::from_uid(nix::unistd::getuid());
    user.ok()
        .flatten()
        .map_or_else(|| nix::unistd::getuid().to_string(), |user| user.name)
}

/// The frame of a component's `main`: configuration, telemetry, runtime; telemetry is flushed however it ends. Arguments
/// are not for components on their own (`updraft COMPONENT` has them), except `--help` and `--version`; others are errors.
pub fn component_main<F>(component: &'static str, run: F) -> std::process::ExitCode
where
    F: AsyncFnOnce(config::Config, &telemetry::Telemetry, Lifecycle) -> anyhow::Result<()>,
{
    use std::io::Write;
    let usage = format!(
        "Usage: updraft-{component} [--help | --version]\n\nConfigured by $AIRFLOW_HOME/airflow.cfg and AIRFLOW__SECTION__KEY, like Airflow.\n\
         `updraft {component} --help` lists options, `updraft config list --defaults` the configuration."
    );
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    // A closed standard output is no reason to fail.
    match arguments
        .iter()
        .map(String::as_str)
        .collect::<Vec<_>>()
        .as_slice()
    {
        [] => {}
        ["--version" | "-V"] => {
            writeln!(
                std::io::stdout(),
                "updraft-{component} {}",
                env!("CARGO_PKG_VERSION")
            )
            .ok();
            return std::process::ExitCode::SUCCESS;
        }
        ["--help" | "-h"] => {
            writeln!(std::io::stdout(), "{usage}").ok();
            return std::process::ExitCode::SUCCESS;
        }
        [unknown, ..] => {
            writeln!(
                std::io::stderr(),
                "error: unexpected argument '{unknown}'\n\n{usage}"
            )
            .ok();
            return std::process::ExitCode::from(USAGE_ERROR);
        }
    }
    match config::Config::load() {
        Ok(config) => run_component(component, config, run),
        Err(error) => fail(&anyhow::Error::from(error)),
    }
}

/// Runs a component with this configuration to its end.
pub fn run_component<F>(component: &'static str, config: config::Config, run: F) -> std::process::ExitCode
where
    F: AsyncFnOnce(config::Config, &telemetry::Telemetry, Lifecycle) -> anyhow::Result<()>,
{
    // As Airflow's supervisor: what runs as the same user, tasks above all, must not read this process's environment and
    // memory. Against root nothing helps.
    if let Err(error) = nix::sys::prctl::set_dumpable(false) {
        return fail(&anyhow::Error::from(error).context("this process cannot be hidden from its tasks"));
    }
    let runtime = match tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .thread_name(component)
        .build()
    {
        Ok(runtime) => runtime,
        Err(error) => return fail(&anyhow::Error::from(error)),
    };
    let outcome = runtime.block_on(async {
        let otlp = config.updraft.otlp_endpoint.clone();
        let telemetry = telemetry::Telemetry::start(component, &config.logging.level, otlp.as_deref())?;
        let outcome = run_obeying_signals(config, &telemetry, run).await;
        tokio::task::spawn_blocking(move || telemetry.shutdown())
            .await
            .ok();
        outcome
    });
    runtime.shutdown_timeout(Duration::from_secs(5));
    match outcome {
        Ok(()) => std::process::ExitCode::SUCCESS,
        Err(error) => fail(&error),
    }
}

/// Runs a component; a signal before it is ready ends it as it stands, since nothing runs yet that would have to end first.
async fn run_obeying_signals<F>(
    config: config::Config,
    telemetry: &telemetry::Telemetry,
    run: F,
) -> anyhow::Result<()>
where
    F: AsyncFnOnce(config::Config, &telemetry::Telemetry, Lifecycle) -> anyhow::Result<()>,
{
    let lifecycle = Lifecycle::with_signals()?;
    tokio::select! {
        outcome = run(config, telemetry, lifecycle.clone()) => outcome,
        () = lifecycle.stopped_while_starting() => lifecycle.run_to_end(Duration::ZERO).await,
    }
}

/// Tells why the process ends.
pub fn fail(error: &anyhow::Error) -> std::process::ExitCode {
    use std::io::Write;
    writeln!(std::io::stderr(), "error: {error:#}").ok();
    std::process::ExitCode::FAILURE
}
