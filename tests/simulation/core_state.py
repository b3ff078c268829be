"""What the core keeps for the life of a process, and where it is forgotten."""

from __future__ import annotations

from functools import cache

from noukai_core._engine import rate_limit, schedule, submission_registry


class Memory:
    """What the core keeps in one of several processes that live at the same time."""

    def __init__(self) -> None:
        self._registry = cache(submission_registry._registry.__wrapped__)
        self._limiter = cache(rate_limit._limiter.__wrapped__)

    def enter(self) -> None:
        """Let it be what the core keeps."""
        submission_registry._registry = self._registry
        rate_limit._limiter = self._limiter


def forget(first_tick: float | None = None) -> None:
    """Make the core as it is in a new process.

    Args:
        first_tick: Where in a tick the moments of the polls lie, from 0 to 1; by default as before.
    """
    rate_limit._limiter.cache_clear()
    submission_registry._registry.cache_clear()
    submission_registry._registries.clear()
    if first_tick is not None:
        schedule._FIRST_TICK = first_tick * schedule.TICK
