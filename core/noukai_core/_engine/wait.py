"""Wait for a job: cheaply, promptly, through passing faults, and never beyond the deadline."""

from __future__ import annotations

import logging
import math

from noukai_core._api import endpoints
from noukai_core._engine import schedule
from noukai_core._engine.effects import Clock, Effects, Emit, Send, Sleep
from noukai_core._engine.rate_limit import PollRateLimiter
from noukai_core._options import ClientOptions
from noukai_core._validation import FlowPath
from noukai_core.errors import APIError, JobTimeoutError, RateLimitError
from noukai_core.models import JobState, JobStatus

log = logging.getLogger("noukai_core")


class Poller:
    """One wait for one job.

    Args:
        flow: The flow of the job.
        job_id: The job.
        settings: How the client waits.
        limiter: The looks that all jobs share.
        clock: Seconds, from any beginning.
        submitted_at: When the job was submitted, on that clock, as far as it is known.
        timeout: Seconds until the deadline; ``None`` for none.
        interval: A fixed pause between looks, in seconds.
        last_status: What is known of the job already; a change is logged, but not that it is still so.
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
    ) -> None:
        self._call = endpoints.status(flow, job_id)
        self._name = f"Noukai job {job_id} of {flow}"
        self._job_id = job_id
        self._settings = settings
        self._limiter = limiter
        self._clock = clock
        self._interval = interval if interval is not None else settings.poll_interval
        started = clock()
        self._submitted_at = started if submitted_at is None else submitted_at
        self._race_ends = -math.inf if submitted_at is None else submitted_at + settings.not_found_grace
        self._timeout = timeout
        self._deadline = math.inf if timeout is None else started + timeout
        self._failures = 0
        self._failing_since = math.inf
        self._last_error: APIError | None = None
        self._status: JobStatus | None = None
        self._logged = last_status

    @property
    def last_status(self) -> JobStatus | None:
        """What was last seen of the job, or else what was known of it before."""
        return self._logged

    def effects(self) -> Effects[JobStatus]:
        """Look until the job has ended, and show each status that tells something new.

        Raises:
            JobTimeoutError: The deadline passed.
            APIError: The server refused for good, lost the job, or gave no good answer for too long.
        """
        while True:
            yield Sleep(min(self._limiter.reserve(self._clock()), self._left()))
            outcome: JobStatus | APIError = yield Send(
                self._call, schedule.poll_timeout(self._settings.timeout, self._left())
            )
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
            if self._left() == 0:
                raise self._timed_out()
            yield Sleep(min(pause, self._left()))

    def _left(self) -> float:
        return max(0.0, self._deadline - self._clock())

    def _age(self) -> float:
        return max(0.0, self._clock() - self._submitted_at)

    def _after_response(self, status: JobStatus) -> bool:
        """Take note of a good answer, and tell whether it says something new."""
        if self._failures:
            log.info("%s: looks work again; failed in a row: %d", self._name, self._failures)
        self._failures, self._last_error = 0, None
        self._limiter.last_success_at = self._clock()
        before, self._status = self._status, status
        logged, self._logged = self._logged, status
        if logged is None or logged.state != status.state:
            self._log_state(logged, status)
        elif status.progress is not None and logged.progress != status.progress:
            log.info("%s: progress %s", self._name, status.progress_text)
        return before is None or (before.state, before.progress) != (status.state, status.progress)

    def _log_state(self, before: JobStatus | None, status: JobStatus) -> None:
        change = status.state if before is None else f"{before.state} → {status.state}"
        log.info("%s: %s", self._name, change)
        if not isinstance(status.state, JobState):
            log.warning("%s: the state %r is not known here; waiting on", self._name, str(status.state))

    def _after_error(self, error: APIError) -> float:
        """Return the pause after a look that failed, or raise when waiting on is of no use."""
        now = self._clock()
        usual = schedule.pause_before_poll(self._age(), self._interval)
        if error.status_code == 404 and now < self._race_ends:
            self._failures, self._last_error = 0, None
            return min(usual, self._race_ends - now)
        if self._failures == 0:
            # Not since the last good answer: the pause before this look may be longer than the patience.
            self._failing_since = now
        limited = isinstance(error, RateLimitError)
        # Whoever is turned away while the server is busy with others waits on as long as they are served.
        since = max(self._failing_since, self._limiter.last_success_at) if limited else self._failing_since
        retry_window_ends = since + self._settings.retry_timeout
        if not error.retryable or now >= retry_window_ends:
            raise error
        if limited:
            self._limiter.slow_down(now)
        self._failures += 1
        self._last_error = error
        if self._failures == 1:
            log.warning(
                "%s: a look failed; waiting on for up to %.0f s: %s",
                self._name,
                retry_window_ends - now,
                error,
            )
        pause = schedule.pause_after_error(self._failures, usual, error.retry_after, limited=limited)
        return min(pause, retry_window_ends - now)

    def _timed_out(self) -> JobTimeoutError:
        state = self._status.state if self._status else "not seen yet"
        fault = f"; the last look failed: {self._last_error}" if self._last_error else ""
        return JobTimeoutError(
            f"{self._name} did not end within {self._timeout:g} s (last state: {state}{fault}).",
            job_id=self._job_id,
            status=self._status,
        )
