"""The peers that no provider brings, run in the triggerer of `triggerer.py`."""

from __future__ import annotations

import asyncio
import os
import random
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

from airflow.triggers.base import BaseTrigger, TriggerEvent

KEY = "nk_test_benchmrk_0123456789abcdef0123456789abcdef"


class EndlessTrigger(BaseTrigger):
    """A trigger that never fires.

    Args:
        seconds: What it pauses for.
        url: What it reads, if anything.
    """

    _session: Any = None

    def __init__(self, seconds: float, url: str = "") -> None:
        super().__init__()
        self.seconds = seconds
        self.url = url

    def serialize(self) -> tuple[str, dict[str, Any]]:
        kind = type(self)
        return f"{kind.__module__}.{kind.__name__}", {"seconds": self.seconds, "url": self.url}

    async def run(self) -> AsyncIterator[TriggerEvent]:
        while True:
            await self.once()
            await asyncio.sleep(self.seconds)
        yield

    async def once(self) -> None:
        pass


class SleepTrigger(EndlessTrigger):
    """Only sleeps: what a thousand triggers cost that do nothing."""


class BareTrigger(EndlessTrigger):
    """Polls over one aiohttp session for all: the least that polling may cost."""

    async def once(self) -> None:
        import aiohttp

        if BareTrigger._session is None:
            headers = {"Authorization": f"Bearer {KEY}"}
            connector = aiohttp.TCPConnector(keepalive_timeout=90)
            BareTrigger._session = aiohttp.ClientSession(headers=headers, connector=connector)
        async with BareTrigger._session.get(self.url) as response:
            await response.json()


class SpreadTrigger(BareTrigger):
    """The same, but a thousand of them do not poll at the same moment."""

    async def run(self) -> AsyncIterator[TriggerEvent]:
        await asyncio.sleep(random.uniform(0, self.seconds))
        async for event in super().run():
            yield event


class PauseProbe(EndlessTrigger):
    """Writes down in the file that `url` names how long its short pauses really took.

    The first line is the id of this process, then come lines of `time pause`. A file beside it has the number
    of asyncio tasks.
    """

    async def run(self) -> AsyncIterator[TriggerEvent]:
        tasks, counted = Path(self.url).with_suffix(".tasks"), 0.0
        with Path(self.url).open("w", buffering=1) as pauses:
            pauses.write(f"{os.getpid()}\n")
            while True:
                if time.monotonic() - counted > 1.0:
                    counted = time.monotonic()
                    tasks.write_text(str(len(asyncio.all_tasks())))
                before = time.monotonic()
                await asyncio.sleep(self.seconds)
                late = time.monotonic() - before - self.seconds
                if late > self.seconds:
                    pauses.write(f"{time.time():.3f} {late:.3f}\n")
        yield
