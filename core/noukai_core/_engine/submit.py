"""Submit once.

A submission has an identity, a UUID that is made before the first byte is sent. It goes out as
``X-Session-Id`` and as ``Idempotency-Key``. When a request to submit had an ambiguous end, the server's list
of that session tells whether a job exists, and only when it does not is the request sent again.
"""

from __future__ import annotations

import logging
import uuid
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import NamedTuple

from noukai_core import _validation
from noukai_core._api import endpoints
from noukai_core._api.endpoints import Call, Execution
from noukai_core._engine import schedule
from noukai_core._engine.effects import Clock, Effects, Send, Sleep, send_with_retries
from noukai_core._validation import FlowPath
from noukai_core.errors import APIError, InvalidResponseError, RedirectError, SubmissionUnknownError
from noukai_core.models import JobAccepted

log = logging.getLogger("noukai_core")

MOST_SENDS = 3
"""How often one submission is sent when the server loses each and then knows of no job."""

LONGEST_PAUSE = 5.0
"""Seconds between two questions whether the job exists."""

GRACE_SHARE = 0.5
"""By which part of the recovery time the last question may come late, when the server does not answer it."""


@dataclass(frozen=True)
class Submission:
    """The identity of one submission.

    Store it before the request is made, and a later process can pass it again after a crash: with
    ``last_sent_at`` set, the server is asked for the job first.

    Attributes:
        id: A UUID.
        last_sent_at: When the last try that may have sent it began, with a time zone; ``None`` when it surely
            was never sent.
    """

    id: str
    last_sent_at: datetime | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "id", _validation.session_id(self.id, "the id of a submission"))
        if self.last_sent_at is not None:
            object.__setattr__(self, "last_sent_at", _validation.moment(self.last_sent_at, "last_sent_at"))

    @classmethod
    def new(cls) -> Submission:
        """Make a fresh identity."""
        return cls(str(uuid.uuid4()))

    def headers(self, session_id: str | None = None) -> Mapping[str, str]:
        """Return the headers that carry it; the session is the identity itself unless the user has one."""
        return {"X-Session-Id": session_id or self.id, "Idempotency-Key": self.id}

    def age(self) -> float | None:
        """Return the seconds since the last try that may have sent it began."""
        if self.last_sent_at is None:
            return None
        return max(0.0, (datetime.now(UTC) - self.last_sent_at).total_seconds())


class Submitted(NamedTuple):
    """The job of a submission, and when it was submitted."""

    job: JobAccepted
    at: datetime


def submit_once(
    call: Call[JobAccepted],
    submission: Submission,
    flow: FlowPath,
    clock: Clock,
    *,
    recovery_timeout: float,
    retry_timeout: float,
) -> Effects[Submitted]:
    """Submit a job, so that it exists once.

    Args:
        call: The request to submit.
        submission: The identity that the request carries.
        flow: The flow; another flow's executions in the session are not taken for this one.
        clock: Seconds, from any beginning.
        recovery_timeout: Seconds in which an ambiguous end must be settled; 0 turns the look-up off.
        retry_timeout: Seconds for which a request that was surely not processed is sent again.

    Raises:
        SubmissionUnknownError: It could not be settled whether a job exists.
        APIError: The server refused the job, so there is none.
    """
    started = clock()
    age = submission.age()
    # An earlier try may have sent the request long after it began: it also waited out refusals.
    longest_try = retry_timeout + MOST_SENDS * recovery_timeout * (1 + GRACE_SHARE)
    doubtful_since = None if age is None else started - max(0.0, age - longest_try)
    last_sent_at = submission.last_sent_at
    doubt: APIError | None = None
    sends = refusals = 0
    while True:
        if doubtful_since is not None:
            if recovery_timeout == 0:
                raise _unknown(submission, flow, doubt, asked=False)
            found = yield from _look_up(
                submission, flow, clock, doubtful_since + recovery_timeout, recovery_timeout
            )
            if found is not None:
                log.info("Noukai job %s of %s: found by its submission %s", found.id, flow, submission.id)
                return Submitted(found, last_sent_at or datetime.now(UTC))
            if doubt is not None and (sends >= MOST_SENDS or not doubt.retryable):
                raise doubt
            doubtful_since = None
        last_sent_at = datetime.now(UTC)
        outcome: JobAccepted | APIError = yield Send(call)
        if isinstance(outcome, JobAccepted):
            log.info("Noukai job %s of %s: submitted", outcome.id, flow)
            return Submitted(outcome, datetime.now(UTC))
        if outcome.retryable and outcome.never_processed:
            refusals += 1
            pause = max(schedule.backoff(refusals), outcome.retry_after or 0.0)
            if clock() + pause > started + retry_timeout:
                raise outcome
            log.warning(
                "A submission to %s was not taken; sending it again in %.0f s: %s", flow, pause, outcome
            )
            yield Sleep(pause)
        elif not _unclear(outcome):
            raise outcome
        else:
            sends += 1
            # The server may have made the job as late as now: a job made late shows up late.
            doubtful_since, doubt = clock(), outcome
            log.warning("A submission to %s ended unclear; looking for its job: %s", flow, outcome)


def find(submission: Submission, flow: FlowPath, clock: Clock) -> Effects[JobAccepted | None]:
    """Ask for the job of a submission once, and send nothing."""
    executions = yield from send_with_retries(endpoints.session(submission.id), clock)
    job_id = _job_of(executions, flow)
    return None if job_id is None else JobAccepted(id=job_id)


def _unclear(error: APIError) -> bool:
    """Tell whether a request with this end may have made a job."""
    if isinstance(error, RedirectError):
        return False
    # A server that honours the Idempotency-Key answers 409 while it still works on the same submission.
    return error.retryable or isinstance(error, InvalidResponseError) or error.status_code == 409


def _look_up(
    submission: Submission, flow: FlowPath, clock: Clock, settled_at: float, recovery_timeout: float
) -> Effects[JobAccepted | None]:
    """Ask for the job of a submission until it shows up, or until it is settled that there is none."""
    call = endpoints.session(submission.id)
    give_up = max(settled_at, clock()) + recovery_timeout * GRACE_SHARE
    asked = 0
    while True:
        now = clock()
        outcome: tuple[Execution, ...] | APIError = yield Send(call)
        asked += 1
        pause = min(schedule.backoff(asked) / 2, LONGEST_PAUSE)
        if isinstance(outcome, APIError):
            pause = max(pause, outcome.retry_after or 0.0)
            if not outcome.retryable or clock() + pause > give_up:
                raise _unknown(submission, flow, outcome)
        else:
            job_id = _job_of(outcome, flow)
            if job_id is not None:
                return JobAccepted(id=job_id)
            if now >= settled_at:
                return None
            pause = min(pause, max(settled_at - clock(), 0.0))
        yield Sleep(pause)


def _job_of(executions: tuple[Execution, ...], flow: FlowPath) -> str | None:
    """Return the job of this flow in a session; the earliest, should the server have made several."""
    jobs = [
        execution
        for execution in executions
        if execution.trigger in (None, "job") and execution.slug in (None, flow.slug)
    ]
    return min(jobs, key=lambda job: job.started_at or "~").id if jobs else None


def _unknown(
    submission: Submission, flow: FlowPath, cause: APIError | None, *, asked: bool = True
) -> SubmissionUnknownError:
    said = f" ({cause})" if cause else ""
    advice = (
        "Look for this session id in the Noukai console, or submit again with the same submission: then the "
        "server is asked first."
        if asked
        else "The server was not asked: a session id of your own, or recovery_timeout=0, turns that off. "
        "Look for the job in the Noukai console, and submit with a new submission only when there is none."
    )
    return SubmissionUnknownError(
        f"It is not known whether the submission {submission.id} to {flow} made a job{said}. Nothing more "
        f"was sent, so that no second job is paid for. {advice}",
        submission=Submission(submission.id, datetime.now(UTC)),
    )
