"""Setups and teardowns."""

from airflow.providers.standard.operators.empty import EmptyOperator
from airflow.sdk import DAG, TaskGroup, setup, task, teardown


def chain_of(name, fails):
    @setup
    @task(task_id=f"{name}_up")
    def up():
        return name

    @task(task_id=f"{name}_work")
    def work():
        if fails:
            raise ValueError("as it should")

    @teardown
    @task(task_id=f"{name}_down")
    def down():
        return "down"

    first, last = up(), down()
    first >> work() >> last
    first >> last
    return last


with DAG("conformance_setups", schedule=None) as dag:
    chain_of("fine", False) >> EmptyOperator(task_id="after_fine")
    chain_of("broken", True)
    with TaskGroup("group"):
        up = EmptyOperator(task_id="up").as_setup()
        work = EmptyOperator(task_id="work")
        down = EmptyOperator(task_id="down").as_teardown(setups=up, on_failure_fail_dagrun=True)
        up >> work >> down
    down >> EmptyOperator(task_id="outside")

with DAG("conformance_teardown_fails", schedule=None) as second:

    @task
    def fine():
        return 1

    @teardown
    def bad():
        raise ValueError("as it should")

    fine() >> bad()
