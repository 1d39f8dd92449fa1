"""Tries, failures and skips."""

from datetime import timedelta

from airflow.providers.standard.operators.bash import BashOperator
from airflow.providers.standard.operators.empty import EmptyOperator
from airflow.sdk import DAG, task
from airflow.sdk.exceptions import AirflowFailException

NOW = timedelta(0)

with DAG("conformance_failures", schedule=None) as dag:

    @task(retries=2, retry_delay=NOW)
    def second_time():
        from airflow.sdk import get_current_context

        if get_current_context()["ti"].try_number < 2:
            raise ValueError("not yet")
        return "now"

    @task(retries=3, retry_delay=NOW)
    def for_good():
        raise AirflowFailException("never again")

    @task(retries=1, retry_delay=NOW)
    def twice():
        raise ValueError("always")

    @task(execution_timeout=timedelta(seconds=1))
    def too_long():
        import time

        time.sleep(30)

    second_time() >> EmptyOperator(task_id="goes_on")
    for_good() >> EmptyOperator(task_id="does_not")
    twice() >> EmptyOperator(task_id="neither", trigger_rule="all_success")
    too_long() >> EmptyOperator(task_id="afterwards", trigger_rule="all_done")
    BashOperator(task_id="skip_code", bash_command="exit 99") >> EmptyOperator(task_id="skipped_too")
    BashOperator(task_id="other_code", bash_command="exit 7", retries=1, retry_delay=NOW)
    BashOperator(task_id="killed", bash_command="kill -9 $$")
    BashOperator(task_id="late", bash_command="sleep 30", execution_timeout=timedelta(seconds=1))
