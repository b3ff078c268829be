"""The budget of looks that all jobs of one process share, so that a crowd waits politely."""

from __future__ import annotations

import hashlib
import threading
from functools import cache

from noukai_core._engine import schedule

SLOWEST = 1.0
"""Looks a second that are left however often the server complains; of more than six, a sixth is left."""

HALVING_INTERVAL = 10.0
"""Seconds in which many complaints count as one: they are about the same crowd."""

RECOVERY = 60.0
"""Seconds in which the budget grows back by all of it: evenly, so that a rare complaint costs little."""


class PollRateLimiter:
    """Spreads looks evenly at a rate (the generic cell rate algorithm): a place in the queue, no queue.

    After a quiet time as many come at once as one tick brings. More would only wait for each other's
    connections.

    The rate falls by half when the server complains and grows back evenly, as that of a TCP connection does.

    Args:
        per_second: Looks a second, over all jobs that share this budget.

    Attributes:
        last_success_at: When one of these looks last had a good answer.
    """

    def __init__(self, per_second: float) -> None:
        self.per_second = per_second
        self._left = per_second
        self._next = float("-inf")
        self._complained = float("-inf")
        self._lock = threading.Lock()
        self.last_success_at = float("-inf")

    def reserve(self, now: float) -> float:
        """Take the next free place, and return the seconds until it comes: with others, at the next tick."""
        with self._lock:
            spacing = 1.0 / self._rate(now)
            place = max(self._next, now - max(schedule.TICK - spacing, 0.0))
            self._next = place + spacing
            return schedule.pause_until_slot(now, place)

    def slow_down(self, now: float) -> None:
        """Halve the rate for a while: the server complained about too many requests."""
        with self._lock:
            if now - self._complained >= HALVING_INTERVAL:
                self._left = max(self._rate(now) / 2, min(SLOWEST, self.per_second))
                self._complained = now

    def _rate(self, now: float) -> float:
        grown = self.per_second * (now - self._complained) / RECOVERY
        return min(self._left + grown, self.per_second)


def shared_rate_limiter(base_url: str, api_key: str, per_second: float) -> PollRateLimiter:
    """Return the budget that every client of this process shares which has the same server, key and rate."""
    return _limiter(base_url, hashlib.sha256(api_key.encode()).hexdigest(), per_second)


@cache
def _limiter(base_url: str, key_digest: str, per_second: float) -> PollRateLimiter:
    return PollRateLimiter(per_second)
