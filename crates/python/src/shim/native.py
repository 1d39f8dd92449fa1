"""Which tasks need no Python of their own, and all that Updraft must know to run them itself.

A task is described here only if nothing could tell its native run from one in Python: its operator is exactly the known
class, and nothing of the user's own runs around it. Everything else is left to Python, which is always right.
"""

import copy
import inspect
import json
import logging
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
    """Whether nothing of the user's own would run around the operator itself, and no file is read for its template."""
    if getattr(task, "_updraft_template_is_file", False):
        return False
    if any(getattr(task, name, None) for name in CALLBACKS):
        return False
    if getattr(task, "_pre_execute_hook", None) or getattr(task, "_post_execute_hook", None):
        return False
    blocking = ("inlets", "outlets", "run_as_user", "email", "retry_policy", "resources")
    if any(getattr(task, name, None) for name in blocking):
        return False
    if task.operator_extra_links or getattr(task, "multiple_outputs", False):
        return False
    if getattr(task, "render_template_as_native_obj", None) or dag.render_template_as_native_obj:
        return False
    if dag.user_defined_macros or dag.user_defined_filters or dag.jinja_environment_kwargs:
        return False
    # What a policy adds to the variables of commands only Python knows.
    if has_xcom_backend() or has_policy("get_airflow_context_vars"):
        return False
    import jinja2

    if dag.template_undefined is not jinja2.StrictUndefined:
        return False
    return not has_task_listeners()


def has_xcom_backend():
    """Whether XComs go through a class of the user's own."""
    from airflow.sdk.bases.xcom import BaseXCom
    from airflow.sdk.execution_time.xcom import XCom

    return XCom is not BaseXCom


# What listeners are told within a task's own process.
TASK_HOOKS = (
    "on_starting", "before_stopping", "on_task_instance_running", "on_task_instance_success", "on_task_instance_failed",
    "on_task_instance_skipped",
)


def has_task_listeners():
    from airflow.sdk.listener import get_listener_manager

    hook = get_listener_manager().hook
    return any(getattr(hook, name).get_hookimpls() for name in TASK_HOOKS)


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
        "skip_on_exit_code": exit_codes(task.skip_on_exit_code),
    }


def exit_codes(codes):
    """Exit codes that are numbers in a container that can be listed; raises TypeError for anything else."""
    if type(codes) not in (list, tuple, set, frozenset, range) or not all(type(code) in (int, bool) for code in codes):
        raise TypeError(type(codes))
    return [int(code) for code in codes]


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
    if all(tls) and (not task.tls_verify or task.tls_hostname is not None or task.tls_ssl_version is not None):
        return None
    document = {
        "operator": "docker", "fields": templated, "config": config, "docker_url": explicit(task, "docker_url"),
        "tls": tls if all(tls) else None, "timeout": int(task.timeout), "force_pull": bool(task.force_pull),
        "mount_tmp_dir": bool(task.mount_tmp_dir), "tmp_dir": task.tmp_dir, "host_tmp_dir": task.host_tmp_dir,
        "auto_remove": task.auto_remove, "xcom_all": bool(task.xcom_all),
        "skip_on_exit_code": exit_codes(task.skip_on_exit_code),
        "sealed": json.dumps({"environment": task._private_environment}) if task._private_environment else None,
    }
    # Mounts and limits are dictionaries of docker's own kinds.
    return json.loads(json.dumps(document))


# Fields of Kubernetes objects that KubernetesPodOperator renders when they are in one of its own fields.
POD_FIELDS = {
    "V1EnvVar": ("value", "name"), "V1ResourceRequirements": ("limits", "requests"),
    "V1Volume": ("name", "persistent_volume_claim", "config_map"), "V1VolumeMount": ("name", "sub_path"),
    "V1PersistentVolumeClaimVolumeSource": ("claim_name",), "V1ConfigMapVolumeSource": ("name",),
    "V1EnvFromSource": ("config_map_ref",), "V1ConfigMapEnvSource": ("name",),
}
# What only the worker can know, from the connection.
NAMESPACE, SIDECAR_IMAGE = "updraft-namespace-", "updraft-sidecar-image-"


class Templates:
    """Puts marks in the place of templates, so that a pod can be built before they are rendered."""

    def __init__(self):
        self.by_mark = {}

    def mark(self, value):
        """The value with a mark for each text that rendering could change."""
        if isinstance(value, str):
            if "{" not in value and not value.endswith("\n"):
                return value
            mark = f"updraft-template-{len(self.by_mark)}-"
            self.by_mark[mark] = value
            return mark
        if type(value) in (list, tuple):
            return [self.mark(item) for item in value]
        if type(value) is dict:
            return {key: self.mark(item) for key, item in value.items()}
        fields = POD_FIELDS.get(type(value).__name__) if type(value).__module__.startswith("kubernetes.") else None
        if fields:
            value = copy.deepcopy(value)
            for name in fields:
                setattr(value, name, self.mark(getattr(value, name)))
        return value


class Unconnected:
    """Stands for the hook while a pod is built: nothing of the connection is known."""

    def get_namespace(self):
        return NAMESPACE

    def get_xcom_sidecar_container_image(self):
        return SIDECAR_IMAGE

    def get_xcom_sidecar_container_resources(self):
        return None

    get_xcom_sidecar_container_security_context = get_xcom_sidecar_container_resources


def has_policy(name):
    """Whether a cluster policy of that name is somebody's own."""
    from airflow.settings import get_policy_plugin_manager

    hooks = getattr(get_policy_plugin_manager().hook, name).get_hookimpls()
    return any(hook.function.__module__ != "airflow.policies" for hook in hooks)


def names_of_containers(value, otherwise):
    """Containers whose logs are wanted: their names, or True for all; raises TypeError for anything else."""
    if value is None:
        return otherwise
    if value is True:
        return True
    return [value] if isinstance(value, str) else [str(name) for name in value]


def native_pod(task):
    kind = loaded("airflow.providers.cncf.kubernetes.operators.pod", "KubernetesPodOperator")
    if kind is None or type(task) is not kind or has_policy("pod_mutation_hook"):
        return None
    # A template file is read when the task runs, and what is user code runs in Python.
    if task.callbacks or task._progress_callback or task.log_formatter or task.trigger_kwargs or task.pod_template_file:
        return None
    from airflow.providers.cncf.kubernetes.backcompat.backwards_compat_converters import convert_env_vars
    from airflow.serialization.helpers import serialize_template_field
    from airflow.providers.cncf.kubernetes.utils.xcom_sidecar import PodDefaults
    from kubernetes.client import ApiClient

    templates, clone = Templates(), copy.copy(task)
    clone.env_vars = convert_env_vars(task.env_vars)
    fields = {}
    for name in task.template_fields:
        value = templates.mark(getattr(clone, name))
        object.__setattr__(clone, name, value)
        fields[name] = serialize_template_field(copy.deepcopy(value), name)
    given = clone.name
    if given is not None and not given.startswith("updraft-template-"):
        object.__setattr__(clone, "name", clone._set_name(given))
    object.__setattr__(clone, "random_name_suffix", False)
    clone.__dict__["hook"] = Unconnected()
    logging.disable(logging.CRITICAL)
    try:
        pod = clone.build_pod_request_obj(None, dry_run=True)
    finally:
        logging.disable(logging.NOTSET)
    document = {
        "operator": "pod", "fields": fields, "templates": templates.by_mark,
        "pod": ApiClient().sanitize_for_serialization(pod), "labels": clone.labels, "name_suffix": task.random_name_suffix,
        "conn_id": clone.kubernetes_conn_id, "in_cluster": task.in_cluster, "context": clone.cluster_context,
        "config_file": clone.config_file, "reattach": bool(task.reattach_on_restart),
        "schedule_timeout": task.schedule_timeout_seconds, "startup_timeout": task.startup_timeout_seconds,
        "get_logs": bool(task.get_logs), "base": clone.base_container_name,
        "logs_of": names_of_containers(task._container_logs, [clone.base_container_name]),
        "init_logs_of": names_of_containers(task.init_container_logs, []),
        "prefix": bool(task.container_name_log_prefix_enabled), "events_on_startup": bool(task.log_events_on_startup),
        "events_on_failure": bool(task.log_events_on_failure), "spec_on_failure": bool(task.log_pod_spec_on_failure),
        "on_finish": task.on_finish_action.value, "on_kill": task.on_kill_action.value,
        "grace": task.termination_grace_period, "skip_on_exit_code": exit_codes(task.skip_on_exit_code),
        "sidecar_image": PodDefaults.SIDECAR_CONTAINER.image,
        "sidecar_context": task.xcom_sidecar_container_security_context is not None,
    }
    return json.loads(json.dumps(document))


def checked_params(dag, task):
    """Names of params with a schema, which Python holds a run's conf against."""
    params = [param for owner in (dag, task) for param in owner.params.items()]
    return sorted({name for name, param in params if getattr(param, "schema", None)})


def side_document(dag):
    """What Updraft needs to run tasks of this DAG itself; tasks that need Python are left out."""
    tasks = {}
    # Where an interval ends, the next one begins: not so for every timetable.
    intervals = ("CronDataIntervalTimetable", "DeltaDataIntervalTimetable")
    follow = type(dag.timetable).__name__ in intervals and type(dag.timetable).__module__.startswith("airflow.")
    for task in dag.tasks:
        try:
            if task.is_mapped or task.get_closest_mapped_task_group() is not None:
                continue
            document = native_bash(task) or native_empty(task) or native_docker(task) or native_pod(task)
            if document is None or not runs_without_python(dag, task):
                continue
            document["params"] = plain({**dag.params.dump(), **task.params.dump()})
            document["checked_params"] = checked_params(dag, task)
            document["do_xcom_push"] = bool(task.do_xcom_push)
            document["owner"] = task.owner
            document["intervals_follow"] = follow
            tasks[task.task_id] = plain(document)
        except Exception:  # noqa: BLE001 - what cannot be described runs in Python, which is always right
            continue
    return {"tasks": tasks}
