"""Asks Airflow's own timetables, and writes down what they say.

Arguments: a seed, how many instants to ask about, which part of so many. Each line is a JSON list: a timetable
(["T", number, serialized]) or a question with its answer (["next", number, last start, last end, earliest, latest,
catchup, now, answer], ["manual", number, instant, answer] or, of a partition, ["key", number, key, its date]); instants
are microseconds since 1970. The answer of a timetable of partitions ends with the partition's date and key.
"""

import json
import random
import sys
from datetime import datetime, timedelta, timezone
from zoneinfo import ZoneInfo

import pendulum
from dateutil.relativedelta import relativedelta

import airflow.timetables.events as events
import airflow.timetables.interval as interval
import airflow.timetables.simple as simple
import airflow.timetables.trigger as trigger
from airflow.serialization.encoders import encode_timetable
from airflow.timetables.base import DataInterval, TimeRestriction

ZONES = (
    "UTC", "Europe/Zurich", "Europe/London", "Europe/Moscow", "Europe/Lisbon", "Europe/Istanbul", "Africa/Cairo",
    "Africa/Casablanca", "Asia/Kolkata", "Asia/Kathmandu", "Asia/Tehran", "Asia/Gaza", "Asia/Tokyo", "Australia/Sydney",
    "Australia/Lord_Howe", "Pacific/Apia", "Pacific/Auckland", "America/New_York", "America/Sao_Paulo",
    "America/St_Johns", "America/Caracas", "America/Los_Angeles",
)
EXPRESSIONS = (
    "@hourly", "@daily", "@weekly", "@monthly", "@quarterly", "@yearly",
    "* * * * *", "*/5 * * * *", "*/7 * * * *", "7-59/13 * * * *", "0 * * * *", "30 * * * *", "15,45 * * * *",
    "0 */2 * * *", "0 1-23/3 * * *", "30 2 * * *", "0 2 * * *", "30 1 * * *", "0 3 * * *", "0 0 * * *", "59 23 * * *",
    "0 2,3 * * *", "*/20 1-3 * * *", "30 0 * * *", "0 12 * * 1-5", "0 0 * * 0", "0 0 * * 7", "0 0 * * SUN", "30 2 * * SUN",
    "0 2 * 3,10 0", "0 0 1 * *", "0 0 31 * *", "0 0 29 2 *", "0 0 28-31 * *", "0 0 L * *", "30 2 L 3,10 *", "0 0 1,15 * *",
    "0 0 13 * 5", "0 0 1 * MON", "0 0 */3 * 2", "0 6 * JAN-MAR mon,wed", "0 0 1 JAN *", "0 0 1 1,4,7,10 *", "0 0 * * 5#1",
    "0 0 * * 1#3", "30 2 * * 0#2", "0 4 * * L5", "0 22 * * MON#1,FRI#2", "23 4 */5 */2 *", "0 0 15 2-12/3 *", "10 10 10 10 *",
)
KEYS = ("%Y-%m-%dT%H:%M:%S", "%Y-%m-%d", "%d.%m.%Y %H:%M", "%Y%m%d-%H%M%S")
MULTIPLE = (("0 0 * * *", "30 2 * * *"), ("0 12 * * 1", "0 0 1 * *", "*/30 1-3 * * 0"))
DELTAS = (
    timedelta(minutes=7), timedelta(hours=1), timedelta(hours=25), timedelta(days=1), timedelta(days=7, seconds=1),
    relativedelta(days=1), relativedelta(months=1), relativedelta(months=1, days=3), relativedelta(years=1, hours=5),
)
EPOCH = datetime(1970, 1, 1, tzinfo=timezone.utc)
END = 2038

now = pendulum.datetime(2020, 1, 1)
for module in (trigger, interval):
    module.utcnow = lambda: now


class Seconds:
    """Stands for the module `time`."""

    @staticmethod
    def time():
        return now.timestamp()


trigger.time = Seconds


class Quiet:
    """Stands for the log of partitions, which goes where the answers go."""

    def info(self, *_, **__):
        pass

    warning = info


trigger.log = Quiet()


class Clock:
    """Stands for the module of times where a timetable asks it for now."""

    def __init__(self, module):
        self.module = module

    def __getattr__(self, name):
        return (lambda: now) if name == "utcnow" else getattr(self.module, name)


simple.timezone = Clock(simple.timezone)
events.timezone = Clock(events.timezone)


def micros(instant):
    return None if instant is None else round(instant.timestamp() * 1_000_000)


def say(*parts):
    sys.stdout.write(json.dumps(parts, separators=(",", ":")) + "\n")


def changes(name):
    """The instants since 1970 at which a zone's clocks change."""
    zone, found = ZoneInfo(name), []
    at, end = datetime(1970, 1, 1, tzinfo=timezone.utc), datetime(END, 1, 1, tzinfo=timezone.utc)
    offset = at.astimezone(zone).utcoffset()
    while at < end:
        following = at + timedelta(days=5)
        if following.astimezone(zone).utcoffset() != offset:
            low, high = at, following
            while high - low > timedelta(seconds=1):
                middle = low + (high - low) / 2
                if middle.astimezone(zone).utcoffset() == offset:
                    low = middle
                else:
                    high = middle
            found.append(high.replace(microsecond=0))
            at, offset = high, high.astimezone(zone).utcoffset()
        else:
            at = following
    return found


def timetables(zone):
    for expression in EXPRESSIONS:
        yield trigger.CronTriggerTimetable(expression, timezone=zone)
        yield interval.CronDataIntervalTimetable(expression, zone)
    for number, expression in enumerate(EXPRESSIONS):
        offset, key = (None, -1, 2, 0, -3)[number % 5], KEYS[number % len(KEYS)]
        yield trigger.CronPartitionTimetable(expression, timezone=zone, run_offset=offset, key_format=key)
    for expression in ("0 0 * * *", "30 2 * * SUN"):
        yield trigger.CronTriggerTimetable(expression, timezone=zone, interval=timedelta(hours=26), run_immediately=True)
        yield trigger.CronTriggerTimetable(expression, timezone=zone, interval=relativedelta(months=1), run_immediately=timedelta(hours=3))
        yield trigger.CronTriggerTimetable(expression, timezone=zone, run_immediately=None)
    for several in MULTIPLE:
        yield trigger.MultipleCronTriggerTimetable(*several, timezone=zone)


def plain_timetables():
    for delta in DELTAS:
        yield trigger.DeltaTriggerTimetable(delta)
        yield trigger.DeltaTriggerTimetable(delta, interval=timedelta(hours=2))
        yield interval.DeltaDataIntervalTimetable(delta)
    yield simple.OnceTimetable()
    yield simple.ContinuousTimetable()
    dates = [pendulum.datetime(year, 3, 1 + year % 28, year % 24) for year in range(1971, END, 2)]
    yield events.EventsTimetable(event_dates=dates)
    yield events.EventsTimetable(event_dates=dates, restrict_to_events=True)


def instants(zone, dice):
    """Around changes of clocks, around the ends of months, and anywhere."""
    clocks = changes(zone)
    while True:
        kind = dice.random()
        if kind < 0.7 and clocks:
            at = dice.choice(clocks) + timedelta(seconds=dice.randint(-2 * 86400, 2 * 86400))
            if dice.random() < 0.5:
                at = at.replace(minute=dice.choice((0, 0, 30, 59)), second=0)
        elif kind < 0.85:
            first = datetime(dice.randint(1970, END - 1), dice.randint(1, 12), 1, tzinfo=timezone.utc)
            at = first + timedelta(seconds=dice.choice((0, 0, dice.randint(-3 * 86400, 2 * 86400))))
        else:
            at = EPOCH + timedelta(seconds=dice.randint(0, (END - 1970) * 31556952))
        yield pendulum.instance(max(at, EPOCH + timedelta(days=40)))


def ask_next_partition(number, timetable, last, earliest, latest, catchup):
    try:
        info = timetable.next_dagrun_info_v2(
            last_dagrun_info=last, restriction=TimeRestriction(earliest, latest, catchup)
        )
    except Exception as error:  # noqa: BLE001 - whatever it is, it is an answer
        answer = type(error).__name__
        info = None
    else:
        answer = info and [micros(info.run_after)] * 3 + [micros(info.partition_date), info.partition_key]
    after = last and micros(last.run_after)
    say("next", number, after, after, micros(earliest), micros(latest), catchup, micros(now), answer)
    return info


def ask_next(number, timetable, last, earliest, latest, catchup):
    if timetable.partitioned:
        return ask_next_partition(number, timetable, last, earliest, latest, catchup)
    try:
        info = timetable.next_dagrun_info(
            last_automated_data_interval=last, restriction=TimeRestriction(earliest, latest, catchup)
        )
    except Exception as error:  # noqa: BLE001 - whatever it is, it is an answer
        answer = type(error).__name__
        info = None
    else:
        answer = info and [micros(info.data_interval.start), micros(info.data_interval.end), micros(info.run_after)]
    span = (None, None) if last is None else (micros(last.start), micros(last.end))
    say("next", number, *span, micros(earliest), micros(latest), catchup, micros(now), answer)
    return info and info.data_interval


def ask(number, timetable, at, dice):
    global now
    now = at + timedelta(days=400)
    last = ask_next(number, timetable, None, at, None, True)
    for _ in range(2):
        if last is not None:
            last = ask_next(number, timetable, last, at, None, True)
    now = at
    kind = dice.randrange(4)
    if kind == 0:
        ask_next(number, timetable, None, None, None, False)
    elif kind == 1:
        ask_next(number, timetable, None, at - timedelta(days=dice.randint(0, 40)), None, dice.random() < 0.5)
    elif kind == 2 and last is not None:
        end = last.run_after if timetable.partitioned else last.end
        now = end + timedelta(seconds=dice.randint(-90000, 900000))
        ask_next(number, timetable, last, at, None, False)
    elif timetable.partitioned:
        if last is not None:
            say("key", number, last.partition_key, micros(timetable.resolve_partition_date(last.partition_key)))
    else:
        span = timetable.infer_manual_data_interval(run_after=at)
        say("manual", number, micros(at), [micros(span.start), micros(span.end)])
    if dice.random() < 0.1:
        ask_next(number, timetable, None, at, at + timedelta(hours=dice.randint(0, 800)), dice.random() < 0.5)


def main(seed, count, part, parts):
    dice = random.Random(seed * 1000 + part)
    zones = [zone for place, zone in enumerate(ZONES) if place % parts == part]
    groups = [(zone, list(timetables(zone))) for zone in zones]
    if part == 0:
        groups.append(("UTC", list(plain_timetables())))
    weights = [len(group) for _, group in groups]
    number = 0
    for (zone, group), weight in zip(groups, weights):
        source = instants(zone, dice)
        for timetable in group:
            say("T", number, encode_timetable(timetable))
            for _ in range(max(1, count // sum(weights))):
                ask(number, timetable, next(source), dice)
            number += 1


main(*(int(argument) for argument in sys.argv[1:]))
