//! What every component does at its start and at its end: adapters from configuration, signals, health.

mod adapters;
mod examples;
mod health;
mod lifecycle;

pub use adapters::{
    EXAMPLES_BUNDLE, fork_server, is_secret_variable, open_broker, open_cipher, open_store, shared_secret,
    tokens,
};
pub use health::{Health, serve_health};
pub use lifecycle::{Lifecycle, Stop};

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
/// are not for components on their own (`updraft COMPONENT` has them), except `--help` and `--version`.
pub fn component_main<F>(component: &'static str, run: F) -> std::process::ExitCode
where
    F: AsyncFnOnce(config::Config, &telemetry::Telemetry) -> anyhow::Result<()>,
{
    use std::io::Write;
    let mut out = std::io::stdout();
    // A closed standard output is no reason to fail.
    match std::env::args().nth(1).as_deref() {
        None => {}
        Some("--version" | "-V") => {
            writeln!(out, "updraft-{component} {}", env!("CARGO_PKG_VERSION")).ok();
            return std::process::ExitCode::SUCCESS;
        }
        Some(_) => {
            writeln!(
                out,
                "Usage: updraft-{component}\n\nConfigured by $AIRFLOW_HOME/airflow.cfg and AIRFLOW__SECTION__KEY, like Airflow.\n\
                 `updraft {component} --help` lists options, `updraft config list --defaults` the configuration."
            )
            .ok();
            return std::process::ExitCode::SUCCESS;
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
    F: AsyncFnOnce(config::Config, &telemetry::Telemetry) -> anyhow::Result<()>,
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
        let outcome = run(config, &telemetry).await;
        tokio::task::spawn_blocking(move || telemetry.shutdown())
            .await
            .ok();
        outcome
    });
    runtime.shutdown_timeout(std::time::Duration::from_secs(5));
    match outcome {
        Ok(()) => std::process::ExitCode::SUCCESS,
        Err(error) => fail(&error),
    }
}

/// Tells why the process ends.
pub fn fail(error: &anyhow::Error) -> std::process::ExitCode {
    use std::io::Write;
    writeln!(std::io::stderr(), "error: {error:#}").ok();
    std::process::ExitCode::FAILURE
}
