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
        if is_old:
            _old_files.add(file)
        _notes.setdefault((file, line, old), modern)


IMPORTS = frozenset({"ImportError", "ModuleNotFoundError", "Exception", "BaseException"})
ARGUMENTS = frozenset({"TypeError", "Exception", "BaseException"})


def _names(node):
    """The names of exceptions in an expression."""
    return {part.id if isinstance(part, ast.Name) else part.attr for part in ast.walk(node)
            if isinstance(part, (ast.Name, ast.Attribute))}


def _caught(node):
    """The exceptions after whose catching a statement lets the file go on; a bare `except` catches BaseException."""
    if isinstance(node, ast.Try):
        going_on = [handler for handler in node.handlers if not isinstance(handler.body[-1], ast.Raise)]
        return set().union(*(_names(handler.type) if handler.type else {"BaseException"} for handler in going_on))
    calls = [item.context_expr for item in node.items if isinstance(item.context_expr, ast.Call)]
    suppressing = [call for call in calls if "suppress" in _names(call.func)]
    return set().union(*(_names(argument) for call in suppressing for argument in call.args))


@functools.lru_cache
def _guards(file):
    """For each statement that catches something: its line, its body's first and last line, and what it catches."""
    try:
        with open(file, encoding="utf-8") as source:
            tree = ast.parse(source.read())
    except (OSError, SyntaxError, ValueError):
        return ()
    return tuple(
        (node.lineno, node.body[0].lineno, node.body[-1].end_lineno, _caught(node))
        for node in ast.walk(tree) if isinstance(node, (ast.Try, ast.With))
    )


def is_handled(kinds):
    """Whether the file that we were called from has its own way on when Airflow 3 raises one of these: then it is to take
    that way, as there."""
    frame, file = sys._getframe(1), place()[0]
    while frame is not None and file:
        code, line = frame.f_code, frame.f_lineno
        if code.co_filename == file and any(
            begin <= line <= end and code.co_firstlineno <= at and kinds & caught
            for at, begin, end, caught in _guards(file)
        ):
            return True
        frame = frame.f_back
    return False


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
