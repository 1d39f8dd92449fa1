"""Containers that operators start from Python: told whose they are, so that none outlives its try unseen.

The labels are those that Updraft's own container tasks carry.
"""

import contextvars
import functools
import importlib.abc
import os
import sys

_operator = contextvars.ContextVar("docker_operator", default=None)
_hooks = {}


class _AfterImport(importlib.abc.MetaPathFinder):
    """Lets somebody change a module as soon as it has been imported."""

    def find_spec(self, name, path=None, target=None):
        if name not in _hooks:
            return None
        change = _hooks.pop(name)
        for finder in sys.meta_path:
            spec = None if finder is self else finder.find_spec(name, path, target)
            if spec is not None and spec.loader is not None:
                break
        else:
            return None
        run = spec.loader.exec_module

        def exec_module(module):
            run(module)
            change(module)

        spec.loader.exec_module = exec_module
        return spec


def after_import(name, change):
    """Calls `change` with the module of that name once it is there."""
    if name in sys.modules:
        change(sys.modules[name])
    else:
        _hooks[name] = change


def labels():
    """What says whose a container is; nothing outside of a task."""
    task_instance, _, claim = os.environ.get("UPDRAFT_TRY", "").rpartition(":")
    if not task_instance:
        return {}
    out = {"updraft.task_instance": task_instance, "updraft.claim": claim}
    for label, variable in (("life", "WORKER_LIFE"), ("worker", "WORKER_NAME")):
        out[f"updraft.{label}"] = os.environ.get(f"UPDRAFT_{variable}", "")
    for name in ("DAG_ID", "TASK_ID", "DAG_RUN_ID", "TRY_NUMBER"):
        out[f"updraft.{name.lower()}"] = os.environ.get(f"AIRFLOW_CTX_{name}", "")
    return out


def _stop_earlier(client, own):
    """Kills what an earlier claim of this task instance left running."""
    wanted = {"label": f"updraft.task_instance={own['updraft.task_instance']}"}
    for found in client.containers(filters=wanted):
        if found["Labels"].get("updraft.claim") != own["updraft.claim"]:
            try:
                client.kill(found["Id"])
            except Exception:  # noqa: BLE001 - it has ended in the meantime
                pass


def _change_docker(module):
    original = module.ContainerApiMixin.create_container

    @functools.wraps(original)
    def create_container(self, *args, **kwargs):
        operator = _operator.get()
        if operator is not None:
            own = labels()
            if own:
                _stop_earlier(self, own)
                given = kwargs.get("labels") or {}
                given = given if isinstance(given, dict) else dict.fromkeys(given, "")
                kwargs["labels"] = {**given, **own}
            binds = getattr(operator, "_updraft_binds", None)
            if binds:
                kwargs["host_config"]["Binds"] = list(binds)
        return original(self, *args, **kwargs)

    module.ContainerApiMixin.create_container = create_container


def _change_operator(module):
    original = module.DockerOperator._run_image_with_mounts

    @functools.wraps(original)
    def run(self, *args, **kwargs):
        token = _operator.set(self)
        try:
            return original(self, *args, **kwargs)
        finally:
            _operator.reset(token)

    module.DockerOperator._run_image_with_mounts = run


def install():
    """Makes this hold in this process and its children."""
    sys.meta_path.insert(0, _AfterImport())
    after_import("docker.api.container", _change_docker)
    after_import("airflow.providers.docker.operators.docker", _change_operator)
