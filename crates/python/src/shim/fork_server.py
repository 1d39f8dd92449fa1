"""The fork server: imports the Task SDK once and forks a child for every task and every DAG file.

Started by Updraft with a SOCK_SEQPACKET socket as standard input. A request is a JSON object and five sockets
(requests, stdout, stderr, logs, and the one with which the child ends), for tasks and triggers also the page of the
worker's lease; the answers are JSON objects, too: {"ready": ...}, {"tag": n, "pid": p}, {"exit": p, "status": s}. The
request "copy" comes with one socket, on which a copy of this process then serves. No user code ever runs in this
process, only in its children.

All private names of the SDK that Updraft depends on are used in this file and nowhere else.
"""

import functools
import gc
import importlib
import json
import os
import resource
import select
import signal
import socket
import subprocess
import sys
import time
import traceback
from pathlib import Path

STARTED = time.monotonic()

control = socket.socket(fileno=os.dup(0))
null = os.open(os.devnull, os.O_RDONLY)
os.dup2(null, 0)
os.close(null)


def tell(message):
    control.send(json.dumps(message).encode())


try:
    import importlib.metadata

    SDK_VERSION = importlib.metadata.version("apache-airflow-task-sdk")
    import airflow.sdk
    import airflow.sdk.execution_time.comms as comms
    import airflow.sdk.execution_time.supervisor as supervisor
    import airflow.sdk.execution_time.task_runner as task_runner
    from airflow.dag_processing.dagbag import BundleDagBag
    from airflow.serialization.serialized_objects import DagSerialization
    from pydantic import TypeAdapter as _TypeAdapter

    import updraft_bundles
    import updraft_children
    import updraft_compat
    import updraft_containers
    import updraft_deadlines
    import updraft_dependencies
    import updraft_listeners
    import updraft_mutations
    import updraft_notes
    import updraft_partitions
    import updraft_timetables
    import updraft_triggers
    from updraft_native import side_document

    updraft_compat.install()
    updraft_containers.install()
except BaseException as error:  # noqa: B036 - whatever it is, the parent must hear of it
    tell({"broken": "".join(traceback.format_exception_only(error)).strip()})
    sys.exit(1)

# Building these takes longer than a small task; every child would build the same ones.
_adapters = {}


class TypeAdapter:
    """Stands for pydantic's TypeAdapter where the SDK builds one per call: the same type gives the same adapter."""

    def __new__(cls, kind, *args, **kwargs):
        if args or kwargs:
            return _TypeAdapter(kind, *args, **kwargs)
        try:
            return _adapters[kind]
        except KeyError:
            return _adapters.setdefault(kind, _TypeAdapter(kind))
        except TypeError:
            return _TypeAdapter(kind)

    def __class_getitem__(cls, item):
        return cls


comms.TypeAdapter = TypeAdapter
task_runner.TypeAdapter = TypeAdapter

WARM_MODULES = (
    "airflow.dag_processing.bundles.local", "airflow.models.dagbag", "airflow.models.serialized_dag",
    "airflow.providers.standard.decorators.python", "airflow.providers.standard.operators.bash",
    "airflow.providers.standard.operators.empty", "airflow.providers.standard.operators.python",
    "airflow.providers.standard.operators.trigger_dagrun", "airflow.providers.standard.sensors.external_task",
    "airflow.providers.standard.sensors.bash", "airflow.providers.standard.sensors.python",
    "airflow.sdk.definitions.asset.metadata", "airflow.sdk.definitions.decorators", "asgiref.sync",
    "encodings.idna", "jinja2.ext", "jinja2.nativetypes", "jinja2.sandbox", "setproctitle", "stringprep",
)

WARM_DAG = """
from datetime import datetime
from airflow.providers.standard.operators.bash import BashOperator
from airflow.sdk import DAG, task
with DAG("updraft_warm", schedule=None, start_date=datetime(2025, 1, 1)) as dag:
    @task
    def produce():
        return [1]
    BashOperator(task_id="b", bash_command="echo {{ ds }}") >> produce()
"""


# What listeners of plugins want to hear of, and whether a cluster policy wants a word in each task instance.
LISTENERS = []


def keep_commands_from_the_supervisor():
    """Gives commands of tasks nothing to read. Their standard input would be the socket to the supervisor: its answers
    are none of theirs, and bash takes a socket there for a login over the network and reads ~/.bashrc first."""
    try:
        from airflow.providers.standard.hooks import subprocess as hook
    except ImportError:
        return
    hook.Popen = functools.partial(subprocess.Popen, stdin=subprocess.DEVNULL)


def warm():
    """Runs through what every child does, so that all of it is imported and cached before the first fork."""
    for name in WARM_MODULES:
        try:
            importlib.import_module(name)
        except ImportError:
            pass
    from airflow.sdk.listener import get_listener_manager
    from airflow.sdk.plugins_manager import integrate_macros_plugins

    get_listener_manager()
    integrate_macros_plugins()
    LISTENERS.extend(updraft_listeners.heard() + updraft_mutations.hooks())
    keep_commands_from_the_supervisor()
    import tempfile

    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "updraft_warm.py")
        path.write_text(WARM_DAG)
        bag = BundleDagBag(dag_folder=str(path), bundle_path=Path(folder), bundle_name="warm", load_op_links=False)
        sys.path.remove(folder)
        for dag in bag.dags.values():
            DagSerialization.to_dict(dag)
            dag.get_template_env().from_string("{{ 1 }}").render()
    for name in [name for name in sys.modules if name.startswith("unusual_prefix_")]:
        del sys.modules[name]
    TypeAdapter(comms.ToTask)
    from pydantic import JsonValue

    TypeAdapter(JsonValue)
    task_runner.get_hostname() if hasattr(task_runner, "get_hostname") else None


class Message:
    """A message of ours to the supervisor."""

    def __init__(self, body):
        self.body = body

    def model_dump(self, **_):
        return self.body


def keep_explicit(dag, data):
    """Writes down what a task says and the serializer leaves out: a value that is the schema's own default, where the
    installation has another one (`retries=0` beside `[core] default_task_retries`). A mapped task would get the
    installation's."""
    defaults = (data.get("client_defaults") or {}).get("tasks") or {}
    for encoded in data["dag"]["tasks"] if defaults else ():
        body = encoded["__var"]
        task = dag.task_dict[body["task_id"]]
        partial = body.get("partial_kwargs") if task.is_mapped else None
        for name, default in defaults.items():
            if name in body or name in (partial or {}) or not hasattr(task, name):
                continue
            value = DagSerialization.serialize(getattr(task, name))
            if isinstance(value, dict) and "__type" in value:
                value = value["__var"]
            if value is not None and value != default:
                (body if partial is None else partial)[name] = value


def describe(dag, data):
    """One DAG of a file, with everything that Python alone can tell."""
    timetable = dag.timetable
    keep_explicit(dag, data)
    body = data["dag"]
    canonical = {key: value for key, value in body.items() if key not in ("fileloc", "_processor_dags_folder")}
    from airflow.serialization.encoders import coerce_to_core_timetable

    core = coerce_to_core_timetable(timetable)
    owners = sorted({task.owner for task in dag.tasks if task.owner})
    return {
        "dag_id": dag.dag_id,
        "fileloc": dag.fileloc,
        "relative_fileloc": body.get("relative_fileloc") or "",
        "display_name": dag.dag_display_name,
        "description": dag.description,
        "owners": owners,
        "tags": sorted(dag.tags or []),
        "timetable_type": type_name(core),
        "timetable_summary": core.summary,
        "timetable_description": core.description,
        "has_timetable": bool(core.periodic or core.can_be_scheduled),
        "max_consecutive_failed": dag.max_consecutive_failed_dag_runs or 0,
        "paused_upon_creation": dag.is_paused_upon_creation,
        "serialized": json.dumps(data, default=str),
        "canonical": json.dumps([canonical, data.get("client_defaults")], default=str, sort_keys=True),
        "native": json.dumps(side_document(dag)),
    }


def type_name(timetable):
    kind = type(timetable)
    return kind.__name__ if kind.__module__.startswith("airflow.timetables") else f"{kind.__module__}.{kind.__qualname__}"


def limit_memory(megabytes):
    with open("/proc/self/status") as status:
        used = next(int(line.split()[1]) for line in status if line.startswith("VmData:"))
    limit = used * 1024 + megabytes * 1024 * 1024
    resource.setrlimit(resource.RLIMIT_DATA, (limit, limit))


# Who answers what is asked without a DAG file; the rest is about timetables.
ANSWERS = {
    "bundle": updraft_bundles.answer, "deadline": updraft_deadlines.answer,
    "listeners": lambda _: {"listeners": LISTENERS}, "mutation": updraft_mutations.answer, "news": updraft_listeners.tell_of_no_run,
    "partition": updraft_partitions.answer,
}


def begin_if_permitted(request, page):
    """The last step before user code that only one process may call: ends this one if that is another by now."""
    if page is not None and not updraft_children.may_begin(page, request["life"]):
        say("UpdraftVoid")
        os._exit(updraft_children.VOID)


def parse(request, page):
    """Parses one DAG file and sends what it found."""
    os.environ["_AIRFLOW_PROCESS_CONTEXT"] = "client"
    decoder = comms.CommsDecoder()
    task_runner.SUPERVISOR_COMMS = decoder
    bundle, began = Path(request["bundle_path"]), time.monotonic()
    # Maths libraries reserve room for a thread per core when they are imported; parsing needs none of them.
    for name in ("OPENBLAS_NUM_THREADS", "OMP_NUM_THREADS", "MKL_NUM_THREADS"):
        os.environ.setdefault(name, "1")
    limit_memory(request["memory_mb"])
    if request.get("question"):
        begin_if_permitted(request, page)
        answer = ANSWERS.get(request["question"]["kind"], updraft_timetables.answer)(request["question"])
        empty = {"dags": [], "import_errors": {}, "old_forms": []}
        decoder.send(Message({"type": "UpdraftParseResult", "answer": answer, **empty}))
        return
    recorder = updraft_dependencies.Recorder(bundle, request["file"])
    recorder.start()
    bag = BundleDagBag(
        dag_folder=request["file"], bundle_path=bundle, bundle_name=request["bundle_name"], load_op_links=False
    )
    errors, dags = dict(bag.import_errors), []
    if request.get("callback"):
        begin_if_permitted(request, page)
        errors.update(call_back(bag, request["callback"]))
        bag.dags.clear()
    for dag in bag.dags.values():
        try:
            described = describe(dag, DagSerialization.to_dict(dag))
            described["other_file"] = updraft_dependencies.other_file(dag, request["file"], bundle)
            dags.append(described)
        except Exception:  # noqa: BLE001 - the other DAGs of the file are to go on
            errors[dag.relative_fileloc or dag.fileloc] = traceback.format_exc(limit=-2)
    for key, text in errors.items():
        if "MemoryError" in text:
            errors[key] = f"{text}\nThe file took more memory than [updraft] dag_file_memory_mb allows."
    dependencies, too_many = recorder.entries()
    result = {
        "type": "UpdraftParseResult", "dags": dags, "import_errors": errors, "dependencies": dependencies,
        "too_many": too_many, "old_forms": updraft_notes.notes(), "listeners": LISTENERS,
        "seconds": time.monotonic() - began,
    }
    decoder.send(Message(result))


class Remembering:
    """A log that keeps what went wrong."""

    def __init__(self):
        self.errors = {}

    def debug(self, *_, **__):
        pass

    info = debug

    def warning(self, text, *_, **__):
        self.errors[f"callback {len(self.errors)}"] = text

    error = warning

    def exception(self, text, *_, **__):
        self.errors[f"callback {len(self.errors)}"] = f"{text}\n{traceback.format_exc(limit=-2)}"


def call_back(bag, request):
    """Calls the callbacks of a DAG whose run has ended, or of a task whose process was lost. Returns what went wrong."""
    from airflow.callbacks.callback_requests import DagCallbackRequest, EmailRequest, TaskCallbackRequest
    from airflow.dag_processing import processor

    log = Remembering()
    try:
        if request["type"] == "Listener":
            updraft_listeners.tell(bag, request)
        elif request["type"] == "DeadlineCallback":
            updraft_deadlines.call(request["call"], request["dag_run"])
        elif request["type"] == "TaskCallbackRequest":
            mail, only_mail = request.pop("mail"), request.pop("only_mail")
            if not only_mail:
                processor._execute_task_callbacks(bag, TaskCallbackRequest.model_validate(request), log)
            if mail:
                request = {key: value for key, value in request.items() if key != "task_callback_type"}
                request = EmailRequest.model_validate({**request, "type": "EmailRequest", "email_type": mail})
                processor._execute_email_callbacks(bag, request, log)
        else:
            processor._execute_dag_callbacks(bag, DagCallbackRequest.model_validate(request), log)
    except Exception:  # noqa: BLE001 - such as a DAG that has left its file
        log.exception("the callback cannot be called")
    return log.errors


def say(kind):
    """A message to the supervisor that is not answered."""
    task_runner.SUPERVISOR_COMMS.socket.sendall(comms._RequestFrame(id=0, body={"type": kind}).as_bytes())


def run_task(request, page):
    """Runs a task, if its claim is not void when user code is about to begin."""
    receive = task_runner.get_startup_details

    def get_startup_details():
        details = receive()
        updraft_children.keep_handlers_from_forks(task_runner.__name__)
        say("UpdraftBegins")
        # The last step before the DAG file is loaded.
        if not updraft_children.may_begin(page, request["life"]):
            say("UpdraftVoid")
            os._exit(updraft_children.VOID)
        return details

    task_runner.get_startup_details = get_startup_details
    task_runner.main()


def run_triggers(request, page):
    if not updraft_children.may_begin(page, request["life"]):
        os._exit(updraft_children.VOID)
    updraft_triggers.run()


def child(request, fds):
    """Runs in the forked child; never returns."""
    signal.set_wakeup_fd(-1)
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    os.setpgid(0, 0)
    control.close()
    os.environ.update(request.get("env", {}))
    updraft_children.end_with(fds[4])
    requests, out, err, logs = (socket.socket(fileno=fd) for fd in fds[:4])
    work = {
        "task": lambda: run_task(request, fds[5]),
        "triggers": lambda: run_triggers(request, fds[5]),
        "parse": lambda: parse(request, fds[5] if len(fds) > 5 else None),
    }

    def target():
        updraft_children.tell_of_crashes()
        work[request["op"]]()

    supervisor._fork_main(requests, out, err, logs.detach(), target)


def reap(children):
    while True:
        try:
            ended = os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG | os.WNOWAIT)
        except ChildProcessError:
            return
        if ended is None:
            return
        if ended.si_pid in children:
            children.discard(ended.si_pid)
            status = ended.si_status if ended.si_code == os.CLD_EXITED else -ended.si_status
            # Told before it is reaped: should we die in between, it can still be learnt.
            tell({"exit": ended.si_pid, "status": status})
        os.waitpid(ended.si_pid, 0)


def kill_all(children):
    for pid in children:
        try:
            os.killpg(pid, signal.SIGKILL)
        except ProcessLookupError:
            pass


def serve_on(socket_of_the_copy):
    """Goes on as a copy of this process: one that takes requests when this one has died."""
    global control
    control.close()
    control = socket.socket(fileno=socket_of_the_copy)
    serve()


def serve():
    children = set()
    wake, notify = os.pipe()
    os.set_blocking(wake, False)
    os.set_blocking(notify, False)
    signal.set_wakeup_fd(notify)
    signal.signal(signal.SIGCHLD, lambda *_: None)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    while True:
        readable, _, _ = select.select([control, wake], [], [])
        if wake in readable:
            try:
                os.read(wake, 4096)
            except BlockingIOError:
                pass
        reap(children)
        if control not in readable:
            continue
        try:
            message, fds, _, _ = socket.recv_fds(control, 1 << 20, 6, socket.MSG_CMSG_CLOEXEC)
        except OSError:
            message, fds = b"", []
        if not message:
            # The one who asked for the children is gone, and nobody else looks after them.
            kill_all(children)
            os._exit(0)
        request = json.loads(message)
        pid = os.fork()
        if pid == 0:
            try:
                signal.set_wakeup_fd(-1)
                os.close(wake)
                os.close(notify)
                serve_on(fds[0]) if request["op"] == "copy" else child(request, fds)
            finally:
                os._exit(124)
        for fd in fds:
            os.close(fd)
        if request["op"] != "copy":
            try:
                os.setpgid(pid, pid)
            except OSError:
                pass
            children.add(pid)
        tell({"tag": request["tag"], "pid": pid})


def leave_crashes_alone():
    """Keeps the SDK from handling SIGSEGV in Python."""
    for name in ("airflow.dag_processing.importers.python_importer", "airflow.dag_processing.dagbag"):
        module = sys.modules.get(name)
        if getattr(module, "signal", None) is signal:
            module.signal = updraft_children.SignalsWithoutCrashes()


def keep_the_environment():
    """A process that is given a title keeps its environment, by which the watchdog knows it."""
    try:
        import setproctitle
    except ImportError:
        return
    os.environ["SPT_NOENV"] = "1"
    setproctitle.getproctitle()
    del os.environ["SPT_NOENV"]


try:
    keep_the_environment()
    warm()
    leave_crashes_alone()
except BaseException as error:  # noqa: B036
    tell({"broken": "warming up failed: " + "".join(traceback.format_exception(error))[-4000:]})
    sys.exit(1)
gc.collect()
gc.freeze()
with open("/proc/self/status") as status:
    RSS = next(int(line.split()[1]) for line in status if line.startswith("VmRSS:"))
tell({"ready": {"sdk": SDK_VERSION, "python": sys.version.split()[0], "seconds": time.monotonic() - STARTED, "rss_kb": RSS}})
serve()
