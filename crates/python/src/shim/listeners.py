"""Listeners of runs: plugins that want to hear when a run begins and how it ends."""

HOOKS = ("on_dag_run_running", "on_dag_run_success", "on_dag_run_failed")


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


def tell(bag, request):
    """Tells the listeners of a run, with the DAG at hand as Airflow's scheduler has it."""
    from airflow.models.dagrun import DagRun
    from airflow.serialization.serialized_objects import DagSerialization
    from airflow.utils.types import DagRunTriggeredByType
    from dateutil.parser import isoparse

    # As it was when it happened: the run may have gone on since.
    state = request["hook"].removeprefix("on_dag_run_")
    facts = {**request["dag_run"], "state": state}
    if state == "running":
        facts["end_date"] = None
    plain = ("dag_id", "run_type", "state", "conf", "triggering_user_name", "partition_key")
    moments = ("queued_at", "logical_date", "run_after", "start_date", "partition_date")
    run = DagRun(
        run_id=facts["dag_run_id"],
        **{key: facts[key] for key in plain},
        **{key: facts[key] and isoparse(facts[key]) for key in moments},
    )
    for key in ("end_date", "data_interval_start", "data_interval_end", "last_scheduling_decision"):
        setattr(run, key, facts[key] and isoparse(facts[key]))
    run.id = request["run_key"]
    if facts["triggered_by"]:
        run.triggered_by = DagRunTriggeredByType(facts["triggered_by"])
    dag = bag.dags.get(facts["dag_id"])
    if dag is not None:
        run.dag = DagSerialization.from_dict(DagSerialization.to_dict(dag))
    hook = manager().hook
    try:
        getattr(hook, request["hook"])(dag_run=run, msg=request["msg"])
    finally:
        # This process ends now: whoever passes its news on in the background must be done by then.
        hook.before_stopping(component=None)
