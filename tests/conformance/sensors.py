"""Sensors that wait in each way, and deferral."""

from datetime import timedelta

from airflow.providers.standard.operators.empty import EmptyOperator
from airflow.providers.standard.sensors.python import PythonSensor
from airflow.providers.standard.sensors.time_delta import TimeDeltaSensor
from airflow.providers.standard.triggers.temporal import TimeDeltaTrigger
from airflow.sdk import DAG, BaseOperator, PokeReturnValue, task


def second_time(ti):
    """Holds when it is asked again: what was seen is kept as an XCom under a key of its own."""
    return ti.try_number >= 1


class Deferring(BaseOperator):
    """Hands itself over to a time, and goes on with what the event says."""

    def __init__(self, seconds, timeout=None, **kwargs):
        super().__init__(**kwargs)
        self.seconds, self.timeout = seconds, timeout

    def execute(self, context):
        self.defer(
            trigger=TimeDeltaTrigger(timedelta(seconds=self.seconds)),
            method_name="go_on",
            kwargs={"word": "kept"},
            timeout=self.timeout and timedelta(seconds=self.timeout),
        )

    def go_on(self, context, event, word):
        return [word, type(event).__name__]


with DAG("conformance_sensors", schedule=None) as dag:

    @task.sensor(poke_interval=1, timeout=60)
    def value():
        return PokeReturnValue(is_done=True, xcom_value="found")

    @task.sensor(poke_interval=1, timeout=2)
    def never():
        return False

    @task.sensor(poke_interval=1, timeout=2, soft_fail=True)
    def never_softly():
        return False

    @task.sensor(poke_interval=2, timeout=3, mode="reschedule")
    def never_rescheduled():
        return False

    @task.sensor(poke_interval=2, timeout=60, mode="reschedule")
    def later():
        import datetime

        from airflow.sdk import get_current_context

        started = get_current_context()["ti"].get_first_reschedule_date(get_current_context())
        return bool(started)

    value() >> EmptyOperator(task_id="after_value")
    never() >> EmptyOperator(task_id="after_never")
    never_softly() >> EmptyOperator(task_id="after_never_softly")
    never_rescheduled()
    later()
    Deferring(task_id="deferring", seconds=2) >> EmptyOperator(task_id="after_deferring")
    Deferring(task_id="too_late", seconds=300, timeout=2, retries=0) >> EmptyOperator(task_id="after_too_late")
    PythonSensor(task_id="classic", python_callable=second_time, poke_interval=1)
    TimeDeltaSensor(task_id="past", delta=timedelta(seconds=1))
    TimeDeltaSensor(task_id="deferred", delta=timedelta(seconds=1), deferrable=True) >> EmptyOperator(task_id="after_deferred")
