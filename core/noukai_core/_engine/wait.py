"""Wait for a job: cheaply, promptly, through transient errors, and never beyond the deadline."""

from __future__ import annotations

import logging
import math
import time
from datetime import datetime
from typing import Protocol

from noukai_core._api import endpoints
from noukai_core._api.endpoints import Call
from noukai_core._engine import schedule
from noukai_core._engine.effects import (
    Clock,
    Effects,
    Emit,
    Send,
    Sleep,
    T,
    Wake,
    is_limited,
    may_turn_up,
    send_with_retries,
)
from noukai_core._engine.rate_limit import PollRateLimiter
from noukai_core._options import ClientOptions
from noukai_core._validation import FlowPath
from noukai_core.cancellation import Logger
from noukai_core.errors import APIError, JobTimeoutError
from noukai_core.models import JobState, JobStatus
from noukai_core.telemetry import measure

log = logging.getLogger("noukai_core")

_LATE = 2.0
"""Seconds after which a sleep that has not ended was held up by a busy caller, and not by a busy machine."""


class Stalls:
    """Takes note of when a busy caller kept a driver from running its waits, as the body of a loop does.

    Attributes:
        ended_at: When the last stall ended.
    """

    def __init__(self) -> None:
        self.ended_at = -math.inf

    def note(self, ran_at: float, now: float) -> None:
        """Take note that a driver runs something now, and when it last ran something or waited."""
        if now - ran_at > schedule.SHORTEST_PAUSE:
            self.ended_at = now


_NO_STALLS = Stalls()


class Watcher(Protocol):
    """Something else that watches a job, so that it has to be polled only now and then."""

    @property
    def wake(self) -> Wake:
        """Rings when the job should be polled."""
        ...

    def pause(self, usual: float, status: JobStatus | None) -> float:
        """Return the pause between the last poll and the next. It may have grown when that time has come.

        Args:
            usual: What it would be if nothing else watched the job; 0 before the first poll.
            status: What the last poll showed.
        """
        ...


def reach_slot(limiter: PollRateLimiter, clock: Clock, deadline: float = math.inf) -> Effects[bool]:
    """Sleep until a slot of the rate limit, and tell whether it came before the deadline.

    A slot that passed long ago is lost once: those of others that were held up have passed as well, and all
    would poll at once. The next one is waited for even beyond the deadline, and used however late:
    otherwise, a caller that is always busy would never poll.

    Args:
        limiter: The rate limit.
        clock: Seconds, from any beginning.
        deadline: The deadline, on that clock.
    """
    lost = False
    while True:
        now = clock()
        slot = limiter.reserve(now)
        left = max(0.0, deadline - now)
        if slot - now > left:
            limiter.release(slot, now)
            yield Sleep(left)
            return False
        try:
            yield Sleep(slot - now)
        except BaseException:
            limiter.release(slot, clock())
            raise
        if lost or clock() - slot < _LATE:
            return True
        lost, deadline = True, math.inf


def poll_with_retries(call: Call[T], limiter: PollRateLimiter, clock: Clock) -> Effects[T]:
    """Send a poll, and retry it for a few seconds after a transient error. Each has its slot of the limit.

    Args:
        call: The poll of a job, or the list of a session.
        limiter: The rate limit.
        clock: Seconds, from any beginning.
    """
    return send_with_retries(call, clock, reach_slot=lambda: reach_slot(limiter, clock))


class Poller:
    """One wait for one job.

    Args:
        flow: The flow of the job.
        job_id: The job.
        settings: How the client waits.
        limiter: The rate limit that all jobs share.
        clock: Seconds, from any beginning.
        submitted_at: When the job was submitted, on that clock, as far as it is known.
        timeout: Seconds until the deadline; `None` for none.
        interval: A fixed pause between polls, in seconds.
        last_status: What is known of the job already; a change is logged, but not that it is still so.
        log_changes: Whether each change is logged, and not only the end.
        state_bytes: If the state is all that is wanted: how many bytes of each response are read for it.
        watcher: What else watches the job.
        stalls: When the driver was kept from running this wait.
        logger: Where the lines about the job go.
    """

    def __init__(
        self,
        flow: FlowPath,
        job_id: str,
        settings: ClientOptions,
        limiter: PollRateLimiter,
        clock: Clock,
        *,
        submitted_at: float | None = None,
        timeout: float | None = None,
        interval: float | None = None,
        last_status: JobStatus | None = None,
        log_changes: bool = True,
        state_bytes: int | None = None,
        watcher: Watcher | None = None,
        stalls: Stalls | None = None,
        logger: Logger = log,
    ) -> None:
        self._log = logger
        self._watcher = watcher
        self._stalls = stalls or _NO_STALLS
        self._flow = flow
        self._job_id = job_id
        self._state_bytes = state_bytes
        self._settings = settings
        self._limiter = limiter
        self._clock = clock
        self._interval = interval if interval is not None else settings.poll_interval
        started = clock()
        self._submitted_at = started if submitted_at is None else submitted_at
        known = (submitted_at, None if last_status is None else started)
        # One that was known a moment ago is not known to a replica that lags behind.
        self._race_ends = max(
            (moment + settings.not_found_grace for moment in known if moment is not None), default=-math.inf
        )
        self._timeout = timeout
        self._deadline = math.inf if timeout is None else started + timeout
        self._polled_at = started
        self._failures = 0
        self._failing_since = math.inf
        self._last_error: APIError | None = None
        self._status: JobStatus | None = None
        self._logged = last_status
        self._log_changes = log_changes

    @property
    def _name(self) -> str:
        return f"Noukai job {self._job_id} of {self._flow}"

    @property
    def last_status(self) -> JobStatus | None:
        """What was last seen of the job, or else what was known of it before."""
        return self._logged

    def effects(self) -> Effects[JobStatus]:
        """Poll until the job has ended, and emit each status that says something new.

        Raises:
            JobTimeoutError: The deadline passed.
            APIError: The server rejected the request, does not know the job, or did not respond for too long.
        """
        measure("noukai.jobs.waiting", 1)
        try:
            return (yield from self._poll())
        finally:
            measure("noukai.jobs.waiting", -1)

    def _poll(self) -> Effects[JobStatus]:
        if self._watcher is not None:
            yield from self._pause(0.0, None, self._watcher)
        while (yield from self._reach_slot()):
            self._polled_at = self._clock()
            timeout = schedule.poll_timeout(self._settings.timeout, self._left(), self._timeout or math.inf)
            # Thousands of jobs wait in one triggerer: a call that each kept would take 0.7 kB.
            outcome: JobStatus | APIError = yield Send(
                endpoints.status(self._flow, self._job_id, self._state_bytes), timeout
            )
            measure("noukai.polls")
            over = self._left() == 0  # not because the caller keeps the status that is emitted
            watcher = None
            if isinstance(outcome, APIError):
                pause = self._after_error(outcome)
            else:
                if self._after_response(outcome):
                    yield Emit(outcome)
                if outcome.finished:
                    return outcome
                pause = schedule.align_to_tick(
                    self._clock(), schedule.pause_before_poll(self._age(), self._interval)
                )
                watcher = self._watcher
            if over and not self._was_stalled():
                break
            if watcher is None:
                yield Sleep(min(pause, self._left()))
            else:
                yield from self._pause(pause, self._status, watcher)
        raise self._timed_out()

    def _reach_slot(self) -> Effects[bool]:
        """Reach a slot before the deadline, or after it if a stall kept this wait from polling."""
        if (yield from reach_slot(self._limiter, self._clock, self._deadline)):
            return True
        return self._was_stalled() and (yield from reach_slot(self._limiter, self._clock))

    def _was_stalled(self) -> bool:
        """Tell whether the job may have ended unseen before the deadline, because the caller was busy."""
        is_late = self._clock() > self._deadline + _LATE
        return self._polled_at < min(self._deadline, math.inf if is_late else self._stalls.ended_at)

    def _pause(self, usual: float, status: JobStatus | None, watcher: Watcher) -> Effects[None]:
        """Sleep until the next poll of a job that something else watches, or until that rings."""
        began = ends = self._clock()
        while self._clock() >= ends and (later := began + watcher.pause(usual, status)) > ends:
            ends = later
            yield Sleep(max(0.0, min(ends - self._clock(), self._left())), watcher.wake)

    def _left(self) -> float:
        return max(0.0, self._deadline - self._clock())

    def _age(self) -> float:
        return max(0.0, self._clock() - self._submitted_at)

    def _after_response(self, status: JobStatus) -> bool:
        """Take note of a status, and tell whether it says something new."""
        if self._failures:
            self._log.info("%s: polling recovered after %d failures", self._name, self._failures)
        self._failures, self._last_error = 0, None
        self._limiter.last_success_at = now = self._clock()
        self._race_ends = max(self._race_ends, now + self._settings.not_found_grace)
        before, self._status = self._status, status
        logged, self._logged = self._logged, status
        if status.finished and (logged is None or logged.state != status.state):
            _measure_end(status)
        if self._log_changes or status.finished:
            self._log_change(logged, status)
        return before is None or (before.state, before.progress) != (status.state, status.progress)

    def _log_change(self, before: JobStatus | None, status: JobStatus) -> None:
        if before is None or before.state != status.state:
            self._log_state(before, status)
        elif not status.finished and status.progress is not None and before.progress != status.progress:
            self._log.info("%s: progress %s", self._name, status.progress_text)

    def _log_state(self, before: JobStatus | None, status: JobStatus) -> None:
        change = status.state if before is None else f"{before.state} → {status.state}"
        self._log.info("%s: %s", self._name, change)
        if not isinstance(status.state, JobState):
            self._log.warning("%s: unknown state %r (polling continues)", self._name, str(status.state))

    def _after_error(self, error: APIError) -> float:
        """Return the pause after a poll that failed, or raise when another poll cannot help."""
        now = self._clock()
        measure("noukai.poll.errors", error_type=type(error).__name__)
        usual = schedule.pause_before_poll(self._age(), self._interval)
        # Not now: a busy caller may have kept the response until after the race.
        if may_turn_up(error, self._polled_at, self._race_ends):
            self._failures, self._last_error = 0, None
            return max(0.0, min(usual, self._race_ends - now))
        if self._failures == 0:
            # Not since the last success: the pause before this poll may be longer than the retry window.
            self._failing_since = now
        limited = is_limited(error)
        # A wait that is turned away while the server is busy with others continues while they succeed.
        since = max(self._failing_since, self._limiter.last_success_at) if limited else self._failing_since
        retry_window_ends = since + self._settings.retry_timeout
        if not error.retryable or now >= retry_window_ends:
            raise error
        if limited:
            measure("noukai.rate_limit.pauses")
            self._limiter.slow_down(now)
        self._failures += 1
        self._last_error = error
        if self._failures == 1:
            self._log.warning(
                "%s: poll failed (retrying for up to %.0f s): %s",
                self._name,
                retry_window_ends - now,
                error,
            )
        return schedule.pause_after_error(
            self._failures, usual, error.retry_after, left=retry_window_ends - now, limited=limited
        )

    def _timed_out(self) -> JobTimeoutError:
        state = self._status.state if self._status else "not known yet"
        error = f"; the last poll failed: {self._last_error}" if self._last_error else ""
        return JobTimeoutError(
            f"{self._name}: timed out after {self._timeout:g} s (last state: {state}{error}). The job was "
            "left running.",
            job_id=self._job_id,
            status=self._status,
        )


def _measure_end(status: JobStatus) -> None:
    measure("noukai.jobs", state=str(status.state))
    try:
        ended = datetime.fromisoformat(status.completed_at or "").timestamp()
    except (ValueError, OverflowError, OSError):  # the server reports no time, or none that makes sense
        return
    measure("noukai.job.end_lag", max(0.0, time.time() - ended))
