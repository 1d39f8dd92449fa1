"""Branches, short circuits, and what they skip."""

from airflow.providers.standard.operators.empty import EmptyOperator
from airflow.providers.standard.operators.latest_only import LatestOnlyOperator
from airflow.sdk import DAG, TaskGroup, task

with DAG("conformance_branches", schedule=None) as dag:

    @task.branch
    def one():
        return "left"

    @task.branch
    def several():
        return ["middle", "group.inner"]

    @task.branch
    def none():
        return None

    left, right, middle = (EmptyOperator(task_id=name) for name in ("left", "right", "middle"))
    joined = EmptyOperator(task_id="joined")
    either = EmptyOperator(task_id="either", trigger_rule="none_failed_min_one_success")
    one() >> [left, right] >> joined
    [left, right] >> either
    with TaskGroup("group"):
        inner = EmptyOperator(task_id="inner")
        other = EmptyOperator(task_id="other")
    several() >> [middle, inner, other]
    nobody = EmptyOperator(task_id="nobody")
    none() >> nobody >> EmptyOperator(task_id="after_nobody", trigger_rule="all_done")

    @task.short_circuit
    def stop():
        return False

    @task.short_circuit(ignore_downstream_trigger_rules=False)
    def stop_softly():
        return 0

    @task.short_circuit
    def go_on():
        return "yes"

    for number, gate in enumerate((stop(), stop_softly(), go_on())):
        gate >> EmptyOperator(task_id=f"next_{number}") >> EmptyOperator(task_id=f"last_{number}", trigger_rule="all_done")

    @task.run_if(lambda context: context["params"].get("run", False), skip_message="not now")
    @task
    def only_if():
        return 1

    @task.skip_if(lambda context: False)
    @task
    def unless():
        return 1

    only_if() >> unless()
    LatestOnlyOperator(task_id="latest_only") >> EmptyOperator(task_id="after_latest_only")
