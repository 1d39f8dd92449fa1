"""Builds the DAG of a case of the differential test; the same for real Airflow and for the Python that is held against."""

from datetime import datetime, timezone

from airflow.providers.standard.operators.bash import BashOperator
from airflow.sdk import DAG, Param


def params(described):
    """Params: {name: value}, or {name: {"default": value, "schema": {...}}}."""
    made = {}
    for name, value in (described or {}).items():
        if isinstance(value, dict) and "schema" in value:
            made[name] = Param(value["default"], **value["schema"])
        else:
            made[name] = value
    return made


def skip_codes(value):
    """Exit codes: JSON has no tuples and sets."""
    kinds = {"tuple": tuple, "set": set, "range": lambda items: range(*items)}
    return kinds[value["kind"]](value["items"]) if isinstance(value, dict) else value


def build(case):
    start = datetime(2025, 1, 1, tzinfo=timezone.utc)
    with DAG(case["dag_id"], schedule=None, start_date=start, catchup=False, params=params(case.get("params"))) as dag:
        arguments = {key: case[key] for key in ("env", "append_env", "cwd", "do_xcom_push", "owner") if key in case}
        if "skip_on_exit_code" in case:
            arguments["skip_on_exit_code"] = skip_codes(case["skip_on_exit_code"])
        BashOperator(
            task_id="t", bash_command=case["bash_command"], params=params(case.get("task_params")), retries=0, **arguments
        )
    return dag
