"""Compiled modules of packages that came without any, kept in a folder of ours.

Installers such as uv leave compiling to the first import, and an environment may be read-only: then every parse and every
task would compile anew. What a package has in its own `__pycache__` is used as always. Nothing is ever written beside a
source, and sources outside the environment (DAG files and their modules) are not kept at all.

The name of an entry holds the time, size, inode and time of change of its source, so that another source is another
entry. Only the folder's owner, who owns the DAGs' processes, can read or write in it.
"""

import hashlib
import importlib._bootstrap_external as machinery
import os
import stat
import sys
import sysconfig

_folder = None
_roots = ()


def _own_folder(path):
    """The folder, made if it is not there; None unless nobody else can write in it."""
    try:
        os.makedirs(os.path.dirname(path), exist_ok=True)
        try:
            os.mkdir(path, 0o700)
        except FileExistsError:
            pass
        found = os.lstat(path)
    except OSError:
        return None
    mine = stat.S_ISDIR(found.st_mode) and found.st_uid == os.geteuid() and not found.st_mode & 0o077
    return path if mine and os.access(path, os.W_OK) else None


def _find_folder():
    name = f"bytecode-{os.geteuid()}"
    caches = os.environ.get("XDG_CACHE_HOME") or os.path.join(os.path.expanduser("~"), ".cache")
    for parent in (os.environ.get("AIRFLOW_HOME"), os.path.join(caches, "updraft")):
        if parent and os.path.isabs(parent):
            folder = _own_folder(os.path.join(parent, name))
            if folder:
                return folder
    return None


def _entry(source):
    """Where the compiled form of a source is kept; None if it is not to be."""
    if _folder is None or not source.startswith(_roots):
        return None
    try:
        facts = os.stat(source)
    except OSError:
        return None
    print_of = lambda text: hashlib.blake2b(text.encode("utf-8", "surrogateescape"), digest_size=12).hexdigest()  # noqa: E731
    path = print_of(source)
    now = print_of(f"{facts.st_mtime_ns} {facts.st_size} {facts.st_ino} {facts.st_ctime_ns}")
    tag = f"{sys.implementation.cache_tag}-{sys.flags.optimize}"
    return os.path.join(_folder, path[:2], f"{path}.{tag}.{now}.pyc")


def _write(path, data):
    """Writes an entry, whole or not at all, and drops what is there of an older source."""
    parent, name = os.path.split(path)
    draft = f"{path}.{os.getpid()}"
    try:
        os.makedirs(parent, 0o700, exist_ok=True)
        older = name.rsplit(".", 2)[0] + "."
        for other in os.listdir(parent):
            if other.startswith(older):
                os.unlink(os.path.join(parent, other))
        with open(os.open(draft, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600), "wb") as file:
            file.write(data)
        os.replace(draft, path)
    except OSError:
        # Without it the module is compiled again next time, nothing else.
        pass


def install():
    """From here on, modules of the environment are compiled once."""
    global _folder, _roots
    _folder = _find_folder()
    if _folder is None:
        return
    paths = sysconfig.get_paths()
    roots = {paths[name] for name in ("stdlib", "platstdlib", "purelib", "platlib")}
    roots.update(entry for entry in sys.path if entry.endswith(("site-packages", "dist-packages")))
    _roots = tuple(sorted(root + os.sep for root in roots))
    where = machinery.cache_from_source

    def cache_from_source(path, *args, **kwargs):
        usual = where(path, *args, **kwargs)
        try:
            os.stat(usual)
        except OSError:
            return _entry(os.fspath(path)) or usual
        return usual

    def cache_bytecode(self, source_path, bytecode_path, data):
        if bytecode_path.startswith(_folder + os.sep):
            _write(bytecode_path, bytes(data))

    machinery.cache_from_source = cache_from_source
    machinery.SourceFileLoader._cache_bytecode = cache_bytecode
    # Only entries of ours are written, see above.
    sys.dont_write_bytecode = False


install()
