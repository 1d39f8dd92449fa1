"""Bash tasks with templates: what the date is, and what the ten days around it are called."""

from datetime import datetime

from airflow.providers.standard.operators.bash import BashOperator
from airflow.providers.standard.operators.empty import EmptyOperator
from airflow.sdk import DAG

with DAG(
    "example_bash",
    description="Bash tasks with templates",
    schedule="@daily",
    start_date=datetime(2025, 1, 1),
    catchup=False,
    is_paused_upon_creation=False,
    tags=["example"],
) as dag:
    start = EmptyOperator(task_id="start")
    date = BashOperator(task_id="print_date", bash_command="date")
    days = BashOperator(
        task_id="print_days",
        bash_command="""
{% set local = data_interval_start.in_timezone('Asia/Seoul').to_date_string() %}
{% for i in range(5) %}
echo "{{ local }} and {{ i }} days is {{ macros.ds_add(local, i) }}"
{% endfor %}
""",
    )
    context = BashOperator(task_id="print_context", bash_command="env | grep ^AIRFLOW_CTX_ | sort; echo {{ run_id }}")
    start >> date >> [days, context]
