"""Run many jobs: which input is submitted when, in which session, and when the batch is over.

A batch consists of strands, generators of effects that its driver runs side by side on one thread. A *lane*
takes inputs and submits their jobs one after the other in one session, so that a submission with an unknown
outcome is the only job there that nobody knows. A *watch* polls a session, and one strand for each job waits
for its end. They share this object, and wake each other.
"""

from __future__ import annotations

import math
import uuid
from collections import Counter, deque
from collections.abc import Mapping
from dataclasses import replace
from decimal import Decimal

from noukai_core._engine.batch_backoff import SubmissionBackoff
from noukai_core._engine.batch_context import BatchContext
from noukai_core._engine.batch_inputs import request_of
from noukai_core._engine.batch_job import BatchJob, Ending, new_entry
from noukai_core._engine.batch_lanes import BatchLanes
from noukai_core._engine.batch_log import EachJobLog, log_outcome
from noukai_core._engine.batch_options import BatchOptions
from noukai_core._engine.batch_outcomes import OutcomeQueue
from noukai_core._engine.batch_totals import BatchTotals
from noukai_core._engine.batch_traces import BatchTraces
from noukai_core._engine.effects import Clock, Effects, Given, Sleep, Spawn, Take, Wake
from noukai_core._engine.lanes import Lane
from noukai_core._engine.rate_limit import shared_rate_limiter
from noukai_core._engine.wait import Stalls
from noukai_core._options import ClientOptions
from noukai_core._validation import FlowPath
from noukai_core.batch import JobOutcome, LedgerEntry, OutcomeState
from noukai_core.cancellation import CancelOutcome
from noukai_core.errors import APIError, InvalidInputError, NotSubmittedError

JOBS_BEFORE_NEXT_LANE = 10
"""After so many jobs, a lane is joined by another: few jobs share few sessions, and many go out quickly."""


class Batch:
    """The state of one batch, and the strands that change it.

    Args:
        flow: The flow.
        settings: Those of the client.
        options: How the batch runs.
        clock: Seconds, from any beginning.

    Attributes:
        changed: Rings when there is an outcome, or when the batch is over.
        stalls: When a busy caller kept the driver from running the strands. A blocking driver notes it.
        error: What ended the batch early: an error of the inputs or of the ledger.
    """

    def __init__(self, flow: FlowPath, settings: ClientOptions, options: BatchOptions, clock: Clock) -> None:
        self.flow = flow
        self.changed = Wake()
        self.stalls = Stalls()
        self.error: BaseException | None = None
        self._settings = settings
        self._options = options
        self._id = uuid.UUID(str(options.batch_id)) if options.batch_id else uuid.uuid4()
        limiter = shared_rate_limiter(settings.base_url, settings.api_key, settings.max_polls_per_second)
        each_job_log = EachJobLog(clock)
        self._totals = BatchTotals(flow, options)
        self._lanes = BatchLanes(self._id, flow, settings, limiter, clock)
        self._backoff = SubmissionBackoff(flow, clock, each_job_log)
        self._context = BatchContext(
            batch_id=self._id,
            flow=flow,
            settings=settings,
            options=options,
            clock=clock,
            limiter=limiter,
            stalls=self.stalls,
            lanes=self._lanes,
            totals=self._totals,
            traces=BatchTraces(flow, clock, self._totals, each_job_log),
            each_job_log=each_job_log,
            fail=self.fail,
        )
        self._queue = OutcomeQueue(in_order=options.in_order)
        self._stored: dict[int, LedgerEntry] = {}
        self._jobs: dict[int, BatchJob] = {}
        self._left_running: dict[int, BatchJob] = {}
        self._parked = 0
        self._taking = 0
        self._exhausted = False
        self._room = Wake()
        self._lane_wanted = Wake()
        self._strands = 0
        self._wanted_strands = 1

    # What the driver asks.

    @property
    def outcomes(self) -> deque[JobOutcome]:
        """What the driver has not passed on yet."""
        return self._queue.ready

    @property
    def stopped(self) -> str | None:
        """Why nothing more is submitted, if so."""
        return self._totals.stopped

    @property
    def counts(self) -> Counter[OutcomeState]:
        """How many inputs ended in each state."""
        return self._totals.counts

    @property
    def tokens(self) -> int:
        """The tokens of all that has ended, as far as known."""
        return self._totals.tokens

    @property
    def cost_usd(self) -> Decimal:
        """What all that has ended cost, as far as known."""
        return self._totals.cost_usd

    @property
    def jobs_without_cost(self) -> int:
        """Of how many jobs that have ended it is not known what they cost."""
        return self._totals.jobs_without_cost

    @property
    def over(self) -> bool:
        """Whether nothing more will come."""
        if self.error is not None:
            return True
        if self._queue or self._taking:
            return False
        done = self._exhausted or (self._options.detach and not self._has_room())
        return done and len(self._jobs) == self._parked

    @property
    def unfinished(self) -> dict[int, LedgerEntry]:
        """The entries of what was submitted, or may have been, and was not seen to end."""
        jobs = {**self._left_running, **self._jobs}
        entries = {index: job.entry for index, job in jobs.items() if not job.is_new}
        not_taken = {
            index: entry
            for index, entry in list(self._stored.items())  # another thread may ask
            if entry.unfinished and not entry.kept and index not in entries
        }
        return not_taken | entries

    @property
    def sessions(self) -> dict[str, int]:
        """How many unfinished jobs each session has."""
        return dict(Counter(job.entry.session_id for job in self._jobs.values()))

    def states(self) -> dict[int, str]:
        """Return the last known state of each unfinished input's job, or what happens to its submission."""
        return {index: job.state for index, job in self._jobs.items()}

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
        self._totals.submitted = sum(entry.kept or entry.job_id is not None for entry in stored.values())
        if self._options.stopped is not None:
            self._totals.stop(self._options.stopped)
        self._totals.check_cost()
        self._lanes.note(stored.values())

    def cancelling(self, index: int) -> Effects[CancelOutcome | None]:
        """Cancel the job of an unfinished input, even one that an interrupted submission may have made.

        Only for a batch whose strands have ended.
        """
        job = self._jobs.get(index) or self._left_running.get(index) or self._job_not_taken(index)
        outcome = yield from job.cancelling(self._concurrent_lanes(job))
        if outcome is not None and (outcome.cancelled or outcome.not_needed):
            self._jobs.pop(index, None)
            self._left_running.pop(index, None)
        return outcome

    def _job_not_taken(self, index: int) -> BatchJob:
        """Return what an earlier run left, and whose input this run has not reached."""
        entry = self._stored.pop(index)
        job = self._left_running[index] = BatchJob(self._context, entry, None)
        job.take_over(self._lanes.earlier(entry.session_id))
        return job

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
            job = self._job(given)
            if job is None:
                continue
            if not job.is_new:
                yield Spawn(self._resume_job(job))
                continue
            if self.stopped is None:
                yield from self._backoff.wait()
            if self.stopped is not None:
                ending = Ending(OutcomeState.NOT_SUBMITTED, NotSubmittedError(self.stopped))
                yield from self._end(job, ending)
                continue
            if lane is None or lane.full:
                if lane is not None:
                    lane.close()
                lane = self._lanes.open(on_unknown=self._after_unknown_outcome)
                yield from self._lanes.watch(lane)
            yield from self._submit(job, lane)
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
        running = len(self._jobs) + self._taking
        most = self._options.max_concurrency
        return running < most and running + len(self._queue) < 2 * most

    def _want_strand(self) -> None:
        most = min(
            self._settings.max_concurrent_submissions,
            math.ceil(self._options.max_concurrency / JOBS_BEFORE_NEXT_LANE),
        )
        if self._wanted_strands < most:
            self._wanted_strands += 1
            self._lane_wanted.ring()

    def _after_unknown_outcome(self) -> None:
        """Let another strand submit, after a pause, in the place of one that asks for a job."""
        self._backoff.begin()
        self._strands -= 1
        self._lane_wanted.ring()

    def _wake_all(self) -> None:
        for wake in (self._room, self._lane_wanted, self.changed):
            wake.ring()

    # Each input.

    def _job(self, given: Given) -> BatchJob | None:
        """Read an input, and return the job that it has or gets; `None` if that is none."""
        index = given.index
        stored = self._stored.get(index)
        if stored is not None and stored.kept:
            del self._stored[index]
            self._pass_on(index, None)
            return None
        try:
            request = request_of(given, self.flow, self._options)
        except InvalidInputError as error:
            begun = self._totals.submitted or self._jobs or self._left_running
            if self._totals.most_usd is not None and not begun:
                self.fail(error)
                return None
            if stored is not None and _has_job(stored):
                # It stays stored: its job goes on, whatever the input is now.
                self._deliver(JobOutcome(index, stored.job_id, OutcomeState.UNKNOWN, error=error))
            else:
                self._deliver(JobOutcome(index, None, OutcomeState.REJECTED, error=error))
            return None
        self._stored.pop(index, None)
        job = self._jobs[index] = BatchJob(self._context, self._entry(index, stored), request)
        return job

    def _entry(self, index: int, stored: LedgerEntry | None) -> LedgerEntry:
        if stored is not None and _has_job(stored):
            return stored
        return new_entry(self._id, index, 0 if stored is None else stored.resubmission + 1)

    def _submit(self, job: BatchJob, lane: Lane) -> Effects[None]:
        """Submit a job in a session, and let another strand wait for it."""
        yield from self._after_submission(job, (yield from job.submit(lane)))

    def _resume_job(self, job: BatchJob) -> Effects[None]:
        """Go on with what an earlier run has submitted, or was submitting."""
        lane = self._lanes.earlier(job.entry.session_id)
        if job.entry.job_id is None:
            resuming = job.resume_submission(lane, self._concurrent_lanes(job))
            yield from self._after_submission(job, (yield from resuming))
            return
        job.attach(lane)
        if job.lane is not None and not self._options.detach:
            yield from self._lanes.watch(lane)
        yield from self._wait(job)

    def _concurrent_lanes(self, job: BatchJob) -> list[Lane | None]:
        return [
            None if entry.in_users_session else self._lanes.earlier(entry.session_id)
            for entry in job.entry.concurrent
        ]

    def _after_submission(self, job: BatchJob, ending: Ending | None) -> Effects[None]:
        if ending is None or isinstance(ending.error, APIError):
            self._backoff.end()  # the service has said what became of it
        elif ending.state == OutcomeState.UNKNOWN:
            self._backoff.begin()
        if ending is not None:
            yield from self._end(job, ending)
        elif self.error is None:
            yield Spawn(self._wait(job))

    def _wait(self, job: BatchJob) -> Effects[None]:
        """Wait for the end of a job, and deliver its outcome. A detached batch leaves it running."""
        ending = yield from job.wait()
        if ending is not None:
            yield from self._end(job, ending)
        elif job.is_new:
            yield from self._backoff.wait()
            yield from self._submit(job, self._lanes.open_for_one())
        else:
            self._parked += 1
            self.changed.ring()

    def _end(self, job: BatchJob, ending: Ending) -> Effects[None]:
        """Record how an input ended, and deliver its outcome."""
        if not ending.leaves_job and not job.is_new:
            job.entry = replace(job.entry, state=ending.state.value)
            if not (yield from job.record()):
                return
        del self._jobs[job.index]
        if ending.leaves_job and not job.is_new:
            self._left_running[job.index] = job
        else:
            self._lanes.forget(job.entry.job_id)
        self._deliver(job.outcome(ending))

    def _deliver(self, outcome: JobOutcome) -> None:
        log_outcome(str(self.flow), outcome)
        self._totals.add(outcome)
        if self.stopped is not None:
            self._backoff.end()
        self._pass_on(outcome.index, outcome)

    def _pass_on(self, index: int, outcome: JobOutcome | None) -> None:
        self._queue.put(index, outcome)
        self._room.ring_one()
        self.changed.ring()


def _has_job(stored: LedgerEntry) -> bool:
    """Tell whether the job that an earlier run submitted, or may have, is that of the input."""
    return stored.unfinished or stored.state == OutcomeState.COMPLETED
