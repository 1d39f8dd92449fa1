"""Stand-ins for functions and classes of Airflow 1.10 and 2 that have no successor of the same shape."""

import importlib.util

from updraft_notes import note


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
    return pod_resources(amounts)


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
    # Its hash has changed with its tasks, so that it cannot be found in the set any more.
    kept = [pair for pair in DagContext.autoregistered_dags if pair[0] is not subdag]
    DagContext.autoregistered_dags.clear()
    DagContext.autoregistered_dags.update(kept)
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


def pod_resources(value):
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

def subdag(parent_dag_name, child_dag_name, args):
    """The DAG within a DAG of Airflow 2's examples, which many copied the import of."""
    from airflow.providers.standard.operators.empty import EmptyOperator
    from airflow.sdk import DAG

    note("airflow.example_dags.subdags.subdag", "a TaskGroup of your own")
    inner = DAG(f"{parent_dag_name}.{child_dag_name}", default_args=args, schedule="@daily")
    for number in range(5):
        EmptyOperator(task_id=f"{child_dag_name}-task-{number + 1}", default_args=args, dag=inner)
    return inner


def get_attr_renderer():
    """How the old web server showed fields; nothing asks any more."""
    note("airflow.www.utils.get_attr_renderer", "template_fields_renderers of the operator")
    return {}


def build_airflow_url_with_query(query):
    """A link to the graph of a DAG."""
    from urllib.parse import urlencode

    from airflow.configuration import conf

    note("airflow.utils.helpers.build_airflow_url_with_query", "a link of your own")
    base = conf.get("api", "base_url", fallback="").rstrip("/")
    return f"{base}/dags/{query.get('dag_id', '')}?{urlencode(query)}"


def date_range(start_date, end_date=None, num=None, delta=None):
    """Dates from a start on, to an end or so many of them, by a cron expression or a timedelta."""
    import datetime

    from airflow.sdk import timezone

    note("airflow.utils.dates.date_range", "a list of your own")
    if not delta:
        return []
    if end_date and num:
        raise ValueError("Wait. Either specify end_date OR num")
    if not end_date and not num:
        end_date = timezone.utcnow()
    if isinstance(delta, str):
        from croniter import croniter

        dates = croniter(delta, start_date)
        step = lambda at: dates.get_next(datetime.datetime)  # noqa: E731
        at = start_date if croniter.match(delta, start_date) else step(start_date)
    else:
        at, step = start_date, lambda at: at + delta
    found = []
    while (end_date and at <= end_date) or (num and len(found) < abs(num)):
        found.append(at)
        at = step(at)
    return found
