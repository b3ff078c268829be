"""How a decision asks its shell for I/O.

A decision that takes more than one request is a generator. It yields what it wants done, and is sent what
came of it; the blocking and the async shell run the same generator. So what is decided is written once, and
can be tested with a clock that a test turns by hand.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Generator
from dataclasses import dataclass
from typing import Any, TypeAlias, TypeVar

from noukai_core._api.endpoints import Call
from noukai_core._engine import schedule
from noukai_core.errors import APIError, JobNotFoundError
from noukai_core.models import JobStatus

T = TypeVar("T")

Clock: TypeAlias = Callable[[], float]


@dataclass(frozen=True)
class Sleep:
    """Sleep for so many seconds. Nothing is sent back."""

    seconds: float


@dataclass(frozen=True)
class Send:
    """Send a call. What it read is sent back, or the ``APIError`` that it stands for."""

    call: Call[Any]
    timeout: float | None = None


@dataclass(frozen=True)
class Emit:
    """Show the caller a status. Nothing is sent back."""

    status: JobStatus


Effects: TypeAlias = Generator[Sleep | Send | Emit, Any, T]


def send_with_retries(
    call: Call[T], clock: Clock, timeout: float | None = None, missing_until: float = -math.inf
) -> Effects[T]:
    """Send a call that may be repeated without harm, again and again for a few seconds while faults pass.

    Args:
        call: The call.
        clock: Seconds, from any beginning.
        timeout: Seconds for one request.
        missing_until: Until when, on that clock, an unknown job may still turn up.
    """
    retry_window_ends = clock() + schedule.SHORT_RETRY_WINDOW
    failures = missing = 0
    while True:
        outcome: T | APIError = yield Send(call, timeout)
        if not isinstance(outcome, APIError):
            return outcome
        now = clock()
        if isinstance(outcome, JobNotFoundError) and now < missing_until:
            # The server answers, so the patience with faults begins anew.
            failures, missing = 0, missing + 1
            pause = min(schedule.backoff(missing), missing_until - now)
            retry_window_ends = now + pause + schedule.SHORT_RETRY_WINDOW
        else:
            failures += 1
            pause = max(schedule.backoff(failures), outcome.retry_after or 0.0)
            if not outcome.retryable or now + pause > retry_window_ends:
                raise outcome
        yield Sleep(pause)
