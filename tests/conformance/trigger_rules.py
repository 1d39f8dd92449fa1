"""Every trigger rule over every mixture of upstream states."""

from airflow.providers.standard.operators.empty import EmptyOperator
from airflow.sdk import DAG, task
from airflow.sdk.exceptions import AirflowSkipException

RULES = [
    "all_success", "all_failed", "all_done", "all_done_min_one_success", "all_skipped", "one_success", "one_failed",
    "one_done", "none_failed", "none_skipped", "none_failed_min_one_success", "always",
]
MIXTURES = {"s": "good", "f": "bad", "k": "skipped", "u": "blocked"}

with DAG("conformance_trigger_rules", schedule=None, max_active_tasks=16) as dag:

    @task
    def good():
        return 1

    @task
    def bad():
        raise ValueError("as it should")

    @task
    def skipped():
        import time

        # After the failure, on both: a rule that one of them decides is decided by what ends first.
        time.sleep(6)
        raise AirflowSkipException("as it should")

    sources = {"s": good(), "f": bad(), "k": skipped(), "u": EmptyOperator(task_id="blocked")}
    sources["f"] >> sources["u"]
    for mixture in ["s", "f", "k", "u", "sf", "sk", "fk", "su", "ku", "sfk", "sfku"]:
        for rule in RULES:
            last = EmptyOperator(task_id=f"{rule}_{mixture}", trigger_rule=rule)
            [sources[letter] for letter in mixture] >> last
