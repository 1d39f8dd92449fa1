"""The idioms of DAG files of Airflow 1.10 and 2 whose meaning Airflow 3 changed. `record.py` writes down what Airflow 2.11 makes
of them; `tests/old_files.rs` holds Updraft to that.
"""

import datetime as dt
from datetime import datetime, timedelta

import pendulum
from airflow import DAG
from airflow.operators.bash_operator import BashOperator
from airflow.operators.dummy_operator import DummyOperator
from airflow.operators.python_operator import PythonOperator

DATES = " ".join(
    "{{ %s }}" % name
    for name in (
        "ds", "ds_nodash", "ts", "ts_nodash", "ts_nodash_with_tz", "execution_date", "next_execution_date",
        "prev_execution_date", "next_ds", "next_ds_nodash", "prev_ds", "prev_ds_nodash", "tomorrow_ds",
        "tomorrow_ds_nodash", "yesterday_ds", "yesterday_ds_nodash", "data_interval_start", "data_interval_end",
    )
)
NATIVE = "from {{ ds }} to {{ next_ds }} of {{ execution_date.strftime('%d.%m.%Y') }}, {{ tomorrow_ds_nodash }}"
MATHS = "{{ (execution_date + macros.timedelta(days=2)).strftime('%Y-%m-%d') }} {{ macros.ds_add(ds, -7) }} {{ execution_date.year }}"


def nothing(*args, **context):
    pass


def fill(dag):
    with dag:
        dates = BashOperator(task_id="dates", bash_command="echo " + DATES)
        native = BashOperator(task_id="native", bash_command="echo " + NATIVE, env={"DAY": "{{ ds }}"})
        maths = BashOperator(task_id="maths", bash_command="echo " + MATHS)
        python = PythonOperator(
            task_id="python", python_callable=nothing, provide_context=True,
            op_kwargs={"day": "{{ ds }}", "next": "{{ next_ds }}"}, op_args=["{{ yesterday_ds }}", 1],
            templates_dict={"until": "{{ next_execution_date }}"},
        )
        end = DummyOperator(task_id="end", trigger_rule="none_failed_or_skipped")
        [dates, native, maths, python] >> end
    return dag


UTC = dict(start_date=datetime(2019, 1, 1), end_date=datetime(2019, 1, 3))
HERE = pendulum.timezone("Europe/Amsterdam")

daily = fill(DAG("old_daily", schedule_interval="@daily", **UTC))
absent = fill(DAG("old_absent", default_args={"owner": "me", "start_date": datetime(2019, 1, 1)}, end_date=dt.datetime(2019, 1, 2)))
hourly = fill(DAG("old_hourly", schedule_interval="@hourly", start_date=datetime(2019, 1, 1), end_date=datetime(2019, 1, 1, 2)))
weekly = fill(DAG("old_weekly", schedule_interval="30 6 * * 1", start_date=datetime(2019, 1, 1), end_date=datetime(2019, 1, 22)))
workdays = fill(DAG("old_workdays", schedule_interval="0 0 * * 1-5", start_date=datetime(2019, 1, 3), end_date=datetime(2019, 1, 8)))
monthly = fill(DAG("old_monthly", schedule_interval="@monthly", start_date=datetime(2019, 1, 15), end_date=datetime(2019, 4, 1)))
steps = fill(DAG("old_steps", schedule_interval=timedelta(hours=36), start_date=datetime(2019, 1, 1), end_date=datetime(2019, 1, 5)))
summer = fill(DAG("old_summer", schedule_interval="0 3 * * *", start_date=datetime(2019, 3, 29, tzinfo=HERE), end_date=datetime(2019, 4, 2, tzinfo=HERE)))
winter = fill(DAG("old_winter", schedule_interval="@daily", start_date=datetime(2019, 10, 26, tzinfo=HERE), end_date=datetime(2019, 10, 29, tzinfo=HERE)))
once = fill(DAG("old_once", schedule_interval="@once", start_date=datetime(2019, 1, 1)))
last = fill(DAG("old_last", schedule_interval="@daily", catchup=True, concurrency=2, max_active_runs=1, **UTC))
