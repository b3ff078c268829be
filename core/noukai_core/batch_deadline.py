"""Whether an attempt of a batch cancels its jobs at their deadline, or leaves them to a later attempt."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable

_ASK_SECONDS = 1.0


class CancelUnlessReplaced:
    """A `cancel_on_timeout` of `AsyncFlow.jobs` that leaves jobs to the attempt that has replaced this one.

    A thousand jobs may time out at the same moment, so an answer counts for a second.

    Args:
        is_replaced: Finds out whether another attempt has begun.
    """

    def __init__(self, is_replaced: Callable[[], Awaitable[bool]]) -> None:
        self._is_replaced = is_replaced
        self._lock = asyncio.Lock()
        self._replaced = False
        self._ask_at = 0.0

    async def __call__(self) -> bool:
        """Return whether a job that has timed out is cancelled."""
        async with self._lock:
            if not self._replaced and time.monotonic() >= self._ask_at:
                self._replaced = await self._is_replaced()
                self._ask_at = time.monotonic() + _ASK_SECONDS
        return not self._replaced
