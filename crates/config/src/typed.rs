//! The options, checked and typed.

use crate::bundles::DagBundle;
use crate::encryption;
use crate::error::ConfigError;
use crate::executors::Executors;
use crate::raw::RawConfig;
use crate::reader::Reader;
use crate::secret::Secret;
use std::path::PathBuf;
use std::time::Duration;

/// Everything that the components need to know.
#[derive(Debug, Clone)]
pub struct Config {
    /// `$AIRFLOW_HOME`, absolute.
    pub home: PathBuf,
    /// What is set and means nothing here.
    pub unheeded: Vec<String>,
    /// `[core]`
    pub core: Core,
    /// `[database]`
    pub database: Database,
    /// `[logging]`
    pub logging: Logging,
    /// `[celery]` and `[operators] default_queue`
    pub celery: Celery,
    /// `[triggerer]`
    pub triggerer: Triggerer,
    /// `[api]`
    pub api: Api,
    /// `[api_auth]`
    pub api_auth: ApiAuth,
    /// `[scheduler]`
    pub scheduler: Scheduler,
    /// `[kubernetes_executor]`
    pub kubernetes_executor: KubernetesExecutor,
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
    pub executors: Executors,
    pub dags_folder: PathBuf,
    pub load_examples: bool,
    pub parallelism: u32,
    pub max_map_length: u32,
    pub default_timezone: chrono_tz::Tz,
    pub max_active_tasks_per_dag: u32,
    pub max_active_runs_per_dag: u32,
    pub dags_are_paused_at_creation: bool,
    pub dagbag_import_timeout: Duration,
    pub default_pool_task_slot_count: i64,
    /// Whether XComs go through a class of the user's own.
    pub has_xcom_backend: bool,
    pub max_retry_delay: Duration,
    pub killed_task_cleanup_time: Duration,
    pub hide_sensitive: bool,
    pub sensitive_names: Vec<String>,
    pub max_templated_field_length: i64,
    pub dag_run_conf_overrides_params: bool,
    pub default_impersonation: String,
    pub unit_test_mode: bool,
    /// The options that are on by which processes of tasks report to services of their own.
    pub task_reports: Vec<&'static str>,
    /// `true` if connections and variables are looked for in a secrets backend first.
    pub has_secrets_backend: bool,
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
    pub min_length_masked_secret: usize,
    pub secret_mask_adapter: String,
    pub namespace_levels: String,
    pub logging_config_class: String,
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

/// `[triggerer]`
#[derive(Debug, Clone)]
pub struct Triggerer {
    /// Triggers that run at the same time; 0 for none.
    pub capacity: u32,
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
    pub partition_mapper_max_downstream_keys: usize,
    pub health_check_threshold: Duration,
    pub worker_lease: Duration,
    pub task_queued_timeout: Duration,
}

/// `[kubernetes_executor]`
#[derive(Debug, Clone)]
#[expect(
    missing_docs,
    reason = "each field is the option of its name, described in OPTIONS"
)]
pub struct KubernetesExecutor {
    pub pod_template_file: Option<PathBuf>,
    pub image: Option<String>,
    pub namespace: String,
    pub in_cluster: bool,
    pub cluster_context: Option<String>,
    pub config_file: Option<String>,
    pub delete_worker_pods: bool,
    pub delete_worker_pods_on_failure: bool,
    pub fatal_reasons: Vec<String>,
}

/// `[dag_processor]`
#[derive(Debug, Clone)]
#[expect(
    missing_docs,
    reason = "each field is the option of its name, described in OPTIONS"
)]
pub struct DagProcessor {
    pub bundles: Vec<DagBundle>,
    /// The options that DAGs are made with, as they are set: other ones make other DAGs of the same files.
    pub options_of_dags: String,
    pub refresh_interval: Duration,
    pub min_file_process_interval: Option<Duration>,
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
    pub control_plane_ca: Option<PathBuf>,
    /// Certificate chain and private key of the control plane.
    pub grpc_ssl: Option<(PathBuf, PathBuf)>,
    pub join_token: Secret,
    pub worker_pools: Vec<String>,
    pub metrics_host: String,
    pub metrics_port: u16,
    pub worker_name: Option<String>,
    pub queues: Vec<String>,
    pub drain_grace: Duration,
    pub native_tasks: bool,
    pub infra_retries: u32,
    pub worker_losses: u32,
    pub start_retries: u32,
    pub max_task_log_bytes: u64,
    pub max_message_bytes: usize,
    pub otlp_endpoint: Option<String>,
    pub frame_ancestors: Vec<String>,
}

impl Config {
    /// Checks and types every option.
    ///
    /// # Errors
    /// At the first option with a value that it cannot have.
    pub fn from_raw(raw: &RawConfig) -> Result<Self, ConfigError> {
        encryption::check(raw)?;
        let read = Reader(raw);
        Ok(Self {
            home: raw.home().to_owned(),
            unheeded: raw.unheeded(),
            core: read.core()?,
            database: read.database()?,
            logging: Logging {
                base_log_folder: read.absolute("logging", "base_log_folder")?,
                level: read.level()?,
                min_length_masked_secret: read.number(
                    "logging",
                    "min_length_masked_secret",
                    "a whole number from 0",
                )?,
                secret_mask_adapter: read.text("logging", "secret_mask_adapter"),
                namespace_levels: read.text("logging", "namespace_levels"),
                logging_config_class: read.text("logging", "logging_config_class"),
            },
            celery: Celery {
                broker_url: Secret::new(read.text("celery", "broker_url")),
                worker_concurrency: read.positive("celery", "worker_concurrency")?,
                default_queue: read.text("operators", "default_queue"),
            },
            triggerer: Triggerer {
                capacity: read.number("triggerer", "capacity", "a whole number from 0")?,
            },
            api: read.api()?,
            api_auth: ApiAuth {
                jwt_secret: Secret::new(read.text("api_auth", "jwt_secret")),
                jwt_expiration: read.seconds("api_auth", "jwt_expiration_time")?,
                jwt_cli_expiration: read.seconds("api_auth", "jwt_cli_expiration_time")?,
                jwt_audience: read.text("api_auth", "jwt_audience"),
            },
            scheduler: read.scheduler()?,
            kubernetes_executor: read.kubernetes_executor()?,
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
