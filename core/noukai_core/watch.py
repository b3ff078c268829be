"""Wait for a job: cheaply, promptly, through passing faults, and never beyond the deadline."""

from __future__ import annotations

import json
import logging
import math

from . import calls, policy
from .budget import LookBudget
from .errors import APIError, JobWaitTimeout, RateLimited
from .inputs import FlowPath, without_keys
from .models import JobState, JobStatus
from .settings import Settings
from .steps import Clock, Pause, Request, Show, Steps

log = logging.getLogger("noukai_core")

_SHOWN_PROGRESS = 200


class Watch:
    """One wait for one job.

    Args:
        flow: The flow of the job.
        job_id: The job.
        settings: How the client waits.
        budget: The looks that all jobs share.
        clock: Seconds, from any beginning.
        born: When the job was submitted, on that clock, as far as it is known.
        timeout: Seconds until the deadline; ``None`` for none.
        interval: A fixed pause between looks, in seconds.
    """

    def __init__(
        self,
        flow: FlowPath,
        job_id: str,
        settings: Settings,
        budget: LookBudget,
        clock: Clock,
        *,
        born: float | None = None,
        timeout: float | None = None,
        interval: float | None = None,
    ) -> None:
        self._call = calls.status(flow, job_id)
        self._name = f"Noukai job {job_id} of {flow}"
        self._job_id = job_id
        self._settings = settings
        self._budget = budget
        self._clock = clock
        self._interval = interval if interval is not None else settings.poll_interval
        started = clock()
        self._born = started if born is None else born
        self._race_ends = -math.inf if born is None else born + settings.not_found_grace
        self._timeout = timeout
        self._deadline = math.inf if timeout is None else started + timeout
        self._faults = 0
        self._faulty_since = math.inf
        self._fault: APIError | None = None
        self._status: JobStatus | None = None

    def steps(self) -> Steps[JobStatus]:
        """Look until the job has ended, and show each status that tells something new.

        Raises:
            JobWaitTimeout: The deadline passed.
            APIError: The server refused for good, lost the job, or gave no good answer for too long.
        """
        while True:
            yield Pause(min(self._budget.reserve(self._clock()), self._left()))
            reply: JobStatus | APIError = yield Request(
                self._call, policy.look_timeout(self._settings.timeout, self._left())
            )
            if isinstance(reply, APIError):
                pause = self._after_fault(reply)
            else:
                if self._after_look(reply):
                    yield Show(reply)
                if reply.finished:
                    return reply
                pause = policy.in_step(self._clock(), policy.pause_before_look(self._age(), self._interval))
            if self._left() == 0:
                raise self._timed_out()
            yield Pause(min(pause, self._left()))

    def _left(self) -> float:
        return max(0.0, self._deadline - self._clock())

    def _age(self) -> float:
        return max(0.0, self._clock() - self._born)

    def _after_look(self, status: JobStatus) -> bool:
        """Take note of a good answer, and tell whether it says something new."""
        if self._faults:
            log.info("%s: looks work again; failed in a row: %d", self._name, self._faults)
        self._faults, self._fault = 0, None
        self._budget.answered = self._clock()
        before, self._status = self._status, status
        if before is None or before.state != status.state:
            self._log_state(before, status)
            return True
        if before.progress != status.progress:
            shown = json.dumps(status.progress, ensure_ascii=False, default=str)
            log.info("%s: progress %.*s", self._name, _SHOWN_PROGRESS, without_keys(shown))
            return True
        return False

    def _log_state(self, before: JobStatus | None, status: JobStatus) -> None:
        change = status.state if before is None else f"{before.state} → {status.state}"
        log.info("%s: %s", self._name, change)
        if not isinstance(status.state, JobState):
            log.warning("%s: the state %r is not known here; waiting on", self._name, str(status.state))

    def _after_fault(self, error: APIError) -> float:
        """Return the pause after a look that failed, or raise when waiting on is of no use."""
        now = self._clock()
        usual = policy.pause_before_look(self._age(), self._interval)
        if error.status_code == 404 and now < self._race_ends:
            self._faults, self._fault = 0, None
            return min(usual, self._race_ends - now)
        if self._faults == 0:
            # Not since the last good answer: the pause before this look may be longer than the patience.
            self._faulty_since = now
        limited = isinstance(error, RateLimited)
        # Whoever is turned away while the server is busy with others waits on as long as they are served.
        since = max(self._faulty_since, self._budget.answered) if limited else self._faulty_since
        patience_ends = since + self._settings.fault_patience
        if not error.passing or now >= patience_ends:
            raise error
        if limited:
            self._budget.slow_down(now)
        self._faults += 1
        self._fault = error
        if self._faults == 1:
            log.warning(
                "%s: a look failed; waiting on for up to %.0f s: %s", self._name, patience_ends - now, error
            )
        pause = policy.pause_after_fault(self._faults, usual, error.retry_after, limited=limited)
        return min(pause, patience_ends - now)

    def _timed_out(self) -> JobWaitTimeout:
        state = self._status.state if self._status else "not seen yet"
        fault = f"; the last look failed: {self._fault}" if self._fault else ""
        return JobWaitTimeout(
            f"{self._name} did not end within {self._timeout:g} s (last state: {state}{fault}).",
            job_id=self._job_id,
            status=self._status,
        )
