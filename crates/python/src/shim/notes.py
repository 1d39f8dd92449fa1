"""Which old forms the files of this process use: each with its file, line and modern form."""

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


def note(old, modern):
    """Notes one use; the file counts as an old one from here on."""
    file, line = place()
    if file:
        _old_files.add(file)
        _notes.setdefault((file, line, old), modern)


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
