"""What a cluster policy's task_instance_mutation_hook and the weight rules of plugins make of task instances."""

import uuid

import updraft_listeners

HOOK = "task_instance_mutation_hook"


def hooks():
    """The policy's name, if there is one."""
    from airflow.settings import get_policy_plugin_manager

    return [HOOK] if get_policy_plugin_manager().hook.task_instance_mutation_hook.get_hookimpls() else []


def mutated(facts, task, run):
    from airflow.models.taskinstance import TaskInstance

    # Airflow's own constructor asks before it has set the number of the try, and then again.
    ti = updraft_listeners.row(
        TaskInstance, id=uuid.UUID(facts["id"]), dag_id=run.dag_id, run_id=run.run_id,
        **{key: facts[key] for key in ("task_id", "map_index", "try_number", "max_tries")},
    )
    ti.dag_run = run
    ti.refresh_from_task(task, dag_run=run)
    kept = ("queue", "pool", "pool_slots", "priority_weight", "executor", "max_tries")
    # The database would cut a weight that is no whole number.
    ti.priority_weight = int(ti.priority_weight)
    return {"id": facts["id"], **{key: getattr(ti, key) for key in kept}}


def answer(question):
    """The task instances of a run as they are to be, and what went wrong; those of tasks that the DAG has no more, and those
    that went wrong, are left out."""
    from airflow.serialization.serialized_objects import DagSerialization

    told, errors = [], []
    try:
        dag = DagSerialization.from_dict(question["dag"])
        run = updraft_listeners.dag_run(question, None)
        run.dag = dag
    except Exception as error:  # noqa: BLE001 - they run as their tasks say then, and why is told
        return {"error": f"{type(error).__name__}: {error}"}
    for facts in question["task_instances"]:
        if not dag.has_task(facts["task_id"]):
            continue
        try:
            told.append(mutated(facts, dag.get_task(facts["task_id"]), run))
        except Exception as error:  # noqa: BLE001 - so does this one
            errors.append(f"{facts['task_id']}: {type(error).__name__}: {error}")
    return {"task_instances": told, "errors": errors}
