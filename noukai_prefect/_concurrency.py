"""Slots of a global concurrency limit of Prefect, leased in blocks, which serve one job after the other."""

from __future__ import annotations

import asyncio

from prefect.concurrency.asyncio import concurrency
from prefect.exceptions import ObjectNotFound

from noukai_core import InvalidInputError
from noukai_prefect._prefect_client import prefect_client

_BLOCKS = 10
_MAX_BLOCK = 100


class LeasedSlots:
    """The slots that a batch holds. One event loop may use it.

    Args:
        name: The name of the limit.
        most: The most slots that are of use.

    Attributes:
        held: How many slots are held.
        running: How many of them a job occupies.
    """

    def __init__(self, name: str, most: int) -> None:
        self.held = self.running = 0
        self._name = name
        self._most = most
        self._block = 1
        self._changed = asyncio.Event()
        self._leases: list[asyncio.Event] = []
        self._tasks: set[asyncio.Task[None]] = set()
        self._acquiring: asyncio.Task[None] | None = None

    async def open(self) -> None:
        """Read the limit.

        Raises:
            InvalidInputError: There is no such limit, or it allows nothing.
        """
        async with prefect_client() as client:
            try:
                limit = await client.read_global_concurrency_limit_by_name(self._name)
            except ObjectNotFound:
                raise InvalidInputError(
                    f"concurrency is {self._name!r:.200}, but Prefect has no global concurrency limit of "
                    "that name: create it with `prefect gcl create`"
                ) from None
        if limit.limit < 1:
            raise InvalidInputError(
                f"concurrency is {self._name!r:.200}, a global concurrency limit of {limit.limit}, so that "
                "no job could ever run"
            )
        self._block = max(1, min(limit.limit // _BLOCKS, self._most, _MAX_BLOCK))

    async def take(self) -> None:
        """Take a slot for a job, and wait until there is one."""
        while self.running >= self.held:
            if self._acquiring is None and self.held < self._most:
                self._acquiring = asyncio.ensure_future(self._lease())
                self._tasks.add(self._acquiring)
            self._changed.clear()
            waiting = asyncio.ensure_future(self._changed.wait())
            ends = [waiting] if self._acquiring is None else [waiting, self._acquiring]
            try:
                await asyncio.wait(ends, return_when=asyncio.FIRST_COMPLETED)
            finally:
                waiting.cancel()
            if self._acquiring is not None and self._acquiring.done():
                self._acquiring.result()
        self.running += 1

    def give_back(self) -> None:
        """Give back the slot of a job that has ended, and a whole block if two are free."""
        self.running -= 1
        self._changed.set()
        if self._leases and self.held - self.running >= 2 * self._block:
            self._leases.pop().set()

    async def aclose(self) -> None:
        """Give everything back."""
        for released in self._leases:
            released.set()
        if self._acquiring is not None:
            self._acquiring.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def _lease(self) -> None:
        """Hold a block until it is released. Prefect renews it meanwhile."""
        released, block = asyncio.Event(), self._block
        async with concurrency(self._name, occupy=block):
            self._acquiring = None
            self.held += block
            self._leases.append(released)
            self._changed.set()
            try:
                await released.wait()
            finally:
                self.held -= block
