//! The command line and the environment of the interpreter.

use super::ForkServerConfig;
use crate::shim::LOADER;
use serde_json::{Value, json};
use std::process::Command;

/// What starts the fork server.
pub(super) fn command(config: &ForkServerConfig) -> Command {
    let bundles: Vec<Value> = config
        .bundles
        .iter()
        .map(|bundle| json!({"name": bundle.name, "classpath": bundle.classpath, "kwargs": bundle.kwargs}))
        .collect();
    let mut command = Command::new(&config.python);
    // Nothing is written beside sources; what Python itself is not told by a variable, programs of tasks do not inherit.
    command.args(["-u", "-B", "-c", LOADER]);
    for name in &config.hidden_env {
        command.env_remove(name);
    }
    command
        .envs(config.env.iter().map(|(key, value)| (key, value)))
        .env("AIRFLOW_HOME", &config.home)
        .env("AIRFLOW__CORE__LOAD_EXAMPLES", "False")
        // Parseable, and impossible to open: tasks and parsers have no way to a database.
        .env(
            "AIRFLOW__DATABASE__SQL_ALCHEMY_CONN",
            "sqlite:////nonexistent/none.db",
        )
        .env(
            "AIRFLOW__DAG_PROCESSOR__DAG_BUNDLE_CONFIG_LIST",
            Value::from(bundles).to_string(),
        )
        .env("_AIRFLOW_PROCESS_CONTEXT", "client");
    command
}
