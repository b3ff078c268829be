"""How many requests an async client has open at the same time: few, and more if others have to wait."""

from __future__ import annotations

import asyncio

from noukai_core.time_limit import time_limit

CALLS_AT_FIRST = 8
"""Requests that are open at the same time as long as no other request waits for long.

They support a hundred polls per second if a response takes 80 ms. Over TLS, asyncio uses a quarter of a
megabyte for each connection.
"""

LONGEST_QUEUE = 0.5
"""Seconds that a request waits for another one to end, before it opens one more connection."""


class ConnectionLimiter:
    """Allows few concurrent requests, and one more for each that has waited too long.

    Requests wait for a connection here, and not in a transport's pool. The pool of httpcore 1.0, used behind
    a proxy, iterates over all waiting requests for each request: after an outage, a thousand of them keep the
    loop so busy that none ends in time.

    Args:
        most: How many requests may be open at the same time.
    """

    def __init__(self, most: int) -> None:
        self._most = most
        self._slots = min(CALLS_AT_FIRST, most)
        self._free = asyncio.Semaphore(self._slots)

    async def enter(self, seconds: float) -> bool:
        """Wait for a slot, up to this many seconds, and return whether there is one."""
        if not self._free.locked():
            return await self._free.acquire()  # at once, and without a timer
        first_wait = min(seconds, LONGEST_QUEUE)
        if await self._freed(first_wait):
            return True
        if self._slots < self._most:
            self._slots += 1
            return True
        return await self._freed(seconds - first_wait)

    def leave(self) -> None:
        """Release the slot."""
        self._free.release()

    async def _freed(self, seconds: float) -> bool:
        try:
            async with time_limit(seconds):
                return await self._free.acquire()
        except TimeoutError:
            return False
