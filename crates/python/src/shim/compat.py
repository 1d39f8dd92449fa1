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
import inspect
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
MODULES.update({
    "airflow.datasets.metadata": {"Metadata": "airflow.sdk"},
    "airflow.timetables.datasets": {"DatasetOrTimeSchedule": "updraft_compat"},
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
    "volume": {"Volume": "updraft_compat"}, "volume_mount": {"VolumeMount": "updraft_compat"},
    "pod": {"Port": "updraft_compat", "Resources": "updraft_compat"},
    "pod_runtime_info_env": {"PodRuntimeInfoEnv": "updraft_compat"},
}
for _name, _names in _KUBERNETES.items():
    for _package in ("airflow.kubernetes", "airflow.contrib.kubernetes", "airflow.providers.cncf.kubernetes.backcompat"):
        MODULES[f"{_package}.{_name}"] = _names
MODULES["airflow.operators.subdag"] = MODULES["airflow.operators.subdag_operator"] = {"SubDagOperator": "updraft_compat"}


def read_modules(text):
    """Adds what else moved: lines of old module, name, and where it is now (`@` stands for the providers)."""
    for line in text.splitlines():
        module, name, now = line.split()
        now = f"airflow.providers.{now[1:]}" if now.startswith("@") else f"airflow.{now}"
        where, _, renamed = now.rpartition(".")
        MODULES.setdefault(f"airflow.{module}", {}).setdefault(name, (where, renamed or name))


# Old names that modules of today lack.
NAMES = {
    "airflow.utils.helpers": {"chain": "airflow.sdk", "cross_downstream": "airflow.sdk"},
    "airflow.operators.python": {"is_venv_installed": "updraft_compat", "task": "airflow.sdk"},
    "airflow.operators.trigger_dagrun": {"TriggerDagRunLink": STANDARD + "operators.trigger_dagrun"},
    "airflow.models.baseoperator": {"BaseOperatorMeta": "airflow.sdk.bases.operator"},
    "airflow.models.dag": {"DagContext": "airflow.sdk.definitions._internal.contextmanager"},
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
    if where == "updraft_compat":
        return value
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


def _model(kind, old, **fields):
    """A Kubernetes model of a name that Airflow had a class of its own for; fields as Kubernetes spells them."""
    from kubernetes.client import ApiClient

    note(old, f"kubernetes.client.models.{kind}")
    fields = {key: value for key, value in fields.items() if value is not None}
    return ApiClient()._ApiClient__deserialize(fields, kind)


def Volume(name, configs):
    return _model("V1Volume", "Volume", name=name, **configs)


def VolumeMount(name, mount_path, sub_path=None, read_only=False):
    return _model("V1VolumeMount", "VolumeMount", name=name, mountPath=mount_path, subPath=sub_path, readOnly=read_only)


def Port(name=None, container_port=None):
    return _model("V1ContainerPort", "Port", name=name, containerPort=container_port)


def Resources(**amounts):
    note("Resources", "kubernetes.client.models.V1ResourceRequirements")
    return _pod_resources(amounts)


def PodRuntimeInfoEnv(name=None, field_path=None):
    return _model("V1EnvVar", "PodRuntimeInfoEnv", name=name, valueFrom={"fieldRef": {"fieldPath": field_path}})


def DatasetOrTimeSchedule(*, timetable, datasets):
    from airflow.timetables.assets import AssetOrTimeSchedule

    note("DatasetOrTimeSchedule", "AssetOrTimeSchedule(timetable=..., assets=...)")
    return AssetOrTimeSchedule(timetable=timetable, assets=datasets)


def is_venv_installed():
    import shutil

    return bool(shutil.which("virtualenv") or importlib.util.find_spec("virtualenv"))


def parse_execution_date(text):
    from airflow.sdk import timezone

    note("airflow.utils.dates.parse_execution_date", "airflow.sdk.timezone.parse")
    return timezone.parse(text)


def SubDagOperator(*, task_id, subdag, dag=None, **_):
    """The tasks of a DAG within a DAG become a task group of the outer one, as Airflow 3 has it."""
    from airflow.sdk import TaskGroup
    from airflow.sdk.definitions._internal.contextmanager import DagContext

    note("SubDagOperator", f"with TaskGroup({task_id!r}): ...")
    outer = dag or DagContext.get_current()
    group = TaskGroup(group_id=task_id, dag=outer)
    tasks = list(subdag.tasks)
    names = {task.task_id: group.child_id(task.task_id) for task in tasks}
    subdag.task_dict.clear()
    subdag.task_group.children.clear()
    for pair in [pair for pair in DagContext.autoregistered_dags if pair[0] is subdag]:
        DagContext.autoregistered_dags.discard(pair)
    for task in tasks:
        task.task_id = names[task.task_id]
        task.upstream_task_ids = {names[name] for name in task.upstream_task_ids}
        task.downstream_task_ids = {names[name] for name in task.downstream_task_ids}
        task._dag = None
        task.task_group = None
        group.add(task)
        task.task_group = group
        outer.add_task(task)
    return group


def _add_names():
    for module, name, value in (
        ("airflow.utils.dates", "days_ago", days_ago),
        ("airflow.utils.dates", "parse_execution_date", parse_execution_date),
        ("airflow.utils.decorators", "apply_defaults", apply_defaults),
        ("airflow.exceptions", "RemovedInAirflow3Warning", DeprecationWarning),
    ):
        module = importlib.import_module(module)
        if not hasattr(module, name):
            setattr(module, name, value)
    from airflow.task.trigger_rule import TriggerRule

    for name, value in (("DUMMY", "ALWAYS"), ("NONE_FAILED_OR_SKIPPED", "NONE_FAILED_MIN_ONE_SUCCESS")):
        if not hasattr(TriggerRule, name):
            type.__setattr__(TriggerRule, name, TriggerRule[value])
    from airflow import configuration

    for name in ("get", "getboolean", "getfloat", "getint", "has_option"):
        if not hasattr(configuration, name):
            setattr(configuration, name, getattr(configuration.conf, name))


class _Lacking(importlib.abc.MetaPathFinder):
    """Gives modules of today the old names that they lack, when they are imported."""

    def find_spec(self, name, path=None, target=None):
        names = NAMES.pop(name, None)
        if names is None:
            return None
        spec = importlib.util.find_spec(name)
        if spec is None or spec.loader is None:
            return spec
        run = spec.loader.exec_module

        def exec_module(module):
            run(module)
            give(module, names)

        spec.loader.exec_module = exec_module
        return spec


def give(module, names):
    """Adds a fallback for names that a module lacks."""
    before = getattr(module, "__getattr__", None)

    def missing(name):
        if name in names:
            return _target(module.__name__, names[name], name)
        if before is None:
            raise AttributeError(f"module {module.__name__!r} has no attribute {name!r}")
        return before(name)

    if not all(name in module.__dict__ for name in names):
        module.__getattr__ = missing


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

    def signature(cls):
        parameters = list(inspect.signature(cls.__init__).parameters.values())
        return inspect.Signature(parameters[1:])

    BaseOperatorMeta.__call__ = call
    # Without it a class would have the signature of `call`; Airflow reads from it which defaults a mapped task takes.
    BaseOperatorMeta.__signature__ = property(signature)


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
    from updraft_old_modules import TABLE

    read_modules(TABLE)
    sys.meta_path.append(_OldModules())
    # Its modules of old come into being with it, unseen by any finder.
    importlib.import_module("airflow.operators")
    for name in list(NAMES):
        if name in sys.modules:
            give(sys.modules[name], NAMES.pop(name))
    sys.meta_path.insert(0, _Lacking())
    _add_names()
    _wrap_dag()
    _wrap_operators()
    _wrap_context()
