"""Cluster policies and weight rules, which are in the folder `plugins`: `cargo xtask conformance --plugins tests/policies/plugins tests/policies/policies.py`."""

from airflow.providers.standard.operators.bash import BashOperator
from airflow.providers.standard.operators.empty import EmptyOperator
from airflow.sdk import DAG, task
from own_weights import ByName

with DAG("conformance_policies", schedule=None):

    @task
    def numbers():
        return [1, 2, 3]

    BashOperator(task_id="routed_bash", bash_command="echo {{ ti.queue }} {{ ti.pool_slots }}") >> EmptyOperator(task_id="routed_empty")
    BashOperator(task_id="tried_more", bash_command="exit 1", retry_delay=0.1)
    BashOperator.partial(task_id="routed_mapped").expand(bash_command=numbers().map(lambda n: f"echo {n}"))

with DAG("conformance_weights", schedule=None):
    own = {"weight_rule": ByName()}
    first = BashOperator(task_id="first", bash_command="echo first", **own)
    first >> EmptyOperator(task_id="second", **own) >> BashOperator(
        task_id="the_third_one", bash_command="exit 1", retry_delay=0.1, **own
    )
    # Airflow takes the name only, here.
    BashOperator.partial(task_id="mapped", weight_rule="own_weights.ByName").expand(bash_command=["echo 1", "echo 2"])
