"""Prefect: a SIGTERM that strikes in a callback of the event loop does not end the flow run."""

import asyncio
import os
import signal

from prefect import flow


@flow
async def waits():
    """Wait for ten seconds, and be asked to terminate after one."""
    loop = asyncio.get_running_loop()
    loop.call_later(1, os.kill, os.getpid(), signal.SIGTERM)
    await asyncio.sleep(10)
    print("the flow has waited to its end, though it was asked to terminate")


asyncio.run(waits())
