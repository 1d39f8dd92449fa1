"""What parsing a DAG file depends on, and which file each DAG was made in.

Python tells of files that are opened and folders that are listed (audit events). What it does not tell of (`os.stat` and
all that is made of it, reads of the environment) is wrapped, in the child that parses and nowhere else. What is asked of
the supervisor (Variables, Connections) is noted where it is answered.

An entry is a kind and a name: `file:` its bytes and times, `names:` what a folder holds, `there:` whether something is
there, `env:` a variable of the environment, `packages:` a folder of installed packages. Paths within the bundle are
relative to it.
"""

import functools
import os
import stat
import sys
import sysconfig

LIMIT = 2000
# Functions that ask of a path only whether it is there.
ASKS_FOR_BEING = {
    "exists", "lexists", "isfile", "isdir", "islink", "ismount", "is_file", "is_dir", "is_symlink", "is_mount",
}
# They look at every folder on the way to a path; what is opened in the end counts.
PASSES_BY = {"realpath", "_joinrealpath", "resolve", "absolute"}
NOBODYS = ("/proc", "/sys", "/dev", "/usr/share/zoneinfo", "/usr/lib/locale", "/usr/share/locale")
# Different in every process, and nothing that a DAG is made of.
NOISE = {
    "_", "PWD", "OLDPWD", "SHLVL", "INVOCATION_ID", "JOURNAL_STREAM", "SYSTEMD_EXEC_PID", "MAINPID", "NOTIFY_SOCKET", "HOSTNAME",
    "OPENBLAS_NUM_THREADS", "OMP_NUM_THREADS", "MKL_NUM_THREADS", "_AIRFLOW_PROCESS_CONTEXT", "LC_CTYPE",
}
WRITES = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC

_recorder = None
_made_in = {}


def _libraries():
    """Folders of the interpreter and of installed packages."""
    paths = sysconfig.get_paths()
    found = {paths[name] for name in ("stdlib", "platstdlib", "purelib", "platlib")}
    found.update(entry for entry in sys.path if entry.endswith(("site-packages", "dist-packages", ".zip")))
    if sys.prefix != sys.base_prefix:
        found.add(sys.prefix)
    return tuple(sorted(found | {os.path.realpath(entry) for entry in found}))


def _packages():
    return sorted({entry for entry in sys.path if entry.endswith(("site-packages", "dist-packages"))})


def _within(path, folders):
    return any(path == folder or path.startswith(folder + os.sep) for folder in folders)


class Recorder:
    """Notes what is looked at, from `start` to `entries`."""

    def __init__(self, bundle, file):
        self.bundle, self.file = os.path.abspath(bundle), os.path.abspath(file)
        self.found, self.own, self.names, self.too_many = {}, set(), set(), False
        self.libraries, self.before, self.busy = _libraries(), set(sys.modules), False

    def start(self):
        global _recorder
        _recorder = self
        _wrap()
        sys.addaudithook(_heard)

    def stop(self):
        global _recorder
        _recorder = None

    def name(self, path):
        """The path as it is noted, or None if it is none of the DAG file's business."""
        if path is None:
            path = "."
        if isinstance(path, int):
            return None
        path = os.path.abspath(os.fsdecode(path))
        if path == self.file or "__pycache__" in path:
            return None
        if path == self.bundle:
            return "."
        if path.startswith(self.bundle + os.sep):
            return path[len(self.bundle) + 1:]
        if _within(path, NOBODYS) or _within(path, self.libraries) or path == os.sep:
            return None
        return path

    def add(self, kind, path):
        name = self.name(path)
        if name is not None:
            self.put(f"{kind}:{name}")

    def put(self, entry):
        if entry in self.found:
            return
        if len(self.found) >= LIMIT:
            self.too_many = True
            return
        self.found[entry] = None

    def wrote(self, path):
        name = self.name(path)
        if name is not None:
            self.own.add(name)

    def is_own(self, entry):
        """Whether the file made this path itself, so that it is nothing that the file depends on."""
        kind, _, name = entry.partition(":")
        return kind != "names" and bool(self.own) and _within(name, self.own)

    def _modules(self):
        for name in set(sys.modules) - self.before:
            file = getattr(sys.modules[name], "__file__", None)
            if file:
                self.add("file", file)
        for name in self.names:
            if name in sys.modules:
                continue
            parent, _, leaf = name.rpartition(".")
            folders = getattr(sys.modules.get(parent), "__path__", ()) if parent else sys.path
            for folder in list(folders):
                if isinstance(folder, str):
                    self.add("there", os.path.join(folder, leaf + ".py"))
                    self.add("there", os.path.join(folder, leaf))

    def entries(self):
        """All that was noted, and whether there was more than is kept."""
        self.stop()
        self._modules()
        for folder in _packages():
            self.put(f"packages:{folder}")
        return sorted(entry for entry in self.found if not self.is_own(entry)), self.too_many


def _heard(event, arguments):
    recorder = _recorder
    if recorder is None or recorder.busy:
        return
    if event == "import":
        recorder.names.add(arguments[0])
        return
    if event not in ("open", "os.listdir", "os.scandir", "os.mkdir", "os.remove", "os.rename", "sqlite3.connect"):
        return
    if "importlib" in sys._getframe(1).f_code.co_filename:
        return
    recorder.busy = True
    try:
        if event == "open":
            path, mode, flags = arguments
            writes = any(letter in mode for letter in "wax+") if isinstance(mode, str) else (flags or 0) & WRITES
            if writes:
                recorder.wrote(path)
            else:
                recorder.add("file", path)
        elif event == "sqlite3.connect":
            recorder.add("file", arguments[0])
        elif event in ("os.listdir", "os.scandir"):
            recorder.add("names", arguments[0])
        else:
            for path in arguments[:2] if event == "os.rename" else arguments[:1]:
                recorder.wrote(path)
    except (OSError, TypeError, ValueError):
        # Such as a folder of today that is gone: what cannot be named cannot be looked at again.
        pass
    finally:
        recorder.busy = False


def _looked(path, found):
    """Notes that a path was looked at; `found` is what there was, if anything."""
    recorder = _recorder
    if recorder is None or recorder.busy or isinstance(path, int):
        return
    callers, frame = set(), sys._getframe(2)
    for _ in range(3):
        if frame is None:
            break
        callers.add(frame.f_code.co_name)
        frame = frame.f_back
    if callers & PASSES_BY:
        return
    recorder.busy = True
    try:
        is_file = found is not None and stat.S_ISREG(found.st_mode)
        recorder.add("file" if is_file and not callers & ASKS_FOR_BEING else "there", path)
    except (OSError, TypeError, ValueError):
        pass
    finally:
        recorder.busy = False


def _wrap_look(name):
    original = getattr(os, name)

    def look(path, *args, **kwargs):
        try:
            found = original(path, *args, **kwargs)
        except OSError:
            _looked(path, None)
            raise
        _looked(path, found if isinstance(found, os.stat_result) else None)
        return found

    look.__name__, look.__doc__ = original.__name__, original.__doc__
    for ability in (os.supports_dir_fd, os.supports_fd, os.supports_follow_symlinks, os.supports_effective_ids):
        if original in ability:
            ability.add(look)
    setattr(os, name, look)


def _is_configuration():
    """Whether Airflow's configuration reads: options belong to the installation."""
    frame = sys._getframe(2)
    for _ in range(4):
        if frame is None:
            return False
        name = frame.f_code.co_filename
        if name.endswith("airflow/configuration.py") or "/_shared/configuration/" in name:
            return True
        frame = frame.f_back
    return False


def _wrap():
    for name in ("stat", "lstat", "access"):
        _wrap_look(name)
    kind = type(os.environ)
    original = kind.__getitem__

    def read(self, key):
        recorder = _recorder
        if recorder is not None and self is os.environ and isinstance(key, str) and key not in NOISE:
            entry = f"env:{key}"
            if entry not in recorder.found and not _is_configuration():
                recorder.put(entry)
        return original(self, key)

    kind.__getitem__ = read


def made(dag):
    """Notes which file's code a DAG is made by: the file whose own lines run, not a function of another one."""
    if _recorder is None:
        return
    frame = sys._getframe(1)
    while frame is not None:
        if frame.f_code.co_name == "<module>":
            _made_in[id(dag)] = (dag, frame.f_code.co_filename)
            return
        frame = frame.f_back


def other_file(dag, file, bundle):
    """The file of the bundle that a DAG was made in while another one was parsed, if it is to be parsed itself, too."""
    made_in = _made_in.get(id(dag), (None, file))[1]
    if made_in.startswith(str(file)) or not made_in.endswith(".py"):
        return None
    bundle = str(bundle).rstrip(os.sep) + os.sep
    if not made_in.startswith(bundle) or not os.path.isfile(made_in):
        return None
    from airflow.configuration import conf
    from airflow.utils.file import might_contain_dag

    if not might_contain_dag(made_in, conf.getboolean("core", "dag_discovery_safe_mode")):
        return None
    return made_in[len(bundle):]


def install():
    """Marks tasks whose template is a file: what it says when the task runs counts, not what it said at the parse."""
    from airflow.sdk.definitions._internal.templater import Templater

    original = Templater.resolve_template_files

    @functools.wraps(original)
    def resolve_template_files(self):
        endings = tuple(self.template_ext or ())
        named = [getattr(self, field, None) for field in self.template_fields] if endings else ()
        for value in named:
            texts = value if isinstance(value, (list, tuple)) else (value,)
            if any(isinstance(text, str) and text.endswith(endings) for text in texts):
                self.__dict__["_updraft_template_is_file"] = True
        original(self)

    Templater.resolve_template_files = resolve_template_files
