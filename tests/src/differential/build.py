"""Builds the DAG of a case of the differential test; the same for real Airflow and for the Python that is held against."""

from datetime import datetime, timedelta, timezone

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


def operator(case):
    """The one task of a case."""
    given = dict(case.get("task") or {}, task_id="t", retries=0, params=params(case.get("task_params")))
    if case.get("kind") == "docker":
        from airflow.providers.docker.operators.docker import DockerOperator
        from docker.types import Mount

        given["mounts"] = [Mount(**mount) for mount in given.get("mounts", ())]
        return DockerOperator(mount_tmp_dir=False, **given)
    if case.get("kind") == "pod":
        from airflow.providers.cncf.kubernetes.operators.pod import KubernetesPodOperator

        # Natively values are hidden by the names of variables, too; in Python they are not.
        shown = {"password": "word", "my_token": "other"}
        given["env_vars"] = {shown.get(name, name): value for name, value in given.get("env_vars", {}).items()}
        return KubernetesPodOperator(**given)
    for key in ("env", "append_env", "cwd", "do_xcom_push", "owner"):
        if key in case:
            given[key] = case[key]
    if "skip_on_exit_code" in case:
        given["skip_on_exit_code"] = skip_codes(case["skip_on_exit_code"])
    if "execution_timeout" in case:
        given["execution_timeout"] = timedelta(seconds=case["execution_timeout"])
    return BashOperator(bash_command=case["bash_command"], **given)


def build(case):
    start = datetime(2025, 1, 1, tzinfo=timezone.utc)
    with DAG(case["dag_id"], schedule=None, start_date=start, catchup=False, params=params(case.get("params"))) as dag:
        operator(case)
    return dag
