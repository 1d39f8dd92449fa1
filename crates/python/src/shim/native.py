"""Which tasks need no Python of their own, and all that Updraft must know to run them itself.

A task is described here only if nothing could tell its native run from one in Python: its operator is exactly the known
class, and nothing of the user's own runs around it. Everything else is left to Python, which is always right.
"""

import inspect
import json
import sys

def plain(value):
    """The value if it is JSON as it stands (no tuples, no subclasses), else raises TypeError."""
    if value is None or type(value) in (bool, int, float, str):
        return value
    if type(value) is list:
        return [plain(item) for item in value]
    if type(value) is dict and all(type(key) is str for key in value):
        return {key: plain(item) for key, item in value.items()}
    raise TypeError(type(value))


CALLBACKS = (
    "on_execute_callback", "on_failure_callback", "on_success_callback", "on_retry_callback", "on_skipped_callback",
)


def runs_without_python(dag, task):
    """Whether nothing of the user's own would run around the operator itself."""
    if any(getattr(task, name, None) for name in CALLBACKS):
        return False
    if getattr(task, "_pre_execute_hook", None) or getattr(task, "_post_execute_hook", None):
        return False
    blocking = ("inlets", "outlets", "run_as_user", "email", "retry_policy", "executor_config", "resources", "executor")
    if any(getattr(task, name, None) for name in blocking):
        return False
    if task.operator_extra_links or getattr(task, "multiple_outputs", False):
        return False
    if getattr(task, "render_template_as_native_obj", None) or dag.render_template_as_native_obj:
        return False
    if dag.user_defined_macros or dag.user_defined_filters or dag.jinja_environment_kwargs:
        return False
    import jinja2

    if dag.template_undefined is not jinja2.StrictUndefined:
        return False
    from airflow.sdk.listener import get_listener_manager

    return not get_listener_manager().has_listeners


def native_bash(task):
    from airflow.providers.standard.operators.bash import BashOperator

    if type(task) is not BashOperator:
        return None
    default = inspect.signature(BashOperator.__init__).parameters["output_processor"].default
    if task.output_processor is not default:
        return None
    command, env, cwd = task.bash_command, task.env, task.cwd
    if type(command) is not str or names_file([command, env, cwd], (".sh", ".bash")):
        return None
    if env is not None and not (type(env) is dict and all(type(k) is str and type(v) is str for k, v in env.items())):
        return None
    if cwd is not None and type(cwd) is not str:
        return None
    if task.output_encoding.lower().replace("_", "-") not in ("utf-8", "utf8"):
        return None
    return {
        "operator": "bash", "bash_command": command, "env": env, "append_env": bool(task.append_env), "cwd": cwd,
        "skip_on_exit_code": [int(code) for code in task.skip_on_exit_code],
    }


def native_empty(task):
    from airflow.providers.standard.operators.empty import EmptyOperator

    return {"operator": "empty"} if type(task) is EmptyOperator else None


def names_file(value, endings):
    """Whether a template in it is the name of a file with the real template."""
    if isinstance(value, str):
        return value.endswith(endings)
    if isinstance(value, dict):
        return any(names_file(item, endings) for item in value.values())
    return isinstance(value, (list, tuple)) and any(names_file(item, endings) for item in value)


def explicit(task, name):
    """An argument as the DAG file gave it: what an operator fills in from its environment is the worker's to decide."""
    return getattr(task, "_BaseOperator__init_kwargs", {}).get(name)


def loaded(module, name):
    """A class of a module, if the DAG file has imported it."""
    return getattr(sys.modules.get(module), name, None)


def native_docker(task):
    kind = loaded("airflow.providers.docker.operators.docker", "DockerOperator")
    # What a container leaves as a pickle only Python can read; the format of an env_file is python-dotenv's.
    if kind is None or type(task) is not kind or task.retrieve_output or task.env_file is not None:
        return None
    templated = {
        name: getattr(task, name)
        for name in ("image", "command", "environment", "container_name", "mounts", "docker_conn_id")
    }
    if names_file(templated, (".sh", ".bash", ".env")):
        return None
    if not all("Target" in mount for mount in task.mounts):
        return None
    for variables in (task.environment, task._private_environment):
        if not all(value is None or type(value) in (str, int) for value in variables.values()):
            return None
    from docker.types import ContainerConfig, HostConfig, LogConfig

    version, log = "1.41", {}
    if task.log_opts_max_size is not None:
        log["max-size"] = task.log_opts_max_size
    if task.log_opts_max_file is not None:
        log["max-file"] = task.log_opts_max_file
    host = HostConfig(
        version=version, auto_remove=False, network_mode=task.network_mode, shm_size=task.shm_size, dns=task.dns,
        dns_search=task.dns_search, cpu_shares=round(task.cpus * 1024), port_bindings=task.port_bindings,
        mem_limit=task.mem_limit, cap_add=task.cap_add, extra_hosts=task.extra_hosts, privileged=task.privileged,
        device_requests=task.device_requests, log_config=LogConfig(config=log), ipc_mode=task.ipc_mode,
        ulimits=task.ulimits, binds=getattr(task, "_updraft_binds", None),
    )
    config = ContainerConfig(
        version=version, image="", command=None, hostname=task.hostname, user=task.user, tty=task.tty,
        ports=list(task.port_bindings), entrypoint=task.format_command(task.entrypoint), working_dir=task.working_dir,
        host_config=host, labels=task.labels,
    )
    tls = [task.tls_ca_cert, task.tls_client_cert, task.tls_client_key]
    if all(tls) and not task.tls_verify:
        return None
    document = {
        "operator": "docker", "fields": templated, "config": config, "docker_url": explicit(task, "docker_url"),
        "tls": tls if all(tls) else None, "timeout": int(task.timeout), "force_pull": bool(task.force_pull),
        "mount_tmp_dir": bool(task.mount_tmp_dir), "tmp_dir": task.tmp_dir, "host_tmp_dir": task.host_tmp_dir,
        "auto_remove": task.auto_remove, "xcom_all": bool(task.xcom_all),
        "skip_on_exit_code": [int(code) for code in task.skip_on_exit_code],
        "sealed": json.dumps({"environment": task._private_environment}) if task._private_environment else None,
    }
    # Mounts and limits are dictionaries of docker's own kinds.
    return json.loads(json.dumps(document))


def side_document(dag):
    """What Updraft needs to run tasks of this DAG itself; tasks that need Python are left out."""
    tasks = {}
    for task in dag.tasks:
        try:
            if task.is_mapped or task.get_closest_mapped_task_group() is not None:
                continue
            document = native_bash(task) or native_empty(task) or native_docker(task)
            if document is None or not runs_without_python(dag, task):
                continue
            document["params"] = plain({**dag.params.dump(), **task.params.dump()})
            document["do_xcom_push"] = bool(task.do_xcom_push)
            document["owner"] = task.owner
            tasks[task.task_id] = plain(document)
        except Exception:  # noqa: BLE001 - what cannot be described runs in Python, which is always right
            continue
    return {"tasks": tasks}
