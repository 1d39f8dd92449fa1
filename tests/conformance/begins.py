"""Tasks that begin with their trigger. Airflow refuses `end_from_trigger` beside listeners, its own examples' included."""

from datetime import timedelta

from airflow.providers.standard.operators.bash import BashOperator
from airflow.providers.standard.operators.empty import EmptyOperator
from airflow.providers.standard.sensors.date_time import DateTimeSensorAsync
from airflow.sdk import DAG

with DAG("conformance_begins", schedule=None):
    passed = {"target_time": "{{ dag_run.run_after }}", "start_from_trigger": True}
    DateTimeSensorAsync(task_id="ends_there", end_from_trigger=True, **passed) >> EmptyOperator(task_id="after")
    DateTimeSensorAsync(task_id="goes_on", **passed) >> BashOperator(task_id="then", bash_command="echo {{ ti.try_number }}")
    DateTimeSensorAsync(
        task_id="late", target_time="2100-01-01T00:00:00+00:00", start_from_trigger=True,
        execution_timeout=timedelta(seconds=3),
    ) >> EmptyOperator(task_id="never")
