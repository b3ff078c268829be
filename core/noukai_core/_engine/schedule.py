"""How long to pause: before the next poll of a job, and before a failed request is sent again.

Pure functions; durations are in seconds.
"""

from __future__ import annotations

import math
import random

AGE_SHARE = 0.10
SHORTEST_PAUSE = 1.0
LONGEST_PAUSE = 60.0
JITTER = 0.10

MIN_POLL_TIMEOUT = 1.0
"""What the last poll before a deadline may take at least: less would only make sure that it fails."""

TICK = 0.1
"""Seconds between the moments at which many jobs are polled, some together.

To wake up for a single poll costs a process more than the poll itself (`benchmarks/triggerer.py`).
"""

# The processes of one machine share a clock, and are to poll at different moments.
_FIRST_TICK = random.random() * TICK  # noqa: S311

# Sums of floats lie a little after a moment as often as on it.
_ROUNDING = 1e-6

SHORT_RETRY_WINDOW = 5.0
"""For how long after the first transient error a single poll, a cancel or a key check is sent again."""


def pause_before_poll(age: float, interval: float | None = None, jitter: float | None = None) -> float:
    """Return the pause before the next poll of a job.

    It grows with the age of the job, so that the end is seen within about a tenth of the job's own run time
    for a number of polls that grows with the logarithm of it.

    Args:
        age: Since the job was submitted.
        interval: A fixed pause that the user chose instead.
        jitter: Where in the jitter this pause lies, from 0 to 1; random by default.
    """
    if interval is not None:
        return interval
    pause = min(max(age * AGE_SHARE, SHORTEST_PAUSE), LONGEST_PAUSE)
    return jittered(pause, jitter)


def pause_after_error(
    failures: int,
    pause: float,
    retry_after: float | None = None,
    *,
    left: float,
    limited: bool = False,
    jitter: float | None = None,
) -> float:
    """Return the pause before a job is polled again after a transient error.

    An error makes the next poll come no later than it would have, and sooner for a job that is polled
    rarely: 1 s after the first error, then 2 s, 4 s and so on.

    Args:
        failures: How many errors came in a row.
        pause: What the pause would be without the error.
        retry_after: What the server asked for; it wins when it is longer.
        left: Seconds until the retry window ends. No pause is longer, whatever the server asked for.
        limited: Whether the server complained about too many requests: then no poll comes sooner.
        jitter: Where in the jitter this pause lies, from 0 to 1; random by default.
    """
    wanted = pause if limited else min(pause, backoff(failures, jitter))
    return min(max(wanted, retry_after or 0.0), left)


def backoff(failures: int, jitter: float | None = None) -> float:
    """Return the pause after a number of errors in a row: doubling from 1 s to 60 s, jittered."""
    return jittered(min(SHORTEST_PAUSE * 2.0 ** min(failures - 1, 10), LONGEST_PAUSE), jitter)


def jittered(pause: float, jitter: float | None = None) -> float:
    """Spread a pause over ±10 %, so that many jobs that began together do not stay together."""
    share = random.random() if jitter is None else jitter  # noqa: S311
    return pause * (1 - JITTER + 2 * JITTER * share)


def align_to_tick(now: float, pause: float) -> float:
    """Return a pause before a poll that ends at the same moment as those of other jobs: at the nearest tick.

    Args:
        now: The clock that all jobs share.
        pause: The pause as it should be. One below or beyond those that the policy chooses stays as it is.
    """
    if not SHORTEST_PAUSE * (1 - JITTER) <= pause <= LONGEST_PAUSE * (1 + JITTER):
        return pause
    ticks = round((now + pause - _FIRST_TICK) / TICK)
    return max(0.0, _FIRST_TICK + ticks * TICK - now)


def pause_until_slot(now: float, due: float) -> float:
    """Return the pause until a slot of the rate limit: to the first tick not before it, or none if it is due.

    Args:
        now: The clock that all jobs share.
        due: When the slot is due, on that clock; it may be beyond all measure.
    """
    if due - now < _ROUNDING:
        return 0.0
    ticks = (due - _FIRST_TICK - _ROUNDING) / TICK
    return (_FIRST_TICK + math.ceil(ticks) * TICK if math.isfinite(ticks) else due) - now


def poll_timeout(timeout: float, left: float, whole: float = math.inf) -> float:
    """Return how long one poll may take.

    Args:
        timeout: What a request may take.
        left: Seconds until the deadline of the wait.
        whole: What the wait may take; a short one does not become much longer for its last poll.
    """
    return min(timeout, max(left, min(MIN_POLL_TIMEOUT, whole)))
