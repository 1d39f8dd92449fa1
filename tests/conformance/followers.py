"""Runs that others start: by updates of assets and of their partitions, and by a task. Their DAGs are named ..._follows."""

from airflow.providers.standard.operators.trigger_dagrun import TriggerDagRunOperator
from airflow.sdk import (
    DAG, Asset, AssetAlias, FixedKeyMapper, MinimumCount, PartitionedAssetTimetable, PartitionedAtRuntime, RollupMapper,
    SegmentWindow, StartOfMonthMapper, chain, task,
)
from airflow.timetables.assets import AssetOrTimeSchedule
from airflow.timetables.trigger import CronTriggerTimetable
from pendulum import datetime

first, second, never = Asset("conformance_first", extra={"a": 1}), Asset("conformance_second"), Asset("conformance_never")
named = AssetAlias("conformance_alias")
regions, days = Asset("conformance_regions"), Asset("conformance_days")


@task
def seen(triggering_asset_events=None, dag_run=None, **context):
    events = [event for group in triggering_asset_events.values() for event in group]
    described = [
        [event.asset.name, event.extra, event.source_task_id, event.source_dag_id, event.source_map_index,
         [alias.name for alias in event.source_aliases], event.partition_key]
        for event in events
    ]
    return [sorted(described, key=str), sorted(key for key in ("logical_date", "ds", "data_interval_start") if key in context)]


with DAG("conformance_emits", schedule=None):

    @task(outlets=[first])
    def one(outlet_events=None):
        outlet_events[first].extra = {"rows": 3}

    @task(outlets=[second])
    def two():
        return 2

    @task(outlets=[named])
    def through(outlet_events=None):
        outlet_events[named].add(Asset("conformance_late"), extra={"late": True})

    @task(outlets=[Asset("conformance_mapped")])
    def mapped(n):
        return n

    chain(one(), two(), through(), mapped.expand(n=[1, 2]))

with DAG("conformance_regions", schedule=PartitionedAtRuntime()):

    @task(outlets=[regions])
    def regional(outlet_events=None):
        outlet_events[regions].add_partitions(["us", "eu"])

    @task(outlets=[days])
    def daily(outlet_events=None):
        outlet_events[days].add_partitions(["2026-01-31", "2026-02-01"])

    regional() >> daily()

with DAG("conformance_triggers", schedule=None):
    TriggerDagRunOperator(
        task_id="go", trigger_dag_id="conformance_triggered_follows", trigger_run_id="by_task", conf={"n": "{{ dag.dag_id }}"},
        logical_date=datetime(2025, 1, 2), wait_for_completion=True, poke_interval=1,
    )

with DAG("conformance_first_follows", schedule=first):
    seen()

with DAG("conformance_both_follows", schedule=first & second):
    seen()

with DAG("conformance_either_follows", schedule=first | never):
    seen()

with DAG("conformance_alias_follows", schedule=named):
    seen()

with DAG("conformance_timed_follows", start_date=datetime(2099, 1, 1),
         schedule=AssetOrTimeSchedule(timetable=CronTriggerTimetable("0 0 1 1 *", timezone="UTC"), assets=second)):
    seen()

with DAG("conformance_regions_follows", schedule=PartitionedAssetTimetable(assets=regions)):
    seen()

with DAG("conformance_rollup_follows", schedule=PartitionedAssetTimetable(
        assets=regions, default_partition_mapper=RollupMapper(
            upstream_mapper=FixedKeyMapper("all"), window=SegmentWindow(["us", "eu", "asia"]), wait_policy=MinimumCount(2)))):
    seen()

with DAG("conformance_months_follows", schedule=PartitionedAssetTimetable(
        assets=days, default_partition_mapper=StartOfMonthMapper(input_format="%Y-%m-%d"))):
    seen()

with DAG("conformance_triggered_follows", schedule=None):

    @task
    def told(dag_run=None):
        return [dag_run.conf, dag_run.run_type, dag_run.run_id]

    told()
