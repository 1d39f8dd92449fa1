//! Configuration as Airflow users know it: `$AIRFLOW_HOME/airflow.cfg`, `AIRFLOW__SECTION__KEY`, and
//! `AIRFLOW__SECTION__KEY_CMD`, with Airflow's option names and defaults. Options that only Updraft has live
//! in section `[updraft]`.
//!
//! This crate is the only place that reads the environment. What it hands out is checked and typed
//! ([`Config`]), so that a bad value is told once, at start, with the option's name.

mod bundles;
mod encryption;
mod error;
mod executors;
mod ini;
mod options;
mod raw;
mod reader;
mod secret;
mod typed;

pub use bundles::{DagBundle, LOCAL_BUNDLE};
pub use error::ConfigError;
pub use executors::{Executor, Executors};
pub use options::{OPTIONS, OptionSpec};
pub use raw::{RawConfig, Source};
pub use secret::Secret;
pub use typed::{
    Api, ApiAuth, Celery, Config, Core, DagProcessor, Database, DatabaseUrl, KubernetesExecutor, Logging,
    Scheduler, SimpleUser, Updraft,
};
