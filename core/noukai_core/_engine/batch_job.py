"""The job of one input of a batch: how it is submitted, waited for and cancelled, and what came of it.

The batch decides which inputs have a job, and in which session. What is done for one input, and how that
ends, is decided here.
"""

from __future__ import annotations

import math
import uuid
from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from typing import Any

from noukai_core import _validation
from noukai_core._api import endpoints
from noukai_core._api.endpoints import Execution
from noukai_core._api.job_ids import canonical_job_id
from noukai_core._engine.batch_cancel import cancel_job, find_interrupted
from noukai_core._engine.batch_context import BatchContext
from noukai_core._engine.effects import Ask, Effects, Record, send_with_retries
from noukai_core._engine.lanes import BELIEVED_FOR, ENDED, Lane, WatchedJob
from noukai_core._engine.submit import Submitted, look_up, may_be_job, submit_request
from noukai_core._engine.wait import Poller, poll_with_retries
from noukai_core.batch import SUBMITTED, SUBMITTING, JobOutcome, LedgerEntry, OutcomeState, submission_id_of
from noukai_core.cancellation import CancelOutcome
from noukai_core.errors import (
    APIError,
    AuthenticationError,
    FlowNotFoundError,
    InsufficientCreditsError,
    InvalidInputError,
    JobCancelledError,
    JobFailedError,
    JobNotFoundError,
    JobOutputInvalidError,
    JobTimeoutError,
    NotSubmittedError,
    NoukaiError,
    PermissionDeniedError,
    SubmissionUnknownError,
)
from noukai_core.job_request import JobRequest
from noukai_core.models import JobState, JobStatus, RunTrace
from noukai_core.output_types import typed_output
from noukai_core.submission import Submission

NEW = "new"
"""The state of an entry whose submission was not begun. No ledger keeps it."""

_WRONG_VERSION = "INVALID_VERSION"

_CONCERNS_EVERY_JOB = (
    AuthenticationError,
    FlowNotFoundError,
    InsufficientCreditsError,
    PermissionDeniedError,
)


@dataclass(frozen=True, slots=True)
class Ending:
    """How an input ended.

    Attributes:
        state: The state.
        error: Why its job did not complete, or `None`.
        output: The output of a completed job.
        trace: What the job used, if that was read.
    """

    state: OutcomeState
    error: NoukaiError | None = None
    output: Any = None
    trace: RunTrace | None = None

    @property
    def leaves_job(self) -> bool:
        """Whether there may be a job that goes on, which a rerun attaches to."""
        return self.state in (OutcomeState.UNKNOWN, OutcomeState.TIMED_OUT)


class BatchJob:
    """The job of one input.

    Args:
        context: What the jobs of the batch share.
        entry: What the ledger keeps about the input.
        request: What is submitted; `None` if an earlier run did that, and this one does not have the input.

    Attributes:
        index: The position of the input.
        entry: What the ledger keeps about it.
        request: What is submitted, until a job is known.
        lane: The session, unless it is one of the user's.
    """

    __slots__ = (
        "_context",
        "_key",
        "_poller",
        "_started",
        "_submitted_at",
        "_traced",
        "_watched",
        "entry",
        "index",
        "lane",
        "request",
    )

    def __init__(self, context: BatchContext, entry: LedgerEntry, request: JobRequest | None) -> None:
        self.index = entry.index
        self.entry = entry
        self.request = request
        self.lane: Lane | None = None
        self._context = context
        self._key = None if request is None else request.key
        self._traced = request is not None and request.trace
        self._started = context.clock()
        self._submitted_at = -math.inf
        self._watched: WatchedJob | None = None
        self._poller: Poller | None = None

    @property
    def is_new(self) -> bool:
        """Whether nothing was submitted for the input."""
        return self.entry.state == NEW

    @property
    def state(self) -> str:
        """The last known state of the job, or what happens to its submission."""
        if self.entry.job_id is None:
            return self.entry.state
        status = self._poller.last_status if self._poller else None
        return str(status.state if status else JobState.PENDING)

    def outcome(self, ending: Ending) -> JobOutcome:
        """Return what came of the input."""
        trace = ending.trace
        return JobOutcome(
            self.index,
            self.entry.job_id,
            ending.state,
            ending.output,
            ending.error,
            self._context.clock() - self._started,
            None if trace is None else trace.total_tokens,
            None if trace is None else trace.cost_usd,
            self._key,
        )

    def record(self) -> Effects[bool]:
        """Write the entry, and tell whether the batch goes on."""
        error: BaseException | None = yield Record(self.entry)
        if error is not None:
            self._context.fail(error)
        return error is None

    # Submitting.

    def submit(self, lane: Lane) -> Effects[Ending | None]:
        """Submit the job in a session. `None` is returned if there is one to wait for."""
        assert self.request is not None
        users = self.request.session_id
        self.lane = lane if users is None else None
        self.entry = replace(
            self.entry,
            session_id=lane.session.id if users is None else str(users),
            in_users_session=users is not None,
            # A later process may not know all of them: other inputs may have new jobs by then.
            others=lane.known.digests() if users is None else "",
            state=SUBMITTING,
            sent_at=datetime.now(UTC),
        )
        try:
            effects = self._submitting(Submission(self.entry.submission_id), lane)
        except InvalidInputError as error:
            self.entry = replace(self.entry, state=NEW)
            return Ending(OutcomeState.REJECTED, error)
        if not (yield from self.record()):
            return None
        return (yield from self._finish_submission(effects))

    def resume_submission(self, lane: Lane, others: Sequence[Lane | None]) -> Effects[Ending | None]:
        """Go on with what an earlier run was submitting, as `submit` does.

        Args:
            lane: The session of the entry.
            others: Those of its concurrent entries, `None` for one of the user's.
        """
        assert self.request is not None
        self.lane = lane if self.request.session_id is None else None
        lane.known.add_digests(self.entry.others)
        submission = Submission(self.entry.submission_id, self.entry.sent_at or datetime.now(UTC))
        try:
            effects = self._submitting(submission, lane)
        except InvalidInputError as error:  # the input is another one now, and its first one may have a job
            return Ending(OutcomeState.UNKNOWN, error)
        return (yield from self._finish_submission(self._unless_elsewhere(effects, others)))

    def _unless_elsewhere(
        self, submitting: Effects[Submitted], lanes: Sequence[Lane | None]
    ) -> Effects[Submitted]:
        """Submit the job, unless an attempt that lived at the same time has made one in its own session."""
        context = self._context
        for entry, lane in zip(self.entry.concurrent, lanes, strict=True):
            if lane is not None:
                lane.known.add_digests(entry.others)
            submission = Submission(entry.submission_id, entry.sent_at)
            session = None if lane is None else lane.session
            found = yield from look_up(
                submission, context.flow, context.settings, context.clock, session, context.each_job_log
            )
            if found is not None:
                self.lane, self.entry = lane, entry
                return Submitted(found, entry.sent_at or datetime.now(UTC))
        return (yield from submitting)

    def attach(self, lane: Lane) -> None:
        """Take the job that an earlier run has submitted."""
        assert self.request is not None
        self.lane = lane if self.request.session_id is None else None
        # How old it is proves nothing: the machine that submitted it may have another clock.
        self._watch(self._context.clock())

    def _submitting(self, submission: Submission, lane: Lane) -> Effects[Submitted]:
        assert self.request is not None
        context = self._context
        return submit_request(
            self.request,
            submission,
            context.flow,
            context.settings,
            context.clock,
            lane.session,
            context.each_job_log,
            lambda: context.totals.stopped,
        )

    def _finish_submission(self, effects: Effects[Submitted]) -> Effects[Ending | None]:
        context, lane = self._context, self.lane
        if lane is not None:
            lane.submitting = True
        try:
            submitted = yield from effects
        except SubmissionUnknownError as error:
            return Ending(OutcomeState.UNKNOWN, error)
        except NotSubmittedError as error:
            if lane is not None:
                lane.submitting = False
            return Ending(OutcomeState.NOT_SUBMITTED, error)
        except APIError as error:
            if self._concerns_every_job(error):
                context.totals.stop(
                    f"an earlier job was rejected for a reason that concerns every job: {error}"
                )
            if lane is not None:
                lane.submitting = False
            return Ending(OutcomeState.REJECTED, error)
        self.request = None
        self.entry = replace(
            self.entry, job_id=submitted.job.id, state=SUBMITTED, sent_at=submitted.at, others=""
        )
        self._watch(context.clock())
        if lane is not None:
            lane.submitting = False
        context.totals.submitted += 1
        if (yield from self.record()):
            yield from context.traces.check(submitted.job.id)
        return None

    def _concerns_every_job(self, error: APIError) -> bool:
        """Tell whether the other inputs would be rejected as well: they may have another version."""
        if error.code != _WRONG_VERSION:
            return isinstance(error, _CONCERNS_EVERY_JOB)
        assert self.request is not None
        asked, usual = self.request.version, self._context.options.version
        return _validation.version_number(asked) == _validation.version_number(usual)

    def _watch(self, submitted_at: float) -> None:
        assert self.entry.job_id is not None
        context = self._context
        context.lanes.trust.unfinished += 1
        context.lanes.running.add(canonical_job_id(self.entry.job_id))
        self._submitted_at = submitted_at
        if self.lane is not None:
            self._watched = self.lane.add(self.entry.job_id, submitted_at)
        self._poller = Poller(
            context.flow,
            self.entry.job_id,
            context.settings,
            context.limiter,
            context.clock,
            submitted_at=submitted_at,
            timeout=context.options.timeout,
            interval=context.options.poll_interval,
            watcher=self._watched,
            stalls=context.stalls,
            logger=context.each_job_log,
        )

    def _unwatch(self, *, ended: bool) -> None:
        self._context.lanes.trust.unfinished -= 1
        if self._watched is not None:
            self._watched.lane.remove(self._watched, ended=ended)
            self._watched = None

    # Waiting.

    def wait(self) -> Effects[Ending | None]:
        """Wait for the end of the job. A detached batch polls it once at most.

        `None` is returned if the job is left running, or if it is lost and now new again.
        """
        assert self._poller is not None
        if self._context.options.detach:
            return (yield from self._leave_running())
        try:
            status: JobStatus = yield from self._poller.effects()
        except JobTimeoutError as error:
            self._unwatch(ended=False)
            return (yield from self._time_out(error))
        except JobNotFoundError as error:
            self._unwatch(ended=False)
            return (yield from self._replace_lost(error))
        except APIError as error:
            self._unwatch(ended=False)
            return Ending(OutcomeState.UNKNOWN, error)
        self._unwatch(ended=True)
        return (yield from self._ending_of(status))

    def _leave_running(self) -> Effects[Ending | None]:
        """Leave the job running, unless an earlier run submitted it and it has ended since."""
        context = self._context
        timeout, sent_at = context.options.timeout, self.entry.sent_at
        age = 0.0 if sent_at is None else (datetime.now(UTC) - sent_at).total_seconds()
        overdue = timeout is not None and age >= timeout
        status: JobStatus | None = None
        if overdue or (yield from self._may_have_ended(believes_list=age < BELIEVED_FOR)):
            call = endpoints.status(context.flow, str(self.entry.job_id))
            try:
                status = yield from poll_with_retries(call, context.limiter, context.clock)
            except APIError as error:
                context.each_job_log.warning(
                    "Noukai job %s of %s: left running (%s)", self.entry.job_id, context.flow, error
                )
            else:
                if status.finished:
                    self._unwatch(ended=True)
                    return (yield from self._ending_of(status))
        if timeout is not None and overdue:
            self._unwatch(ended=False)
            job_id = str(self.entry.job_id)
            message = f"Noukai job {job_id} of {context.flow} timed out after {timeout:g} s"
            return (yield from self._time_out(JobTimeoutError(message, job_id=job_id, status=status)))
        return None

    def _may_have_ended(self, *, believes_list: bool) -> Effects[bool]:
        """Tell whether the job has to be polled: not if this run submitted it, or its session lists it."""
        attached, job_id = self.request is not None, self.entry.job_id
        if not attached or job_id is None:
            return False
        if self.lane is None or not believes_list:
            return True
        return not (yield from self.lane.lists_as_unfinished(job_id))

    def _time_out(self, error: JobTimeoutError) -> Effects[Ending]:
        context = self._context
        cancels = context.options.cancel_on_timeout
        if callable(cancels):
            cancels = yield Ask(cancels)
        if not cancels:
            return Ending(OutcomeState.TIMED_OUT, error)
        reason = f"timed out after {context.options.timeout:g} s"
        outcome = yield from self._cancel(error.job_id)
        if not outcome.log(reason, context.each_job_log):
            if outcome.status is not None and outcome.status.finished:
                return (yield from self._ending_of(outcome.status))
            if outcome.had_ended:
                error = JobTimeoutError(
                    f"Noukai job {error.job_id} of {context.flow} {reason}. It had ended before it was "
                    "cancelled, but no poll shows how; a rerun polls it again.",
                    job_id=error.job_id,
                    status=error.status,
                )
            return Ending(OutcomeState.TIMED_OUT, error)
        last_state = f" (last state: {error.status.state})" if error.status else ""
        cancelled = JobTimeoutError(
            f"Noukai job {error.job_id} of {context.flow} {reason}{last_state} and was cancelled",
            job_id=error.job_id,
            status=error.status,
        )
        return Ending(OutcomeState.CANCELLED, cancelled, trace=(yield from self._trace()))

    def _replace_lost(self, error: JobNotFoundError) -> Effects[Ending | None]:
        """Ask the session for a job that an earlier run submitted and the server does not know.

        If it was never there, the job is new again.
        """
        context = self._context
        if self.request is None:
            # This run submitted it, and has waited longer than a job may take to turn up.
            return Ending(OutcomeState.UNKNOWN, error)
        if self.lane is not None:
            call = endpoints.session(self.lane.session.id)
            try:
                listed = yield from send_with_retries(call, context.clock)
            except APIError as unclear:
                return Ending(OutcomeState.UNKNOWN, unclear)
            if any(self._may_be(one, self.lane) for one in listed):
                return Ending(OutcomeState.UNKNOWN, error)
        context.lanes.forget(self.entry.job_id)
        self.entry = new_entry(context.batch_id, self.index, self.entry.resubmission + 1)
        return None

    def _may_be(self, execution: Execution, lane: Lane) -> bool:
        """Tell whether an execution of the session may be the job, by whichever id the list names it."""
        if execution.id is None or canonical_job_id(execution.id) == canonical_job_id(str(self.entry.job_id)):
            return may_be_job(execution)
        # Of jobs that have ended, a ledger may not have the ids.
        unknown = execution.id not in lane.known and execution.state not in ENDED
        return unknown and may_be_job(execution)

    # Ending.

    def _ending_of(self, status: JobStatus) -> Effects[Ending]:
        trace = yield from self._trace()
        try:
            output = self._typed(status.result_or_raise().output, status.id)
        except (JobFailedError, JobCancelledError) as error:
            return Ending(OutcomeState(str(status.state)), error, trace=trace)
        except JobOutputInvalidError as error:
            return Ending(OutcomeState.INVALID_OUTPUT, error, trace=trace)
        return Ending(OutcomeState.COMPLETED, output=output, trace=trace)

    def _typed(self, output: Any, job_id: str) -> Any:
        output_type = self._context.options.output_type
        if output_type is None:
            return output
        return typed_output(output, output_type, job_id=job_id, flow=str(self._context.flow))

    def _trace(self) -> Effects[RunTrace | None]:
        job_id = self.entry.job_id
        if not self._traced or job_id is None:
            return None
        return (yield from self._context.traces.read(job_id))

    # Cancelling.

    def take_over(self, lane: Lane) -> None:
        """Take what an earlier run left, without the input, to cancel it."""
        lane.known.add_digests(self.entry.others)
        self.lane = None if self.entry.in_users_session else lane
        # How old it is proves nothing, as another machine's clock may be wrong.
        self._submitted_at = self._started

    def cancelling(self, others: Sequence[Lane | None]) -> Effects[CancelOutcome | None]:
        """Cancel the job, even one that an interrupted submission may have made; `None` if there is none.

        Args:
            others: The sessions of the concurrent entries, `None` for one of the user's.
        """
        job_id = self.entry.job_id
        if job_id is None:
            if self.is_new:
                return None
            places = ((self.entry, self.lane), *zip(self.entry.concurrent, others, strict=True))
            found = yield from find_interrupted(places, self._context.flow, self._context.clock)
            if not found:
                return None
            self._submitted_at = self._context.clock()  # a replica that does not know it lags behind
            job_id, *second_jobs = found
            for second in second_jobs:
                cancelled = yield from self._cancel(second)
                cancelled.log("a second job of the same input", self._context.each_job_log)
        outcome = yield from self._cancel(job_id)
        if outcome.cancelled or outcome.not_needed:
            self.entry = replace(self.entry, job_id=job_id, state=_state_after(outcome))
            yield from self.record()
        return outcome

    def _cancel(self, job_id: str) -> Effects[CancelOutcome]:
        context = self._context
        race_ends = self._submitted_at + context.settings.not_found_grace
        return cancel_job(job_id, context.flow, context.clock, race_ends)


def _state_after(outcome: CancelOutcome) -> str:
    """Return what the ledger keeps of a job that was cancelled, or else leave its end to a rerun."""
    if outcome.status is not None and outcome.status.finished:
        return str(outcome.status.state)
    return SUBMITTED if outcome.had_ended else str(JobState.CANCELLED)


def new_entry(batch_id: uuid.UUID, index: int, resubmission: int) -> LedgerEntry:
    """Return the entry of an input for which nothing was submitted yet."""
    return LedgerEntry(
        index=index,
        submission_id=submission_id_of(batch_id, index, resubmission),
        session_id="",
        state=NEW,
        resubmission=resubmission,
    )
