"""The load of a campaign. Every task writes down when it starts, that it lives, and when it ends: see witness.rs."""

import os
import time
from datetime import datetime, timedelta, timezone

from airflow.providers.standard.operators.bash import BashOperator
from airflow.providers.standard.operators.empty import EmptyOperator
from airflow.providers.standard.sensors.python import PythonSensor
from airflow.providers.standard.triggers.temporal import TimeDeltaTrigger
from airflow.sdk import DAG, BaseOperator, task
from chaos_trigger import Later

FOLDER = "@FOLDER@"
PACE = float("@PACE@")
START = float("@START@")
INTERVAL = int("@INTERVAL@")


def path(ti):
    return f"{FOLDER}/{ti.run_id}/{ti.task_id}.{-1 if ti.map_index is None else ti.map_index}.{ti.try_number}"


def note(word, ti):
    now = int(time.clock_gettime(time.CLOCK_BOOTTIME) * 100) / 100
    worker = os.environ["UPDRAFT_WORKER_NAME"].rpartition("@")[2]
    line = f"{word} {now:.2f} {os.getpid()} {os.environ['UPDRAFT_CLAIM_EPOCH']} {worker}\n"
    # One write: lines of several processes do not mix.
    file = os.open(path(ti), os.O_WRONLY | os.O_APPEND | os.O_CREAT)
    os.write(file, line.encode())
    os.close(file)


def live(quarters, ti):
    for _ in range(quarters):
        time.sleep(0.25)
        note("alive", ti)


def bash(body, map_index=-1):
    """A command that starts no process of its own before it has written down that it has started."""
    return f"""f={FOLDER}/$AIRFLOW_CTX_DAG_RUN_ID/$AIRFLOW_CTX_TASK_ID.{map_index}.$AIRFLOW_CTX_TRY_NUMBER
w=${{UPDRAFT_WORKER_NAME##*@}}
note() {{ read -r up rest < /proc/uptime; echo "$1 $up $$ $UPDRAFT_CLAIM_EPOCH $w" >> $f; }}
live() {{ for ((i = 0; i < $1; i++)); do read -rt 0.25 -u 9; note alive; done; }}
note start
exec 9<> <(:)
{body}
"""


class Waits(BaseOperator):
    """In the triggerer."""

    def execute(self, context):
        note("start", context["ti"])
        note("end", context["ti"])
        self.defer(trigger=Later(PACE * 0.8), method_name="resume")

    def resume(self, context, event):
        note("start", context["ti"])
        live(1, context["ti"])
        note("end", context["ti"])


class Naps(Waits):
    """In the scheduler, which knows such times."""

    def execute(self, context):
        note("start", context["ti"])
        note("end", context["ti"])
        self.defer(trigger=TimeDeltaTrigger(timedelta(seconds=PACE * 0.7)), method_name="resume")


def poke(ti):
    note("start", ti)
    note("end", ti)
    with open(path(ti)) as file:
        return sum(line.startswith("start") for line in file) >= 3


with DAG("chaos_load", schedule=None, max_active_runs=10_000, max_active_tasks=10_000, default_args={"retries": 0}):
    begin = BashOperator(task_id="begin", bash_command=bash("live 1; note end"))
    maps = BashOperator.partial(task_id="maps").expand(
        bash_command=[bash(f"live {2 + n}; echo map-{n}; note end", n) for n in range(3)]
    )
    flaky = BashOperator(
        task_id="flaky",
        retries=2,
        retry_delay=timedelta(seconds=1),
        bash_command=bash(
            "live 1; m=${f%/*}/failed; [ -e $m ] || { : > $m; note fails; exit 1; }; note end"
        ),
    )
    long = BashOperator(task_id="long", bash_command=bash("live 32; note end"))
    pooled = BashOperator(task_id="pooled", pool="narrow", bash_command=bash("live 2; note end"))
    waits, naps = Waits(task_id="waits"), Naps(task_id="naps")
    sensor = PythonSensor(
        task_id="sensor", python_callable=poke, mode="reschedule", poke_interval=max(2, PACE / 4), timeout=100_000
    )
    joins = EmptyOperator(task_id="joins")

    @task
    def gives(run_id=None, ti=None):
        note("start", ti)
        live(2, ti)
        note("end", ti)
        return f"given by {run_id}"

    @task
    def takes(given, mapped, run_id=None, ti=None):
        note("start", ti)
        assert given == f"given by {run_id}", given
        assert list(mapped) == ["map-0", "map-1", "map-2"], list(mapped)
        live(4, ti)
        note("end", ti)

    taken = takes(gives(), maps.output)
    begin >> [maps, flaky, long, pooled, waits, naps, sensor, taken] >> joins
    joins >> BashOperator(task_id="finish", bash_command=bash("note end"))

with DAG(
    "chaos_clock",
    schedule=timedelta(seconds=INTERVAL),
    start_date=datetime.fromtimestamp(START, timezone.utc),
    catchup=True,
    max_active_runs=1_000,
):
    EmptyOperator(task_id="ticks")

with DAG("chaos_probe", schedule=None, max_active_runs=1_000, default_args={"priority_weight": 100_000}):
    BashOperator(task_id="native", bash_command="true")

    @task
    def in_python():
        return 1

    in_python()
