"""The Python side of the differential test: runs cases with the real operator, context and Jinja of the Task SDK.

A case is a line of JSON on standard input; the answer is a line on standard output: the side document that the shim wrote
(null if the task needs Python), the StartupDetails, and what the task came to in Python.
"""

import importlib.util
import io
import json
import os
import sys
import tempfile
import types
import uuid

answers = os.fdopen(os.dup(1), "w")
os.dup2(2, 1)


def shim(name):
    """A module of the shim, under the name that it has in the fork server."""
    path = os.path.join(os.environ["UPDRAFT_SHIM"], f"{name}.py")
    spec = importlib.util.spec_from_file_location(f"updraft_{name}", path)
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


import airflow.sdk.execution_time.comms as comms
import airflow.sdk.execution_time.task_runner as task_runner
import structlog
from airflow.sdk.execution_time.comms import StartupDetails
from airflow.sdk.log import configure_logging
from airflow.serialization.serialized_objects import DagSerialization
from airflow.settings import _configure_secrets_masker

from differential_build import build

for name in ("notes", "dependencies", "stand_ins"):
    shim(name)
old_modules = sys.modules["updraft_old_modules"] = types.ModuleType("updraft_old_modules")
with open(os.path.join(os.environ["UPDRAFT_SHIM"], "old_modules.txt")) as table:
    old_modules.TABLE = table.read()
shim("old_names")
shim("compat").install()
native = shim("native")
records = io.BytesIO()
configure_logging(json_output=True, output=records, sending_to_supervisor=True)
NAMES = {"SucceedTask": "ENDING_SUCCESS", "RetryTask": "ENDING_UP_FOR_RETRY"}
STATES = {"failed": "ENDING_FAILED", "skipped": "ENDING_SKIPPED"}


# Characters of an XCom from which on it is looked at as it is sent, too.
LARGE = 60_000


class Supervisor:
    """Stands for the supervisor: keeps what it is told."""

    socket = None

    def __init__(self):
        self.state, self.rendered, self.xcoms, self.frames = None, None, {}, []

    def send(self, msg):
        kind = type(msg).__name__
        if kind == "SetRenderedFields":
            self.rendered = msg.rendered_fields
        elif kind == "SetXCom":
            self.xcoms[msg.key] = msg.value
            if len(str(msg.value)) > LARGE:
                self.keep_frame(msg)
        elif kind == "TaskState":
            self.state = self.state or STATES.get(msg.state, msg.state)
        elif kind in NAMES:
            self.state = self.state or NAMES[kind]


    def keep_frame(self, msg):
        """Keeps the bytes that would be sent, in a file."""
        with tempfile.NamedTemporaryFile(delete=False) as file:
            file.write(comms._RequestFrame(id=1, body=msg.model_dump()).as_bytes())
        self.frames.append({"key": msg.key, "path": file.name})


def startup(case):
    date = case.get("logical_date", "2025-03-01T16:30:00Z")
    ti = {
        "id": str(uuid.UUID(int=1)), "task_id": "t", "dag_id": case["dag_id"], "run_id": case.get("run_id", "r"),
        "try_number": case.get("try_number", 1), "dag_version_id": str(uuid.UUID(int=2)), "map_index": -1,
    }
    run = {
        "dag_id": case["dag_id"], "run_id": ti["run_id"], "logical_date": date, "data_interval_start": date,
        "data_interval_end": date, "run_after": date or "2025-03-01T16:30:00Z", "start_date": "2025-03-01T16:30:01Z",
        "end_date": None, "clear_number": 0, "run_type": "manual", "state": "running", "conf": case.get("conf"),
        "consumed_asset_events": [], "partition_key": None,
    }
    context = {"dag_run": run, "max_tries": 0, "should_retry": False}
    return {
        "type": "StartupDetails", "ti": ti, "dag_rel_path": "d.py", "bundle_info": {"name": "b", "version": None},
        "start_date": "2025-03-01T16:30:01Z", "ti_context": context, "sentry_integration": "",
    }


def run(dag, started):
    """Runs the one task as `task_runner.main` does. Returns what came of it."""
    supervisor = task_runner.SUPERVISOR_COMMS = Supervisor()
    records.seek(0)
    records.truncate()
    what = StartupDetails.model_validate(started)
    log = structlog.get_logger(logger_name="task")
    log.info("::group::Pre Execute")
    ti = task_runner.RuntimeTaskInstance.model_construct(
        **what.ti.model_dump(exclude_unset=True), task=dag.task_dict["t"], bundle_instance=None,
        _ti_context_from_server=what.ti_context, max_tries=0, start_date=what.start_date,
        state=task_runner.TaskInstanceState.RUNNING, sentry_integration="",
    )
    try:
        context = ti.get_template_context()
        state, _, error = task_runner.run(ti, context, log)
        context["exception"] = error
        task_runner.finalize(ti, state, context, log, error)
    except Exception as error:  # noqa: BLE001 - as main does
        log.exception("Top level error")
        supervisor.state = STATES["failed"]
    return {
        "state": supervisor.state, "rendered": supervisor.rendered, "xcoms": supervisor.xcoms, "frames": supervisor.frames,
        "written": records.getvalue().decode(),
    }


def render(dag, started):
    """What the templates of the one task come to."""
    what = StartupDetails.model_validate(started)
    ti = task_runner.RuntimeTaskInstance.model_construct(
        **what.ti.model_dump(exclude_unset=True), task=dag.task_dict["t"], bundle_instance=None,
        _ti_context_from_server=what.ti_context, max_tries=0, start_date=what.start_date,
        state=task_runner.TaskInstanceState.RUNNING, sentry_integration="",
    )
    task_runner.SUPERVISOR_COMMS = Supervisor()
    try:
        ti.render_templates(ti.get_template_context())
        rendered, state = task_runner._serialize_rendered_fields(ti.task), "rendered"
    except Exception:  # noqa: BLE001 - the task would fail
        rendered, state = None, "cannot be rendered"
    return {"state": state, "rendered": rendered, "xcoms": {}, "records": []}


def trigger(data, case):
    """Whether a run with the case's conf is taken, as the API server decides it."""
    params = DagSerialization.from_dict(data).params
    try:
        params.deep_merge(case.get("conf") or {}).validate()
        state, words = "taken", None
    except Exception as error:  # noqa: BLE001 - the run is refused
        state, words = "refused", str(error)
    return {"state": state, "rendered": {"words": words}, "xcoms": {}, "records": []}


SET = set()


def set_options(options):
    """Sets options of Airflow for the cases from here on."""
    for name in SET:
        os.environ.pop(name, None)
    SET.clear()
    SET.update(options)
    os.environ.update(options)
    _configure_secrets_masker()


def answer(case):
    set_options(case.get("options") or {})
    if (case.get("options") or {}).get("AIRFLOW__CORE__MAX_TEMPLATED_FIELD_LENGTH") in ("0", "-1", "1"):
        return {"refused": "fields shorter than None are not compared yet"}
    try:
        dag = build(case)
        if case.get("kind") == "trigger":
            data = DagSerialization.to_dict(dag)
            decided = trigger(data, case)
            if decided["state"] == "refused":
                # The words of refusals are not compared yet.
                return {"refused": decided["rendered"]["words"]}
            return {"native": data["dag"], "startup": None, "python": decided}
    except Exception as error:  # noqa: BLE001 - a case that Airflow refuses is no case
        return {"refused": f"{type(error).__name__}: {error}"}
    started = startup(case)
    document = native.side_document(dag)["tasks"].get("t")
    look = run if case.get("kind", "bash") == "bash" else render
    return {"native": document, "startup": started, "python": look(dag, started)}


import airflow.providers.standard.hooks.subprocess as hook
import functools
import subprocess

# As the fork server does: commands have nothing to read.
hook.Popen = functools.partial(subprocess.Popen, stdin=subprocess.DEVNULL)
for line in sys.stdin:
    answers.write(json.dumps(answer(json.loads(line))) + "\n")
    answers.flush()
