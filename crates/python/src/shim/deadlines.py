"""Calls what is to be called when a run has missed a deadline."""

import asyncio
import importlib
import inspect
import sys


def find(path):
    """What a dotted path names. A DAG file is a module of an invented name, which was loaded for this call."""
    parts = path.split(".")
    if parts[0].startswith("unusual_prefix_"):
        stem = parts[0].split("_", 3)[-1]
        names = [parts[0], *(name for name in sys.modules if name.startswith("unusual_prefix_") and name.endswith(stem))]
        found, rest = next(sys.modules[name] for name in names if name in sys.modules), parts[1:]
    else:
        for length in range(len(parts) - 1, 0, -1):
            try:
                found, rest = importlib.import_module(".".join(parts[:length])), parts[length:]
                break
            except ModuleNotFoundError:
                if length == 1:
                    raise
    for name in rest:
        found = getattr(found, name)
    return found


def takes_context(function):
    try:
        parameters = inspect.signature(function).parameters
    except (TypeError, ValueError):
        return True
    return "context" in parameters or any(kind.kind is kind.VAR_KEYWORD for kind in parameters.values())


async def wait_for(awaitable):
    return await awaitable


def call(what, dag_run):
    from airflow.sdk.serde import deserialize

    context = {"dag_run": dag_run, "deadline": what["deadline"]}
    arguments = {key: deserialize(value) for key, value in (what["kwargs"] or {}).items()}
    function = find(what["path"])
    result = function(**arguments, context=context) if takes_context(function) else function(**arguments)
    if what["is_awaited"]:
        asyncio.run(wait_for(result))
    elif callable(result):
        # A notifier, which could be awaited, too: what it is told comes with the call.
        result(context)
