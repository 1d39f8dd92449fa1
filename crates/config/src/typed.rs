//! The options, checked and typed.

use crate::error::ConfigError;
use crate::raw::RawConfig;
use crate::secret::Secret;
use std::path::PathBuf;
use std::str::FromStr;
use std::time::Duration;

/// Everything that the components need to know.
#[derive(Debug, Clone)]
pub struct Config {
    /// `$AIRFLOW_HOME`, absolute.
    pub home: PathBuf,
    /// `[core]`
    pub core: Core,
    /// `[database]`
    pub database: Database,
    /// `[logging]`
    pub logging: Logging,
    /// `[celery]` and `[operators] default_queue`
    pub celery: Celery,
    /// `[api]`
    pub api: Api,
    /// `[api_auth]`
    pub api_auth: ApiAuth,
    /// `[scheduler]`
    pub scheduler: Scheduler,
    /// `[dag_processor]`
    pub dag_processor: DagProcessor,
    /// `[updraft]`
    pub updraft: Updraft,
}

/// `[core]`
#[derive(Debug, Clone)]
#[expect(
    missing_docs,
    reason = "each field is the option of its name, described in OPTIONS"
)]
pub struct Core {
    pub dags_folder: PathBuf,
    pub load_examples: bool,
    pub parallelism: u32,
    pub default_timezone: chrono_tz::Tz,
    pub max_active_tasks_per_dag: u32,
    pub max_active_runs_per_dag: u32,
    pub dags_are_paused_at_creation: bool,
    pub dagbag_import_timeout: Duration,
    pub default_pool_task_slot_count: i64,
    pub killed_task_cleanup_time: Duration,
    pub hide_sensitive: bool,
    pub sensitive_names: Vec<String>,
    pub users: Vec<SimpleUser>,
    pub all_admins: bool,
    pub passwords_file: PathBuf,
    pub fernet_keys: Secret,
}

/// One entry of `[core] simple_auth_manager_users`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SimpleUser {
    /// Login name.
    pub name: String,
    /// viewer, user, op or admin.
    pub role: String,
}

/// `[database]`
#[derive(Debug, Clone)]
pub struct Database {
    /// Which store, and where.
    pub url: DatabaseUrl,
    /// Most connections to MariaDB.
    pub pool_size: u32,
}

/// Where the metadata lives.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum DatabaseUrl {
    /// A file of this machine.
    Sqlite(PathBuf),
    /// MariaDB or MySQL, as `mysql://...`.
    MariaDb(Secret),
}

/// `[logging]`
#[derive(Debug, Clone)]
#[expect(
    missing_docs,
    reason = "each field is the option of its name, described in OPTIONS"
)]
pub struct Logging {
    pub base_log_folder: PathBuf,
    pub level: String,
}

/// `[celery]`
#[derive(Debug, Clone)]
#[expect(
    missing_docs,
    reason = "each field is the option of its name, described in OPTIONS"
)]
pub struct Celery {
    pub broker_url: Secret,
    pub worker_concurrency: u32,
    pub default_queue: String,
}

/// `[api]`
#[derive(Debug, Clone)]
#[expect(
    missing_docs,
    reason = "each field is the option of its name, described in OPTIONS"
)]
pub struct Api {
    pub base_url: String,
    pub host: String,
    pub port: u16,
    pub fallback_page_limit: u64,
    pub maximum_page_limit: u64,
}

/// `[api_auth]`
#[derive(Debug, Clone)]
#[expect(
    missing_docs,
    reason = "each field is the option of its name, described in OPTIONS"
)]
pub struct ApiAuth {
    pub jwt_secret: Secret,
    pub jwt_expiration: Duration,
    pub jwt_cli_expiration: Duration,
    pub jwt_audience: String,
}

/// `[scheduler]`
#[derive(Debug, Clone)]
#[expect(
    missing_docs,
    reason = "each field is the option of its name, described in OPTIONS"
)]
pub struct Scheduler {
    pub catchup_by_default: bool,
    pub create_cron_data_intervals: bool,
    pub max_dagruns_to_create_per_loop: u32,
    pub health_check_threshold: Duration,
    pub worker_lease: Duration,
}

/// `[dag_processor]`
#[derive(Debug, Clone)]
#[expect(
    missing_docs,
    reason = "each field is the option of its name, described in OPTIONS"
)]
pub struct DagProcessor {
    pub refresh_interval: Duration,
    pub min_file_process_interval: Duration,
    pub parsing_processes: usize,
    pub file_timeout: Duration,
    pub file_memory_mb: u64,
}

/// `[updraft]`
#[derive(Debug, Clone)]
#[expect(
    missing_docs,
    reason = "each field is the option of its name, described in OPTIONS"
)]
pub struct Updraft {
    pub python: Option<PathBuf>,
    pub grpc_host: String,
    pub grpc_port: u16,
    pub control_plane: String,
    pub metrics_port: u16,
    pub worker_name: Option<String>,
    pub queues: Vec<String>,
    pub drain_grace: Duration,
    pub native_tasks: bool,
    pub infra_retries: u32,
    pub max_task_log_bytes: u64,
    pub otlp_endpoint: Option<String>,
}

struct Reader<'a>(&'a RawConfig);

impl Reader<'_> {
    fn text(&self, section: &str, key: &str) -> String {
        self.0
            .get(section, key)
            .map_or_else(String::new, |(value, _)| value.to_owned())
    }

    fn optional(&self, section: &str, key: &str) -> Option<String> {
        Some(self.text(section, key)).filter(|value| !value.is_empty())
    }

    fn number<T: FromStr>(&self, section: &str, key: &str, allowed: &str) -> Result<T, ConfigError> {
        self.text(section, key)
            .trim()
            .parse()
            .map_err(|_| self.0.bad_value(section, key, allowed))
    }

    fn positive(&self, section: &str, key: &str) -> Result<u32, ConfigError> {
        match self.number(section, key, "a whole number from 1")? {
            0 => Err(self.0.bad_value(section, key, "a whole number from 1")),
            n => Ok(n),
        }
    }

    fn seconds(&self, section: &str, key: &str) -> Result<Duration, ConfigError> {
        let allowed = "a number of seconds from 0";
        let seconds: f64 = self.number(section, key, allowed)?;
        Duration::try_from_secs_f64(seconds).map_err(|_| self.0.bad_value(section, key, allowed))
    }

    fn boolean(&self, section: &str, key: &str) -> Result<bool, ConfigError> {
        match self.text(section, key).to_ascii_lowercase().as_str() {
            "t" | "true" | "1" => Ok(true),
            "f" | "false" | "0" => Ok(false),
            _ => Err(self.0.bad_value(section, key, "True, t, 1, False, f, 0")),
        }
    }

    fn list(&self, section: &str, key: &str) -> Vec<String> {
        let text = self.text(section, key);
        text.split(',')
            .map(str::trim)
            .filter(|s| !s.is_empty())
            .map(str::to_owned)
            .collect()
    }

    fn absolute(&self, section: &str, key: &str) -> Result<PathBuf, ConfigError> {
        let text = self.text(section, key);
        std::path::absolute(&text).map_err(|_| self.0.bad_value(section, key, "a path"))
    }

    fn timezone(&self) -> Result<chrono_tz::Tz, ConfigError> {
        let name = self.text("core", "default_timezone");
        if name.eq_ignore_ascii_case("utc") {
            return Ok(chrono_tz::UTC);
        }
        name.parse().map_err(|_| {
            self.0.bad_value(
                "core",
                "default_timezone",
                "utc or an IANA name such as Europe/Paris",
            )
        })
    }

    fn users(&self) -> Result<Vec<SimpleUser>, ConfigError> {
        let allowed = "name:role, separated by commas; roles are viewer, user, op, admin";
        let parse = |entry: String| {
            let mut parts = entry.split(':');
            match (parts.next(), parts.next()) {
                (Some(name), Some(role))
                    if !name.is_empty()
                        && matches!(
                            role.to_ascii_lowercase().as_str(),
                            "viewer" | "user" | "op" | "admin"
                        ) =>
                {
                    Ok(SimpleUser {
                        name: name.to_owned(),
                        role: role.to_ascii_lowercase(),
                    })
                }
                _ => Err(self.0.bad_value("core", "simple_auth_manager_users", allowed)),
            }
        };
        self.list("core", "simple_auth_manager_users")
            .into_iter()
            .map(parse)
            .collect()
    }

    fn database(&self) -> Result<Database, ConfigError> {
        let (section, key) = ("database", "sql_alchemy_conn");
        let allowed = "sqlite:////absolute/path, mysql+pymysql://user:password@host/database, mysql+mysqldb://..., mysql://...";
        let text = self.text(section, key);
        let url = match text.split_once("://") {
            Some(("sqlite", path)) if path.starts_with("//") && path.len() > 2 => {
                DatabaseUrl::Sqlite(PathBuf::from(&path[1..]))
            }
            Some(("mysql" | "mysql+pymysql" | "mysql+mysqldb" | "mariadb" | "mariadb+pymysql", rest)) => {
                DatabaseUrl::MariaDb(Secret::new(format!("mysql://{rest}")))
            }
            _ => return Err(self.0.bad_value(section, key, allowed)),
        };
        Ok(Database {
            url,
            pool_size: self.positive("database", "sql_alchemy_pool_size")?,
        })
    }

    fn level(&self) -> Result<String, ConfigError> {
        let level = self.text("logging", "logging_level").to_ascii_uppercase();
        match level.as_str() {
            "CRITICAL" | "ERROR" | "WARNING" | "INFO" | "DEBUG" => Ok(level),
            _ => Err(self.0.bad_value(
                "logging",
                "logging_level",
                "CRITICAL, ERROR, WARNING, INFO, DEBUG",
            )),
        }
    }

    fn core(&self) -> Result<Core, ConfigError> {
        let passwords_file = match self.optional("core", "simple_auth_manager_passwords_file") {
            Some(path) => PathBuf::from(path),
            None => self.0.home().join("simple_auth_manager_passwords.json.generated"),
        };
        Ok(Core {
            dags_folder: self.absolute("core", "dags_folder")?,
            load_examples: self.boolean("core", "load_examples")?,
            parallelism: self.positive("core", "parallelism")?,
            default_timezone: self.timezone()?,
            max_active_tasks_per_dag: self.positive("core", "max_active_tasks_per_dag")?,
            max_active_runs_per_dag: self.positive("core", "max_active_runs_per_dag")?,
            dags_are_paused_at_creation: self.boolean("core", "dags_are_paused_at_creation")?,
            dagbag_import_timeout: self.seconds("core", "dagbag_import_timeout")?,
            default_pool_task_slot_count: self.number(
                "core",
                "default_pool_task_slot_count",
                "a whole number",
            )?,
            killed_task_cleanup_time: self.seconds("core", "killed_task_cleanup_time")?,
            hide_sensitive: self.boolean("core", "hide_sensitive_var_conn_fields")?,
            sensitive_names: self.list("core", "sensitive_var_conn_names"),
            users: self.users()?,
            all_admins: self.boolean("core", "simple_auth_manager_all_admins")?,
            passwords_file,
            fernet_keys: Secret::new(self.text("core", "fernet_key")),
        })
    }

    fn dag_processor(&self) -> Result<DagProcessor, ConfigError> {
        Ok(DagProcessor {
            refresh_interval: self.seconds("dag_processor", "refresh_interval")?,
            min_file_process_interval: self.seconds("dag_processor", "min_file_process_interval")?,
            parsing_processes: self.positive("dag_processor", "parsing_processes")? as usize,
            file_timeout: self.seconds("dag_processor", "dag_file_processor_timeout")?,
            file_memory_mb: self.positive("updraft", "dag_file_memory_mb")?.into(),
        })
    }

    fn scheduler(&self) -> Result<Scheduler, ConfigError> {
        let lease = self.seconds("scheduler", "task_instance_heartbeat_timeout")?;
        if lease < Duration::from_secs(3) {
            return Err(self.0.bad_value(
                "scheduler",
                "task_instance_heartbeat_timeout",
                "3 seconds or more",
            ));
        }
        Ok(Scheduler {
            catchup_by_default: self.boolean("scheduler", "catchup_by_default")?,
            create_cron_data_intervals: self.boolean("scheduler", "create_cron_data_intervals")?,
            max_dagruns_to_create_per_loop: self.positive("scheduler", "max_dagruns_to_create_per_loop")?,
            health_check_threshold: self.seconds("scheduler", "scheduler_health_check_threshold")?,
            worker_lease: lease,
        })
    }

    fn api(&self) -> Result<Api, ConfigError> {
        let port = self.number("api", "port", "a port from 0 to 65535")?;
        let base_url = self.text("api", "base_url").trim_end_matches('/').to_owned();
        if !base_url.is_empty() && !base_url.starts_with("http://") && !base_url.starts_with("https://") {
            return Err(self
                .0
                .bad_value("api", "base_url", "a URL with http:// or https://"));
        }
        Ok(Api {
            base_url,
            host: self.text("api", "host"),
            port,
            fallback_page_limit: self.number("api", "fallback_page_limit", "a whole number")?,
            maximum_page_limit: self.number("api", "maximum_page_limit", "a whole number")?,
        })
    }

    fn updraft(&self) -> Result<Updraft, ConfigError> {
        let queues = match self.list("updraft", "queues") {
            empty if empty.is_empty() => vec![self.text("operators", "default_queue")],
            queues => queues,
        };
        Ok(Updraft {
            python: self.optional("updraft", "python").map(PathBuf::from),
            grpc_host: self.text("updraft", "grpc_host"),
            grpc_port: self.number("updraft", "grpc_port", "a port from 0 to 65535")?,
            control_plane: self.text("updraft", "control_plane"),
            metrics_port: self.number("updraft", "metrics_port", "a port from 0 to 65535")?,
            worker_name: self.optional("updraft", "worker_name"),
            queues,
            drain_grace: self.seconds("updraft", "drain_grace")?,
            native_tasks: self.boolean("updraft", "native_tasks")?,
            infra_retries: self.number("updraft", "infra_retries", "a whole number from 0")?,
            max_task_log_bytes: u64::from(self.positive("updraft", "max_task_log_mb")?) << 20,
            otlp_endpoint: self.optional("updraft", "otlp_endpoint").or_else(|| {
                std::env::var("OTEL_EXPORTER_OTLP_ENDPOINT")
                    .ok()
                    .filter(|v| !v.is_empty())
            }),
        })
    }
}

impl Config {
    /// Checks and types every option.
    ///
    /// # Errors
    /// At the first option with a value that it cannot have.
    pub fn from_raw(raw: &RawConfig) -> Result<Self, ConfigError> {
        let read = Reader(raw);
        Ok(Self {
            home: raw.home().to_owned(),
            core: read.core()?,
            database: read.database()?,
            logging: Logging {
                base_log_folder: read.absolute("logging", "base_log_folder")?,
                level: read.level()?,
            },
            celery: Celery {
                broker_url: Secret::new(read.text("celery", "broker_url")),
                worker_concurrency: read.positive("celery", "worker_concurrency")?,
                default_queue: read.text("operators", "default_queue"),
            },
            api: read.api()?,
            api_auth: ApiAuth {
                jwt_secret: Secret::new(read.text("api_auth", "jwt_secret")),
                jwt_expiration: read.seconds("api_auth", "jwt_expiration_time")?,
                jwt_cli_expiration: read.seconds("api_auth", "jwt_cli_expiration_time")?,
                jwt_audience: read.text("api_auth", "jwt_audience"),
            },
            scheduler: read.scheduler()?,
            dag_processor: read.dag_processor()?,
            updraft: read.updraft()?,
        })
    }

    /// Loads, checks and types.
    ///
    /// # Errors
    /// As [`RawConfig::load`] and [`Config::from_raw`].
    pub fn load() -> Result<Self, ConfigError> {
        Self::from_raw(&RawConfig::load()?)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeMap;

    fn with(key: &str, value: &str) -> Result<Config, ConfigError> {
        let env = BTreeMap::from([
            ("AIRFLOW_HOME".into(), "/nonexistent".into()),
            (key.into(), value.into()),
        ]);
        Config::from_raw(&RawConfig::load_from(env)?)
    }

    #[test]
    fn defaults_are_valid() {
        let config = with("X", "").unwrap();
        assert_eq!(config.core.parallelism, 32);
        assert_eq!(
            config.database.url,
            DatabaseUrl::Sqlite("/nonexistent/airflow.db".into())
        );
    }

    #[test]
    fn a_bad_value_is_told_with_option_value_and_what_is_allowed() {
        let error = with("AIRFLOW__LOGGING__LOGGING_LEVEL", "LOUD")
            .unwrap_err()
            .to_string();
        assert_eq!(
            error,
            "[logging] logging_level is \"LOUD\" (from AIRFLOW__LOGGING__LOGGING_LEVEL); allowed: CRITICAL, ERROR, WARNING, INFO, DEBUG"
        );
        for (key, value) in [
            ("AIRFLOW__CORE__PARALLELISM", "0"),
            ("AIRFLOW__CORE__DEFAULT_TIMEZONE", "Mars/Olympus"),
            ("AIRFLOW__CORE__LOAD_EXAMPLES", "maybe"),
            ("AIRFLOW__CORE__SIMPLE_AUTH_MANAGER_USERS", "bob:king"),
        ] {
            assert!(with(key, value).unwrap_err().to_string().contains(value), "{key}");
        }
    }

    #[test]
    fn a_bad_database_url_does_not_leak_its_password() {
        let error = with(
            "AIRFLOW__DATABASE__SQL_ALCHEMY_CONN",
            "postgresql://u:hunter2@h/d",
        )
        .unwrap_err()
        .to_string();
        assert!(!error.contains("hunter2"), "{error}");
        assert!(error.contains("mysql+pymysql://"), "{error}");
    }

    #[test]
    fn sqlalchemy_urls_are_understood() {
        let url = |text| {
            with("AIRFLOW__DATABASE__SQL_ALCHEMY_CONN", text)
                .unwrap()
                .database
                .url
        };
        assert_eq!(
            url("sqlite:////var/lib/a.db"),
            DatabaseUrl::Sqlite("/var/lib/a.db".into())
        );
        assert_eq!(
            url("mysql+pymysql://u:p@h:3307/d"),
            DatabaseUrl::MariaDb(Secret::new("mysql://u:p@h:3307/d"))
        );
    }
}
