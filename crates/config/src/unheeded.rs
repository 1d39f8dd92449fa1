//! Options that are set and mean nothing here, so that nobody takes silence for agreement.

use crate::options::find;
use crate::raw::{RawConfig, Source};

/// Options of Airflow's own components, by section; what is read in Python, by tasks and DAG files, is not among them.
const OF_COMPONENTS: &[(&str, &[&str])] = &[
    (
        "core",
        &[
            "auth_manager",
            "security",
            "test_connection",
            "multi_team",
            "hostname_callable",
            "mp_start_method",
            "execute_tasks_new_python_interpreter",
            "min_serialized_dag_update_interval",
            "compress_serialized_dags",
            "num_dag_runs_to_retain_rendered_fields",
            "daemon_umask",
            "asset_manager_class",
            "asset_manager_kwargs",
            "task_success_overtime",
            "rerun_with_latest_version",
            "execution_api_server_url",
        ],
    ),
    (
        "database",
        &[
            "sql_alchemy_conn_async",
            "sql_alchemy_engine_args",
            "sql_alchemy_schema",
            "sql_alchemy_connect_args",
            "sql_alchemy_connect_args_async",
            "sql_alchemy_session_maker",
            "sql_engine_encoding",
            "external_db_managers",
        ],
    ),
    (
        "logging",
        &[
            "remote_logging",
            "remote_log_conn_id",
            "remote_base_log_folder",
            "remote_task_handler_kwargs",
            "delete_local_logs",
            "google_key_path",
            "encrypt_s3_logs",
            "json_logs",
            "log_format",
            "simple_log_format",
            "log_filename_template",
            "task_log_prefix_template",
            "task_log_reader",
            "dag_processor_child_process_log_directory",
            "worker_log_server_port",
            "trigger_log_server_port",
        ],
    ),
    ("metrics", &["statsd_on", "otel_on"]),
    ("traces", &["otel_on"]),
    (
        "api",
        &[
            "instance_name",
            "theme",
            "expose_config",
            "expose_stacktrace",
            "workers",
            "log_config",
            "ssl_cert",
            "ssl_key",
            "ssl_ca_file",
            "ssl_cert_reqs",
            "client_ssl_cert",
            "client_ssl_key",
            "access_control_allow_headers",
            "access_control_allow_methods",
            "access_control_allow_origins",
            "hide_paused_dags_by_default",
            "require_confirmation_dag_change",
        ],
    ),
    (
        "api_auth",
        &[
            "jwt_private_key_path",
            "jwt_algorithm",
            "jwt_kid",
            "trusted_jwks_url",
            "jwt_issuer",
        ],
    ),
    (
        "scheduler",
        &[
            "num_runs",
            "only_idle",
            "max_tis_per_query",
            "use_row_level_locking",
            "ignore_first_depends_on_past_by_default",
            "allowed_run_id_pattern",
            "scheduler_health_check_server_host",
            "scheduler_health_check_server_port",
        ],
    ),
    ("triggerer", &["queues_enabled"]),
    (
        "dag_processor",
        &[
            "dag_bundle_config_list",
            "dag_bundle_storage_path",
            "file_parsing_sort_mode",
        ],
    ),
    ("workers", &["state_store_backend"]),
    (
        "celery",
        &["result_backend", "worker_autoscale", "worker_prefetch_multiplier"],
    ),
];

/// Sections that no version of Airflow 3 has.
const GONE: [&str; 1] = ["webserver"];

/// Values that say "not in use" whatever the option.
const NOTHING: [&str; 8] = ["", "false", "f", "no", "0", "none", "[]", "{}"];

impl RawConfig {
    /// What is set and means nothing here: option by option, with where it is set.
    pub fn unheeded(&self) -> Vec<String> {
        self.all()
            .filter(|(_, _, value, source, spec)| {
                let is_set = !NOTHING.contains(&value.trim().to_ascii_lowercase().as_str());
                *source != Source::Default && spec.is_none() && is_set
            })
            .filter(|(section, key, ..)| {
                let listed = OF_COMPONENTS.iter().find(|(name, _)| name == section);
                // Nobody else's programs read our own section, so what we do not know in it is a mistake.
                *section == "updraft"
                    || GONE.contains(section)
                    || listed.is_some_and(|(_, keys)| keys.contains(key))
            })
            .map(|(section, key, _, source, _)| format!("[{section}] {key} ({})", source.as_str()))
            .collect()
    }
}

/// Options of others whose values are secret or hold secrets; those of [`crate::OPTIONS`] say it themselves.
const SECRET: [(&str, &str); 12] = [
    ("core", "asset_manager_kwargs"),
    ("database", "sql_alchemy_conn_async"),
    ("database", "sql_alchemy_engine_args"),
    ("logging", "remote_task_handler_kwargs"),
    ("secrets", "backend_kwargs"),
    ("workers", "secrets_backend_kwargs"),
    ("sentry", "sentry_dsn"),
    ("celery", "result_backend"),
    ("celery", "flower_basic_auth"),
    ("celery_broker_transport_options", "sentinel_kwargs"),
    ("atlas", "password"),
    ("elasticsearch", "host"),
];

/// Parts of names that make an option secret.
const SECRET_WORDS: [&str; 6] = [
    "secret",
    "password",
    "passwd",
    "passphrase",
    "token",
    "private_key",
];

/// Returns `true` if a value is not to be shown: by its option, by the option's name, or because it is an address with a
/// password in it.
pub fn is_secret(section: &str, key: &str, value: &str) -> bool {
    if let Some(spec) = find(section, key) {
        return spec.sensitive || has_password(value);
    }
    SECRET.contains(&(section, key))
        || SECRET_WORDS.iter().any(|word| key.contains(word))
        || has_password(value)
}

/// Returns `true` if there is something like `://user:password@` in a text.
fn has_password(value: &str) -> bool {
    value.split("://").skip(1).any(|rest| {
        let authority = rest.split(['/', '?', '#']).next().unwrap_or_default();
        authority
            .rsplit_once('@')
            .is_some_and(|(user, _)| user.contains(':'))
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeMap;

    fn raw(set: &[(&str, &str)]) -> RawConfig {
        let mut env = BTreeMap::from([("AIRFLOW_HOME".to_owned(), "/nonexistent".to_owned())]);
        env.extend(
            set.iter()
                .map(|(key, value)| ((*key).to_owned(), (*value).to_owned())),
        );
        RawConfig::load_from(env).unwrap()
    }

    #[test]
    fn what_is_set_and_means_nothing_is_told_and_nothing_else() {
        let told = raw(&[
            ("AIRFLOW__API__SSL_CERT", "/cert.pem"),
            ("AIRFLOW__METRICS__STATSD_ON", "True"),
            ("AIRFLOW__TRACES__OTEL_ON", "False"),
            ("AIRFLOW__WEBSERVER__BASE_URL", "http://x"),
            ("AIRFLOW__UPDRAFT__NATIV_TASKS", "off"),
            ("AIRFLOW__CORE__PARALLELISM", "5"),
            ("AIRFLOW__SMTP__SMTP_HOST", "mail"),
            ("AIRFLOW__AWS__SESSION_FACTORY", "x"),
        ])
        .unheeded();
        assert_eq!(
            told,
            [
                "[api] ssl_cert (env var)",
                "[metrics] statsd_on (env var)",
                "[updraft] nativ_tasks (env var)",
                "[webserver] base_url (env var)",
            ]
        );
        assert!(raw(&[]).unheeded().is_empty());
    }

    #[test]
    fn secrets_are_known_by_option_by_name_and_by_their_form() {
        for (section, key, value) in [
            ("celery", "result_backend", "db+mysql://u:p@h/d"),
            ("secrets", "backend_kwargs", "{}"),
            ("sentry", "sentry_dsn", "https://k@h/1"),
            ("core", "fernet_key", "x"),
            ("mine", "api_token", "x"),
            ("mine", "address", "amqp://user:pass@host//"),
        ] {
            assert!(is_secret(section, key, value), "[{section}] {key}");
        }
        for (section, key, value) in [
            ("core", "parallelism", "5"),
            ("mine", "address", "http://host:8080/a@b"),
            ("api", "base_url", "http://user@host"),
        ] {
            assert!(!is_secret(section, key, value), "[{section}] {key}");
        }
    }
}
