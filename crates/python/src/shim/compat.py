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

import updraft_dependencies
import updraft_notes
import updraft_stand_ins
from updraft_notes import note
from updraft_old_names import (
    CLASS_ARGUMENTS, DAG_ARGUMENTS, DAG_NOTHING, MODULES, NAMES, OPTIONS, RULES, SCHEDULES, TASK_ARGUMENTS, TASK_NOTHING,
    read_modules,
)
from updraft_stand_ins import pod_resources

_old_dag = contextvars.ContextVar("old_dag", default=False)


def _target(module, entry, name):
    if updraft_notes.is_handled(updraft_notes.IMPORTS):
        raise AttributeError(f"module {module!r} has no attribute {name!r}")
    where, now = entry if isinstance(entry, tuple) else (entry, name)
    value = getattr(importlib.import_module(where), now)
    if where == "updraft_stand_ins":
        # It notes its use itself.
        return value
    note(f"{module}.{name}", f"from {where} import {now}")
    return value


class _OldModules(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    """Finds old modules after everybody else has looked for them in vain."""

    def find_spec(self, name, path=None, target=None):
        if not name.startswith("airflow."):
            return None
        is_package = any(module.startswith(name + ".") for module in MODULES)
        if (name in MODULES or is_package) and not updraft_notes.is_handled(updraft_notes.IMPORTS):
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


def _add_names():
    for module, name, where in (
        ("airflow.utils.decorators", "apply_defaults", "updraft_stand_ins"),
        ("airflow.exceptions", "RemovedInAirflow3Warning", ("builtins", "DeprecationWarning")),
    ):
        give(importlib.import_module(module), {name: where})
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


def _renamed(arguments, names, nothing, is_old=True):
    for old, new in names.items():
        if old in arguments:
            note(f"{old}=", f"{new}=", is_old)
            value = arguments.pop(old)
            # Airflow 2 let the old name of this one win.
            if old == "concurrency" and value:
                arguments[new] = value
            arguments.setdefault(new, value)
    for old in nothing:
        if old in arguments:
            note(f"{old}=", "nothing: leave it out", is_old)
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
        # Airflow 3 passes over what it does not know among these.
        _renamed(defaults, TASK_ARGUMENTS, [name for name in TASK_NOTHING if name in defaults], is_old=False)
        _old_rule(defaults)
        _old_values(defaults)
    is_old = updraft_notes.is_old(updraft_notes.place()[0])
    if is_old:
        import datetime

        if len(positional) < 2 and "schedule" not in arguments:
            arguments["schedule"] = datetime.timedelta(days=1)
        started = arguments.get("start_date") or (defaults or {}).get("start_date")
        if started and "catchup" not in arguments and "AIRFLOW__SCHEDULER__CATCHUP_BY_DEFAULT" not in os.environ:
            arguments["catchup"] = True
    return is_old


class _Old:
    """An attribute under its old name, unless somebody sets it."""

    def __init__(self, new):
        self.new = new

    def __get__(self, instance, owner=None):
        return self if instance is None else getattr(instance, self.new)


def _knows(args, arguments):
    """Whether DAG of Airflow 3 takes all of these arguments."""
    return len(args) < 2 and not any(name in arguments for names in (SCHEDULES, DAG_ARGUMENTS, DAG_NOTHING) for name in names)


def _wrap_dag():
    from airflow.sdk.definitions import dag as module
    from airflow.sdk.definitions.timetables.interval import CronDataIntervalTimetable, DeltaDataIntervalTimetable

    original, create = module.DAG.__init__, module._create_timetable

    @functools.wraps(original)
    def init(self, *args, **kwargs):
        if not _knows(args, kwargs) and updraft_notes.is_handled(updraft_notes.ARGUMENTS):
            # Airflow 3 raises TypeError, and the file has an answer to it.
            original(self, *args, **kwargs)
            updraft_dependencies.made(self)
            return
        if len(args) > 1 and isinstance(args[1], str):
            # What came second and third before Airflow 3.
            note("DAG(id, description, schedule)", "DAG(id, description=..., schedule=...)")
            kwargs.update(zip(("description", "schedule_interval"), args[1:3]))
            args = args[:1]
        token = _old_dag.set(_dag_arguments(kwargs, args))
        try:
            original(self, *args, **kwargs)
        finally:
            _old_dag.reset(token)
        updraft_dependencies.made(self)

    def timetable(schedule, zone):
        presets = getattr(sys.modules.get("airflow.utils.dates"), "cron_presets", {})
        if isinstance(schedule, str):
            # Files may have added presets of their own.
            schedule = presets.get(schedule, schedule)
        made = create(schedule, zone)
        if _old_dag.get():
            kind = type(made).__name__
            if kind == "CronTriggerTimetable":
                return CronDataIntervalTimetable(schedule, zone)
            if kind == "DeltaTriggerTimetable":
                return DeltaDataIntervalTimetable(schedule)
        return made

    for old, new in (("schedule_interval", "schedule"), ("concurrency", "max_active_tasks")):
        if not hasattr(module.DAG, old):
            setattr(module.DAG, old, _Old(new))
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
        arguments.setdefault("container_resources", pod_resources(arguments.pop("resources")))
    secrets = arguments.get("image_pull_secrets")
    if isinstance(secrets, str):
        from kubernetes.client import models

        note("image_pull_secrets='...'", "image_pull_secrets=[kubernetes.client.models.V1LocalObjectReference(...)]")
        names = [name.strip() for name in secrets.split(",") if name.strip()]
        arguments["image_pull_secrets"] = [models.V1LocalObjectReference(name) for name in names]
    return {}


OPERATOR_ARGUMENTS = {"DockerOperator": _docker_arguments, "KubernetesPodOperator": _pod_arguments}


def _old_values(arguments):
    """Values of a task that Airflow 2 took in more forms."""
    if isinstance(arguments.get("email"), (set, frozenset)):
        note("email={...}", "email=[...]")
        arguments["email"] = sorted(arguments["email"])
    for name in ("start_date", "end_date"):
        if isinstance(arguments.get(name), str):
            from airflow.sdk import timezone

            try:
                parsed = timezone.parse(arguments[name])
            except ValueError:
                continue
            note(f"{name}='...'", f"{name}=datetime(...)")
            arguments[name] = parsed
    if "use_dill" in arguments:
        note("use_dill=", "serializer='dill'")
        if arguments.pop("use_dill"):
            arguments.setdefault("serializer", "dill")


def _wrap_params():
    """Params were kept as they are; now each must be JSON."""
    import datetime

    from airflow.sdk import XComArg
    from airflow.sdk.definitions.param import ParamsDict

    original = ParamsDict.__init__

    def plain(name, value):
        if isinstance(value, (datetime.date, datetime.time)):
            note(f"params[{name!r}]: {type(value).__name__}", "its text: isoformat()")
            return value.isoformat()
        if isinstance(value, (set, frozenset)):
            note(f"params[{name!r}]: set", "a list")
            return sorted(value, key=str)
        if isinstance(value, XComArg):
            note(f"params[{name!r}]: XComArg", "an argument or a template of the task")
            return str(value)
        return value

    @functools.wraps(original)
    def init(self, dict_obj=None, *args, **kwargs):
        if isinstance(dict_obj, dict) and not isinstance(dict_obj, ParamsDict):
            dict_obj = {name: plain(name, value) for name, value in dict_obj.items()}
        original(self, dict_obj, *args, **kwargs)

    ParamsDict.__init__ = init


def _wrap_options():
    from airflow.configuration import conf

    original = conf.get

    @functools.wraps(original)
    def get(section, key, *args, **kwargs):
        now = OPTIONS.get((str(section).lower(), str(key).lower()))
        if now is None or original(section, key, fallback=None) is not None:
            return original(section, key, *args, **kwargs)
        note(f"conf.get({section!r}, {key!r})", f"conf.get({now[0]!r}, {now[1]!r})", is_old=False)
        if now[2] is not None:
            kwargs.setdefault("fallback", now[2])
        return original(now[0], now[1], *args, **kwargs)

    conf.get = get


def _wrap_operators():
    from airflow.sdk.bases.operator import BaseOperatorMeta

    renamed = set().union(*CLASS_ARGUMENTS.values())
    unknown = {*TASK_ARGUMENTS, *TASK_NOTHING, *renamed, "use_dill"}
    interesting = {*unknown, "trigger_rule", "email", "start_date", "end_date"}

    def operator_arguments(cls, arguments):
        for kind in cls.__mro__:
            if kind.__name__ in OPERATOR_ARGUMENTS:
                return OPERATOR_ARGUMENTS[kind.__name__](arguments)
        return {}

    own_names = {}

    def own(cls):
        """What the classes between this one and BaseOperator take themselves: these names are theirs."""
        if cls not in own_names:
            names = set()
            for kind in cls.__mro__:
                if kind.__name__ == "BaseOperator":
                    break
                if "__init__" in kind.__dict__:
                    names.update(inspect.signature(kind.__init__).parameters)
            own_names[cls] = names
        return own_names[cls]

    def call(cls, *args, **kwargs):
        kept_back = {}
        if not unknown.isdisjoint(kwargs) and updraft_notes.is_handled(updraft_notes.ARGUMENTS):
            return super(BaseOperatorMeta, cls).__call__(*args, **kwargs)
        if not interesting.isdisjoint(kwargs):
            kept_back = {name: kwargs.pop(name) for name in interesting & kwargs.keys() & own(cls)}
            _renamed(kwargs, TASK_ARGUMENTS, [name for name in TASK_NOTHING if name in kwargs])
            _old_rule(kwargs)
            for kind in cls.__mro__:
                _renamed(kwargs, CLASS_ARGUMENTS.get(kind.__name__, {}), ())
            _old_values(kwargs)
            kwargs.update(kept_back)
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
    import airflow

    updraft_notes.install(os.path.dirname(airflow.__file__) + os.sep)
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
    _wrap_params()
    _wrap_options()
    _wrap_operators()
    _wrap_context()
    updraft_dependencies.install()
