"""Timetables of the user's own: asked for dates, as Airflow's scheduler would."""

from datetime import datetime, timedelta, timezone

EPOCH = datetime(1970, 1, 1, tzinfo=timezone.utc)


def micros(instant):
    return None if instant is None else (instant - EPOCH) // timedelta(microseconds=1)


def answer(question):
    """What a serialized timetable says about its next run, or about the interval of a run by hand; or why it cannot."""
    try:
        return asked(question)
    except Exception as error:
        return {"error": f"{type(error).__name__}: {error}"}


def asked(question):
    import pendulum
    from airflow.serialization.decoders import decode_timetable
    from airflow.timetables.base import DataInterval, TimeRestriction

    def instant(number):
        return None if number is None else pendulum.instance(EPOCH + timedelta(microseconds=number))

    def naive(moment):
        return None if moment is None else datetime.fromtimestamp(moment.timestamp(), timezone.utc)

    timetable = decode_timetable(question["timetable"])
    if question["kind"] == "manual":
        span = timetable.infer_manual_data_interval(run_after=instant(question["at"]))
        name = run_id(timetable, "manual", instant(question["run_after"]), span)
        return {"start": micros(naive(span.start)), "end": micros(naive(span.end)), "run_id": name}
    if question["kind"] == "name":
        span = question["span"] and DataInterval(*map(instant, question["span"]))
        return {"run_id": run_id(timetable, "manual", instant(question["run_after"]), span)}
    if question["kind"] == "between":
        return between(timetable, instant(question["from"]), instant(question["to"]), question["most"], naive)
    last = question.get("last")
    info = timetable.next_dagrun_info(
        last_automated_data_interval=last and DataInterval(instant(last[0]), instant(last[1])),
        restriction=TimeRestriction(instant(question["earliest"]), instant(question["latest"]), question["catchup"]),
    )
    if info is None:
        return {"next": None}
    span, after = info.data_interval, info.run_after
    name = run_id(timetable, "scheduled", after, span)
    return {"next": [micros(naive(span.start)), micros(naive(span.end)), micros(naive(after))], "run_id": name}


def run_id(timetable, kind, after, span):
    """The name that a timetable gives to a run; one that cannot say leaves it at the usual one."""
    from airflow.timetables.base import Timetable
    from airflow.utils.types import DagRunType

    if type(timetable).generate_run_id is Timetable.generate_run_id:
        return None
    try:
        return timetable.generate_run_id(run_type=DagRunType(kind), run_after=after, data_interval=span)
    except Exception:  # noqa: BLE001
        return None


def between(timetable, start, end, most, naive):
    """The runs of a backfill (`SerializedDAG.iter_dagrun_infos_between`), but none after its end."""
    from airflow.timetables.base import TimeRestriction

    if not timetable.periodic:
        return {}
    info, runs = None, []
    while len(runs) < most:
        info = timetable.next_dagrun_info_v2(last_dagrun_info=info, restriction=TimeRestriction(start, end, True))
        if info is None or info.data_interval is None or info.data_interval.start > end:
            break
        span = info.data_interval
        runs.append([micros(naive(span.start)), micros(naive(span.end)), micros(naive(info.run_after))])
    return {"runs": runs}
