"""Listeners of plugins: what Airflow tells them from its scheduler, API server and DAG processor is told them here.

What happens within a task's own process the Task SDK tells by itself.
"""

import traceback

HOOKS = (
    "on_starting", "before_stopping", "on_dag_run_running", "on_dag_run_success", "on_dag_run_failed",
    "on_task_instance_success", "on_task_instance_failed", "on_task_instance_skipped", "on_asset_created",
    "on_asset_alias_created", "on_asset_changed", "on_asset_event_emitted", "on_new_dag_import_error",
    "on_existing_dag_import_error",
)

JOBS = {"scheduler": "SchedulerJob", "dag_processor": "DagProcessorJob"}


class NewsTeller:
    """The component that listeners see begin and end around each piece of news, as tasks have their own."""


def manager():
    from airflow.listeners.listener import get_listener_manager

    return get_listener_manager()


def heard():
    """The hooks that some listener has."""
    try:
        hook = manager().hook
        return [name for name in HOOKS if getattr(hook, name).get_hookimpls()]
    except Exception:  # noqa: BLE001 - a plugin that cannot be loaded is told where plugins are listed
        return []


def moment(text):
    from dateutil.parser import isoparse

    return text and isoparse(text)


def row(model, **values):
    """A row of the database as listeners know it; it belongs to no session."""
    import airflow.models.dagrun  # noqa: F401 - the tables refer to each other
    from sqlalchemy.orm import configure_mappers

    configure_mappers()
    one = model._sa_class_manager.new_instance()
    for key, value in values.items():
        setattr(one, key, moment(value) if key.endswith(("_date", "_dttm", "_at")) else value)
    return one


def serialized(dag):
    from airflow.serialization.serialized_objects import DagSerialization

    return DagSerialization.from_dict(DagSerialization.to_dict(dag))


def dag_run(request, bag):
    """A run with its DAG at hand, as Airflow's scheduler has it."""
    from airflow.models.dagrun import DagRun
    from airflow.utils.types import DagRunTriggeredByType

    facts, hook = dict(request["dag_run"]), request.get("hook", "")
    if hook.startswith("on_dag_run_"):
        # As it was when it happened: the run may have gone on since.
        facts["state"] = hook.removeprefix("on_dag_run_")
    if facts["state"] == "running":
        facts["end_date"] = None
    plain = ("dag_id", "run_type", "state", "conf", "triggering_user_name", "partition_key")
    moments = ("queued_at", "logical_date", "run_after", "start_date", "partition_date")
    run = DagRun(
        run_id=facts["dag_run_id"],
        **{key: facts[key] for key in plain},
        **{key: moment(facts[key]) for key in moments},
    )
    for key in ("end_date", "data_interval_start", "data_interval_end", "last_scheduling_decision"):
        setattr(run, key, moment(facts[key]))
    run.id = request["run_key"]
    if facts["triggered_by"]:
        run.triggered_by = DagRunTriggeredByType(facts["triggered_by"])
    dag = bag and bag.dags.get(facts["dag_id"])
    if dag is not None:
        run.dag = serialized(dag)
    return run


def task_instance(facts, run):
    """A task instance of a run, with its task where the DAG still has it."""
    import uuid

    from airflow.models.taskinstance import TaskInstance

    ids = {key: uuid.UUID(facts[key]) for key in ("id", "dag_version_id")}
    ti = row(TaskInstance, **{**facts, **ids})
    ti.dag_run = run
    if run.dag is not None and run.dag.has_task(ti.task_id):
        ti.task = run.dag.get_task(ti.task_id)
    return ti


def asset(facts):
    from airflow.serialization.definitions.assets import SerializedAsset

    return SerializedAsset(**facts, watchers=[])


def alias(facts):
    from airflow.serialization.definitions.assets import SerializedAssetAlias

    return SerializedAssetAlias(**facts)


def asset_event(facts):
    from airflow.listeners.types import AssetEvent

    made = {
        "asset": asset(facts["asset"]),
        "source_aliases": [alias(one) for one in facts["source_aliases"]],
        "partition_date": moment(facts["partition_date"]),
    }
    return AssetEvent(**{**facts, **made})


def component(facts):
    from airflow.jobs.job import Job

    return row(Job, job_type=JOBS[facts["kind"]], hostname=facts["hostname"], state="running")


def words(hook, facts, run=None, msg=None):
    """The arguments of a hook."""
    from airflow.utils.state import TaskInstanceState

    if hook.startswith("on_dag_run_"):
        return {"dag_run": run, "msg": msg}
    if hook.startswith("on_task_instance_"):
        previous = facts["previous_state"] and TaskInstanceState(facts["previous_state"])
        told = {"previous_state": previous, "task_instance": task_instance(facts["task_instance"], run)}
        return {**told, "error": facts["error"]} if hook == "on_task_instance_failed" else told
    makers = {"asset": asset, "asset_alias": alias, "asset_event": asset_event, "component": component}
    return {key: makers.get(key, lambda value: value)(value) for key, value in facts.items()}


def call(hook, told):
    """Calls a hook of all listeners. This process ends then: whoever passes its news on in the background must be done."""
    hooks = manager().hook
    if "component" in told:
        getattr(hooks, hook)(**told)
        return
    hooks.on_starting(component=NewsTeller())
    try:
        getattr(hooks, hook)(**told)
    finally:
        hooks.before_stopping(component=NewsTeller())


def tell(bag, request):
    """Tells of a run or one of its task instances."""
    run = dag_run(request, bag)
    call(request["hook"], words(request["hook"], request["facts"], run, request["msg"]))


def tell_of_no_run(question):
    """Tells of something that belongs to no run. What goes wrong in a listener is the answer."""
    try:
        call(question["hook"], words(question["hook"], question["facts"]))
    except Exception:  # noqa: BLE001 - a listener's mistake is told, and no reason to tell it again
        return {"error": traceback.format_exc(limit=-2)}
    return {}
