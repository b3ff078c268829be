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

from . import policy
from .calls import Call
from .errors import APIError, JobNotFound
from .models import JobStatus

T = TypeVar("T")

Clock: TypeAlias = Callable[[], float]


@dataclass(frozen=True)
class Pause:
    """Sleep for so many seconds. Nothing is sent back."""

    seconds: float


@dataclass(frozen=True)
class Request:
    """Send a call. What it read is sent back, or the ``APIError`` that it stands for."""

    call: Call[Any]
    timeout: float | None = None


@dataclass(frozen=True)
class Show:
    """Show the caller a status. Nothing is sent back."""

    status: JobStatus


Steps: TypeAlias = Generator[Pause | Request | Show, Any, T]


def send_patiently(
    call: Call[T], clock: Clock, timeout: float | None = None, missing_until: float = -math.inf
) -> Steps[T]:
    """Send a call that may be repeated without harm, again and again for a few seconds while faults pass.

    Args:
        call: The call.
        clock: Seconds, from any beginning.
        timeout: Seconds for one request.
        missing_until: Until when, on that clock, an unknown job may still turn up.
    """
    patience_ends = clock() + policy.QUICK_PATIENCE
    faults = missing = 0
    while True:
        reply: T | APIError = yield Request(call, timeout)
        if not isinstance(reply, APIError):
            return reply
        now = clock()
        if isinstance(reply, JobNotFound) and now < missing_until:
            # The server answers, so the patience with faults begins anew.
            faults, missing = 0, missing + 1
            pause = min(policy.backoff(missing), missing_until - now)
            patience_ends = now + pause + policy.QUICK_PATIENCE
        else:
            faults += 1
            pause = max(policy.backoff(faults), reply.retry_after or 0.0)
            if not reply.passing or now + pause > patience_ends:
                raise reply
        yield Pause(pause)
