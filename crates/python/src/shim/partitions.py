"""Partition mappers and windows of the user's own: asked what a key becomes, as Airflow would when an asset is updated."""

from datetime import datetime, timedelta, timezone

from updraft_timetables import EPOCH, micros


def answer(question):
    """The keys that a key becomes, with all that is wanted of them later; or why there are none."""
    from airflow.serialization.decoders import decode_partition_mapper

    try:
        mapper = decode_partition_mapper(question["mapper"])
        found = mapper.to_downstream(question["key"])
        keys = [found] if isinstance(found, str) else list(found)
        date = question["date"]
        date = None if date is None else EPOCH + timedelta(microseconds=date)
        carried = instant(attempt(mapper.carry_partition_date, date))
        targets = [{"key": key, "carried": carried, **facts(mapper, key)} for key in keys]
    except Exception as error:  # noqa: BLE001 - whatever it is, the update starts no run, and why is told
        return {"error": f"{type(error).__name__}: {error}"}
    return {"targets": targets, "most": mapper.max_downstream_keys}


def instant(moment):
    return None if moment is None else micros(datetime.fromtimestamp(moment.timestamp(), timezone.utc))


def attempt(function, *arguments):
    """What it gives; nothing where it cannot say, as Airflow takes it."""
    try:
        return function(*arguments)
    except Exception:  # noqa: BLE001
        return None


def facts(mapper, key):
    """What is wanted of a target later: its date, and, where it is made of several keys, which and how many of them."""
    from airflow.serialization.encoders import encode_wait_policy

    told = {"date": instant(attempt(mapper.to_partition_date, key)), "is_rollup": bool(mapper.is_rollup)}
    if mapper.is_rollup:
        upstream = attempt(mapper.to_upstream, key)
        told |= {"upstream": None if upstream is None else sorted(upstream), "policy": encode_wait_policy(mapper.wait_policy)}
    return told
