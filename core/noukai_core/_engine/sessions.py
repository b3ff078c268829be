"""Wait for the jobs of a batch by their sessions alone, and cancel them by their sessions.

The list of a session is a hint. Who waits by it asks for the jobs themselves before anything is decided.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping

from noukai_core._api import endpoints
from noukai_core._api.endpoints import Execution
from noukai_core._api.job_ids import canonical_job_id
from noukai_core._engine import schedule
from noukai_core._engine.effects import Clock, Effects, Send, Sleep, is_limited, send_with_retries
from noukai_core._engine.lanes import ENDED
from noukai_core._engine.rate_limit import PollRateLimiter
from noukai_core._engine.submit import may_be_job
from noukai_core._engine.wait import reach_slot
from noukai_core._options import ClientOptions
from noukai_core.errors import APIError
from noukai_core.models import JobState


def wait_for_sessions(
    sizes: Mapping[str, int],
    settings: ClientOptions,
    limiter: PollRateLimiter,
    clock: Clock,
    *,
    until: int,
    age: float,
    timeout: float | None,
    poll_interval: float | None,
    report: Callable[[int], None] | None = None,
) -> Effects[int]:
    """Poll sessions until few of their jobs have not ended, or the time is over, and return how many.

    Args:
        sizes: How many jobs each session has. A job that its list does not show has not ended.
        settings: How the client polls.
        limiter: The rate limit that all polls share.
        clock: Seconds, from any beginning.
        until: How few jobs end the wait.
        age: How long ago the last job was submitted, in seconds.
        timeout: How long to wait, in seconds.
        poll_interval: A fixed pause between two rounds, in seconds.
        report: Is called after each round with how many have not ended.

    Raises:
        APIError: The server rejected a request, or did not respond for too long.
    """
    submitted_at = clock() - age
    deadline = math.inf if timeout is None else clock() + timeout
    left = dict(sizes)
    failures, retry_window_ends = 0, math.inf
    # Not since the last success: the pause before a failure may be longer than the retry window.
    failing_since: dict[str, float] = {}
    all_failing_since = math.inf
    while True:
        error: APIError | None = None
        for session_id in [session_id for session_id, count in left.items() if count]:
            if not (yield from reach_slot(limiter, clock, deadline)):
                return sum(left.values())
            listed: tuple[Execution, ...] | APIError = yield Send(endpoints.session(session_id))
            if not isinstance(listed, APIError):
                left[session_id] = _unfinished(listed, sizes[session_id])
                failing_since.pop(session_id, None)
                all_failing_since = math.inf
                limiter.last_success_at = clock()
                continue
            error = listed
            all_failing_since = min(all_failing_since, clock())
            since = min(failing_since.setdefault(session_id, clock()), all_failing_since)
            if is_limited(error):
                limiter.slow_down(clock())
                since = max(since, limiter.last_success_at)
            retry_window_ends = since + settings.retry_timeout
            if not error.retryable or clock() >= retry_window_ends:
                raise error
            left[session_id] = left.pop(session_id)
            break  # the others may meet the same, and are asked first in the next round
        failures = 0 if error is None else failures + 1
        now = clock()
        unfinished = sum(left.values())
        if report is not None:
            report(unfinished)
        if unfinished <= until or now >= deadline:
            return unfinished
        pause = schedule.align_to_tick(now, schedule.pause_before_poll(now - submitted_at, poll_interval))
        if error is not None:
            pause = schedule.pause_after_error(
                failures,
                pause,
                error.retry_after,
                left=max(0.0, retry_window_ends - now),
                limited=is_limited(error),
            )
        yield Sleep(min(pause, deadline - now))


def _jobs(listed: tuple[Execution, ...]) -> dict[str, JobState | str | None]:
    """Return the state of each job of a list, by its id. The steps of jobs are listed as well."""
    return {one.id: one.state for one in listed if one.id is not None and may_be_job(one)}


def _ended(listed: tuple[Execution, ...]) -> int:
    return len({canonical_job_id(job_id) for job_id, state in _jobs(listed).items() if state in ENDED})


def _unfinished(listed: tuple[Execution, ...], size: int) -> int:
    """Return how many of so many jobs have not ended.

    The list may show another job, which an interrupted submission made: its end is not that of one of these.
    """
    running = {
        canonical_job_id(job_id)
        for job_id, state in _jobs(listed).items()
        if state is not None and state not in ENDED
    }
    return max(size - _ended(listed), min(len(running), size))


def running_in(session_id: str, clock: Clock) -> Effects[tuple[list[str], int]]:
    """Return the jobs that a session lists and that have not ended, and how many have.

    Raises:
        APIError: The list cannot be read.
    """
    listed: tuple[Execution, ...] = yield from send_with_retries(endpoints.session(session_id), clock)
    running = {
        canonical_job_id(job_id): job_id for job_id, state in _jobs(listed).items() if state not in ENDED
    }
    return list(running.values()), _ended(listed)


def jobs_in(session_id: str, clock: Clock) -> Effects[frozenset[str]]:
    """Return the ids that a session lists.

    Raises:
        APIError: The list cannot be read.
    """
    listed: tuple[Execution, ...] = yield from send_with_retries(endpoints.session(session_id), clock)
    return frozenset(_jobs(listed))
