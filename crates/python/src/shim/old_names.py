"""Names that moved since Airflow 1.10 and 2: modules, arguments, options, each with where it is now."""

STANDARD = "airflow.providers.standard."

# Module -> name -> where it is now.
MODULES = {
    "airflow.operators.bash_operator": {"BashOperator": STANDARD + "operators.bash"},
    "airflow.operators.python_operator": {
        name: STANDARD + "operators.python"
        for name in ("PythonOperator", "BranchPythonOperator", "ShortCircuitOperator", "PythonVirtualenvOperator")
    },
    "airflow.operators.dummy": {"DummyOperator": (STANDARD + "operators.empty", "EmptyOperator")},
    "airflow.operators.dummy_operator": {"DummyOperator": (STANDARD + "operators.empty", "EmptyOperator")},
    "airflow.operators.branch_operator": {"BaseBranchOperator": STANDARD + "operators.branch"},
    "airflow.operators.latest_only_operator": {"LatestOnlyOperator": STANDARD + "operators.latest_only"},
    "airflow.operators.dagrun_operator": {"TriggerDagRunOperator": STANDARD + "operators.trigger_dagrun"},
    "airflow.operators.email_operator": {"EmailOperator": "airflow.providers.smtp.operators.smtp"},
    "airflow.operators.docker_operator": {"DockerOperator": "airflow.providers.docker.operators.docker"},
    "airflow.sensors.base_sensor_operator": {"BaseSensorOperator": "airflow.sdk.bases.sensor"},
    "airflow.sensors.external_task_sensor": {
        "ExternalTaskSensor": STANDARD + "sensors.external_task", "ExternalTaskMarker": STANDARD + "sensors.external_task",
    },
    "airflow.sensors.date_time_sensor": {"DateTimeSensor": STANDARD + "sensors.date_time"},
    "airflow.sensors.time_delta_sensor": {"TimeDeltaSensor": STANDARD + "sensors.time_delta"},
    "airflow.sensors.python_sensor": {"PythonSensor": STANDARD + "sensors.python"},
    "airflow.hooks.base_hook": {"BaseHook": "airflow.sdk.bases.hook"},
    "airflow.datasets": {
        "Dataset": ("airflow.sdk", "Asset"), "DatasetAlias": ("airflow.sdk", "AssetAlias"),
        "DatasetAll": ("airflow.sdk", "AssetAll"), "DatasetAny": ("airflow.sdk", "AssetAny"),
    },
    "airflow.models.baseoperator": {
        "BaseOperator": "airflow.sdk", "chain": "airflow.sdk", "cross_downstream": "airflow.sdk",
    },
    "airflow.models.dagbag": {"DagBag": "airflow.dag_processing.dagbag"},
    "airflow.contrib.operators.bash_operator": {"BashOperator": STANDARD + "operators.bash"},
    "airflow.contrib.operators.kubernetes_pod_operator": {
        "KubernetesPodOperator": "airflow.providers.cncf.kubernetes.operators.pod"
    },
    "airflow.contrib.sensors.file_sensor": {"FileSensor": STANDARD + "sensors.filesystem"},
    "airflow.contrib.sensors.python_sensor": {"PythonSensor": STANDARD + "sensors.python"},
    "airflow.contrib.sensors.bash_sensor": {"BashSensor": STANDARD + "sensors.bash"},
    "airflow.contrib.sensors.weekday_sensor": {"DayOfWeekSensor": STANDARD + "sensors.weekday"},
    "airflow.contrib.hooks.fs_hook": {"FSHook": STANDARD + "hooks.filesystem"},
    "airflow.providers.cncf.kubernetes.operators.kubernetes_pod": {
        "KubernetesPodOperator": "airflow.providers.cncf.kubernetes.operators.pod"
    },
}
MODULES.update({
    "airflow.datasets.metadata": {"Metadata": "airflow.sdk"},
    "airflow.timetables.datasets": {"DatasetOrTimeSchedule": "updraft_stand_ins"},
    "airflow.utils.weekday": {"WeekDay": STANDARD + "utils.weekday"},
    "airflow.utils.log.secrets_masker": {
        "mask_secret": "airflow.sdk.log", "redact": "airflow.sdk._shared.secrets_masker",
    },
    "airflow.utils.module_loading": {
        name: "airflow.sdk._shared.module_loading" for name in ("import_string", "qualname", "iter_namespace")
    },
    "airflow.utils.python_virtualenv": {
        name: STANDARD + "utils.python_virtualenv" for name in ("prepare_virtualenv", "write_python_script")
    },
    "airflow.template.templater": {
        name: "airflow.sdk.definitions._internal.templater" for name in ("LiteralValue", "Templater")
    },
    "airflow.decorators.bash": {"bash_task": STANDARD + "decorators.bash"},
    "airflow.decorators.branch_python": {"branch_task": STANDARD + "decorators.branch_python"},
    "airflow.decorators.condition": {
        name: "airflow.sdk.definitions.decorators.condition" for name in ("run_if", "skip_if")
    },
    "airflow.decorators.external_python": {"external_python_task": STANDARD + "decorators.external_python"},
    "airflow.decorators.python": {"python_task": STANDARD + "decorators.python"},
    "airflow.decorators.python_virtualenv": {"virtualenv_task": STANDARD + "decorators.python_virtualenv"},
    "airflow.decorators.sensor": {"sensor_task": STANDARD + "decorators.sensor"},
    "airflow.decorators.setup_teardown": {
        name: "airflow.sdk.definitions.decorators.setup_teardown" for name in ("setup_task", "teardown_task")
    },
    "airflow.decorators.short_circuit": {"short_circuit_task": STANDARD + "decorators.short_circuit"},
    "airflow.decorators.task_group": {"task_group": "airflow.sdk"},
})
_KUBERNETES = {
    "secret": {"Secret": "airflow.providers.cncf.kubernetes.secret"},
    "volume": {"Volume": "updraft_stand_ins"}, "volume_mount": {"VolumeMount": "updraft_stand_ins"},
    "pod": {"Port": "updraft_stand_ins", "Resources": "updraft_stand_ins"},
    "pod_runtime_info_env": {"PodRuntimeInfoEnv": "updraft_stand_ins"},
}
for _name, _names in _KUBERNETES.items():
    for _package in ("airflow.kubernetes", "airflow.contrib.kubernetes", "airflow.providers.cncf.kubernetes.backcompat"):
        MODULES[f"{_package}.{_name}"] = _names
MODULES["airflow.compat.functools"] = {"cached_property": "functools", "cache": "functools"}
MODULES["airflow.www.utils"] = {"get_attr_renderer": "updraft_stand_ins"}
MODULES["airflow.example_dags.subdags.subdag"] = {"subdag": "updraft_stand_ins"}
MODULES["airflow.operators.subdag"] = MODULES["airflow.operators.subdag_operator"] = {"SubDagOperator": "updraft_stand_ins"}


def read_modules(text):
    """Adds what else moved: lines of old module, name, and where it is now (`@` stands for the providers)."""
    for line in text.splitlines():
        module, name, now = line.split()
        now = f"airflow.providers.{now[1:]}" if now.startswith("@") else f"airflow.{now}"
        where, _, renamed = now.rpartition(".")
        MODULES.setdefault(f"airflow.{module}", {}).setdefault(name, (where, renamed or name))


# Old names that modules of today lack.
NAMES = {
    "airflow.utils.helpers": {
        "chain": "airflow.sdk", "cross_downstream": "airflow.sdk", "build_airflow_url_with_query": "updraft_stand_ins",
    },
    "airflow.utils.dates": {
        "datetime": "datetime", "timedelta": "datetime", "timezone": ("airflow.sdk", "timezone"),
        "days_ago": "updraft_stand_ins", "parse_execution_date": "updraft_stand_ins", "date_range": "updraft_stand_ins",
    },
    "airflow.utils.db": {"create_session": "airflow.utils.session", "provide_session": "airflow.utils.session"},
    "airflow.models": {"ImportError": ("airflow.models.errors", "ParseImportError"), "Operator": ("typing", "Any")},
    "airflow.models.taskinstance": {"Context": "airflow.sdk"},
    "airflow.models.xcom_arg": {"PlainXComArg": "airflow.sdk.definitions.xcom_arg"},
    "airflow.operators.branch": {"SkipMixin": STANDARD + "utils.skipmixin"},
    "airflow.operators.weekday": {"WeekDay": STANDARD + "utils.weekday"},
    "airflow.operators.python": {"is_venv_installed": "updraft_stand_ins", "task": "airflow.sdk"},
    "airflow.operators.trigger_dagrun": {"TriggerDagRunLink": STANDARD + "operators.trigger_dagrun"},
    "airflow.models.baseoperator": {"BaseOperatorMeta": "airflow.sdk.bases.operator", "BaseOperatorLink": "airflow.sdk"},
    "airflow.models.dag": {
        "DagContext": "airflow.sdk.definitions._internal.contextmanager",
        "ScheduleInterval": ("typing", "Any"), "DagStateChangeCallback": ("typing", "Any"),
    },
    "airflow.utils.edgemodifier": {"EdgeModifier": "airflow.sdk.definitions.edges"},
    "airflow.utils.operator_helpers": {"context_to_airflow_vars": "airflow.sdk.execution_time.context"},
    "airflow.utils.task_group": {
        "MappedTaskGroup": "airflow.sdk.definitions.taskgroup",
        "TaskGroupContext": "airflow.sdk.definitions._internal.contextmanager",
    },
    "airflow.utils.timezone": {
        name: "airflow.sdk._shared.timezones.timezone" for name in ("is_localized", "is_naive", "make_aware", "make_naive")
    },
    "airflow.utils.file": {"TemporaryDirectory": "tempfile"},
}
SCHEDULES = ("schedule_interval", "timetable")
DAG_ARGUMENTS = {"concurrency": "max_active_tasks", "fail_stop": "fail_fast"}
# Class -> old argument -> its name now.
CLASS_ARGUMENTS = {
    "TriggerDagRunOperator": {"execution_date": "logical_date"},
    "ExternalTaskMarker": {"execution_date": "logical_date"},
    "DayOfWeekSensor": {"use_task_execution_day": "use_task_logical_date"},
    "BranchDayOfWeekOperator": {"use_task_execution_day": "use_task_logical_date"},
    "BranchDateTimeOperator": {"use_task_execution_date": "use_task_logical_date"},
    "BashOperator": {"skip_exit_code": "skip_on_exit_code"},
}
DAG_NOTHING = ("default_view", "orientation", "full_filepath", "sla_miss_callback")
TASK_ARGUMENTS = {"task_concurrency": "max_active_tis_per_dag", "xcom_push": "do_xcom_push"}
TASK_NOTHING = ("provide_context", "sla")
RULES = {"dummy": "always", "none_failed_or_skipped": "none_failed_min_one_success"}

# Options that moved, as Airflow 2.11 still followed them: (section, name) -> where each is now, and what it was by default.
OPTIONS = {
    ("core", "base_log_folder"): ("logging", "base_log_folder", None),
    ("core", "logging_level"): ("logging", "logging_level", None),
    ("core", "dag_concurrency"): ("core", "max_active_tasks_per_dag", None),
    ("core", "sql_alchemy_conn"): ("database", "sql_alchemy_conn", None),
    ("kubernetes", "namespace"): ("kubernetes_executor", "namespace", "default"),
    ("kubernetes", "in_cluster"): ("kubernetes_executor", "in_cluster", "True"),
    ("kubernetes", "worker_container_repository"): ("kubernetes_executor", "worker_container_repository", ""),
    ("kubernetes", "worker_container_tag"): ("kubernetes_executor", "worker_container_tag", ""),
    ("webserver", "base_url"): ("api", "base_url", "http://localhost:8080"),
    ("webserver", "secret_key"): ("api", "secret_key", None),
    ("celery", "default_queue"): ("operators", "default_queue", None),
    ("scheduler", "child_process_log_directory"): ("logging", "dag_processor_child_process_log_directory", None),
    ("scheduler", "dag_dir_list_interval"): ("dag_processor", "refresh_interval", None),
}
