"""The rate limit of polls that all jobs of one process share, so that a crowd waits politely."""

from __future__ import annotations

import hashlib
import heapq
import os
import threading
from collections import deque
from functools import cache

from noukai_core._engine import schedule

SLOWEST = 1.0
"""Polls per second that are left however often the server complains; of more than six, a sixth is left."""

HALVING_INTERVAL = 10.0
"""Seconds in which many complaints count as one: they are about the same crowd."""

RECOVERY = 60.0
"""Seconds in which all of the rate grows back: evenly, so that a rare complaint costs little."""

_MAX_REMEMBERED = 1000


class PollRateLimiter:
    """Gives out slots for polls, in their order, and never more per second than the rate.

    Slots lie evenly (the generic cell rate algorithm). After a quiet time as many come at once as one tick
    brings; more would only wait for each other's connections. A waiter that leaves gives its slot back, and
    the next one to ask takes it.

    The rate falls by half when the server complains and grows back evenly, as that of a TCP connection does.

    Args:
        per_second: Polls per second, over all jobs that share this limit.

    Attributes:
        last_success_at: When one of these polls last succeeded.
    """

    def __init__(self, per_second: float) -> None:
        self.per_second = per_second
        self._left = per_second
        self._next = float("-inf")
        self._complained = float("-inf")
        # The last slots given out: a burst is paid for before its second is over.
        self._recent: deque[float] = deque(maxlen=max(1, min(int(per_second), _MAX_REMEMBERED)))
        self._span = (self._recent.maxlen or 1) / per_second
        self._free: list[float] = []
        self._lock = threading.Lock()
        self.last_success_at = float("-inf")

    def reserve(self, now: float) -> float:
        """Take the next free slot, and return when it comes: at once, or with others at a tick."""
        with self._lock:
            while self._free:
                slot = heapq.heappop(self._free)
                if slot >= now:
                    return slot
            return self._new_slot(now)

    def release(self, slot: float, now: float) -> None:
        """Give a slot back that is not used. One whose time has come is lost."""
        if slot > now:
            with self._lock:
                heapq.heappush(self._free, slot)

    def slow_down(self, now: float) -> None:
        """Halve the rate for a while: the server complained about too many requests."""
        with self._lock:
            if now - self._complained >= HALVING_INTERVAL:
                self._left = max(self._rate(now) / 2, min(SLOWEST, self.per_second))
                self._complained = now

    def _new_slot(self, now: float) -> float:
        spacing = 1.0 / self._rate(now)
        due = max(self._next, now - max(schedule.TICK - spacing, 0.0))
        self._next = due + spacing
        if len(self._recent) == self._recent.maxlen:
            due = max(due, self._recent[0] + self._span)
        slot = now + schedule.pause_until_slot(now, due)
        self._recent.append(slot)
        return slot

    def _rate(self, now: float) -> float:
        grown = self.per_second * (now - self._complained) / RECOVERY
        return min(self._left + grown, self.per_second)


def shared_rate_limiter(base_url: str, api_key: str, per_second: float) -> PollRateLimiter:
    """Return the limiter that every client of this process shares which has the same server, key and rate."""
    return _limiter(base_url, hashlib.sha256(api_key.encode()).hexdigest(), per_second)


@cache
def _limiter(base_url: str, key_digest: str, per_second: float) -> PollRateLimiter:
    return PollRateLimiter(per_second)


if hasattr(os, "register_at_fork"):
    # A thread of the parent may hold a lock at that moment, and does not exist in the child.
    os.register_at_fork(after_in_child=_limiter.cache_clear)
