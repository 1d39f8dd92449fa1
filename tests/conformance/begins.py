"""Tasks that begin with their trigger, and runs of DAGs that know partitions."""

from datetime import timedelta

from airflow.providers.standard.operators.bash import BashOperator
from airflow.providers.standard.operators.empty import EmptyOperator
from airflow.providers.standard.sensors.date_time import DateTimeSensorAsync
from airflow.sdk import DAG, Asset, CronPartitionTimetable, PartitionedAssetTimetable, PartitionedAtRuntime, task
from pendulum import datetime

with DAG("conformance_begins", schedule=None):
    passed = {"target_time": "{{ dag_run.run_after }}", "start_from_trigger": True}
    DateTimeSensorAsync(task_id="ends_there", end_from_trigger=True, **passed) >> EmptyOperator(task_id="after")
    DateTimeSensorAsync(task_id="goes_on", **passed) >> BashOperator(task_id="then", bash_command="echo {{ ti.try_number }}")
    DateTimeSensorAsync(
        task_id="late", target_time="2100-01-01T00:00:00+00:00", start_from_trigger=True,
        execution_timeout=timedelta(seconds=3),
    ) >> EmptyOperator(task_id="never")


def partitioned(name, schedule):
    with DAG(name, schedule=schedule, start_date=datetime(2025, 1, 1)):

        @task
        def knows(partition_key=None, partition_date=None, **context):
            return [partition_key, partition_date, context["dag_run"].partition_key]

        knows() >> BashOperator(task_id="writes", bash_command="echo {{ partition_key }} {{ partition_date }}")


partitioned("conformance_cron_partition", CronPartitionTimetable("@daily", timezone="Europe/Zurich"))
partitioned("conformance_asset_partition", PartitionedAssetTimetable(assets=Asset("conformance_partitioned")))
partitioned("conformance_runtime_partition", PartitionedAtRuntime())
