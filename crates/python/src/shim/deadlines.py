"""Deadlines of runs: asks references of the user's own when they are, and calls what is to be called when one is missed."""

import asyncio
import importlib
import inspect
import sys

import updraft_listeners
from updraft_timetables import micros


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


def session_of(run):
    """A session with a database that knows this run and nothing else: what references look up is mostly a column of it."""
    from airflow.models.dagrun import DagRun
    from sqlalchemy import create_engine, insert
    from sqlalchemy.orm import Session

    engine = create_engine("sqlite://")
    DagRun.__table__.create(engine)
    columns = [(column, getattr(run, column.key, None)) for column in DagRun.__table__.columns]
    # What is not said would be filled in from tables that are not there.
    given = {column.key: value for column, value in columns if value is not None or column.nullable}
    session = Session(bind=engine)
    session.execute(insert(DagRun.__table__).values(**given))
    return session


def answer(question):
    """From when on a deadline counts, as a reference of the user's own says; or why it cannot."""
    from datetime import datetime, timedelta, timezone

    from airflow.serialization.decoders import decode_deadline_reference

    try:
        facts = question["dag_run"]
        run = updraft_listeners.dag_run(question, None)
        reference = decode_deadline_reference(question["reference"])
        words = {"dag_id": facts["dag_id"], "run_id": facts["dag_run_id"]}
        with session_of(run) as session:
            moment = reference.evaluate_with(session=session, interval=timedelta(), **words)
    except Exception as error:  # noqa: BLE001 - the run has no such deadline then, and why is told
        return {"error": f"{type(error).__name__}: {error}"}
    return {"at": moment and micros(datetime.fromtimestamp(moment.timestamp(), timezone.utc))}
