//! Every option that Updraft reads, with its default. Names and defaults outside `[updraft]` are Airflow
//! 3.3.2's (`airflow/config_templates/config.yml` and the Celery provider's), except where noted.

/// One option.
#[derive(Debug, Clone, Copy)]
pub struct OptionSpec {
    /// Section, lower case.
    pub section: &'static str,
    /// Name, lower case.
    pub key: &'static str,
    /// Default; `{AIRFLOW_HOME}` stands for that folder.
    pub default: &'static str,
    /// Whether the value is a secret.
    pub sensitive: bool,
    /// What it does.
    pub description: &'static str,
}

const fn option(
    section: &'static str,
    key: &'static str,
    default: &'static str,
    description: &'static str,
) -> OptionSpec {
    OptionSpec {
        section,
        key,
        default,
        sensitive: false,
        description,
    }
}

const fn secret(
    section: &'static str,
    key: &'static str,
    default: &'static str,
    description: &'static str,
) -> OptionSpec {
    OptionSpec {
        section,
        key,
        default,
        sensitive: true,
        description,
    }
}

/// All options, by section in Airflow's order, `[updraft]` last.
pub const OPTIONS: &[OptionSpec] = &[
    option(
        "core",
        "dags_folder",
        "{AIRFLOW_HOME}/dags",
        "Folder with the DAG files.",
    ),
    option(
        "core",
        "load_examples",
        "True",
        "Whether the example DAGs are loaded beside the DAG folder.",
    ),
    option(
        "core",
        "executor",
        "LocalExecutor",
        "Who runs tasks that do not ask for another: LocalExecutor and CeleryExecutor are our workers, KubernetesExecutor \
         is one pod for each task. Several, separated by commas; ALIAS:NAME gives one a name of its own.",
    ),
    option(
        "core",
        "max_map_length",
        "1024",
        "Most items of a value that a task returns for another to be mapped over.",
    ),
    option(
        "core",
        "parallelism",
        "32",
        "Task instances that one scheduler keeps queued or running at the same time.",
    ),
    option(
        "core",
        "default_timezone",
        "utc",
        "Time zone of naive dates: utc or an IANA name.",
    ),
    option(
        "core",
        "max_active_tasks_per_dag",
        "16",
        "Running task instances of one DagRun, where the DAG does not say.",
    ),
    option(
        "core",
        "max_active_runs_per_dag",
        "16",
        "Running DagRuns of one DAG, where the DAG does not say.",
    ),
    option(
        "core",
        "dags_are_paused_at_creation",
        "True",
        "Whether a new DAG starts paused.",
    ),
    option(
        "core",
        "dagbag_import_timeout",
        "30.0",
        "Seconds that importing one DAG file may take.",
    ),
    option(
        "core",
        "default_pool_task_slot_count",
        "128",
        "Slots of default_pool when it is created.",
    ),
    option(
        "core",
        "xcom_backend",
        "airflow.sdk.execution_time.xcom.BaseXCom",
        "Class that writes and reads XComs; with one of your own every task runs in Python.",
    ),
    option(
        "core",
        "max_task_retry_delay",
        "86400",
        "Seconds to which the delay between tries may grow.",
    ),
    option(
        "core",
        "killed_task_cleanup_time",
        "60",
        "Seconds between SIGTERM and SIGKILL for a task that is being stopped.",
    ),
    option(
        "core",
        "hide_sensitive_var_conn_fields",
        "True",
        "Whether values with sensitive names are shown as ***.",
    ),
    option(
        "core",
        "sensitive_var_conn_names",
        "",
        "More words, separated by commas, that make a name sensitive.",
    ),
    option(
        "core",
        "max_templated_field_length",
        "4096",
        "Characters of a rendered field that are kept; a longer one is cut.",
    ),
    option(
        "core",
        "dag_run_conf_overrides_params",
        "True",
        "Whether a run's conf changes the params that tasks see.",
    ),
    option(
        "core",
        "default_impersonation",
        "",
        "User that tasks run as if they name none; with one every task runs in Python.",
    ),
    option(
        "core",
        "unit_test_mode",
        "False",
        "Whether this is a test of Airflow itself; then every task runs in Python.",
    ),
    option(
        "core",
        "simple_auth_manager_users",
        "admin:admin",
        "Users as name:role, separated by commas; roles are viewer, user, op, admin.",
    ),
    option(
        "core",
        "simple_auth_manager_all_admins",
        "False",
        "Whether everyone is an admin without logging in.",
    ),
    option(
        "core",
        "simple_auth_manager_passwords_file",
        "",
        "File with the users' passwords; by default simple_auth_manager_passwords.json.generated in AIRFLOW_HOME.",
    ),
    secret(
        "core",
        "fernet_key",
        "",
        "Key (or keys, separated by commas) that connections and variables are encrypted with.",
    ),
    secret(
        "database",
        "sql_alchemy_conn",
        "sqlite:///{AIRFLOW_HOME}/airflow.db",
        "The metadata store: sqlite:///PATH, mysql+pymysql://..., mysql+mysqldb://...",
    ),
    option(
        "database",
        "sql_alchemy_pool_size",
        "10",
        "Connections that one component keeps to MariaDB.",
    ),
    option(
        "logging",
        "base_log_folder",
        "{AIRFLOW_HOME}/logs",
        "Folder of the task logs; absolute.",
    ),
    option(
        "logging",
        "logging_level",
        "INFO",
        "Level of the components' logs and of the tasks'.",
    ),
    option(
        "logging",
        "min_length_masked_secret",
        "5",
        "Characters that a secret must have to be masked.",
    ),
    option(
        "logging",
        "secret_mask_adapter",
        "",
        "Function with more forms of a secret to mask; with one every task runs in Python.",
    ),
    option(
        "logging",
        "namespace_levels",
        "",
        "Levels of single loggers; with any every task runs in Python.",
    ),
    option(
        "logging",
        "logging_config_class",
        "",
        "Logging set up by a class; with one every task runs in Python.",
    ),
    secret(
        "celery",
        "broker_url",
        "amqp://guest:guest@localhost:5672//",
        "RabbitMQ (Airflow's own default is a Redis URL).",
    ),
    option(
        "secrets",
        "backend",
        "",
        "Class that knows connections and variables; native tasks that need one then run in Python.",
    ),
    option("workers", "secrets_backend", "", "The same for workers alone."),
    option(
        "celery",
        "worker_concurrency",
        "16",
        "Tasks that one worker runs at the same time.",
    ),
    option(
        "triggerer",
        "capacity",
        "1000",
        "Triggers that one worker (or triggerer) runs at the same time; 0: none.",
    ),
    option(
        "operators",
        "default_queue",
        "default",
        "Queue of tasks that name none.",
    ),
    option(
        "api",
        "base_url",
        "",
        "URL under which users reach the API server.",
    ),
    option(
        "api",
        "host",
        "0.0.0.0",
        "Address that the API server listens on.",
    ),
    option("api", "port", "8080", "Port that the API server listens on."),
    option(
        "api",
        "fallback_page_limit",
        "50",
        "Entries of a list where the request names no limit.",
    ),
    option(
        "api",
        "maximum_page_limit",
        "100",
        "Most entries that one request can get.",
    ),
    option("api", "instance_name", "", "Name shown in the UI."),
    secret(
        "api_auth",
        "jwt_secret",
        "",
        "Key that API servers sign tokens with, the same on all of them, and nowhere else: workers have a join token. Made at start if empty and nothing is shared.",
    ),
    option(
        "api_auth",
        "jwt_expiration_time",
        "86400",
        "Seconds that a login lasts.",
    ),
    option(
        "api_auth",
        "jwt_cli_expiration_time",
        "3600",
        "Seconds that a command line's login lasts.",
    ),
    option(
        "api_auth",
        "jwt_audience",
        "apache-airflow",
        "Audience of users' tokens.",
    ),
    option(
        "scheduler",
        "catchup_by_default",
        "False",
        "Whether runs missed in the past are made up for, where the DAG does not say.",
    ),
    option(
        "scheduler",
        "create_cron_data_intervals",
        "False",
        "Whether cron strings make data intervals, as in Airflow 2.",
    ),
    option(
        "scheduler",
        "max_dagruns_to_create_per_loop",
        "10",
        "Runs that one turn creates for one DAG.",
    ),
    option(
        "scheduler",
        "partition_mapper_max_downstream_keys",
        "1000",
        "Most partitions that one update of a partition may be for, where its mapper does not say.",
    ),
    option(
        "scheduler",
        "scheduler_health_check_threshold",
        "30",
        "Seconds without a heartbeat after which a scheduler counts as unhealthy.",
    ),
    option(
        "scheduler",
        "task_instance_heartbeat_timeout",
        "60",
        "Seconds without a heartbeat after which a worker counts as lost (Airflow: 300).",
    ),
    option(
        "scheduler",
        "task_queued_timeout",
        "600.0",
        "Seconds that a pod of the KubernetesExecutor may need to take its task.",
    ),
    option(
        "kubernetes_executor",
        "pod_template_file",
        "",
        "Pod (YAML) that the pods of tasks are made from; its first container, base, runs the task.",
    ),
    option(
        "kubernetes_executor",
        "worker_container_repository",
        "",
        "Image of base, where the template has none.",
    ),
    option(
        "kubernetes_executor",
        "worker_container_tag",
        "",
        "Tag of that image.",
    ),
    option(
        "kubernetes_executor",
        "namespace",
        "default",
        "Namespace of the pods.",
    ),
    option(
        "kubernetes_executor",
        "in_cluster",
        "True",
        "Whether the scheduler runs in the cluster itself.",
    ),
    option(
        "kubernetes_executor",
        "cluster_context",
        "",
        "Context of the kubeconfig, outside the cluster.",
    ),
    option(
        "kubernetes_executor",
        "config_file",
        "",
        "Kubeconfig, outside the cluster; $KUBECONFIG or ~/.kube/config if empty.",
    ),
    option(
        "kubernetes_executor",
        "delete_worker_pods",
        "True",
        "Whether pods are deleted when their task has ended.",
    ),
    option(
        "kubernetes_executor",
        "delete_worker_pods_on_failure",
        "False",
        "Whether those of failed tasks are, too.",
    ),
    option(
        "kubernetes_executor",
        "worker_pod_pending_fatal_container_state_reasons",
        "CreateContainerConfigError,ErrImagePull,CreateContainerError,ImageInspectError,InvalidImageName",
        "What a pod may wait for that never comes: such a task fails at once.",
    ),
    option(
        "dag_processor",
        "dag_bundle_config_list",
        r#"[{"name": "dags-folder", "classpath": "airflow.dag_processing.bundles.local.LocalDagBundle", "kwargs": {}}]"#,
        "Where DAG files come from: a JSON list of bundles, each with name, classpath and kwargs. A LocalDagBundle without a path is [core] dags_folder.",
    ),
    option(
        "dag_processor",
        "refresh_interval",
        "300",
        "Seconds between full looks at the bundles, beside the watch on their folders, and between refreshes of those that are no folders of this machine. A refresh_interval in the kwargs of a bundle goes first.",
    ),
    option(
        "dag_processor",
        "min_file_process_interval",
        "",
        "Seconds after which a file is parsed again although nothing changed. If it is not set: ten minutes or more, so that all of these take at most 5 % of a core.",
    ),
    option(
        "dag_processor",
        "parsing_processes",
        "2",
        "DAG files parsed at the same time.",
    ),
    option(
        "dag_processor",
        "dag_file_processor_timeout",
        "50",
        "Seconds after which the process that parses a file is killed.",
    ),
    option(
        "updraft",
        "python",
        "",
        "Python interpreter of the DAGs' environment, with apache-airflow-task-sdk.",
    ),
    option(
        "updraft",
        "dag_file_memory_mb",
        "768",
        "Memory (MiB that it may write to, above the parser's own) that parsing one file may take.",
    ),
    option(
        "updraft",
        "grpc_host",
        "127.0.0.1",
        "Address that the control plane (gRPC) listens on.",
    ),
    option(
        "updraft",
        "grpc_port",
        "50051",
        "Port that the control plane (gRPC) listens on.",
    ),
    option(
        "updraft",
        "control_plane",
        "http://127.0.0.1:50051",
        "URL of the control plane, for workers.",
    ),
    option(
        "updraft",
        "control_plane_ca",
        "",
        "File (PEM) with the certificates that an https:// control plane is trusted by; the machine's own if empty.",
    ),
    option(
        "updraft",
        "grpc_ssl_cert",
        "",
        "File (PEM) with the certificate chain of the control plane; with it API servers speak TLS there.",
    ),
    option(
        "updraft",
        "grpc_ssl_key",
        "",
        "File (PEM) with the private key of that certificate.",
    ),
    secret(
        "updraft",
        "join_token",
        "",
        "Join token of a worker's pool, from `updraft workers join-token`. If empty, that of the pool default is made from [api_auth] jwt_secret, which workers should not have.",
    ),
    option(
        "updraft",
        "worker_pools",
        "default",
        "Pools whose join tokens API servers accept, separated by commas. A pool that is taken off the list has no more workers once their leases end.",
    ),
    option(
        "updraft",
        "metrics_host",
        "127.0.0.1",
        "Address that /metrics and /health of scheduler, worker and DAG processor listen on; 0.0.0.0: all of the machine.",
    ),
    option(
        "updraft",
        "metrics_port",
        "0",
        "Port of /metrics and /health of scheduler, worker and DAG processor; 0: none.",
    ),
    option(
        "updraft",
        "worker_name",
        "",
        "Name of a worker, the same after a restart; by default host name and queues.",
    ),
    option(
        "updraft",
        "queues",
        "",
        "Queues that a worker serves, separated by commas; by default [operators] default_queue.",
    ),
    option(
        "updraft",
        "drain_grace",
        "600",
        "Seconds that running tasks get to end after a worker's SIGTERM.",
    ),
    option(
        "updraft",
        "native_tasks",
        "True",
        "Whether tasks that need no Python run without it.",
    ),
    option(
        "updraft",
        "infra_retries",
        "3",
        "Tries of a task instance that may be lost to a dead worker without counting against its retries; later ones count.",
    ),
    option(
        "updraft",
        "worker_losses",
        "2",
        "Workers in a row that meet their end while they run the same task instance before it is taken to be the reason and fails; 0 for never.",
    ),
    option(
        "updraft",
        "start_retries",
        "20",
        "How often a try that could not be started goes back to the queue, with pauses of up to a minute, before it counts as failed.",
    ),
    option(
        "updraft",
        "max_task_log_mb",
        "100",
        "Size (MiB) of one try's log above which lines are left out.",
    ),
    option(
        "updraft",
        "max_message_mb",
        "64",
        "Size (MiB) of the largest message of a task, such as an XCom, that workers and API servers take; MariaDB's max_allowed_packet must be larger.",
    ),
    option(
        "updraft",
        "frame_ancestors",
        "",
        "Addresses, divided by blanks, of pages that may show this server's pages in a frame, beside its own.",
    ),
    option(
        "updraft",
        "otlp_endpoint",
        "",
        "OTLP (gRPC) endpoint for traces, such as http://localhost:4317; OTEL_EXPORTER_OTLP_ENDPOINT does as well.",
    ),
];

/// The option of that name.
pub(crate) fn find(section: &str, key: &str) -> Option<&'static OptionSpec> {
    OPTIONS.iter().find(|o| o.section == section && o.key == key)
}
