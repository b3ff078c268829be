"""Run many jobs: what is submitted when, in which session, when to stop, and what comes of each input.

A batch consists of strands, generators of effects that its driver runs side by side on one thread. A *lane*
takes inputs and submits their jobs one after the other in one session, so that a submission with an unknown
outcome is the only job there that nobody knows. A *watch* polls a session, and one strand for each job waits
for its end. They share this object, and wake each other.
"""

from __future__ import annotations

import logging
import math
import uuid
from collections import Counter, deque
from collections.abc import Mapping
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from decimal import Decimal, InvalidOperation
from typing import Any, cast

from noukai_core import _validation
from noukai_core._api import endpoints
from noukai_core._engine.batch_log import EachJobLog, log_outcome
from noukai_core._engine.effects import (
    Clock,
    Effects,
    Given,
    Record,
    Sleep,
    Spawn,
    Take,
    Wake,
    send_with_retries,
)
from noukai_core._engine.lanes import BELIEVED_FOR, Lane, Trust, WatchedJob
from noukai_core._engine.rate_limit import shared_rate_limiter
from noukai_core._engine.submit import Submitted, find, submit_request
from noukai_core._engine.wait import Poller, reach_slot
from noukai_core._options import ClientOptions
from noukai_core._validation import FlowPath, Version, refused, shown
from noukai_core.batch import (
    SUBMITTED,
    SUBMITTING,
    JobOutcome,
    LedgerEntry,
    OutcomeState,
    new_session_of,
    submission_id_of,
)
from noukai_core.cancellation import CancelOutcome
from noukai_core.checks import check_choice, check_count, check_seconds
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
    PermanentError,
    PermissionDeniedError,
    SubmissionUnknownError,
)
from noukai_core.job_request import JobRequest
from noukai_core.models import JobState, JobStatus, RunTrace
from noukai_core.output_types import check_output_type, typed_output
from noukai_core.submission import Submission

log = logging.getLogger("noukai_core")

JOBS_BEFORE_NEXT_LANE = 10
"""After so many jobs, a lane is joined by another: few jobs share few sessions, and many go out quickly."""

MIN_ENDED_FOR_SHARE = 20
"""How many jobs have to have ended before a share of failures says anything."""

CANCEL_LOOKUPS = 3
CANCEL_LOOKUP_PAUSE = 1.0

_CONCERNS_EVERY_JOB = (
    AuthenticationError,
    FlowNotFoundError,
    InsufficientCreditsError,
    PermissionDeniedError,
)
_INPUT_FIELDS = ("message", "parameters", "block_overrides", "key")


@dataclass(frozen=True, kw_only=True)
class BatchOptions:
    """How a batch runs; the arguments of `Flow.jobs`, checked."""

    version: Version = "production"
    trace: bool = False
    in_order: bool = False
    max_concurrency: int = 1000
    timeout: float | None = None
    poll_interval: float | None = None
    cancel_on_timeout: bool = False
    max_cost_usd: Decimal | float | str | None = None
    spent_usd: Decimal = Decimal(0)
    stop_after_failures: int | float | None = None
    batch_id: str | uuid.UUID | None = None
    detach: bool = False
    output_type: type[Any] | None = None

    def __post_init__(self) -> None:
        check_count(self.max_concurrency, "max_concurrency")
        for name in ("timeout", "poll_interval"):
            if getattr(self, name) is not None:
                check_seconds(getattr(self, name), name)
        for name in ("trace", "in_order", "cancel_on_timeout", "detach"):
            check_choice(getattr(self, name), (True, False), name)
        _validation.version_number(self.version)
        if self.stop_after_failures is not None:
            _check_failures(self.stop_after_failures)
        if self.batch_id is not None:
            _validation.session_id(self.batch_id, "batch_id")
        check_output_type(self.output_type)
        if self.in_order and self.detach:
            raise refused(
                "in_order and detach exclude each other: a detached batch waits for no earlier input"
            )
        self.most_usd()

    def most_usd(self) -> Decimal | None:
        """Return the most that the jobs may cost."""
        if self.max_cost_usd is None:
            return None
        try:
            amount = Decimal(str(self.max_cost_usd))
        except InvalidOperation:
            amount = Decimal(0)
        if isinstance(self.max_cost_usd, bool) or not amount.is_finite() or amount <= 0:
            raise refused(
                f"max_cost_usd is {shown(self.max_cost_usd)}, but must be an amount of US dollars above 0"
            )
        return amount


def _check_failures(limit: object) -> None:
    if isinstance(limit, int) and not isinstance(limit, bool) and limit >= 1:
        return
    if isinstance(limit, float) and 0 < limit < 1:
        return
    raise refused(
        f"stop_after_failures is {shown(limit)}, but must be a whole number above 0, or a share between 0 "
        "and 1 such as 0.05"
    )


@dataclass(slots=True, eq=False)
class _Item:
    """An input whose job runs or is being submitted."""

    index: int
    key: str | None
    trace: bool
    started: float
    entry: LedgerEntry
    request: JobRequest | None = None
    lane: Lane | None = None
    watched: WatchedJob | None = None
    submitted_at: float = -math.inf
    poller: Poller | None = None


class Batch:
    """The state of one batch, and the strands that change it.

    Args:
        flow: The flow.
        settings: Those of the client.
        options: How the batch runs.
        clock: Seconds, from any beginning.

    Attributes:
        outcomes: What the driver has not passed on yet.
        changed: Rings when there is an outcome, or when the batch is over.
        error: What ended the batch early: an error of the inputs or of the ledger.
        stopped: Why nothing more is submitted, if so.
        counts: How many inputs ended in each state.
        tokens: The tokens of all that has ended, as far as known.
        cost_usd: What it cost.
        entries: The last entry of each unfinished input.
    """

    def __init__(self, flow: FlowPath, settings: ClientOptions, options: BatchOptions, clock: Clock) -> None:
        self.flow = flow
        self.outcomes: deque[JobOutcome] = deque()
        self.changed = Wake()
        self.error: BaseException | None = None
        self.stopped: str | None = None
        self.counts: Counter[OutcomeState] = Counter()
        self.tokens = 0
        self.cost_usd = Decimal(0)
        self._settings = settings
        self._options = options
        self._most_usd = options.most_usd()
        self._clock = clock
        self._id = uuid.UUID(str(options.batch_id)) if options.batch_id else uuid.uuid4()
        self._limiter = shared_rate_limiter(
            settings.base_url, settings.api_key, settings.max_polls_per_second
        )
        self._trust = Trust(str(flow), settings)
        self._each_job_log = EachJobLog(clock)
        self._stored: dict[int, LedgerEntry] = {}
        self._known: dict[str, set[str]] = {}
        self._earlier_lanes: dict[str, Lane] = {}
        self._items: dict[int, _Item] = {}
        self._left_running: dict[int, _Item] = {}
        self._parked = 0
        self._taking = 0
        self._exhausted = False
        self._held: dict[int, JobOutcome | None] = {}
        self._next = 0
        self._room = Wake()
        self._lane_wanted = Wake()
        self._strands = 0
        self._wanted_strands = 1
        self._submitted = 0
        self._readable_traces: bool | None = None

    # What the driver asks.

    @property
    def over(self) -> bool:
        """Whether nothing more will come."""
        if self.error is not None:
            return True
        if self.outcomes or self._held or self._taking:
            return False
        done = self._exhausted or (self._options.detach and not self._has_room())
        return done and len(self._items) == self._parked

    @property
    def unfinished(self) -> dict[int, LedgerEntry]:
        """The entries of what was submitted, or may have been, and was not seen to end."""
        items = {**self._left_running, **self._items}
        entries = {index: item.entry for index, item in items.items() if item.entry.state != _NEW}
        not_taken = {
            index: entry
            for index, entry in list(self._stored.items())  # another thread may ask
            if entry.unfinished and not entry.kept and index not in entries
        }
        return not_taken | entries

    @property
    def sessions(self) -> dict[str, int]:
        """How many unfinished jobs each session has."""
        return dict(Counter(item.entry.session_id for item in self._items.values()))

    def states(self) -> dict[int, str]:
        """Return the last known state of each unfinished input's job, or what happens to its submission."""
        return {index: _state_of(item) for index, item in self._items.items()}

    def take_outcome(self) -> JobOutcome:
        """Hand out an outcome, which makes room for another input."""
        outcome = self.outcomes.popleft()
        self._room.ring_one()
        return outcome

    def fail(self, error: BaseException) -> None:
        """End the batch early."""
        self.error = self.error or error
        self._wake_all()

    def resume(self, stored: Mapping[int, LedgerEntry]) -> None:
        """Take note of what an earlier run left."""
        self._stored = dict(stored)
        self._submitted = sum(entry.kept or entry.job_id is not None for entry in stored.values())
        self._check_cost()
        for entry in self._stored.values():
            if entry.job_id is not None:
                self._known.setdefault(entry.session_id, set()).add(entry.job_id)

    # Strands.

    def effects(self) -> Effects[None]:
        """Start lanes as they are wanted. This is the first strand."""
        while not (self._exhausted or self.error):
            while self._strands < self._wanted_strands:
                self._strands += 1
                yield Spawn(self._submit_inputs())
            yield Sleep(math.inf, self._lane_wanted)

    def _submit_inputs(self) -> Effects[None]:
        """Take inputs and submit their jobs, one after the other."""
        lane: Lane | None = None
        submitted = 0
        while (given := (yield from self._take())) is not None:
            item = self._item(given)
            if item is None:
                continue
            if item.entry.state != _NEW:
                yield Spawn(self._go_on(item))
                continue
            if self.stopped is not None:
                yield from self._end(item, OutcomeState.NOT_SUBMITTED, NotSubmittedError(self.stopped))
                continue
            if lane is None or lane.full:
                if lane is not None:
                    lane.close()
                lane = self._open_lane(new_session_of(self._id))
                yield from self._watch_lane(lane)
            yield from self._submit_in(item, lane)
            submitted += 1
            if lane.had_unknown:
                break  # its strand was replaced when the outcome became unknown
            if submitted % JOBS_BEFORE_NEXT_LANE == 0:
                self._want_strand()
        if lane is not None:
            lane.close()

    def _take(self) -> Effects[Given | None]:
        """Take the next input when there is room for it; `None` when no more is to be taken."""
        while not self._has_room():
            if self._exhausted or self.error:
                return None
            self.changed.ring()  # a detached batch may be over
            yield Sleep(math.inf, self._room)
        if self._exhausted or self.error:
            return None
        self._taking += 1
        given: Given | BaseException | None = yield Take()
        self._taking -= 1
        if given is None:
            self._exhausted = True
            self._wake_all()
        elif isinstance(given, Given):
            return given
        else:
            self.fail(given)
        return None

    def _has_room(self) -> bool:
        """Whether one more job may run, and its outcome be kept until it is taken."""
        running = len(self._items) + self._taking
        waiting = len(self.outcomes) + len(self._held)
        most = self._options.max_concurrency
        return running < most and running + waiting < 2 * most

    def _want_strand(self) -> None:
        most = min(
            self._settings.max_concurrent_submissions,
            math.ceil(self._options.max_concurrency / JOBS_BEFORE_NEXT_LANE),
        )
        if self._wanted_strands < most:
            self._wanted_strands += 1
            self._lane_wanted.ring()

    def _replace_strand(self) -> None:
        """Let another strand submit in the place of one that asks for a job."""
        self._strands -= 1
        self._lane_wanted.ring()

    def _open_lane(self, session_id: str, *, takes_jobs: bool = True) -> Lane:
        lane = Lane(
            session_id,
            self._trust,
            self._settings,
            self._limiter,
            self._clock,
            on_unknown=self._replace_strand if takes_jobs else None,
            takes_jobs=takes_jobs,
        )
        for job_id in self._known.get(session_id, ()):
            lane.known.add(job_id)
        return lane

    def _earlier_lane(self, session_id: str) -> Lane:
        """Return the lane of a session in which an earlier run submitted. Those of this run are not kept."""
        lane = self._earlier_lanes.get(session_id)
        if lane is None:
            lane = self._earlier_lanes[session_id] = self._open_lane(session_id, takes_jobs=False)
        return lane

    def _watch_lane(self, lane: Lane) -> Effects[None]:
        if not lane.watching:
            lane.watching = True
            yield Spawn(lane.watch())

    def _item(self, given: Given) -> _Item | None:
        """Read an input, and return what is to be done with it; `None` if that is nothing."""
        index = given.index
        stored = self._stored.pop(index, None)
        if stored is not None and stored.kept:
            self._pass_on(index, None)
            return None
        try:
            request = self._request(given)
        except InvalidInputError as error:
            if self._most_usd is not None and self._submitted == 0:
                self.fail(error)
                return None
            self._deliver(JobOutcome(index, None, OutcomeState.REJECTED, error=error))
            return None
        item = _Item(index, request.key, request.trace, self._clock(), self._entry(index, stored), request)
        self._items[index] = item
        return item

    def _entry(self, index: int, stored: LedgerEntry | None) -> LedgerEntry:
        if stored is not None and (stored.unfinished or stored.state == OutcomeState.COMPLETED):
            return stored
        resubmission = 0 if stored is None else stored.resubmission + 1
        return LedgerEntry(
            index=index,
            submission_id=submission_id_of(self._id, index, resubmission),
            session_id="",
            state=_NEW,
            resubmission=resubmission,
        )

    def _request(self, given: Given) -> JobRequest:
        index, value = given.index, given.value
        if isinstance(value, JobRequest):
            request = value
        else:
            if isinstance(value, str):
                arguments: dict[str, Any] = {"message": value}
            elif isinstance(value, Mapping):
                arguments = _validation.copied(cast("Mapping[str, Any]", value), f"inputs[{index}]")
            else:
                raise refused(
                    f"inputs[{index}] is a {type(value).__name__}, but must be a message, a mapping or a "
                    "JobRequest"
                )
            unknown = sorted(str(name) for name in arguments if name not in _INPUT_FIELDS)
            if unknown:
                raise refused(
                    f"inputs[{index}] has {', '.join(unknown)}, but may be a message, or have "
                    f"{', '.join(_INPUT_FIELDS)}"
                )
            request = JobRequest(
                str(self.flow), **arguments, version=self._options.version, trace=self._options.trace
            )
        _validation.check_input_key(request.key, f"the key of inputs[{index}]")
        if self._most_usd is not None and request.trace is not True:
            raise refused(
                f"inputs[{index}] is not traced, so its cost stays unknown: max_cost_usd needs trace=True"
            )
        return request

    # Submitting.

    def _submit_in(self, item: _Item, lane: Lane) -> Effects[None]:
        """Submit the job of an item in a session, and let another strand wait for it."""
        assert item.request is not None
        users = item.request.session_id
        item.lane = lane if users is None else None
        item.entry = replace(
            item.entry,
            session_id=lane.session.id if users is None else str(users),
            in_users_session=users is not None,
            # A later process may not know all of them: other inputs may have new jobs by then.
            others=lane.known.digests() if users is None else "",
            state=SUBMITTING,
            sent_at=datetime.now(UTC),
        )
        submission = Submission(item.entry.submission_id)
        try:
            effects = self._submitting(item, submission, lane)
        except InvalidInputError as error:
            item.entry = replace(item.entry, state=_NEW)
            yield from self._end(item, OutcomeState.REJECTED, error)
            return
        if not (yield from self._record(item)):
            return
        yield from self._finish_submission(item, effects)

    def _submitting(self, item: _Item, submission: Submission, lane: Lane) -> Effects[Submitted]:
        assert item.request is not None
        return submit_request(
            item.request,
            submission,
            self.flow,
            self._settings,
            self._clock,
            lane.session,
            self._each_job_log,
            lambda: self.stopped,
        )

    def _finish_submission(self, item: _Item, effects: Effects[Submitted]) -> Effects[None]:
        lane = item.lane
        if lane is not None:
            lane.submitting = True
        try:
            submitted = yield from effects
        except SubmissionUnknownError as error:
            yield from self._end(item, OutcomeState.UNKNOWN, error)
            return
        except NotSubmittedError as error:
            if lane is not None:
                lane.submitting = False
            yield from self._end(item, OutcomeState.NOT_SUBMITTED, error)
            return
        except APIError as error:
            if isinstance(error, _CONCERNS_EVERY_JOB):
                self._stop(f"an earlier job was rejected for a reason that concerns every job: {error}")
            if lane is not None:
                lane.submitting = False
            yield from self._end(item, OutcomeState.REJECTED, error)
            return
        item.request = None
        item.entry = replace(
            item.entry, job_id=submitted.job.id, state=SUBMITTED, sent_at=submitted.at, others=""
        )
        self._watch(item, self._clock())
        if lane is not None:
            lane.submitting = False
        self._submitted += 1
        if not (yield from self._record(item)):
            return
        if self._most_usd is not None and self._readable_traces is None:
            yield from self._check_traces(submitted.job.id)
        yield Spawn(self._wait(item))

    def _go_on(self, item: _Item) -> Effects[None]:
        """Go on with what an earlier run has submitted, or was submitting."""
        lane = self._earlier_lane(item.entry.session_id)
        assert item.request is not None
        if item.request.session_id is None:
            item.lane = lane
        if item.entry.job_id is not None:
            # How old it is proves nothing: the machine that submitted it may have another clock.
            self._watch(item, self._clock())
            if item.lane is not None and not self._options.detach:
                yield from self._watch_lane(lane)
            yield from self._wait(item)
            return
        lane.known.add_digests(item.entry.others)
        submission = Submission(item.entry.submission_id, item.entry.sent_at or datetime.now(UTC))
        try:
            effects = self._submitting(item, submission, lane)
        except InvalidInputError as error:
            yield from self._end(item, OutcomeState.REJECTED, error)
            return
        yield from self._finish_submission(item, effects)

    def _watch(self, item: _Item, submitted_at: float) -> None:
        assert item.entry.job_id is not None
        self._trust.unfinished += 1
        item.submitted_at = submitted_at
        if item.lane is not None:
            item.watched = item.lane.add(item.entry.job_id, submitted_at)
        item.poller = Poller(
            self.flow,
            item.entry.job_id,
            self._settings,
            self._limiter,
            self._clock,
            submitted_at=submitted_at,
            timeout=self._options.timeout,
            interval=self._options.poll_interval,
            watcher=item.watched,
            logger=self._each_job_log,
        )

    def _unwatch(self, item: _Item, *, ended: bool) -> None:
        self._trust.unfinished -= 1
        if item.watched is not None:
            item.watched.lane.remove(item.watched, ended=ended)
            item.watched = None

    def _check_traces(self, job_id: str) -> Effects[None]:
        """Find out at the first job whether traces can be read, before a second one costs anything."""
        try:
            yield from send_with_retries(endpoints.trace(self.flow, job_id), self._clock)
        except JobNotFoundError:
            pass  # it has not begun to run
        except PermanentError as error:
            self._stop(f"traces cannot be read, so max_cost_usd cannot be kept: {error}")
        except APIError as error:
            self._each_job_log.warning(
                "Noukai job %s of %s: trace not available: %s", job_id, self.flow, error
            )
        self._readable_traces = self._readable_traces or self.stopped is None

    # Waiting.

    def _wait(self, item: _Item) -> Effects[None]:
        """Wait for the end of a job, and deliver its outcome. A detached batch polls it once at most."""
        assert item.poller is not None
        if self._options.detach:
            yield from self._park(item)
            return
        try:
            status: JobStatus = yield from item.poller.effects()
        except JobTimeoutError as error:
            self._unwatch(item, ended=False)
            yield from self._time_out(item, error)
        except JobNotFoundError as error:
            self._unwatch(item, ended=False)
            yield from self._replace_lost(item, error)
        except APIError as error:
            self._unwatch(item, ended=False)
            yield from self._end(item, OutcomeState.UNKNOWN, error)
        else:
            self._unwatch(item, ended=True)
            yield from self._end_by(item, status)

    def _park(self, item: _Item) -> Effects[None]:
        """Leave a job running, unless an earlier run submitted it and it has ended since."""
        timeout, sent_at = self._options.timeout, item.entry.sent_at
        age = 0.0 if sent_at is None else (datetime.now(UTC) - sent_at).total_seconds()
        overdue = timeout is not None and age >= timeout
        status: JobStatus | None = None
        if (yield from self._may_have_ended(item, believes_list=age < BELIEVED_FOR and not overdue)):
            call = endpoints.status(self.flow, str(item.entry.job_id))
            yield from reach_slot(self._limiter, self._clock)
            try:
                status = yield from send_with_retries(call, self._clock)
            except APIError as error:
                self._each_job_log.warning(
                    "Noukai job %s of %s: left running (%s)", item.entry.job_id, self.flow, error
                )
            else:
                if status.finished:
                    self._unwatch(item, ended=True)
                    yield from self._end_by(item, status)
                    return
        if timeout is not None and overdue:
            self._unwatch(item, ended=False)
            job_id = str(item.entry.job_id)
            message = f"Noukai job {job_id} of {self.flow} timed out after {timeout:g} s"
            yield from self._time_out(item, JobTimeoutError(message, job_id=job_id, status=status))
            return
        self._parked += 1
        self.changed.ring()

    def _may_have_ended(self, item: _Item, *, believes_list: bool) -> Effects[bool]:
        """Tell whether a job has to be polled: not if this run has submitted it, or its session lists it."""
        attached, job_id = item.request is not None, item.entry.job_id
        if not attached or job_id is None:
            return False
        if item.lane is None or not believes_list:
            return True
        return not (yield from item.lane.lists_as_unfinished(job_id))

    def _end_by(self, item: _Item, status: JobStatus) -> Effects[None]:
        trace = yield from self._trace(item)
        try:
            output = status.result_or_raise().output
        except (JobFailedError, JobCancelledError) as error:
            yield from self._end(item, OutcomeState(str(status.state)), error, trace=trace)
            return
        try:
            output = self._typed(output, status.id)
        except JobOutputInvalidError as error:
            yield from self._end(item, OutcomeState.INVALID_OUTPUT, error, trace=trace)
        else:
            yield from self._end(item, OutcomeState.COMPLETED, None, output=output, trace=trace)

    def _typed(self, output: Any, job_id: str) -> Any:
        output_type = self._options.output_type
        if output_type is None:
            return output
        return typed_output(output, output_type, job_id=job_id, flow=str(self.flow))

    def _time_out(self, item: _Item, error: JobTimeoutError) -> Effects[None]:
        if not self._options.cancel_on_timeout:
            yield from self._end(item, OutcomeState.TIMED_OUT, error)
            return
        reason = f"timed out after {self._options.timeout:g} s"
        outcome = yield from self._cancel_job(item, error.job_id)
        if not outcome.log(reason, self._each_job_log):
            if outcome.status is not None and outcome.status.finished:
                yield from self._end_by(item, outcome.status)
            else:
                yield from self._end(item, OutcomeState.TIMED_OUT, error)
            return
        last_state = f" (last state: {error.status.state})" if error.status else ""
        cancelled = JobTimeoutError(
            f"Noukai job {error.job_id} of {self.flow} {reason}{last_state} and was cancelled",
            job_id=error.job_id,
            status=error.status,
        )
        trace = yield from self._trace(item)
        yield from self._end(item, OutcomeState.CANCELLED, cancelled, trace=trace)

    def _replace_lost(self, item: _Item, error: JobNotFoundError) -> Effects[None]:
        """Ask the session for a job that an earlier run submitted and the server does not know."""
        if item.request is None:
            # This run submitted it, and has waited longer than a job may take to turn up.
            yield from self._end(item, OutcomeState.UNKNOWN, error)
            return
        lane = item.lane
        if lane is not None:
            try:
                listed = yield from send_with_retries(endpoints.session(lane.session.id), self._clock)
            except APIError as unclear:
                yield from self._end(item, OutcomeState.UNKNOWN, unclear)
                return
            if any(one.id in (item.entry.job_id, None) for one in listed):
                yield from self._end(item, OutcomeState.UNKNOWN, error)
                return
        resubmission = item.entry.resubmission + 1
        item.entry = LedgerEntry(
            index=item.index,
            submission_id=submission_id_of(self._id, item.index, resubmission),
            session_id="",
            state=_NEW,
            resubmission=resubmission,
        )
        lane = self._open_lane(new_session_of(self._id), takes_jobs=False)
        yield from self._submit_in(item, lane)

    def _trace(self, item: _Item) -> Effects[RunTrace | None]:
        """Read what an ended job used. With `max_cost_usd`, what cannot be read stops the batch."""
        job_id = item.entry.job_id
        if not item.trace or job_id is None or self._readable_traces is False:
            return None
        try:
            trace: RunTrace = yield from send_with_retries(endpoints.trace(self.flow, job_id), self._clock)
        except APIError as error:
            self._each_job_log.warning(
                "Noukai job %s of %s: trace not available: %s", job_id, self.flow, error
            )
            if isinstance(error, PermissionDeniedError):
                self._readable_traces = False
            if self._most_usd is not None:
                self._stop(
                    f"the cost of job {job_id} cannot be read, so max_cost_usd cannot be kept: {error}"
                )
            return None
        if self._most_usd is not None and trace.cost_usd is None:
            self._stop(f"the trace of job {job_id} names no cost, so max_cost_usd cannot be kept")
        return trace

    # Ending.

    def _end(
        self,
        item: _Item,
        state: OutcomeState,
        error: NoukaiError | None,
        *,
        output: Any = None,
        trace: RunTrace | None = None,
    ) -> Effects[None]:
        """Record how an item ended, and deliver its outcome."""
        if state not in _LEAVES_ENTRY and item.entry.state != _NEW:
            item.entry = replace(item.entry, state=state.value)
            if not (yield from self._record(item)):
                return
        del self._items[item.index]
        if state in _LEAVES_ENTRY and item.entry.state != _NEW:
            self._left_running[item.index] = item
        self._deliver(
            JobOutcome(
                item.index,
                item.entry.job_id,
                state,
                output,
                error,
                self._clock() - item.started,
                None if trace is None else trace.total_tokens,
                None if trace is None else trace.cost_usd,
                item.key,
            )
        )

    def _deliver(self, outcome: JobOutcome) -> None:
        log_outcome(str(self.flow), outcome)
        self.counts[outcome.state] += 1
        self.tokens += outcome.tokens or 0
        self.cost_usd += outcome.cost_usd or 0
        self._check_cost()
        if self._too_many_failures():
            failed, ended = self._failures_of_ended()
            self._stop(f"{failed} of {ended} jobs did not complete (stop_after_failures)")
        self._pass_on(outcome.index, outcome)

    def _pass_on(self, index: int, outcome: JobOutcome | None) -> None:
        if not self._options.in_order:
            if outcome is not None:
                self.outcomes.append(outcome)
        else:
            self._held[index] = outcome
            while self._next in self._held:
                following = self._held.pop(self._next)
                self._next += 1
                if following is not None:
                    self.outcomes.append(following)
        self._room.ring_one()
        self.changed.ring()

    def _check_cost(self) -> None:
        spent = self.cost_usd + self._options.spent_usd
        if self._most_usd is not None and spent >= self._most_usd:
            self._stop(f"the jobs that have ended cost ${spent}, of max_cost_usd ${self._most_usd}")

    def _failures_of_ended(self) -> tuple[int, int]:
        ended = sum(self.counts.values()) - self.counts[OutcomeState.NOT_SUBMITTED]
        return ended - self.counts[OutcomeState.COMPLETED], ended

    def _too_many_failures(self) -> bool:
        limit = self._options.stop_after_failures
        failed, ended = self._failures_of_ended()
        if limit is None:
            return False
        if isinstance(limit, int):
            return failed >= limit
        return ended >= MIN_ENDED_FOR_SHARE and failed > limit * ended

    def _stop(self, reason: str) -> None:
        """Submit nothing more. What runs is waited for."""
        if self.stopped is None:
            self.stopped = f"Not submitted: {reason}"
            log.warning("Noukai batch of %s: nothing more is submitted: %s", self.flow, reason)

    def _record(self, item: _Item) -> Effects[bool]:
        """Write the entry of an item, and tell whether the batch goes on."""
        error: BaseException | None = yield Record(item.entry)
        if error is not None:
            self.fail(error)
        return error is None

    def _wake_all(self) -> None:
        for wake in (self._room, self._lane_wanted, self.changed):
            wake.ring()

    # Cancelling.

    def cancelling(self, index: int) -> Effects[CancelOutcome | None]:
        """Cancel the job of an unfinished input, even one that an interrupted submission may have made.

        Only for a batch whose strands have ended.
        """
        item = self._items.get(index) or self._left_running.get(index) or self._item_not_taken(index)
        job_id = item.entry.job_id
        if job_id is None:
            job_id = yield from self._find_interrupted(item)
        if job_id is None:
            return None
        outcome = yield from self._cancel_job(item, job_id)
        if outcome.cancelled or outcome.not_needed:
            ended = outcome.status is not None and outcome.status.finished
            state = outcome.status.state if outcome.status is not None and ended else JobState.CANCELLED
            item.entry = replace(item.entry, job_id=job_id, state=str(state))
            yield from self._record(item)
            self._items.pop(index, None)
            self._left_running.pop(index, None)
        return outcome

    def _item_not_taken(self, index: int) -> _Item:
        """Return what an earlier run left, and whose input this run has not reached."""
        entry = self._stored.pop(index)
        lane = self._earlier_lane(entry.session_id)
        lane.known.add_digests(entry.others)
        item = _Item(index, None, False, self._clock(), entry, lane=None if entry.in_users_session else lane)
        item.submitted_at = (
            item.started
        )  # how old it is proves nothing, as another machine's clock may be wrong
        self._left_running[index] = item
        return item

    def _find_interrupted(self, item: _Item) -> Effects[str | None]:
        if item.entry.state == _NEW:
            return None
        submission = Submission(item.entry.submission_id, item.entry.sent_at)
        # The list of a user's session cannot tell which job this is.
        job_id = None if item.lane is None else (yield from self._look_up(item, submission, item.lane))
        if job_id is None:
            log.warning(
                "Noukai submission %s to %s: may be left running (interrupted before the response)",
                submission.id,
                self.flow,
            )
        return job_id

    def _look_up(self, item: _Item, submission: Submission, lane: Lane) -> Effects[str | None]:
        lane.known.add_digests(item.entry.others)
        for attempt in range(CANCEL_LOOKUPS):
            if attempt:
                yield Sleep(CANCEL_LOOKUP_PAUSE)
            try:
                found = yield from find(submission, self.flow, self._clock, lane.session)
            except NoukaiError as error:
                log.warning("Noukai submission %s to %s: lookup failed: %s", submission.id, self.flow, error)
                continue
            if found is not None:
                return found.id
        return None

    def _cancel_job(self, item: _Item, job_id: str) -> Effects[CancelOutcome]:
        race_ends = item.submitted_at + self._settings.not_found_grace
        call = endpoints.cancel(self.flow, job_id)
        try:
            yield from send_with_retries(call, self._clock, race_ends=race_ends)
        except NoukaiError as error:
            return CancelOutcome(job_id, str(self.flow), error=error)
        try:
            status = yield from send_with_retries(endpoints.status(self.flow, job_id), self._clock)
        except NoukaiError:
            status = None
        return CancelOutcome(job_id, str(self.flow), status)


_NEW = "new"
_LEAVES_ENTRY = (OutcomeState.UNKNOWN, OutcomeState.TIMED_OUT)


def _state_of(item: _Item) -> str:
    if item.entry.job_id is None:
        return item.entry.state
    status = item.poller.last_status if item.poller else None
    return str(status.state if status else JobState.PENDING)
