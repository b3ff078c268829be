"""How many requests an async client has open at the same time: few, and more once others have to wait."""

from __future__ import annotations

import asyncio

CALLS_AT_FIRST = 8
"""Requests that are open at the same time as long as none of the others waits for long.

They carry a hundred looks a second when an answer takes 80 ms, and over TLS asyncio keeps a quarter of a
megabyte for each connection.
"""

LONGEST_QUEUE = 0.5
"""Seconds that a request waits for one of the others to end, before it takes a connection more."""


class ConnectionLimiter:
    """Lets few requests go at the same time, and one more for each that has waited for too long.

    Whoever waits for a connection waits here, and not in a transport's pool. That of httpcore 1.0, used
    behind a proxy, goes through all that wait in it for each request: a thousand of them, after an outage,
    keep the loop so busy that none ends in time.

    Args:
        most: How many requests may be open at the same time.
    """

    def __init__(self, most: int) -> None:
        self._most = most
        self._places = min(CALLS_AT_FIRST, most)
        self._free = asyncio.Semaphore(self._places)

    async def enter(self, seconds: float) -> bool:
        """Wait for a place, for so many seconds at most, and tell whether there is one."""
        if not self._free.locked():
            return await self._free.acquire()  # at once, and without a timer
        retry_timeout = min(seconds, LONGEST_QUEUE)
        if await self._freed(retry_timeout):
            return True
        if self._places < self._most:
            self._places += 1
            return True
        return await self._freed(seconds - retry_timeout)

    def leave(self) -> None:
        """Give the place to the next."""
        self._free.release()

    async def _freed(self, seconds: float) -> bool:
        try:
            async with asyncio.timeout(seconds):
                return await self._free.acquire()
        except TimeoutError:
            return False
