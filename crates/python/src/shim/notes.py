"""Which old forms the files of this process use: each with its file, line and modern form."""

import ast
import functools
import os
import sys

_notes = {}
_old_files = set()
_airflow = None


def place():
    """File and line of the user code that we were called from."""
    frame = sys._getframe(1)
    while frame is not None:
        name = frame.f_code.co_filename
        if not name.startswith(("updraft_", "<", _airflow)) and f"{os.sep}importlib{os.sep}" not in name:
            return name, frame.f_lineno
        frame = frame.f_back
    return "", 0


def note(old, modern, is_old=True):
    """Notes one use. The file counts as an old one from here on, unless Airflow 3 would have loaded it all the same."""
    file, line = place()
    if file:
        if is_old and not _is_guarded(file, line):
            _old_files.add(file)
        _notes.setdefault((file, line, old), modern)


@functools.lru_cache
def _guarded_lines(file):
    """Lines whose ImportError the file handles itself."""
    try:
        with open(file, encoding="utf-8") as source:
            tree = ast.parse(source.read())
    except (OSError, SyntaxError, ValueError):
        return frozenset()
    handled = {"ImportError", "ModuleNotFoundError", "Exception", "BaseException"}
    lines = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Try):
            kinds = [kind for handler in node.handlers for kind in ast.walk(handler.type)] if all(
                handler.type for handler in node.handlers
            ) else None
            if kinds is None or any(getattr(kind, "id", "") in handled for kind in kinds):
                lines.update(line for part in node.body for line in range(part.lineno, part.end_lineno + 1))
    return frozenset(lines)


def _is_guarded(file, line):
    return line in _guarded_lines(file)


def notes():
    """All uses so far."""
    return [
        {"file": file, "line": line, "old": old, "modern": modern} for (file, line, old), modern in _notes.items()
    ]


def install(airflow):
    """Frames of Airflow itself, in that folder, are not user code."""
    global _airflow
    _airflow = airflow


def is_old(file):
    """Whether a file has used an old form by now."""
    return file in _old_files
