"""Airflow: `on_kill()` of a trigger is interrupted by the next sync with the supervisor, a second later.

Run it with an empty AIRFLOW_HOME. It takes the place of the supervisor, which repeats in each
`TriggerStateSync` what it wants to be cancelled until the trigger has ended: once a second.
"""

import asyncio
import time

from airflow.jobs.triggerer_job_runner import TriggerRunner
from airflow.triggers.base import BaseTrigger


class Slow(BaseTrigger):
    """Waits for a remote job, and needs three seconds to cancel it."""

    def serialize(self):
        """Return no arguments."""
        return "airflow_on_kill.Slow", {}

    async def run(self):
        """Wait for ever."""
        await asyncio.sleep(3600)
        yield

    async def on_kill(self):
        """Cancel the remote job."""
        began = time.monotonic()
        try:
            await asyncio.sleep(3)
            print("on_kill: the remote job is cancelled")
        finally:
            print(f"on_kill: ended after {time.monotonic() - began:.1f} s of 3 s")


async def main():
    """Mark the task of a running trigger failed."""
    runner, trigger = TriggerRunner(), Slow()
    trigger.task_instance = None
    task = asyncio.create_task(runner.run_trigger(1, trigger))
    runner.triggers[1] = {"task": task, "name": "slow", "events": 0, "is_watcher": False}
    await asyncio.sleep(0.5)
    while not task.done():
        runner.to_cancel.append(1)  # what sync_state_to_supervisor() does with resp.to_cancel
        await runner.cancel_triggers()
        await asyncio.sleep(1)


asyncio.run(main())
