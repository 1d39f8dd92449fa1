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
        return {"start": micros(naive(span.start)), "end": micros(naive(span.end))}
    last = question.get("last")
    info = timetable.next_dagrun_info(
        last_automated_data_interval=last and DataInterval(instant(last[0]), instant(last[1])),
        restriction=TimeRestriction(instant(question["earliest"]), instant(question["latest"]), question["catchup"]),
    )
    if info is None:
        return {"next": None}
    span, after = info.data_interval, info.run_after
    return {"next": [micros(naive(span.start)), micros(naive(span.end)), micros(naive(after))]}
