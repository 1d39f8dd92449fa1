//! `updraft`: everything in one command.

mod arguments;
mod assets;
mod backfill;
mod clear;
mod configuration;
mod dags;
mod database;
mod output;
mod partitions;
mod pools;
mod standalone;
mod tasks;
mod upgrade_check;
mod variables;
mod workers;

use arguments::{Arguments, BackfillCommand, CeleryCommand, Command, ConfigCommand};
use bootstrap::{fail, run_component};
use clap::Parser;
use config::{Config, RawConfig};
use model::TryNumber;
use std::process::ExitCode;

fn main() -> ExitCode {
    // The watchdog of a worker within this program comes first: it needs nothing else.
    let mut raw_arguments = std::env::args().skip(1);
    if raw_arguments.next().as_deref() == Some(worker::watchdog::ARGUMENT) {
        return worker::watchdog::main(&raw_arguments.next().unwrap_or_default());
    }
    let arguments = Arguments::parse();
    match arguments.command {
        Command::Version => output::line(env!("CARGO_PKG_VERSION")),
        Command::Config(ConfigCommand::List(options)) => finish(configuration::list(&options)),
        Command::Config(ConfigCommand::GetValue { section, option }) => {
            finish(configuration::get(&section, &option))
        }
        Command::Info(options) => finish(configuration::info(options.output)),
        other => match RawConfig::load() {
            Ok(raw) => with_configuration(other, raw),
            Err(error) => fail(&error.into()),
        },
    }
}

fn finish(outcome: anyhow::Result<()>) -> ExitCode {
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => fail(&error),
    }
}

/// Commands that need the configuration checked; flags override what it says.
fn with_configuration(command: Command, mut raw: RawConfig) -> ExitCode {
    let set = |raw: &mut RawConfig, section: &str, key: &str, value: Option<String>| {
        if let Some(value) = value {
            raw.override_value(section, key, &value);
        }
    };
    match &command {
        Command::ApiServer(options) => {
            set(&mut raw, "api", "port", options.port.map(|port| port.to_string()));
            set(&mut raw, "api", "host", options.host.clone());
        }
        Command::Worker(options) | Command::Celery(CeleryCommand::Worker(options)) => {
            set(
                &mut raw,
                "celery",
                "worker_concurrency",
                options.concurrency.map(|n| n.to_string()),
            );
            set(&mut raw, "updraft", "queues", options.queues.clone());
            set(&mut raw, "updraft", "worker_name", options.hostname.clone());
        }
        Command::Triggerer(options) => {
            let capacity = options.capacity.map(|n| n.to_string());
            set(&mut raw, "triggerer", "capacity", capacity);
            set(&mut raw, "updraft", "worker_name", options.hostname.clone());
        }
        Command::Standalone(options) => {
            set(&mut raw, "api", "port", options.port.map(|port| port.to_string()));
        }
        _ => {}
    }
    let config = match Config::from_raw(&raw) {
        Ok(config) => config,
        Err(error) => return fail(&error.into()),
    };
    match command {
        Command::Standalone(_) => run_component("standalone", config, standalone::run),
        Command::Scheduler(_) => run_component("scheduler", config, scheduler::service::run),
        Command::Worker(options) | Command::Celery(CeleryCommand::Worker(options)) => {
            match options.task_instance.zip(options.try_number) {
                Some((id, try_number)) => run_component("worker", config, async |config, _, lifecycle| {
                    worker::service::run_one(config, id, TryNumber(try_number), lifecycle).await
                }),
                None => run_component("worker", config, worker::service::run),
            }
        }
        Command::Triggerer(_) => run_component("triggerer", config, worker::service::run_triggerer),
        Command::DagProcessor(_) => run_component("dag-processor", config, dag_processor::service::run),
        Command::ApiServer(_) => run_component("api-server", config, api_server::service::run),
        Command::Db(command) => block_on(database::run(command, config)),
        Command::Dags(command) => block_on(dags::run(command, config)),
        Command::Tasks(command) => block_on(tasks::run(command, config)),
        Command::Partitions(command) => block_on(partitions::run(command, config)),
        Command::Backfill(BackfillCommand::Create(options)) => block_on(backfill::create(options, config)),
        Command::Assets(command) => block_on(assets::run(command, config)),
        Command::Pools(command) => block_on(pools::run(command, config)),
        Command::Variables(command) => block_on(variables::run(command, config)),
        Command::Workers(command) => finish(workers::run(&command, &config)),
        Command::Version | Command::Config(_) | Command::Info(_) => ExitCode::SUCCESS,
    }
}

fn block_on(work: impl Future<Output = anyhow::Result<()>>) -> ExitCode {
    match tokio::runtime::Builder::new_current_thread().enable_all().build() {
        Ok(runtime) => finish(runtime.block_on(work)),
        Err(error) => fail(&error.into()),
    }
}
