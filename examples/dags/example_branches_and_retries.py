"""A branch that skips, a task that succeeds at its second try, and one that runs whatever happened before."""

from datetime import datetime, timedelta

from airflow.providers.standard.operators.bash import BashOperator
from airflow.providers.standard.operators.python import BranchPythonOperator
from airflow.sdk import DAG

with DAG(
    "example_branches_and_retries",
    schedule="@once",
    start_date=datetime(2025, 1, 1),
    is_paused_upon_creation=False,
    tags=["example"],
) as dag:
    choose = BranchPythonOperator(task_id="choose", python_callable=lambda: "taken")
    taken = BashOperator(
        task_id="taken",
        bash_command="test {{ ti.try_number }} -ge 2",
        retries=2,
        retry_delay=timedelta(seconds=1),
    )
    left = BashOperator(task_id="left", bash_command="echo never")
    after = BashOperator(task_id="after", bash_command="echo done", trigger_rule="none_failed_min_one_success")
    choose >> [taken, left] >> after
