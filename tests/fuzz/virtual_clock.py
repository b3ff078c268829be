"""Time that passes only when somebody sleeps, for the blocking and for the async client."""

from __future__ import annotations

import asyncio
import math
import selectors
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, ParamSpec, TypeVar
from unittest.mock import patch

from noukai_core._engine import rate_limit

P = ParamSpec("P")
T = TypeVar("T")

# What time.sleep takes at most: the nanoseconds of 64 bits.
_LONGEST_SLEEP = 2.0**63 / 1e9

# Seconds of real time.
_LONGEST_THREAD = 20.0

# Never much later: asyncio takes a timer as due a nanosecond early. At millions of seconds, floats cannot
# tell that from the time itself, and a loop would spin for ever.
_BEGINNING = 1e4


class TurnedTime:
    """A monotonic clock that sleeping turns.

    Attributes:
        now: What the clock shows, in seconds.
    """

    def __init__(self) -> None:
        self.now = _BEGINNING

    def monotonic(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        if not 0 <= seconds < _LONGEST_SLEEP:
            raise OverflowError(f"no sleep takes {seconds} s")
        if seconds > 0:
            # However short the sleep is: a loop goes to sleep again until its timer has come.
            self.now = max(self.now + seconds, math.nextafter(self.now, math.inf))

    def loop(self) -> asyncio.AbstractEventLoop:
        """Make an event loop that lives in this time."""
        loop = asyncio.SelectorEventLoop(_Selector(self))
        loop.time = self.monotonic  # type: ignore[method-assign]
        return loop


class _Selector(selectors.DefaultSelector):
    """Where a loop sleeps until its next timer; without one, until a thread has done what it waits for."""

    def __init__(self, clock: TurnedTime) -> None:
        super().__init__()
        self._clock = clock

    def select(self, timeout: float | None = None) -> list[Any]:
        if timeout is None:
            ready = super().select(_LONGEST_THREAD)
            assert ready, "the loop waits for nothing, and so for ever"
            return ready
        ready = super().select(0)
        if not ready:
            self._clock.sleep(max(timeout, 0.0))
        return ready


@contextmanager
def turned_time() -> Iterator[TurnedTime]:
    """Let this thread, and those that it starts, run on virtual time.

    The threads that are there before keep the real one: a timer that the event loop of the local Noukai sets
    by a virtual clock would be due hours later, and its server would not stop before that.
    """
    clock = TurnedTime()
    others = set(threading.enumerate()) - {threading.current_thread()}

    def either(virtual: Callable[P, T], real: Callable[P, T]) -> Callable[P, T]:
        def call(*arguments: P.args, **named: P.kwargs) -> T:
            return (real if threading.current_thread() in others else virtual)(*arguments, **named)

        return call

    monotonic, sleep = either(clock.monotonic, time.monotonic), either(clock.sleep, time.sleep)
    rate_limit._limiter.cache_clear()  # it outlives the clients, and remembers another time
    with patch.object(time, "monotonic", monotonic), patch.object(time, "sleep", sleep):
        try:
            yield clock
        finally:
            rate_limit._limiter.cache_clear()
