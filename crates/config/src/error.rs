//! What can be wrong with the configuration.

use std::path::PathBuf;
use thiserror::Error;

/// A configuration that cannot be used. Each message names the option, the value, and what would be allowed.
#[derive(Debug, Error)]
pub enum ConfigError {
    /// An option has a value that it cannot have.
    #[error("[{section}] {key} is {value:?} ({origin}); allowed: {allowed}")]
    BadValue {
        /// Section of the option.
        section: String,
        /// Name of the option.
        key: String,
        /// What was found; `***` for secrets.
        value: String,
        /// Where it was found.
        origin: String,
        /// What would do.
        allowed: String,
    },
    /// The file cannot be read.
    #[error("cannot read {path}: {source}")]
    Unreadable {
        /// The file.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// The file is not in ini form.
    #[error("{path}, line {line}: {problem}")]
    Syntax {
        /// The file.
        path: PathBuf,
        /// Line, counted from 1.
        line: usize,
        /// What is wrong.
        problem: String,
    },
    /// The command behind a `_CMD` option failed.
    #[error("the command of [{section}] {key}_cmd failed: {problem}")]
    Command {
        /// Section of the option.
        section: String,
        /// Name of the option.
        key: String,
        /// Why.
        problem: String,
    },
    /// An option is to come from a secrets backend.
    #[error(
        "{origin} is not read: Updraft takes no options from a secrets backend; let {key}_cmd print the value of [{section}] {key}"
    )]
    FromBackend {
        /// Section of the option.
        section: String,
        /// Name of the option.
        key: String,
        /// Where that was said.
        origin: String,
    },
    /// Neither `AIRFLOW_HOME` nor `HOME` is set.
    #[error(
        "neither AIRFLOW_HOME nor HOME is set; set AIRFLOW_HOME to the folder for airflow.cfg, logs and the database"
    )]
    NoHome,
}
