"""Time that passes only from one event to the next, and the modules that are made to live in it."""

from __future__ import annotations

import datetime as real_datetime
import heapq
import random as real_random
import secrets as real_secrets
import sys
import time as real_time
import uuid as real_uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import ModuleType, SimpleNamespace
from typing import Any

EPOCH = real_datetime.datetime(2030, 1, 1, tzinfo=real_datetime.UTC).timestamp()

_BEGINNING = 1000.0


class Clock:
    """The time of one schedule.

    Attributes:
        now: Seconds.
        wall_error: By how many seconds the wall clock of the process that runs now is wrong.
        boot: What its monotonic clock shows more than `now`.
    """

    def __init__(self) -> None:
        self.now = _BEGINNING
        self.wall_error = 0.0
        self.boot = 0.0
        self._events: list[tuple[float, int, Callable[[], None]]] = []
        self._number = 0

    def wall(self) -> float:
        """Return what the wall clock of the running process shows, in seconds since the epoch."""
        return EPOCH + self.now + self.wall_error

    def at(self, moment: float, event: Callable[[], None]) -> None:
        """Let something happen at a moment, or now if that has passed."""
        self._number += 1
        heapq.heappush(self._events, (max(moment, self.now), self._number, event))

    def after(self, seconds: float, event: Callable[[], None]) -> None:
        """Let something happen after some seconds."""
        self._number += 1
        now = self.now
        heapq.heappush(self._events, (now + seconds if seconds > 0.0 else now, self._number, event))

    def next_at(self) -> float | None:
        """Return when the next event comes."""
        return self._events[0][0] if self._events else None

    def step(self) -> bool:
        """Go to the next event, and tell whether there was one."""
        if not self._events:
            return False
        moment, _, event = heapq.heappop(self._events)
        if moment > self.now:
            self.now = moment
        event()
        return True


class _Moment(type):
    def __instancecheck__(cls, value: object) -> bool:
        return isinstance(value, real_datetime.datetime)


def _never(seconds: float) -> None:
    raise AssertionError("a decision slept by itself")


class LivingClock:
    """What stands in the modules for `time`, `datetime` and `random`; it shows the clock of the day.

    Attributes:
        clock: The clock of the schedule that runs.
        jitter: What random numbers are drawn from.
        sleeper: Sleeps in the place of `time.sleep`.
    """

    def __init__(self) -> None:
        self.clock = Clock()
        self.jitter = real_random.Random(0)
        self.sleeper: Callable[[float], None] = _never
        living = self

        class VirtualDatetime(real_datetime.datetime, metaclass=_Moment):
            @classmethod
            def now(cls, tz: real_datetime.tzinfo | None = None) -> Any:
                return real_datetime.datetime.fromtimestamp(living.clock.wall(), tz)

        self._replacements: dict[int, Any] = {
            id(real_time): SimpleNamespace(
                monotonic=self.monotonic,
                time=self.wall,
                time_ns=lambda: int(self.wall() * 1e9),
                sleep=self.sleep,
                perf_counter=self.monotonic,
            ),
            id(real_time.monotonic): self.monotonic,
            id(real_datetime.datetime): VirtualDatetime,
            id(real_random): SimpleNamespace(random=self.random, uniform=self.uniform),
            id(real_secrets): SimpleNamespace(token_hex=self.token_hex),
            id(real_uuid.uuid4): self.uuid4,
            id(real_uuid): SimpleNamespace(**{**vars(real_uuid), "uuid4": self.uuid4}),
        }

    def monotonic(self) -> float:
        return self.clock.now + self.clock.boot

    def wall(self) -> float:
        return self.clock.wall()

    def sleep(self, seconds: float) -> None:
        self.sleeper(seconds)

    def random(self) -> float:
        return self.jitter.random()

    def uniform(self, low: float, high: float) -> float:
        return self.jitter.uniform(low, high)

    def token_hex(self, count: int) -> str:
        return self.jitter.getrandbits(8 * count).to_bytes(count, "big").hex()

    def uuid4(self) -> real_uuid.UUID:
        return real_uuid.UUID(int=self.jitter.getrandbits(128), version=4)

    def replacement(self, value: Any) -> Any:
        """Return what stands for a module or function of the real time; `None` for anything else."""
        return self._replacements.get(id(value))


@contextmanager
def living_in(living: LivingClock, *packages: str) -> Iterator[None]:
    """Let the modules of some packages live in virtual time, whatever they have imported of the real one."""
    changed: list[tuple[ModuleType, str, Any]] = []
    for name, module in list(sys.modules.items()):
        if name.partition(".")[0] not in packages or module is None:
            continue
        for attribute, value in list(vars(module).items()):
            if (virtual := living.replacement(value)) is not None:
                changed.append((module, attribute, value))
                setattr(module, attribute, virtual)
    try:
        yield
    finally:
        for module, attribute, value in changed:
            setattr(module, attribute, value)
