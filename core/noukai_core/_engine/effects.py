"""How a decision asks its driver for I/O.

A decision that takes more than one request is a generator. It yields the effects that it wants, and is sent
what came of them; the blocking and the async driver run the same generator. So a decision is written once,
and can be tested on a virtual clock. A driver that stops early closes the generator, which lets go of what it
holds.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Generator
from dataclasses import dataclass
from typing import Any, TypeAlias, TypeVar

from noukai_core._api.endpoints import Call
from noukai_core._engine import schedule
from noukai_core.errors import APIError, FlowNotFoundError, JobNotFoundError
from noukai_core.models import JobStatus, TraceStep

T = TypeVar("T")

Clock: TypeAlias = Callable[[], float]


@dataclass(frozen=True)
class Sleep:
    """Sleep for some seconds. Nothing is sent back."""

    seconds: float


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


FollowEffects: TypeAlias = Generator[Sleep | Send | Receive | EmitStep, Any, None]

Effects: TypeAlias = Generator[Sleep | Send | Emit, Any, T]


def may_turn_up(error: APIError, now: float, race_ends: float) -> bool:
    """Tell whether a job that the service does not know may only not be written down yet.

    Args:
        error: The outcome of a request about the job.
        now: Seconds, from any beginning.
        race_ends: Until when, on that clock, a job that was just submitted may be unknown.
    """
    return isinstance(error, JobNotFoundError | FlowNotFoundError) and now < race_ends


def send_with_retries(
    call: Call[T], clock: Clock, timeout: float | None = None, race_ends: float = -math.inf
) -> Effects[T]:
    """Send a call that may be repeated without harm, and retry transient errors for a few seconds.

    Args:
        call: The call.
        clock: Seconds, from any beginning.
        timeout: Seconds for one request.
        race_ends: Until when, on that clock, a job that is not known is asked for again.
    """
    retry_window_ends = clock() + schedule.SHORT_RETRY_WINDOW
    failures = missing = 0
    while True:
        outcome: T | APIError = yield Send(call, timeout)
        if not isinstance(outcome, APIError):
            return outcome
        now = clock()
        if may_turn_up(outcome, now, race_ends):
            # The service responds, so the retry window begins again.
            failures, missing = 0, missing + 1
            pause = min(schedule.backoff(missing), race_ends - now)
            retry_window_ends = now + pause + schedule.SHORT_RETRY_WINDOW
        else:
            failures += 1
            pause = max(schedule.backoff(failures), outcome.retry_after or 0.0)
            if not outcome.retryable or now + pause > retry_window_ends:
                raise outcome
        yield Sleep(pause)
