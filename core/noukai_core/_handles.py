"""What the handles of both drivers know, without I/O: a flow, a job, and the effects of what they do."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from typing import Generic, TypeVar

from noukai_core import _validation
from noukai_core._api import endpoints
from noukai_core._batch_handle import check_inputs
from noukai_core._engine.batch import Batch
from noukai_core._engine.batch_options import BatchOptions
from noukai_core._engine.effects import Effects, FollowEffects, may_turn_up, send_with_retries
from noukai_core._engine.follow import StepFollower
from noukai_core._engine.rate_limit import PollRateLimiter, shared_rate_limiter
from noukai_core._engine.runs import read_ended_runs
from noukai_core._engine.sessions import wait_for_sessions
from noukai_core._engine.submit import Submitted, find, submit_request
from noukai_core._engine.wait import Poller
from noukai_core._options import ClientOptions
from noukai_core._validation import FlowPath
from noukai_core.checks import check_choice, check_count, check_number, check_seconds
from noukai_core.errors import APIError, InvalidInputError
from noukai_core.job_request import JobRequest
from noukai_core.models import JobAccepted, JobState, JobStatus, RunTrace
from noukai_core.runs import EndedRuns, FlowRun, RunsCursor
from noukai_core.submission import Submission
from noukai_core.telemetry import JobSpan

_MILLISECONDS = 1000.0
_LISTED_STATES = ("running", "completed", "failed", "cancelled")

R = TypeVar("R")


def listing_runs(flow_id: str, state: str | None, limit: int) -> Effects[tuple[FlowRun, ...]]:
    """Check everything, and return the effects that list the newest runs of a flow."""
    known = None if state is None else JobState(check_choice(state, _LISTED_STATES, "state"))
    if check_count(limit, "limit") > endpoints.PAGE_SIZE:
        raise InvalidInputError(f"limit is {limit}, but must be {endpoints.PAGE_SIZE} or less")
    return send_with_retries(endpoints.runs(_validation.flow_id(flow_id), known, limit), time.monotonic)


def reading_ended_runs(flow_id: str, cursor: RunsCursor | None) -> Effects[EndedRuns]:
    """Check everything, and return the effects that read which runs of a flow have ended."""
    return read_ended_runs(_validation.flow_id(flow_id), cursor, time.monotonic)


class FlowHandle(Generic[R]):
    """A flow that jobs can be submitted to."""

    def __init__(self, runner: R, path: FlowPath, settings: ClientOptions) -> None:
        self._runner = runner
        self._path = path
        self._settings = settings

    @property
    def path(self) -> str:
        """The flow as `org/project/slug`."""
        return str(self._path)

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.path!r})"

    def _submitting(
        self, request: JobRequest, submission: Submission | None, span: JobSpan
    ) -> Effects[Submitted]:
        """Check everything, and return the effects that submit a job once."""
        passed = None if submission is None else _checked(submission)
        effects = submit_request(request, passed, self._path, self._settings, time.monotonic)
        return span.submission(effects)

    def _batch(self, inputs: object, options: BatchOptions) -> Batch:
        check_inputs(inputs)
        return Batch(self._path, self._settings, options, time.monotonic)

    def _waiting_for_sessions(
        self,
        sessions: Mapping[str, int],
        until: int,
        age: float,
        timeout: float | None,
        poll_interval: float | None,
        report: Callable[[int], None] | None,
    ) -> Effects[int]:
        return wait_for_sessions(
            sessions,
            self._settings,
            _limiter(self._settings),
            time.monotonic,
            until=until,
            age=age,
            timeout=timeout,
            poll_interval=poll_interval,
            report=report,
        )

    def _finding(self, submission: Submission) -> Effects[JobAccepted | None]:
        return find(_checked(submission), self._path, time.monotonic)


def _checked(submission: object) -> Submission:
    if not isinstance(submission, Submission):
        raise _validation.refused(
            f"submission is {_validation.shown(submission)}, but must be a noukai_core.Submission"
        )
    return submission


class JobHandle(Generic[R]):
    """A job that exists."""

    def __init__(
        self,
        runner: R,
        job_id: str,
        path: FlowPath,
        settings: ClientOptions,
        *,
        submitted_at: datetime | None = None,
        accepted: JobAccepted | None = None,
        last_status: JobStatus | None = None,
        span: JobSpan | None = None,
    ) -> None:
        self._runner = runner
        self._span = span
        self._id = _validation.job_id(job_id)
        self._path = path
        self._settings = settings
        self._submitted_at = (
            None if submitted_at is None else _validation.moment(submitted_at, "submitted_at")
        )
        self._accepted = accepted
        self._last_status = last_status
        self._poller: Poller | None = None
        self._had_ended = False
        self._submitted_on_clock = _on_monotonic_clock(self._submitted_at)

    @property
    def id(self) -> str:
        """The job's id, such as `job_abc123`."""
        return self._id

    @property
    def flow(self) -> str:
        """The job's flow as `org/project/slug`."""
        return str(self._path)

    @property
    def submitted_at(self) -> datetime | None:
        """When the job was submitted, if this handle knows."""
        return self._submitted_at

    @property
    def accepted(self) -> JobAccepted | None:
        """The response to the submission, if this handle made it."""
        return self._accepted

    @property
    def last_status(self) -> JobStatus | None:
        """The status that this handle saw last, or was made with. A wait logs only what differs from it."""
        return self._last_status if self._poller is None else self._poller.last_status

    @property
    def had_ended(self) -> bool:
        """Whether the server said to the last `cancel()` that the job had already ended."""
        return self._had_ended

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.id!r}, flow={self.flow!r})"

    def _race_ends(self) -> float:
        """Return until when a 404 may only mean that no worker has written the job down yet."""
        return (
            float("-inf")
            if self._submitted_on_clock is None
            else self._submitted_on_clock + self._settings.not_found_grace
        )

    def _polling(self) -> Effects[JobStatus]:
        call = endpoints.status(self._path, self._id)
        try:
            status: JobStatus = yield from send_with_retries(call, time.monotonic)
        except APIError as error:
            if not may_turn_up(error, time.monotonic(), self._race_ends()):
                raise
            status = JobStatus(id=self._id, state=JobState.PENDING)
        self._last_status = status
        return status

    def _watching(
        self,
        timeout: float | None,
        poll_interval: float | None,
        max_poll_bytes: int | None = None,
        log_changes: bool = True,
    ) -> Effects[JobStatus]:
        poller = Poller(
            self._path,
            self._id,
            self._settings,
            _limiter(self._settings),
            time.monotonic,
            submitted_at=self._submitted_on_clock,
            timeout=None if timeout is None else check_seconds(timeout, "timeout"),
            interval=None if poll_interval is None else check_seconds(poll_interval, "poll_interval"),
            last_status=self.last_status,
            log_changes=log_changes,
            state_bytes=None if max_poll_bytes is None else check_count(max_poll_bytes, "max_poll_bytes"),
        )
        span, self._span = self._span or JobSpan(self.flow, self._id), None
        return span.wait(self._recorded(poller))

    def _recorded(self, poller: Poller) -> Effects[JobStatus]:
        # Thousands of handles wait in one triggerer: each keeps one status, and not the first one as well.
        self._poller, self._last_status = poller, None
        try:
            return (yield from poller.effects())
        finally:
            self._poller, self._last_status = None, poller.last_status

    def _waiting(self, timeout_ms: float | None, poll_interval: float | None) -> Effects[JobStatus]:
        timeout = None if timeout_ms is None else check_number(timeout_ms, "timeout_ms")
        return self._watching(None if timeout is None else timeout / _MILLISECONDS, poll_interval)

    def _cancelling(self) -> Effects[None]:
        call = endpoints.cancel(self._path, self._id)
        accepted = yield from send_with_retries(call, time.monotonic, race_ends=self._race_ends())
        self._had_ended = not accepted

    def _tracing(self) -> Effects[RunTrace]:
        return send_with_retries(endpoints.trace(self._path, self._id), time.monotonic)

    def _following(self, skip: int) -> FollowEffects:
        follower = StepFollower(
            self._path,
            self._id,
            self._settings,
            _limiter(self._settings),
            time.monotonic,
            race_ends=self._race_ends(),
            skip=check_count(skip, "skip") if skip else 0,
        )
        return follower.effects()


def _limiter(settings: ClientOptions) -> PollRateLimiter:
    return shared_rate_limiter(settings.base_url, settings.api_key, settings.max_polls_per_second)


def _on_monotonic_clock(moment: datetime | None) -> float | None:
    """Convert a point in time once, so that a clock that is set later moves no deadline."""
    if moment is None:
        return None
    return time.monotonic() - max(0.0, (datetime.now(UTC) - moment).total_seconds())
