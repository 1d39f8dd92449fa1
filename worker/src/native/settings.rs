//! Options of `airflow.cfg` that an operator in Python would heed, too.

use crate::log::{Level, Rules};
use config::Config;
use sensitive::{Masker, Names};

/// What native tasks heed.
#[derive(Debug, Clone)]
pub(crate) struct Settings {
    pub(super) names: Names,
    shortest_secret: usize,
    /// Characters of a rendered field that are kept (`[core] max_templated_field_length`).
    pub(super) field_length: i64,
    /// `true` if a run's conf changes params (`[core] dag_run_conf_overrides_params`).
    pub(super) conf_overrides_params: bool,
    /// `true` if connections are looked for in a secrets backend first.
    pub(super) has_secrets_backend: bool,
    /// Records that are less severe are not written (`[logging] logging_level`).
    level: Level,
    /// An option that only Python heeds, if one is set.
    needs_python: Option<&'static str>,
}

impl Settings {
    /// The options as they are.
    pub(crate) fn of(config: &Config) -> Self {
        Self {
            names: Names::new(config.core.hide_sensitive, &config.core.sensitive_names),
            shortest_secret: config.logging.min_length_masked_secret,
            field_length: config.core.max_templated_field_length,
            conf_overrides_params: config.core.dag_run_conf_overrides_params,
            has_secrets_backend: config.core.has_secrets_backend,
            level: Level::of(&config.logging.level),
            needs_python: needs_python(config),
        }
    }

    /// What is written to the log of a try, and how.
    pub(crate) fn log_rules(&self) -> Rules {
        Rules {
            masker: Masker::new(self.names.clone(), self.shortest_secret),
            least: self.level,
        }
    }

    /// # Errors
    /// When an option is set that only Python heeds; the text names it.
    pub(super) fn allow_native(&self) -> Result<(), String> {
        match self.needs_python {
            Some(option) => Err(format!("{option} is set")),
            None => Ok(()),
        }
    }
}

#[cfg(test)]
impl Default for Settings {
    /// The options with nothing set.
    fn default() -> Self {
        let env = std::collections::BTreeMap::from([("AIRFLOW_HOME".to_owned(), "/nonexistent".to_owned())]);
        let raw = config::RawConfig::load_from(env).expect("defaults");
        Self::of(&Config::from_raw(&raw).expect("defaults"))
    }
}

fn needs_python(config: &Config) -> Option<&'static str> {
    let (core, logging) = (&config.core, &config.logging);
    // Python libraries have much to say at this level.
    let is_talkative = Level::of(&logging.level) < Level::Info;
    [
        (is_talkative, "[logging] logging_level"),
        (!logging.namespace_levels.is_empty(), "[logging] namespace_levels"),
        (
            !logging.logging_config_class.is_empty(),
            "[logging] logging_config_class",
        ),
        (
            !logging.secret_mask_adapter.is_empty(),
            "[logging] secret_mask_adapter",
        ),
        (
            !core.default_impersonation.is_empty(),
            "[core] default_impersonation",
        ),
        (core.unit_test_mode, "[core] unit_test_mode"),
    ]
    .into_iter()
    .find_map(|(is_set, option)| is_set.then_some(option))
    // A service would hear of some tasks and not of others.
    .or_else(|| core.task_reports.first().copied())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeMap;

    fn with(name: &str, value: &str) -> Settings {
        let env = BTreeMap::from([
            ("AIRFLOW_HOME".to_owned(), "/nonexistent".to_owned()),
            (format!("AIRFLOW__{name}"), value.to_owned()),
        ]);
        let raw = config::RawConfig::load_from(env).unwrap();
        Settings::of(&Config::from_raw(&raw).unwrap())
    }

    #[test]
    fn options_that_only_python_heeds_leave_all_tasks_to_python() {
        for (name, value) in [
            ("LOGGING__LOGGING_LEVEL", "DEBUG"),
            ("LOGGING__NAMESPACE_LEVELS", "airflow=WARNING"),
            ("CORE__DEFAULT_IMPERSONATION", "nobody"),
            ("SENTRY__SENTRY_ON", "True"),
            ("METRICS__STATSD_ON", "true"),
            ("METRICS__OTEL_ON", "1"),
            ("METRICS__STATSD_DATADOG_ENABLED", "t"),
        ] {
            let settings = with(name, value);
            assert!(settings.allow_native().is_err(), "{name}");
        }
        for (name, value) in [("METRICS__STATSD_ON", "False"), ("METRICS__STATSD_HOST", "h")] {
            assert_eq!(with(name, value).allow_native(), Ok(()), "{name}");
        }
    }
}
