"""What DAG files of Airflow 1.10 and 2 say and Airflow 3 no longer understands, with its old meaning.

Installed once in the fork server, before any user code, so that it holds in parsers and in tasks alike. Whatever the
installed Airflow has itself is never replaced. Each use in a DAG file is noted with its file, line and modern form.
"""

import contextvars
import functools
import importlib
import importlib.abc
import importlib.machinery
import importlib.util
import os
import sys
import types

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
        "BaseOperatorLink": "airflow.sdk",
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
# Old names that modules of today lack.
NAMES = {
    "airflow.utils.helpers": {"chain": "airflow.sdk", "cross_downstream": "airflow.sdk"},
    "airflow.operators.bash": {},
    "airflow.operators.empty": {},
}
SCHEDULES = ("schedule_interval", "timetable")
DAG_ARGUMENTS = {"concurrency": "max_active_tasks", "fail_stop": "fail_fast"}
DAG_NOTHING = ("default_view", "orientation", "full_filepath", "sla_miss_callback")
TASK_ARGUMENTS = {"task_concurrency": "max_active_tis_per_dag", "xcom_push": "do_xcom_push"}
TASK_NOTHING = ("provide_context", "sla")
RULES = {"dummy": "always", "none_failed_or_skipped": "none_failed_min_one_success"}

_notes = {}
_old_files = set()
_old_dag = contextvars.ContextVar("old_dag", default=False)
_airflow = None


def _place():
    """File and line of the user code that we were called from."""
    frame = sys._getframe(1)
    while frame is not None:
        name = frame.f_code.co_filename
        if name != _OWN and not name.startswith(("<", _airflow)) and f"{os.sep}importlib{os.sep}" not in name:
            return name, frame.f_lineno
        frame = frame.f_back
    return "", 0


_OWN = _place.__code__.co_filename


def note(old, modern):
    """Notes one use; the file counts as an old one from here on."""
    file, line = _place()
    if file:
        _old_files.add(file)
        _notes.setdefault((file, line, old), modern)


def notes():
    """All uses so far."""
    return [
        {"file": file, "line": line, "old": old, "modern": modern} for (file, line, old), modern in _notes.items()
    ]


def _target(module, entry, name):
    where, now = entry if isinstance(entry, tuple) else (entry, name)
    value = getattr(importlib.import_module(where), now)
    note(f"{module}.{name}", f"from {where} import {now}")
    return value


class _OldModules(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    """Finds old modules after everybody else has looked for them in vain."""

    def find_spec(self, name, path=None, target=None):
        is_package = any(module.startswith(name + ".") for module in MODULES)
        if name in MODULES or (is_package and name.startswith("airflow.")):
            return importlib.machinery.ModuleSpec(name, self, is_package=is_package)
        return None

    def create_module(self, spec):
        return types.ModuleType(spec.name)

    def exec_module(self, module):
        names = MODULES.get(module.__name__, {})

        def missing(name):
            if name in names:
                return _target(module.__name__, names[name], name)
            raise AttributeError(f"module {module.__name__!r} has no attribute {name!r}")

        module.__getattr__ = missing
        module.__all__ = list(names)


def days_ago(n, hour=0, minute=0, second=0, microsecond=0):
    """Midnight so many days ago (UTC)."""
    import datetime

    from airflow.sdk import timezone

    note("airflow.utils.dates.days_ago", "a fixed start_date: datetime(2021, 1, 1)")
    today = timezone.utcnow().replace(hour=hour, minute=minute, second=second, microsecond=microsecond)
    return today - datetime.timedelta(days=n)


def apply_defaults(func):
    """Operators apply defaults by themselves."""
    note("airflow.utils.decorators.apply_defaults", "nothing: leave it out")
    return func


def _add_names():
    for module, name, value in (
        ("airflow.utils.dates", "days_ago", days_ago),
        ("airflow.utils.decorators", "apply_defaults", apply_defaults),
    ):
        module = importlib.import_module(module)
        if not hasattr(module, name):
            setattr(module, name, value)
    from airflow.task.trigger_rule import TriggerRule

    for name, value in (("DUMMY", "ALWAYS"), ("NONE_FAILED_OR_SKIPPED", "NONE_FAILED_MIN_ONE_SUCCESS")):
        if not hasattr(TriggerRule, name):
            type.__setattr__(TriggerRule, name, TriggerRule[value])
    for module, names in NAMES.items():
        for name, entry in names.items():
            found = importlib.import_module(module)
            if not hasattr(found, name):
                setattr(found, name, getattr(importlib.import_module(entry), name))


def _old_rule(arguments):
    rule = arguments.get("trigger_rule")
    if isinstance(rule, str) and rule in RULES:
        note(f"trigger_rule={str(rule)!r}", f"trigger_rule={RULES[rule]!r}")
        arguments["trigger_rule"] = RULES[rule]


def _renamed(arguments, names, nothing):
    for old, new in names.items():
        if old in arguments:
            note(f"{old}=", f"{new}=")
            value = arguments.pop(old)
            arguments.setdefault(new, value)
    for old in nothing:
        if old in arguments:
            note(f"{old}=", "nothing: leave it out")
            arguments.pop(old)


def _dag_arguments(arguments, positional):
    """The arguments of a DAG in modern words, and whether its file is an old one."""
    for old in SCHEDULES:
        if old in arguments:
            note(f"{old}=", "schedule=")
            value = arguments.pop(old)
            arguments.setdefault("schedule", value)
    _renamed(arguments, DAG_ARGUMENTS, [name for name in DAG_NOTHING if arguments.get(name) is not None])
    for name in DAG_NOTHING:
        if name != "sla_miss_callback":
            arguments.pop(name, None)
    defaults = arguments.get("default_args")
    if isinstance(defaults, dict):
        defaults = arguments["default_args"] = dict(defaults)
        _renamed(defaults, TASK_ARGUMENTS, [name for name in TASK_NOTHING if name in defaults])
        _old_rule(defaults)
    is_old = _place()[0] in _old_files
    if is_old:
        import datetime

        if len(positional) < 2 and "schedule" not in arguments:
            arguments["schedule"] = datetime.timedelta(days=1)
        started = arguments.get("start_date") or (defaults or {}).get("start_date")
        if started and "catchup" not in arguments and "AIRFLOW__SCHEDULER__CATCHUP_BY_DEFAULT" not in os.environ:
            arguments["catchup"] = True
    return is_old


def _wrap_dag():
    from airflow.sdk.definitions import dag as module
    from airflow.sdk.definitions.timetables.interval import CronDataIntervalTimetable, DeltaDataIntervalTimetable

    original, create = module.DAG.__init__, module._create_timetable

    @functools.wraps(original)
    def init(self, *args, **kwargs):
        token = _old_dag.set(_dag_arguments(kwargs, args))
        try:
            original(self, *args, **kwargs)
        finally:
            _old_dag.reset(token)

    def timetable(schedule, zone):
        made = create(schedule, zone)
        if _old_dag.get():
            kind = type(made).__name__
            if kind == "CronTriggerTimetable":
                return CronDataIntervalTimetable(schedule, zone)
            if kind == "DeltaTriggerTimetable":
                return DeltaDataIntervalTimetable(schedule)
        return made

    module.DAG.__init__ = init
    module._create_timetable = timetable


def _docker_arguments(arguments):
    """DockerOperator's arguments of old. Volumes stay what they were: a mount of today does not make its source folder."""
    if isinstance(arguments.get("auto_remove"), bool):
        value = "success" if arguments["auto_remove"] else "never"
        note(f"auto_remove={arguments['auto_remove']}", f"auto_remove={value!r}")
        arguments["auto_remove"] = value
    if "volumes" in arguments:
        note("volumes=", "mounts=[docker.types.Mount(target=..., source=..., type='bind')]")
        return {"_updraft_binds": list(arguments.pop("volumes") or [])}
    return {}


def _pod_arguments(arguments):
    """KubernetesPodOperator's arguments of old."""
    if arguments.get("is_delete_operator_pod") is not None:
        value = "delete_pod" if arguments.pop("is_delete_operator_pod") else "keep_pod"
        note("is_delete_operator_pod=", f"on_finish_action={value!r}")
        arguments.setdefault("on_finish_action", value)
    _renamed(arguments, {"node_selectors": "node_selector"}, ())
    if "resources" in arguments:
        note("resources=", "container_resources=kubernetes.client.models.V1ResourceRequirements(...)")
        arguments.setdefault("container_resources", _pod_resources(arguments.pop("resources")))
    secrets = arguments.get("image_pull_secrets")
    if isinstance(secrets, str):
        from kubernetes.client import models

        note("image_pull_secrets='...'", "image_pull_secrets=[kubernetes.client.models.V1LocalObjectReference(...)]")
        names = [name.strip() for name in secrets.split(",") if name.strip()]
        arguments["image_pull_secrets"] = [models.V1LocalObjectReference(name) for name in names]
    return {}


def _pod_resources(value):
    """`{"request_cpu": ..., "limit_memory": ...}` as the client model."""
    if not isinstance(value, dict):
        return value.to_k8s_client_obj() if hasattr(value, "to_k8s_client_obj") else value
    from kubernetes.client import models

    names = {"cpu": "cpu", "memory": "memory", "ephemeral_storage": "ephemeral-storage", "gpu": "nvidia.com/gpu"}
    out = {"requests": dict(value.get("requests") or {}), "limits": dict(value.get("limits") or {})}
    for key, amount in value.items():
        kind, _, what = key.partition("_")
        if kind in ("request", "limit") and amount is not None:
            out[f"{kind}s"][names.get(what, what)] = amount
    return models.V1ResourceRequirements(**{kind: amounts or None for kind, amounts in out.items()})


OPERATOR_ARGUMENTS = {"DockerOperator": _docker_arguments, "KubernetesPodOperator": _pod_arguments}


def _wrap_operators():
    from airflow.sdk.bases.operator import BaseOperatorMeta

    interesting = {*TASK_ARGUMENTS, *TASK_NOTHING, "trigger_rule", "execution_date", "op_kwargs"}

    def operator_arguments(cls, arguments):
        for kind in cls.__mro__:
            if kind.__name__ in OPERATOR_ARGUMENTS:
                return OPERATOR_ARGUMENTS[kind.__name__](arguments)
        return {}

    def call(cls, *args, **kwargs):
        if not interesting.isdisjoint(kwargs):
            _renamed(kwargs, TASK_ARGUMENTS, [name for name in TASK_NOTHING if name in kwargs])
            _old_rule(kwargs)
            if "execution_date" in kwargs and cls.__name__ == "TriggerDagRunOperator":
                _renamed(kwargs, {"execution_date": "logical_date"}, ())
        kept = operator_arguments(cls, kwargs)
        task = super(BaseOperatorMeta, cls).__call__(*args, **kwargs)
        for name, value in kept.items():
            setattr(task, name, value)
        return task

    BaseOperatorMeta.__call__ = call


def _old_dates(context):
    """The names around a run's logical date that Airflow 2 had in its context (`TaskInstance.get_template_context`)."""
    import datetime

    date, run = context["logical_date"], context.get("dag_run")
    day = datetime.timedelta(days=1)
    out = {"execution_date": date}

    def dated(name, at):
        text = None if at is None else at.strftime("%Y-%m-%d")
        out[f"{name}_ds"] = text
        out[f"{name}_ds_nodash"] = None if text is None else text.replace("-", "")

    dated("tomorrow", date + day)
    dated("yesterday", date - day)
    if str(getattr(run, "run_type", "")).rsplit(".", 1)[-1].lower() == "manual":
        before = after = date
    else:
        before, after = _neighbours(context, date)
    out["prev_execution_date"], out["next_execution_date"] = before, after
    dated("prev", before)
    dated("next", after)
    return out


def _neighbours(context, date):
    """The logical dates before and after this one, as the DAG's timetable has them."""
    from airflow.sdk.timezone import coerce_datetime
    from airflow.serialization.encoders import coerce_to_core_timetable
    from airflow.timetables.base import DataInterval, TimeRestriction

    try:
        core = coerce_to_core_timetable(context["dag"].timetable)
        start, end = context["data_interval_start"], context["data_interval_end"]
        info = core.next_dagrun_info(
            last_automated_data_interval=DataInterval(start, end), restriction=TimeRestriction(None, None, True)
        )
        after = None if info is None else coerce_datetime(info.logical_date or info.data_interval.start)
        before = None
        if hasattr(core, "_get_prev"):
            before = coerce_datetime(core._get_prev(date))
    except Exception:  # noqa: BLE001 - a timetable that cannot tell has no neighbours, as in Airflow 2
        return None, None
    return before, after


def _wrap_context():
    from airflow.sdk.execution_time import task_runner

    original = task_runner.RuntimeTaskInstance.get_template_context

    @functools.wraps(original)
    def get_template_context(self):
        context = original(self)
        if context.get("logical_date") is not None and "execution_date" not in context:
            context.update(_old_dates(context))
        return context

    task_runner.RuntimeTaskInstance.get_template_context = get_template_context


def install():
    """Makes all of this hold in this process and its children."""
    global _airflow
    import airflow

    _airflow = os.path.dirname(airflow.__file__) + os.sep
    sys.meta_path.append(_OldModules())
    _add_names()
    _wrap_dag()
    _wrap_operators()
    _wrap_context()
