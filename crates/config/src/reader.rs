//! From texts to checked values.

use crate::bundles::DagBundle;
use crate::encryption;
use crate::error::ConfigError;
use crate::executors::Executors;
use crate::raw::RawConfig;
use crate::secret::Secret;
use crate::typed::*;
use std::path::PathBuf;
use std::str::FromStr;
use std::time::Duration;

pub(super) struct Reader<'a>(pub(super) &'a RawConfig);

impl Reader<'_> {
    pub(super) fn text(&self, section: &str, key: &str) -> String {
        self.0
            .get(section, key)
            .map_or_else(String::new, |(value, _)| value.to_owned())
    }

    pub(super) fn optional(&self, section: &str, key: &str) -> Option<String> {
        Some(self.text(section, key)).filter(|value| !value.is_empty())
    }

    pub(super) fn number<T: FromStr>(
        &self,
        section: &str,
        key: &str,
        allowed: &str,
    ) -> Result<T, ConfigError> {
        self.text(section, key)
            .trim()
            .parse()
            .map_err(|_| self.0.bad_value(section, key, allowed))
    }

    pub(super) fn positive(&self, section: &str, key: &str) -> Result<u32, ConfigError> {
        match self.number(section, key, "a whole number from 1")? {
            0 => Err(self.0.bad_value(section, key, "a whole number from 1")),
            n => Ok(n),
        }
    }

    pub(super) fn seconds(&self, section: &str, key: &str) -> Result<Duration, ConfigError> {
        let allowed = "a number of seconds from 0";
        let seconds: f64 = self.number(section, key, allowed)?;
        Duration::try_from_secs_f64(seconds).map_err(|_| self.0.bad_value(section, key, allowed))
    }

    pub(super) fn boolean(&self, section: &str, key: &str) -> Result<bool, ConfigError> {
        match self.text(section, key).to_ascii_lowercase().as_str() {
            "t" | "true" | "1" => Ok(true),
            "f" | "false" | "0" => Ok(false),
            _ => Err(self.0.bad_value(section, key, "True, t, 1, False, f, 0")),
        }
    }

    pub(super) fn list(&self, section: &str, key: &str) -> Vec<String> {
        let text = self.text(section, key);
        text.split(',')
            .map(str::trim)
            .filter(|s| !s.is_empty())
            .map(str::to_owned)
            .collect()
    }

    pub(super) fn absolute(&self, section: &str, key: &str) -> Result<PathBuf, ConfigError> {
        let text = self.text(section, key);
        std::path::absolute(&text).map_err(|_| self.0.bad_value(section, key, "a path"))
    }

    pub(super) fn timezone(&self) -> Result<chrono_tz::Tz, ConfigError> {
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

    pub(super) fn users(&self) -> Result<Vec<SimpleUser>, ConfigError> {
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

    pub(super) fn database(&self) -> Result<Database, ConfigError> {
        let (section, key) = ("database", "sql_alchemy_conn");
        let allowed = "sqlite:////absolute/path, mysql+pymysql://user:password@host/database, mysql+mysqldb://..., mysql://...";
        let text = self.text(section, key);
        let url = match text.split_once("://") {
            Some(("sqlite", path)) if path.starts_with("//") && path.len() > 2 => {
                DatabaseUrl::Sqlite(PathBuf::from(&path[1..]))
            }
            Some(("mysql" | "mysql+pymysql" | "mysql+mysqldb" | "mariadb" | "mariadb+pymysql", rest)) => {
                let rest = encryption::database_url(rest).map_err(|wish| {
                    let allowed = format!(
                        "of encryption: ssl_ca, ssl_cert, ssl_key, ssl_mode, ssl_check_hostname, ssl_verify_cert, \
                         ssl_verify_identity, ssl_disabled, ssl; not {wish}"
                    );
                    self.0.bad_value(section, key, allowed)
                })?;
                DatabaseUrl::MariaDb(Secret::new(format!("mysql://{rest}")))
            }
            _ => return Err(self.0.bad_value(section, key, allowed)),
        };
        Ok(Database {
            url,
            pool_size: self.positive("database", "sql_alchemy_pool_size")?,
        })
    }

    pub(super) fn level(&self) -> Result<String, ConfigError> {
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

    fn executors(&self) -> Result<Executors, ConfigError> {
        let entries = self.list("core", "executor");
        Executors::read(&entries).map_err(|allowed| self.0.bad_value("core", "executor", &allowed))
    }

    pub(super) fn core(&self) -> Result<Core, ConfigError> {
        let passwords_file = match self.optional("core", "simple_auth_manager_passwords_file") {
            Some(path) => PathBuf::from(path),
            None => self.0.home().join("simple_auth_manager_passwords.json.generated"),
        };
        Ok(Core {
            executors: self.executors()?,
            dags_folder: self.absolute("core", "dags_folder")?,
            load_examples: self.boolean("core", "load_examples")?,
            parallelism: self.positive("core", "parallelism")?,
            max_map_length: self.positive("core", "max_map_length")?,
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
            has_xcom_backend: !matches!(
                self.text("core", "xcom_backend").rsplit('.').next(),
                Some("BaseXCom" | "")
            ),
            max_retry_delay: self.seconds("core", "max_task_retry_delay")?,
            killed_task_cleanup_time: self.seconds("core", "killed_task_cleanup_time")?,
            hide_sensitive: self.boolean("core", "hide_sensitive_var_conn_fields")?,
            sensitive_names: self.list("core", "sensitive_var_conn_names"),
            max_templated_field_length: self.number(
                "core",
                "max_templated_field_length",
                "a whole number",
            )?,
            dag_run_conf_overrides_params: self.boolean("core", "dag_run_conf_overrides_params")?,
            default_impersonation: self.text("core", "default_impersonation"),
            unit_test_mode: self.boolean("core", "unit_test_mode")?,
            task_reports: self.task_reports(),
            has_secrets_backend: [("secrets", "backend"), ("workers", "secrets_backend")]
                .iter()
                .any(|(section, key)| self.optional(section, key).is_some()),
            users: self.users()?,
            all_admins: self.boolean("core", "simple_auth_manager_all_admins")?,
            passwords_file,
            fernet_keys: Secret::new(self.text("core", "fernet_key")),
        })
    }

    pub(super) fn dag_processor(&self) -> Result<DagProcessor, ConfigError> {
        let dags_folder = self.absolute("core", "dags_folder")?;
        let list = self.text("dag_processor", "dag_bundle_config_list");
        let bundles = DagBundle::read_all(&list, &dags_folder).map_err(|allowed| {
            self.0
                .bad_value("dag_processor", "dag_bundle_config_list", allowed)
        })?;
        Ok(DagProcessor {
            bundles,
            options_of_dags: self.options_of_dags(),
            refresh_interval: self.seconds("dag_processor", "refresh_interval")?,
            min_file_process_interval: self
                .optional("dag_processor", "min_file_process_interval")
                .map(|_| self.seconds("dag_processor", "min_file_process_interval"))
                .transpose()?,
            parsing_processes: self.positive("dag_processor", "parsing_processes")? as usize,
            file_timeout: self.seconds("dag_processor", "dag_file_processor_timeout")?,
            file_memory_mb: self.positive("updraft", "dag_file_memory_mb")?.into(),
        })
    }

    /// Which options are on by which Airflow's processes of tasks report to services; Updraft itself heeds none of them.
    fn task_reports(&self) -> Vec<&'static str> {
        [
            ("sentry", "sentry_on", "[sentry] sentry_on"),
            ("metrics", "statsd_on", "[metrics] statsd_on"),
            (
                "metrics",
                "statsd_datadog_enabled",
                "[metrics] statsd_datadog_enabled",
            ),
            ("metrics", "otel_on", "[metrics] otel_on"),
        ]
        .into_iter()
        .filter(|(section, key, _)| {
            let text = self.text(section, key).to_ascii_lowercase();
            matches!(text.as_str(), "t" | "true" | "1")
        })
        .map(|(.., name)| name)
        .collect()
    }

    /// The options of the sections that Airflow's own classes of DAGs and tasks read when they are made.
    fn options_of_dags(&self) -> String {
        let all = self.0.all().filter(|(section, .., option)| {
            let is_secret = option.is_some_and(|option| option.sensitive);
            matches!(*section, "core" | "operators" | "scheduler" | "email") && !is_secret
        });
        let mut lines: Vec<String> = all
            .map(|(section, key, value, ..)| format!("[{section}] {key} = {value}"))
            .collect();
        lines.sort();
        lines.join("\n")
    }

    pub(super) fn scheduler(&self) -> Result<Scheduler, ConfigError> {
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
            partition_mapper_max_downstream_keys: self
                .positive("scheduler", "partition_mapper_max_downstream_keys")?
                as usize,
            health_check_threshold: self.seconds("scheduler", "scheduler_health_check_threshold")?,
            worker_lease: lease,
            task_queued_timeout: self.seconds("scheduler", "task_queued_timeout")?,
        })
    }

    pub(super) fn kubernetes_executor(&self) -> Result<KubernetesExecutor, ConfigError> {
        let section = "kubernetes_executor";
        let image = self
            .optional(section, "worker_container_repository")
            .map(
                |repository| match self.optional(section, "worker_container_tag") {
                    Some(tag) => format!("{repository}:{tag}"),
                    None => repository,
                },
            );
        Ok(KubernetesExecutor {
            pod_template_file: self.optional(section, "pod_template_file").map(PathBuf::from),
            image,
            namespace: self.text(section, "namespace"),
            in_cluster: self.boolean(section, "in_cluster")?,
            cluster_context: self.optional(section, "cluster_context"),
            config_file: self.optional(section, "config_file"),
            delete_worker_pods: self.boolean(section, "delete_worker_pods")?,
            delete_worker_pods_on_failure: self.boolean(section, "delete_worker_pods_on_failure")?,
            fatal_reasons: self.list(section, "worker_pod_pending_fatal_container_state_reasons"),
        })
    }

    pub(super) fn api(&self) -> Result<Api, ConfigError> {
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

    fn control_plane(&self) -> Result<String, ConfigError> {
        let url = self.text("updraft", "control_plane");
        if url.starts_with("http://") || url.starts_with("https://") {
            return Ok(url);
        }
        Err(self
            .0
            .bad_value("updraft", "control_plane", "a URL with http:// or https://"))
    }

    fn grpc_ssl(&self) -> Result<Option<(PathBuf, PathBuf)>, ConfigError> {
        let (cert, key) = ("grpc_ssl_cert", "grpc_ssl_key");
        match (self.optional("updraft", cert), self.optional("updraft", key)) {
            (Some(cert), Some(key)) => Ok(Some((cert.into(), key.into()))),
            (None, None) => Ok(None),
            (Some(_), None) => Err(self
                .0
                .bad_value("updraft", key, "a file, as grpc_ssl_cert is set")),
            (None, Some(_)) => Err(self
                .0
                .bad_value("updraft", cert, "a file, as grpc_ssl_key is set")),
        }
    }

    pub(super) fn updraft(&self) -> Result<Updraft, ConfigError> {
        let queues = match self.list("updraft", "queues") {
            empty if empty.is_empty() => vec![self.text("operators", "default_queue")],
            queues => queues,
        };
        Ok(Updraft {
            python: self.optional("updraft", "python").map(PathBuf::from),
            grpc_host: self.text("updraft", "grpc_host"),
            grpc_port: self.number("updraft", "grpc_port", "a port from 0 to 65535")?,
            control_plane: self.control_plane()?,
            control_plane_ca: self.optional("updraft", "control_plane_ca").map(PathBuf::from),
            grpc_ssl: self.grpc_ssl()?,
            join_token: Secret::new(self.text("updraft", "join_token").trim()),
            worker_pools: self.list("updraft", "worker_pools"),
            metrics_host: self.text("updraft", "metrics_host"),
            metrics_port: self.number("updraft", "metrics_port", "a port from 0 to 65535")?,
            worker_name: self.optional("updraft", "worker_name"),
            queues,
            drain_grace: self.seconds("updraft", "drain_grace")?,
            native_tasks: self.boolean("updraft", "native_tasks")?,
            infra_retries: self.number("updraft", "infra_retries", "a whole number from 0")?,
            worker_losses: self.number("updraft", "worker_losses", "a whole number from 0")?,
            start_retries: self.number("updraft", "start_retries", "a whole number from 0")?,
            max_task_log_bytes: u64::from(self.positive("updraft", "max_task_log_mb")?) << 20,
            max_message_bytes: (self.positive("updraft", "max_message_mb")?.min(1024) as usize) << 20,
            frame_ancestors: self
                .text("updraft", "frame_ancestors")
                .split_whitespace()
                .map(str::to_owned)
                .collect(),
            otlp_endpoint: self.optional("updraft", "otlp_endpoint").or_else(|| {
                std::env::var("OTEL_EXPORTER_OTLP_ENDPOINT")
                    .ok()
                    .filter(|v| !v.is_empty())
            }),
        })
    }
}
