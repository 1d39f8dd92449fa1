"""Runs of DAGs that know partitions."""

from airflow.providers.standard.operators.bash import BashOperator
from airflow.sdk import DAG, Asset, CronPartitionTimetable, PartitionedAssetTimetable, PartitionedAtRuntime, task
from pendulum import datetime


def partitioned(name, schedule):
    with DAG(name, schedule=schedule, start_date=datetime(2025, 1, 1)):

        @task
        def knows(partition_key=None, partition_date=None, **context):
            return [partition_key, partition_date, context["dag_run"].partition_key]

        knows() >> BashOperator(task_id="writes", bash_command="echo {{ partition_key }} {{ partition_date }}")


partitioned("conformance_cron_partition", CronPartitionTimetable("@daily", timezone="Europe/Zurich"))
partitioned("conformance_asset_partition", PartitionedAssetTimetable(assets=Asset("conformance_partitioned")))
partitioned("conformance_runtime_partition", PartitionedAtRuntime())
