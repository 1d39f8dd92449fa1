"""What concerns a run as a whole."""

from datetime import timedelta

from airflow.providers.standard.operators.bash import BashOperator
from airflow.providers.standard.operators.empty import EmptyOperator
from airflow.sdk import DAG, task

with DAG("conformance_fail_fast", schedule=None, fail_fast=True) as fail_fast:
    # The others have begun by then, also on a busy machine.
    BashOperator(task_id="fails", bash_command="sleep 10; exit 1")
    BashOperator(task_id="runs_on", bash_command="sleep 100")
    BashOperator(task_id="retried", bash_command="exit 1", retries=1) >> EmptyOperator(task_id="never")

with DAG("conformance_timeout", schedule=None, dagrun_timeout=timedelta(seconds=10)) as timeout:
    BashOperator(task_id="long", bash_command="sleep 100") >> EmptyOperator(task_id="never")

with DAG("conformance_xcoms", schedule=None) as xcoms:

    @task(multiple_outputs=True)
    def several():
        return {"one": 1, "two": [1, {"x": None}]}

    @task
    def kinds():
        import datetime

        return [1, 2.5, None, True, "ü", {"a": (1, 2)}, datetime.timedelta(days=1)]

    @task
    def push(ti=None):
        ti.xcom_push("mine", {"k": "v"})

    @task(do_xcom_push=False)
    def silent():
        return "nothing of this is kept"

    @task
    def pull(ti=None):
        return ti.xcom_pull(task_ids="push", key="mine")

    several() >> push() >> pull()
    kinds()
    silent()

with DAG("conformance_depends", schedule=None, default_args={"depends_on_past": True}) as depends:
    EmptyOperator(task_id="first") >> BashOperator(task_id="second", bash_command="true", wait_for_downstream=True)
