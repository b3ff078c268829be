"""Submit once.

A submission has an identity, a UUID that is made before the first byte is sent. It goes out as
`X-Session-Id` and as `Idempotency-Key`. When the outcome of a request to submit is unknown, the server's list
of that session tells whether a job exists. The request is sent again only when the service itself has said,
after the recovery window, that there is none.
"""

from __future__ import annotations

import logging
from datetime import UTC, datetime
from typing import NamedTuple

from noukai_core._api import endpoints
from noukai_core._api.endpoints import Call, Execution
from noukai_core._engine import schedule
from noukai_core._engine.effects import Clock, Effects, Send, Sleep, send_with_retries
from noukai_core._engine.submission_registry import SubmissionRegistry, SubmissionState
from noukai_core._validation import FlowPath
from noukai_core.errors import APIError, InvalidResponseError, RedirectError, SubmissionUnknownError
from noukai_core.models import JobAccepted
from noukai_core.submission import Submission

log = logging.getLogger("noukai_core")

MAX_SENDS = 3
"""How often one submission is sent when the server loses each request and then knows of no job."""

LONGEST_PAUSE = 5.0
"""Seconds between two requests that ask whether the job exists."""

GRACE_SHARE = 0.5
"""The share of the recovery window for which the lookup continues beyond it while it fails."""

BUSY_PAUSE = 0.1
"""Seconds between two checks whether another call with the same submission has ended."""

_OTHER_KINDS = ("step", "execute")
_JOB_KINDS = ("", "job")


class Submitted(NamedTuple):
    """The job of a submission, and when it was submitted."""

    job: JobAccepted
    at: datetime


def submit(
    call: Call[JobAccepted],
    submission: Submission,
    flow: FlowPath,
    clock: Clock,
    registry: SubmissionRegistry,
    *,
    recovery_timeout: float,
    retry_timeout: float,
) -> Effects[Submitted]:
    """Submit a job, so that it exists once, however often this process passes the same submission.

    A call that finds another one at work waits for it. The arguments and errors are those of `submit_once`.
    """
    key = (flow, submission.id)
    while (state := registry.begin(key)) is None:
        yield Sleep(BUSY_PAUSE)
    try:
        if state.job_id is not None:
            log.info("Noukai job %s of %s: found by its submission %s", state.job_id, flow, submission.id)
            return Submitted(JobAccepted(id=state.job_id), state.submitted_at or datetime.now(UTC))
        submitted = yield from submit_once(
            call,
            submission,
            flow,
            clock,
            state,
            recovery_timeout=recovery_timeout,
            retry_timeout=retry_timeout,
        )
        state.job_id, state.submitted_at = submitted.job.id, submitted.at
        return submitted
    finally:
        registry.end(key)


def submit_once(
    call: Call[JobAccepted],
    submission: Submission,
    flow: FlowPath,
    clock: Clock,
    state: SubmissionState,
    *,
    recovery_timeout: float,
    retry_timeout: float,
) -> Effects[Submitted]:
    """Submit a job, so that it exists once.

    Args:
        call: The request to submit.
        submission: The identity that the request carries.
        flow: The flow; another flow's execution in the session is not taken for this job.
        clock: Seconds, from any beginning.
        state: What this process knows of the submission. It is kept up to date.
        recovery_timeout: Seconds within which a job shows up in the server's list; 0 disables the lookup.
        retry_timeout: Seconds for which a request that was surely not processed is sent again.

    Raises:
        SubmissionUnknownError: Whether a job exists could not be determined.
        APIError: The server rejected the job, so there is none.
    """
    started = clock()
    state.possibly_sent_at = state.possibly_sent_at or submission.last_sent_at
    # How long ago an earlier try sent it proves nothing: its request may have waited for its turn or may be
    # on its way still, and its machine may have another clock. So the window begins with this try.
    unknown_since = None if state.possibly_sent_at is None else started
    cause: APIError | None = None
    sends = rejections = 0
    while True:
        if unknown_since is not None:
            if recovery_timeout == 0:
                raise _unknown(submission, state, flow, cause, asked=False)
            found = yield from _look_up(submission, state, flow, clock, unknown_since, recovery_timeout)
            if found is not None:
                log.info("Noukai job %s of %s: found by its submission %s", found.id, flow, submission.id)
                return Submitted(found, state.possibly_sent_at or datetime.now(UTC))
            state.possibly_sent_at = unknown_since = None
            if cause is not None and (sends >= MAX_SENDS or not cause.retryable):
                raise cause
        state.possibly_sent_at = datetime.now(UTC)
        outcome: JobAccepted | APIError = yield Send(call)
        if isinstance(outcome, JobAccepted):
            log.info("Noukai job %s of %s: submitted", outcome.id, flow)
            return Submitted(outcome, datetime.now(UTC))
        if _unknown_outcome(outcome):
            sends += 1
            # The server may have made the job as late as now: a job made late shows up late.
            unknown_since, cause = clock(), outcome
            log.warning(
                "Noukai submission %s to %s: outcome unknown; checking whether a job exists: %s",
                submission.id,
                flow,
                outcome,
            )
            if outcome.retry_after:
                yield Sleep(min(outcome.retry_after, recovery_timeout))
            continue
        state.possibly_sent_at = None
        rejections += 1
        pause = max(schedule.backoff(rejections), outcome.retry_after or 0.0)
        rejected = not (outcome.retryable and outcome.never_processed)
        if rejected or clock() + pause > started + retry_timeout:
            raise outcome
        log.warning(
            "Noukai submission %s to %s: rejected (retryable); retrying in %.0f s: %s",
            submission.id,
            flow,
            pause,
            outcome,
        )
        yield Sleep(pause)


def find(submission: Submission, flow: FlowPath, clock: Clock) -> Effects[JobAccepted | None]:
    """Ask for the job of a submission once, and send nothing.

    Raises:
        SubmissionUnknownError: The session holds something that may be the job and cannot be read.
        APIError: The server rejected the request, or was not reached.
    """
    executions = yield from send_with_retries(endpoints.session(submission.id), clock)
    found = _job_of(executions, submission, flow)
    if isinstance(found, APIError):
        state = SubmissionState(possibly_sent_at=submission.last_sent_at)
        raise _unknown(submission, state, flow, found)
    return found


def _unknown_outcome(error: APIError) -> bool:
    """Tell whether a request with this outcome may have made a job."""
    if error.never_processed or isinstance(error, RedirectError):
        return False
    # A server that honours the Idempotency-Key responds 409 while it still works on the same submission.
    return error.retryable or isinstance(error, InvalidResponseError) or error.status_code == 409


def _look_up(
    submission: Submission,
    state: SubmissionState,
    flow: FlowPath,
    clock: Clock,
    unknown_since: float,
    recovery_timeout: float,
) -> Effects[JobAccepted | None]:
    """Ask for the job of a submission until it shows up, or until the service has said that there is none."""
    call = endpoints.session(submission.id)
    proves_from = unknown_since + recovery_timeout
    ends = max(proves_from, clock()) + recovery_timeout * GRACE_SHARE
    requests = 0
    while True:
        now = clock()
        outcome: tuple[Execution, ...] | APIError = yield Send(call)
        requests += 1
        found = outcome if isinstance(outcome, APIError) else _job_of(outcome, submission, flow)
        pause = min(schedule.backoff(requests) / 2, LONGEST_PAUSE)
        if isinstance(found, APIError):
            if requests == 1:
                log.warning("Noukai submission %s to %s: lookup failed: %s", submission.id, flow, found)
            pause = max(pause, found.retry_after or 0.0)
            if not found.retryable or clock() + pause > ends:
                raise _unknown(submission, state, flow, found)
        elif found is not None or now >= proves_from:
            return found
        else:
            pause = min(pause, max(proves_from - clock(), 0.0))
        yield Sleep(pause)


def _job_of(
    executions: tuple[Execution, ...], submission: Submission, flow: FlowPath
) -> JobAccepted | InvalidResponseError | None:
    """Return the job in the session of a submission; the earliest, should the server have made several.

    The session belongs to the submission alone. Only an execution of a known other kind is surely not its
    job; one that cannot be read, or that seems to belong to another flow, may be, so it is an error.
    """
    candidates = [one for one in executions if _kind(one) not in _OTHER_KINDS]
    if not candidates:
        return None
    readable = [one for one in candidates if one.id is not None and _belongs_to(one, flow)]
    jobs = [one for one in readable if _kind(one) in _JOB_KINDS]
    if not jobs and len(candidates) == 1:
        jobs = readable
    if not jobs:
        return InvalidResponseError(
            f"The session of the submission {submission.id} to {flow} holds an execution that may be its job "
            "and cannot be read.",
        )
    earliest = min(jobs, key=lambda job: job.started_at or "~")
    return JobAccepted(id=str(earliest.id))


def _kind(execution: Execution) -> str:
    return (execution.trigger or "").strip().casefold()


def _belongs_to(execution: Execution, flow: FlowPath) -> bool:
    if execution.slug is None:
        return True
    slug = execution.slug.strip().strip("/").casefold()
    return slug == str(flow) if "/" in slug else slug == flow.slug


def _unknown(
    submission: Submission,
    state: SubmissionState,
    flow: FlowPath,
    cause: APIError | None,
    *,
    asked: bool = True,
) -> SubmissionUnknownError:
    reason = f" ({cause})" if cause else ""
    advice = (
        "Look for this session id in the Noukai console, or submit again with the same submission: the "
        "server is then asked first."
        if asked
        else "The server was not asked: a session id of your own, or recovery_timeout=0, turns that off. "
        "Look for the job in the Noukai console, and submit with a new submission only when there is none."
    )
    return SubmissionUnknownError(
        f"It is not known whether the submission {submission.id} to {flow} made a job{reason}. Nothing more "
        f"was sent, so that no second job is paid for. {advice}",
        submission=Submission(submission.id, state.possibly_sent_at or datetime.now(UTC)),
    )
