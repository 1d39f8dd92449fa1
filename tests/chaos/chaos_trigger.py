"""A trigger that waits for a time in the triggerer, as any trigger of a plugin."""

import asyncio

from airflow.triggers.base import BaseTrigger, TriggerEvent


class Later(BaseTrigger):
    def __init__(self, seconds):
        super().__init__()
        self.seconds = seconds

    def serialize(self):
        return "chaos_trigger.Later", {"seconds": self.seconds}

    async def run(self):
        await asyncio.sleep(self.seconds)
        yield TriggerEvent("later")
