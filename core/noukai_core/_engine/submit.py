"""Submit once.

A submission has an identity, a UUID that is made before the first byte is sent. It goes out as
`X-Session-Id` and as `Idempotency-Key`. When the outcome of a request to submit is unknown, the server's list
of that session tells whether a job exists. The request is sent again only when the service itself has said,
after the recovery window, that there is none.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Collection, Container
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from typing import NamedTuple, TypeAlias

from noukai_core import _validation
from noukai_core._api import endpoints
from noukai_core._api.endpoints import Call, Execution
from noukai_core._api.job_ids import canonical_job_id
from noukai_core._engine import schedule
from noukai_core._engine.effects import Clock, Effects, Send, Sleep, is_limited, send_with_retries
from noukai_core._engine.rate_limit import PollRateLimiter
from noukai_core._engine.submission_registry import (
    SubmissionRegistry,
    SubmissionState,
    shared_registry,
)
from noukai_core._engine.wait import reach_slot
from noukai_core._options import ClientOptions
from noukai_core._validation import FlowPath
from noukai_core.cancellation import Logger
from noukai_core.errors import (
    APIError,
    InvalidInputError,
    InvalidResponseError,
    NotSubmittedError,
    NoukaiError,
    RedirectError,
    SubmissionUnknownError,
)
from noukai_core.job_request import JobRequest, body_of
from noukai_core.models import JobAccepted
from noukai_core.submission import Submission
from noukai_core.telemetry import measure

log = logging.getLogger("noukai_core")

MAX_SENDS = 3
"""How often one submission is sent when the server loses each request and then knows of no job."""

LONGEST_PAUSE = 5.0
"""Seconds between two requests that ask whether the job exists."""

GRACE_SHARE = 0.5
"""The share of the recovery window for which the lookup continues beyond it while it fails."""

BUSY_PAUSE = 0.1
"""Seconds between two checks whether another call with the same submission has ended."""

Stopped: TypeAlias = Callable[[], str | None]
"""Tells why nothing more is sent, or returns `None`."""

_ELSEWHERE = (301, 307, 308)
"""Redirects that ask for the same request at another address. After any other, a job may exist."""

_OTHER_KINDS = ("step", "execute")
_JOB_KINDS = ("", "job")


class Submitted(NamedTuple):
    """The job of a submission, and when it was submitted."""

    job: JobAccepted
    at: datetime


@dataclass(slots=True)
class SharedSession:
    """A session that the jobs of several submissions are in, submitted one after the other.

    Attributes:
        id: The session.
        others: The jobs that belong to other submissions. Any other entry of its list is this one's.
        running: The jobs of other submissions that may be running, in any session, by their canonical ids. A
            connection that is out of step may return any of them.
        on_unknown: Is called when the outcome of a submission in it is unknown.
        limiter: The rate limit of the requests that ask whether it has a job.
    """

    id: str
    others: Collection[str] = ()
    running: Container[str] = ()
    on_unknown: Callable[[], None] = field(default=lambda: None)
    limiter: PollRateLimiter | None = None


def submit_request(
    request: JobRequest,
    submission: Submission | None,
    flow: FlowPath,
    settings: ClientOptions,
    clock: Clock,
    shared: SharedSession | None = None,
    logger: Logger = log,
    stopped: Stopped = lambda: None,
) -> Effects[Submitted]:
    """Check a request, and return the effects that submit its job once.

    Args:
        request: The inputs of the job.
        submission: Its identity, if the caller keeps it; by default a new one.
        flow: The flow.
        settings: How the client submits.
        clock: Seconds, from any beginning.
        shared: The session that it shares with other submissions; by default it has its own. A session of
            the user's wins.
        logger: Where the lines about the submission go.
        stopped: Why nothing more is sent, if so.

    Raises:
        InvalidInputError: The request is invalid. Nothing was sent.
    """
    path = settings.flow_path(request.flow)
    if path != flow:
        raise InvalidInputError(f"the request is for the flow {path}, but this is the flow {flow}")
    body = body_of(request)
    users = None if request.session_id is None else _validation.session_id(request.session_id)
    session = users or (None if shared is None else shared.id)
    version = _validation.version_number(request.version)
    callers = submission is not None
    submission = submission or Submission.new()
    call = endpoints.submit(flow, version, body, submission.headers(session))
    return submit(
        call,
        submission,
        flow,
        clock,
        shared_registry(settings.base_url, settings.api_key, batches=shared is not None),
        callers=callers,
        # A session of the user's own may group many jobs, so it cannot tell which one this was.
        recovery_timeout=settings.recovery_timeout if users is None else 0.0,
        retry_timeout=settings.retry_timeout,
        shared=shared
        if users is None or shared is None
        else SharedSession(users, shared.others, shared.running, limiter=shared.limiter),
        logger=logger,
        stopped=stopped,
    )


def submit(
    call: Call[JobAccepted],
    submission: Submission,
    flow: FlowPath,
    clock: Clock,
    registry: SubmissionRegistry,
    *,
    callers: bool,
    recovery_timeout: float,
    retry_timeout: float,
    shared: SharedSession | None = None,
    logger: Logger = log,
    stopped: Stopped = lambda: None,
) -> Effects[Submitted]:
    """Submit a job, so that it exists once, however often this process passes the same submission.

    A call that finds another one at work waits for it. With `callers`, the caller keeps the submission, and
    names it itself if this is interrupted. The other arguments and the errors are those of `submit_once`.
    """
    sent = False

    def note_sent() -> None:
        nonlocal sent
        sent = True

    key = (flow, submission.id)
    while (state := registry.begin(key)) is None:
        yield Sleep(BUSY_PAUSE)
    try:
        if state.job_id is not None:
            logger.info("Noukai job %s of %s: found by its submission %s", state.job_id, flow, submission.id)
            return Submitted(JobAccepted(id=state.job_id), state.submitted_at or datetime.now(UTC))
        submitted = yield from submit_once(
            replace(call, on_send=note_sent),
            submission,
            flow,
            clock,
            state,
            recovery_timeout=recovery_timeout,
            retry_timeout=retry_timeout,
            shared=shared,
            logger=logger,
            stopped=stopped,
        )
        state.job_id, state.submitted_at = submitted.job.id, submitted.at
        return submitted
    except NoukaiError:
        raise
    except BaseException:
        if sent and not callers and state.possibly_sent_at is not None:
            _log_interrupted(submission, flow, logger, findable=recovery_timeout > 0)
        raise
    finally:
        registry.end(key, forget=not callers and state.job_id is not None)


def _log_interrupted(submission: Submission, flow: FlowPath, logger: Logger, *, findable: bool) -> None:
    logger.warning(
        "Noukai submission %s to %s: may be left running (interrupted before the response%s)",
        submission.id,
        flow,
        "; find() with this submission finds its job" if findable else "",
    )


def submit_once(
    call: Call[JobAccepted],
    submission: Submission,
    flow: FlowPath,
    clock: Clock,
    state: SubmissionState,
    *,
    recovery_timeout: float,
    retry_timeout: float,
    shared: SharedSession | None = None,
    logger: Logger = log,
    stopped: Stopped = lambda: None,
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
        shared: The session that it is submitted in, if it shares one with others.
        logger: Where the lines about it go.
        stopped: Why nothing more is sent, if so. It is asked whenever there is surely no job.

    Raises:
        NotSubmittedError: There is no job, and nothing more is to be sent.
        SubmissionUnknownError: Whether a job exists could not be determined.
        APIError: The server rejected the job, so there is none.
    """
    started = clock()
    session = SharedSession(submission.id) if shared is None else shared
    state.possibly_sent_at = state.possibly_sent_at or submission.last_sent_at
    # How long ago an earlier try sent it proves nothing: its request may have waited for its turn or may be
    # on its way still, and its machine may have another clock. So the window begins with this try.
    unknown_since = None if state.possibly_sent_at is None else started
    cause: APIError | None = None
    sends = rejections = 0
    while True:
        if unknown_since is not None:
            session.on_unknown()
            if recovery_timeout == 0:
                raise _unknown(submission, state, flow, cause, asked=False)
            found = yield from _look_up(
                submission, session, state, flow, clock, unknown_since, recovery_timeout, logger
            )
            if found is not None:
                logger.info("Noukai job %s of %s: found by its submission %s", found.id, flow, submission.id)
                return Submitted(found, state.possibly_sent_at or datetime.now(UTC))
            state.possibly_sent_at = unknown_since = None
            if cause is not None and (sends >= MAX_SENDS or not cause.retryable):
                raise cause
        if (reason := stopped()) is not None:
            raise NotSubmittedError(reason)
        state.possibly_sent_at = datetime.now(UTC)
        outcome: JobAccepted | APIError = yield Send(call)
        if isinstance(outcome, JobAccepted):
            if outcome.id not in session.others and canonical_job_id(outcome.id) not in session.running:
                logger.info("Noukai job %s of %s: submitted", outcome.id, flow)
                return Submitted(outcome, datetime.now(UTC))
            outcome = InvalidResponseError(
                f"{call.operation}: the response names the job {outcome.id}, which belongs to another "
                "submission, as on a connection that is out of step",
                job_id=outcome.id,
            )
        if _unknown_outcome(outcome):
            sends += 1
            # The server may have made the job as late as now: a job made late shows up late.
            unknown_since, cause = clock(), outcome
            logger.warning(
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
        measure("noukai.submission.retries")
        logger.warning(
            "Noukai submission %s to %s: rejected (retryable); retrying in %.0f s: %s",
            submission.id,
            flow,
            pause,
            outcome,
        )
        yield Sleep(pause)


def look_up(
    submission: Submission,
    flow: FlowPath,
    settings: ClientOptions,
    clock: Clock,
    shared: SharedSession | None,
    logger: Logger = log,
) -> Effects[JobAccepted | None]:
    """Ask for the job of a submission until it shows up, or until the service has said that there is none.

    Args:
        submission: The submission, which another process may be sending.
        flow: The flow.
        settings: How the client submits.
        clock: Seconds, from any beginning.
        shared: The session in which that process submits. The list of a user's session cannot tell which job
            it is, so that has none.
        logger: Where the lines about it go.

    Raises:
        SubmissionUnknownError: Whether a job exists could not be determined.
    """
    state = SubmissionState(possibly_sent_at=submission.last_sent_at)
    if shared is None or settings.recovery_timeout == 0:
        raise _unknown(submission, state, flow, None, asked=False)
    return (
        yield from _look_up(
            submission, shared, state, flow, clock, clock(), settings.recovery_timeout, logger
        )
    )


def find(
    submission: Submission, flow: FlowPath, clock: Clock, shared: SharedSession | None = None
) -> Effects[JobAccepted | None]:
    """Ask for the job of a submission once, and send nothing.

    Args:
        submission: The submission.
        flow: The flow.
        clock: Seconds, from any beginning.
        shared: The session that it was submitted in, if it shared one with others.

    Raises:
        SubmissionUnknownError: The session holds something that may be the job and cannot be read.
        APIError: The server rejected the request, or was not reached.
    """
    session = SharedSession(submission.id) if shared is None else shared
    executions = yield from send_with_retries(endpoints.session(session.id), clock)
    found = _job_of(executions, session, submission, flow)
    if isinstance(found, APIError):
        state = SubmissionState(possibly_sent_at=submission.last_sent_at)
        raise _unknown(submission, state, flow, found)
    return found


def _unknown_outcome(error: APIError) -> bool:
    """Tell whether a request with this outcome may have made a job."""
    if error.never_processed or (isinstance(error, RedirectError) and error.status_code in _ELSEWHERE):
        return False
    # A server that honours the Idempotency-Key responds 409 while it still works on the same submission.
    return error.retryable or isinstance(error, InvalidResponseError) or error.status_code == 409


def _look_up(
    submission: Submission,
    session: SharedSession,
    state: SubmissionState,
    flow: FlowPath,
    clock: Clock,
    unknown_since: float,
    recovery_timeout: float,
    logger: Logger,
) -> Effects[JobAccepted | None]:
    """Ask for the job of a submission until it shows up, or until the service has said that there is none."""
    call = endpoints.session(session.id)
    proves_from = unknown_since + recovery_timeout
    ends = max(proves_from, clock()) + recovery_timeout * GRACE_SHARE
    requests = 0
    while True:
        if session.limiter is not None:
            began = clock()
            yield from reach_slot(session.limiter, clock)
            ends += clock() - began
        now = clock()
        outcome: tuple[Execution, ...] | APIError = yield Send(call)
        requests += 1
        found = outcome if isinstance(outcome, APIError) else _job_of(outcome, session, submission, flow)
        pause = min(schedule.backoff(requests) / 2, LONGEST_PAUSE)
        if isinstance(found, APIError):
            if session.limiter is not None and is_limited(found):
                session.limiter.slow_down(clock())
            if requests == 1:
                logger.warning("Noukai submission %s to %s: lookup failed: %s", submission.id, flow, found)
            pause = max(pause, found.retry_after or 0.0)
            if not found.retryable or isinstance(found, RedirectError) or clock() + pause > ends:
                raise _unknown(submission, state, flow, found)
        elif found is not None or now >= proves_from:
            return found
        else:
            pause = min(pause, max(proves_from - clock(), 0.0))
        yield Sleep(pause)


def _job_of(
    executions: tuple[Execution, ...], session: SharedSession, submission: Submission, flow: FlowPath
) -> JobAccepted | InvalidResponseError | None:
    """Return the job of a submission in its session.

    If the session belongs to the submission alone, that is the earliest job, should the server have made
    several. In a shared one it is the only job that belongs to no other submission, of a list that shows
    those of the others.

    Only an execution of a known other kind is surely not its job; one that cannot be read, or that seems to
    belong to another flow, may be, so it is an error.
    """
    claimed = {canonical_job_id(one.id) for one in executions if one.id in session.others and one.id}
    unclaimed = [one for one in executions if one.id not in session.others]
    candidates = [one for one in unclaimed if may_be_job(one)]
    if len(claimed) < len(session.others):
        # It is incomplete, or names jobs in another way: then it proves no absence either.
        return InvalidResponseError(
            f"The session {session.id} of the submission {submission.id} to {flow} does not list "
            f"{len(session.others) - len(claimed)} jobs that are known to be in it, so it does not tell "
            "whether there is one more.",
        )
    if not candidates:
        return None
    readable = [one for one in candidates if one.id is not None and _belongs_to(one, flow)]
    jobs = [one for one in readable if _kind(one) in _JOB_KINDS]
    if not jobs and len(candidates) == 1:
        jobs = readable
    if session.others and len(candidates) > 1:
        return InvalidResponseError(
            f"The session {session.id} of the submission {submission.id} to {flow} holds {len(candidates)} "
            "executions that belong to no other submission, so its job cannot be told from them.",
        )
    if not jobs:
        return InvalidResponseError(
            f"The session of the submission {submission.id} to {flow} holds an execution that may be its job "
            "and cannot be read, or its list is incomplete or comes from a cache.",
        )
    earliest = min(jobs, key=lambda job: job.started_at or "~")
    return JobAccepted(id=str(earliest.id))


def may_be_job(execution: Execution) -> bool:
    """Tell whether an execution of a session is of no other kind than a job."""
    return _kind(execution) not in _OTHER_KINDS


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
