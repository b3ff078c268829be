"""How a decision asks its driver for I/O.

A decision that takes more than one request is a generator. It yields the effects that it wants, and is sent
what came of them; the blocking and the async driver run the same generator. So a decision is written once,
and can be tested on a virtual clock. A driver that stops early closes the generator, which lets go of what it
holds.
"""

from __future__ import annotations

import math
from collections.abc import Awaitable, Callable, Generator
from dataclasses import dataclass
from typing import Any, TypeAlias, TypeVar

from noukai_core._api.endpoints import Call
from noukai_core._engine import schedule
from noukai_core.batch import LedgerEntry
from noukai_core.errors import (
    APIError,
    ConnectionPoolTimeoutError,
    FlowNotFoundError,
    JobNotFoundError,
    RateLimitError,
)
from noukai_core.models import JobStatus, TraceStep

T = TypeVar("T")

Clock: TypeAlias = Callable[[], float]


class Wake:
    """Ends sleeps early.

    It remembers nothing: who is not asleep is not woken, and checks its condition before it sleeps.
    """

    __slots__ = ("_sleepers",)

    def __init__(self) -> None:
        self._sleepers: dict[object, Callable[[], None]] = {}

    def add(self, wake_up: Callable[[], None]) -> object:
        """Let a driver register a sleep, and return what `remove` needs."""
        sleeper = object()
        self._sleepers[sleeper] = wake_up
        return sleeper

    def remove(self, sleeper: object) -> None:
        """Let a driver remove a sleep that has ended."""
        self._sleepers.pop(sleeper, None)

    def ring(self) -> None:
        """Wake all who sleep."""
        while self._sleepers:
            self.ring_one()

    def ring_one(self) -> None:
        """Wake the one who has slept the longest."""
        if self._sleepers:
            self._sleepers.pop(next(iter(self._sleepers)))()


@dataclass(frozen=True)
class Sleep:
    """Sleep for some seconds, or until somebody rings. Nothing is sent back."""

    seconds: float
    wake: Wake | None = None


@dataclass(frozen=True)
class Send:
    """Send a call. What it read is sent back, or the `APIError` that it stands for."""

    call: Call[Any]
    timeout: float | None = None


@dataclass(frozen=True)
class Emit:
    """Show the caller a status. Nothing is sent back."""

    status: JobStatus


@dataclass(frozen=True)
class Receive:
    """Receive the next event of a stream; the first time, its call is sent.

    The event is sent back, `None` at the end of the stream, or the `APIError` that ended it. Another call
    closes the stream of the one before.
    """

    call: Call[Any]


@dataclass(frozen=True)
class EmitStep:
    """Show the caller a step. Nothing is sent back."""

    step: TraceStep


@dataclass(frozen=True)
class Spawn:
    """Run other effects beside these. Nothing is sent back."""

    effects: Generator[Any, Any, None]


@dataclass(frozen=True, slots=True)
class Given:
    """An input of a batch, and its position."""

    index: int
    value: Any


@dataclass(frozen=True)
class Take:
    """Take the next input of a batch: `Given` is sent back, `None` after the last, or else the error."""


@dataclass(frozen=True)
class Record:
    """Write into the ledger of a batch. `None` is sent back once it is durable, or else the error."""

    entry: LedgerEntry


@dataclass(frozen=True)
class Ask:
    """Ask the caller of a batch a question. What it returns is sent back."""

    question: Callable[[], bool | Awaitable[bool]]


Effect: TypeAlias = Sleep | Send | Emit | Spawn | Take | Record | Ask
"""Only the driver of a batch performs `Spawn`, `Take`, `Record` and `Ask`."""

Effects: TypeAlias = Generator[Effect, Any, T]

FollowEffects: TypeAlias = Generator[Effect | Receive | EmitStep, Any, None]


def may_turn_up(error: APIError, sent_at: float, race_ends: float) -> bool:
    """Tell whether a job that the service does not know may only not be written down yet.

    Args:
        error: The outcome of a request about the job.
        sent_at: When that was sent, in seconds from any beginning.
        race_ends: Until when, on that clock, a job that was just submitted may be unknown.
    """
    return isinstance(error, JobNotFoundError | FlowNotFoundError) and sent_at < race_ends


def is_limited(error: APIError) -> bool:
    """Tell whether a request was one too many, for the service or for the connections of this client."""
    return isinstance(error, RateLimitError | ConnectionPoolTimeoutError)


def send_with_retries(
    call: Call[T],
    clock: Clock,
    timeout: float | None = None,
    race_ends: float = -math.inf,
    reach_slot: Callable[[], Effects[object]] | None = None,
) -> Effects[T]:
    """Send a call that may be repeated without harm, and retry it for a few seconds after a transient error.

    Args:
        call: The call.
        clock: Seconds, from any beginning.
        timeout: Seconds for one request.
        race_ends: Until when, on that clock, a job that is not known is asked for again.
        reach_slot: Waits for a slot of the rate limit, before each request.
    """
    retry_window_ends = math.inf
    failures = missing = 0
    while True:
        if reach_slot is not None:
            began = clock()
            yield from reach_slot()
            retry_window_ends += clock() - began
        sent_at = clock()
        outcome: T | APIError = yield Send(call, timeout)
        if not isinstance(outcome, APIError):
            return outcome
        now = clock()
        if may_turn_up(outcome, sent_at, race_ends):
            # The service responds, so the retry window begins again.
            failures, missing = 0, missing + 1
            pause = max(0.0, min(schedule.backoff(missing), race_ends - now))
        else:
            if failures == 0:
                # Not when it was sent: a gateway gives up after half a minute, and one more request may do.
                retry_window_ends = now + schedule.SHORT_RETRY_WINDOW
            failures += 1
            pause = max(schedule.backoff(failures), outcome.retry_after or 0.0)
            if not outcome.retryable or now + pause > retry_window_ends:
                raise outcome
        yield Sleep(pause)
