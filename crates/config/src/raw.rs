//! Option values as text, with where each came from.

use crate::error::ConfigError;
use crate::options::{OPTIONS, find};
use crate::{ini, options::OptionSpec};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

/// Where a value came from, as `airflow config list --include-sources` tells it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Source {
    /// Built in.
    Default,
    /// `airflow.cfg`.
    File,
    /// An environment variable.
    Environment,
    /// The output of a `_CMD`.
    Command,
}

impl Source {
    /// The word that Airflow prints.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Default => "default",
            Self::File => "airflow.cfg",
            Self::Environment => "env var",
            Self::Command => "cmd",
        }
    }
}

/// All options with their values as text.
#[derive(Debug, Clone)]
pub struct RawConfig {
    home: PathBuf,
    values: BTreeMap<(String, String), (String, Source)>,
}

impl RawConfig {
    /// Reads `$AIRFLOW_HOME/airflow.cfg` (or `$AIRFLOW_CONFIG`) and the process's environment.
    ///
    /// # Errors
    /// When there is no home, the file cannot be read or parsed, or a `_CMD` fails.
    pub fn load() -> Result<Self, ConfigError> {
        Self::load_from(std::env::vars().collect())
    }

    /// The same from a given environment.
    ///
    /// # Errors
    /// As [`RawConfig::load`].
    pub fn load_from(env: BTreeMap<String, String>) -> Result<Self, ConfigError> {
        let home = match (env.get("AIRFLOW_HOME"), env.get("HOME")) {
            (Some(home), _) if !home.is_empty() => expand_user(home, env.get("HOME")),
            (_, Some(home)) => Path::new(home).join("airflow"),
            (_, None) => return Err(ConfigError::NoHome),
        };
        let home =
            std::path::absolute(&home).map_err(|source| ConfigError::Unreadable { path: home, source })?;
        let mut config = Self {
            home,
            values: BTreeMap::new(),
        };
        for spec in OPTIONS {
            let value = spec
                .default
                .replace("{AIRFLOW_HOME}", &config.home.to_string_lossy());
            config.set(spec.section, spec.key, value, Source::Default);
        }
        config.read_file(&env)?;
        config.read_environment(&env)?;
        Ok(config)
    }

    fn set(&mut self, section: &str, key: &str, value: String, source: Source) {
        self.values
            .insert((section.to_owned(), key.to_owned()), (value, source));
    }

    fn read_file(&mut self, env: &BTreeMap<String, String>) -> Result<(), ConfigError> {
        let path = env
            .get("AIRFLOW_CONFIG")
            .map_or_else(|| self.home.join("airflow.cfg"), PathBuf::from);
        let text = match std::fs::read_to_string(&path) {
            Ok(text) => text,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(()),
            Err(source) => return Err(ConfigError::Unreadable { path, source }),
        };
        for entry in ini::parse(&text, &path)? {
            let origin = format!("[{}] {} in {}", entry.section, entry.key, path.display());
            refuse_backend(&entry.section, &entry.key, &entry.value, origin)?;
            let value = entry
                .value
                .replace("{AIRFLOW_HOME}", &self.home.to_string_lossy());
            match entry
                .key
                .strip_suffix("_cmd")
                .filter(|key| find(&entry.section, key).is_some_and(|o| o.sensitive))
            {
                Some(key) => {
                    let output = run_command(&entry.section, key, &value)?;
                    self.set(&entry.section, key, output, Source::Command);
                }
                None => self.set(&entry.section, &entry.key, value, Source::File),
            }
        }
        Ok(())
    }

    fn read_environment(&mut self, env: &BTreeMap<String, String>) -> Result<(), ConfigError> {
        let mut plain = Vec::new();
        for (name, value) in env {
            let Some((section, key)) = name
                .strip_prefix("AIRFLOW__")
                .and_then(|rest| rest.split_once("__"))
            else {
                continue;
            };
            let (section, key) = (section.to_ascii_lowercase(), key.to_ascii_lowercase());
            refuse_backend(&section, &key, value, name.clone())?;
            match key.strip_suffix("_cmd") {
                Some(base) if find(&section, base).is_some() => {
                    let output = run_command(&section, base, value)?;
                    self.set(&section, base, output, Source::Command);
                }
                _ => plain.push((section, key, value.clone())),
            }
        }
        // A plain variable wins over a command, as in Airflow.
        for (section, key, value) in plain {
            self.set(&section, &key, value, Source::Environment);
        }
        Ok(())
    }

    /// `$AIRFLOW_HOME`, absolute.
    pub fn home(&self) -> &Path {
        &self.home
    }

    /// The option's value and where it came from; options that Updraft does not use are kept, too.
    pub fn get(&self, section: &str, key: &str) -> Option<(&str, Source)> {
        self.values
            .get(&(section.to_owned(), key.to_owned()))
            .map(|(value, source)| (value.as_str(), *source))
    }

    /// Sets an option from within, as a command line flag does.
    pub fn override_value(&mut self, section: &str, key: &str, value: &str) {
        self.set(section, key, value.to_owned(), Source::Environment);
    }

    /// All options: section, name, value, source, and the specification where Updraft knows the option.
    pub fn all(&self) -> impl Iterator<Item = (&str, &str, &str, Source, Option<&'static OptionSpec>)> {
        self.values.iter().map(|((section, key), (value, source))| {
            (&**section, &**key, &**value, *source, find(section, key))
        })
    }

    /// An error about the present value of an option.
    pub fn bad_value(&self, section: &str, key: &str, allowed: impl Into<String>) -> ConfigError {
        let (value, source) = self.get(section, key).unwrap_or(("", Source::Default));
        let sensitive = find(section, key).is_some_and(|o| o.sensitive);
        let origin = match source {
            Source::Default => "the default".to_owned(),
            Source::File => "from airflow.cfg".to_owned(),
            Source::Environment => {
                format!(
                    "from AIRFLOW__{}__{}",
                    section.to_ascii_uppercase(),
                    key.to_ascii_uppercase()
                )
            }
            Source::Command => "from its command".to_owned(),
        };
        ConfigError::BadValue {
            section: section.to_owned(),
            key: key.to_owned(),
            value: if sensitive {
                "***".to_owned()
            } else {
                value.to_owned()
            },
            origin,
            allowed: allowed.into(),
        }
    }
}

/// A secret that is to come from a secrets backend would be missing without a word, and a default stand in its place.
fn refuse_backend(section: &str, key: &str, value: &str, origin: String) -> Result<(), ConfigError> {
    let base = key.strip_suffix("_secret");
    match base.filter(|base| find(section, base).is_some_and(|option| option.sensitive)) {
        Some(base) if !value.is_empty() => Err(ConfigError::FromBackend {
            section: section.to_owned(),
            key: base.to_owned(),
            origin,
        }),
        Some(_) | None => Ok(()),
    }
}

fn expand_user(path: &str, home: Option<&String>) -> PathBuf {
    match (path.strip_prefix("~/"), home) {
        (Some(rest), Some(home)) => Path::new(home).join(rest),
        (Some(_) | None, _) => PathBuf::from(path),
    }
}

fn run_command(section: &str, key: &str, command: &str) -> Result<String, ConfigError> {
    let failed = |problem: String| ConfigError::Command {
        section: section.to_owned(),
        key: key.to_owned(),
        problem,
    };
    let output = std::process::Command::new("sh")
        .args(["-c", command])
        .output()
        .map_err(|error| failed(error.to_string()))?;
    if !output.status.success() {
        return Err(failed(format!(
            "{}: {}",
            output.status,
            String::from_utf8_lossy(&output.stderr).trim()
        )));
    }
    Ok(String::from_utf8_lossy(&output.stdout)
        .trim_end_matches('\n')
        .to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn env(pairs: &[(&str, &str)]) -> BTreeMap<String, String> {
        pairs
            .iter()
            .map(|(k, v)| ((*k).to_owned(), (*v).to_owned()))
            .collect()
    }

    #[test]
    fn environment_wins_over_file_and_file_over_default() {
        let home = tempfile::tempdir().unwrap();
        std::fs::write(
            home.path().join("airflow.cfg"),
            "[core]\nparallelism = 5\n[api]\nport = 81\n",
        )
        .unwrap();
        let home = home.path().to_str().unwrap();
        let config =
            RawConfig::load_from(env(&[("AIRFLOW_HOME", home), ("AIRFLOW__API__PORT", "82")])).unwrap();
        assert_eq!(config.get("core", "parallelism"), Some(("5", Source::File)));
        assert_eq!(config.get("api", "port"), Some(("82", Source::Environment)));
        assert_eq!(
            config.get("celery", "worker_concurrency"),
            Some(("16", Source::Default))
        );
        assert_eq!(
            config.get("core", "dags_folder").map(|v| v.0),
            Some(&*format!("{home}/dags"))
        );
    }

    #[test]
    fn a_secret_of_a_backend_is_not_passed_over() {
        let name = "AIRFLOW__DATABASE__SQL_ALCHEMY_CONN_SECRET";
        let error = RawConfig::load_from(env(&[("AIRFLOW_HOME", "/nonexistent"), (name, "conn")]));
        let error = error.unwrap_err().to_string();
        assert!(
            error.contains(name) && error.contains("sql_alchemy_conn_cmd"),
            "{error}"
        );
        // This is an option's own name.
        let own = env(&[
            ("AIRFLOW_HOME", "/nonexistent"),
            ("AIRFLOW__API_AUTH__JWT_SECRET", "x"),
        ]);
        assert!(RawConfig::load_from(own).is_ok());
    }

    #[test]
    fn a_command_supplies_a_secret() {
        let config = RawConfig::load_from(env(&[
            ("AIRFLOW_HOME", "/nonexistent"),
            ("AIRFLOW__DATABASE__SQL_ALCHEMY_CONN_CMD", "echo mysql://u:p@h/d"),
        ]))
        .unwrap();
        assert_eq!(
            config.get("database", "sql_alchemy_conn"),
            Some(("mysql://u:p@h/d", Source::Command))
        );
    }
}
