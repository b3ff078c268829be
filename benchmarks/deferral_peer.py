"""The peer of `benchmarks/deferral.py`: a trigger that only sleeps."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from typing import Any

from airflow.triggers.base import BaseTrigger, TriggerEvent


class SleepUntilTrigger(BaseTrigger):
    """Sleeps until a moment, in seconds since the epoch."""

    def __init__(self, moment: float) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.moment = moment

    def serialize(self) -> tuple[str, dict[str, Any]]:
        """Return what Airflow stores to recreate this trigger."""
        return "deferral_peer.SleepUntilTrigger", {"moment": self.moment}

    async def run(self) -> AsyncIterator[TriggerEvent]:
        """Sleep, and resume the task."""
        await asyncio.sleep(self.moment - time.time())
        yield TriggerEvent(self.moment)  # type: ignore[no-untyped-call]
