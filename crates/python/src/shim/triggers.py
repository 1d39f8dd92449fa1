"""Triggers: Airflow's own runner, in a process of its own.

The runner looks around once a second. This one is woken as soon as a trigger fires or the worker has a new one for it,
and hands events over in the form in which they are stored.
"""

import asyncio
import collections
import types

# Number of the frame by which the worker wakes the runner; replies to requests have lower ones.
NUDGE = 2**31


class Wake:
    """Stands for the event that ends the runner's pauses."""

    def __init__(self):
        self.event = asyncio.Event()

    def set(self):
        self.event.set()

    async def wait(self):
        await self.event.wait()
        self.event.clear()


class Nudge:
    """Stands for a request whose reply wakes the runner."""

    def __init__(self, runner):
        self.runner = runner

    def done(self):
        return False

    def set_result(self, _):
        self.runner.wake()


class Pending(dict):
    def __init__(self, runner):
        super().__init__()
        self.runner = runner

    def pop(self, key, *default):
        return Nudge(self.runner) if key == NUDGE else super().pop(key, *default)


class Waking(collections.deque):
    """A queue that wakes the runner."""

    def __init__(self, runner):
        super().__init__()
        self.runner = runner

    def append(self, item):
        super().append(item)
        self.runner.wake()


class Changes:
    """What has happened since the last time, as the worker reads it."""

    def __init__(self, events, failures, finished):
        self.body = {"type": "TriggerStateChanges", "events": events, "failures": failures, "finished": finished}

    def model_dump(self, **_):
        return self.body


def run():
    import anyio
    import airflow.jobs.triggerer_job_runner as module
    from airflow.sdk.serde import serialize

    module.anyio = types.SimpleNamespace(Event=Wake, move_on_after=anyio.move_on_after)

    class Runner(module.TriggerRunner):
        def __init__(self):
            super().__init__()
            self.events = Waking(self)
            self.failed_triggers = Waking(self)

        def wake(self):
            if self._stop_event is not None:
                self._stop_event.set()

        async def init_comms(self):
            await super().init_comms()
            self.comms_decoder._pending = Pending(self)

        def process_trigger_events(self, finished_ids):
            events, failures = [], []
            while self.events:
                entry = self.events.popleft()
                event = entry.event
                state = getattr(event, "task_instance_state", None)
                try:
                    if state is None:
                        events.append({"id": entry.trigger_id, "payload": serialize(event.payload)})
                    else:
                        events.append({"id": entry.trigger_id, "state": str(state.value), "xcoms": event.xcoms or {}})
                except Exception as error:  # noqa: BLE001 - whatever the payload is, only its task fails
                    text = f"Could not resume the task: the event payload could not be serialized ({type(error).__name__}: {error})"
                    failures.append({"id": entry.trigger_id, "traceback": [text]})
            while self.failed_triggers:
                trigger_id, error = self.failed_triggers.popleft()
                lines = module.format_exception(type(error), error, error.__traceback__) if error else []
                failures.append({"id": trigger_id, "traceback": lines})
            return Changes(events, failures, finished_ids)

    Runner().run()
