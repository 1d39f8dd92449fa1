"""Python tasks that hand values to each other."""

from datetime import datetime

from airflow.sdk import dag, task


def tell_success(context):
    print("callback: success of", context["ti"].task_id)


@dag(
    schedule="@once",
    start_date=datetime(2025, 1, 1),
    is_paused_upon_creation=False,
    tags=["example"],
    default_args={"on_success_callback": tell_success},
)
def example_taskflow():
    @task
    def numbers():
        return [1, 2, 3]

    @task
    def square(n):
        return n * n

    @task
    def total(values):
        result = sum(values)
        print("the total is", result)
        return result

    total(square.expand(n=numbers()))


example_taskflow()
