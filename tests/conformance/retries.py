"""What is tried again, and when: retry policies."""

from datetime import timedelta

from airflow.sdk import DAG, task
from airflow.sdk.definitions.retry_policy import (
    ExceptionRetryPolicy,
    RetryAction,
    RetryDecision,
    RetryPolicy,
    RetryRule,
)

NOW = timedelta(0)


class BySecondTry(RetryPolicy):
    def evaluate(self, exception, try_number, max_tries, context=None):
        if try_number == 1:
            return RetryDecision.retry(delay=timedelta(seconds=1), reason="once more")
        return RetryDecision.fail(reason=f"no more after {try_number} of {max_tries}: {context['ti'].task_id}")

    def serialize(self):
        return {}


RULES = ExceptionRetryPolicy(
    rules=[
        RetryRule(exception=KeyError, action=RetryAction.FAIL, reason="keys do not come back"),
        RetryRule(exception=["builtins.OSError"], action=RetryAction.RETRY, retry_delay=NOW),
        RetryRule(exception=LookupError, action=RetryAction.RETRY, retry_delay=NOW, match_subclasses=False),
    ]
)

with DAG("conformance_retry_policies", schedule=None, default_args={"retries": 3, "retry_delay": NOW}):

    @task(retry_policy=RULES)
    def fails_at_once():
        raise KeyError("k")

    @task(retry_policy=RULES)
    def tries_on():
        raise ConnectionError("no")

    @task(retry_policy=RULES, retry_delay=timedelta(seconds=1))
    def by_no_rule():
        raise IndexError("i")

    @task(retry_policy=BySecondTry())
    def twice_only():
        raise ValueError("v")

    @task(retry_policy=BySecondTry())
    def works_in_the_end():
        from airflow.sdk import get_current_context

        if get_current_context()["ti"].try_number < 2:
            raise ValueError("not yet")
        return "done"

    fails_at_once(), tries_on(), by_no_rule(), twice_only(), works_in_the_end()
