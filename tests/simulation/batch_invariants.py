"""What must hold after every schedule of a batch."""

from __future__ import annotations

import math
import uuid
from collections import Counter, defaultdict
from collections.abc import Iterator
from decimal import Decimal
from itertools import pairwise

from noukai_core import InvalidInputError, JobOutcome, JobTimeoutError, NoukaiError
from noukai_core._engine import schedule
from noukai_core.batch import OutcomeState
from tests.simulation.batches import BATCH, Batching, Try
from tests.simulation.invariants import (
    ROUNDING,
    History,
    Violation,
    cancel_was_accepted,
    let_go,
    one_job_per_submission,
)
from tests.simulation.network import Exchange
from tests.simulation.pages import ANOTHER_REQUEST, Response
from tests.simulation.process import StoreError
from tests.simulation.server import READABLE_IDS, ServerJob

_RESUBMISSIONS = 6

_SOON = 5.0
"""How late the outcome of a short job may be, besides the wait for slots of the rate limit."""


class BatchHistory(History):
    """What there is to check about one schedule of a batch."""

    def __init__(self, batching: Batching) -> None:
        super().__init__(batching.simulation)
        self.batching = batching
        self.input_of = {
            str(uuid.uuid5(BATCH, f"{index}:{again}")): (index, again)
            for index in range(batching.inputs)
            for again in range(_RESUBMISSIONS)
        }
        self.try_of = {this.process: this for this in batching.tries}
        self.crossed = {
            self.input_of[exchange.submission][0]
            for exchange in self.exchanges
            if exchange.kind == "submit"
            and isinstance(exchange.end, Response)
            and exchange.end.origin == ANOTHER_REQUEST
        }
        self.duplicated = any(len(exchange.jobs) > 1 for exchange in self.exchanges)

    def of(self, this: Try) -> Iterator[Exchange]:
        """Yield the requests of one process."""
        return (exchange for exchange in self.exchanges if exchange.process == this.process)


def batch_violations(history: BatchHistory) -> list[Violation]:
    """Return what does not hold of a schedule that is over."""
    checks = (
        one_job_per_submission,
        no_second_job,
        every_batch_ends,
        one_outcome_for_each_input,
        outcomes_are_true,
        outcomes_come_soon,
        cancelled_for_a_reason_only,
        no_deadline_comes_early,
        what_has_completed_has_not_timed_out,
        running_jobs_are_named,
        nothing_is_submitted_after_the_limit,
        polls_stay_within_the_limit,
        an_outage_meets_few_submissions,
        no_wait_for_sessions_ends_early,
    )
    return [Violation(check.__name__, what) for check in checks for what in check(history)]


def no_second_job(history: BatchHistory) -> Iterator[str]:
    """An input has a second job only when the one before has failed, or was told to end."""
    if not history.simulation.server.lists_in_time or history.duplicated:
        return
    by_input: defaultdict[int, list[ServerJob]] = defaultdict(list)
    for job in history.simulation.server.jobs.values():
        by_input[history.input_of[job.key][0]].append(job)
    for index, jobs in by_input.items():
        if index in history.crossed:
            continue  # it may have taken the job of another input for its own
        if not history.simulation.habits.recognisable:
            continue  # neither its polls nor the list of its session may tell of it
        for job in jobs:
            for earlier in jobs:
                older = history.input_of[earlier.key][1] < history.input_of[job.key][1]
                ended = earlier.state(job.exchange.sent_at) in ("failed", "cancelled")
                if older and not ended and not cancel_was_accepted(earlier, history):
                    yield f"input {index} has {job.id} besides {earlier.id}"


def every_batch_ends(history: BatchHistory) -> Iterator[str]:
    """The last try ends, and no error but the ledger's ends one, or with a limit of the cost an input's."""
    last = history.batching.tries[-1]
    allowed = (StoreError,) if history.batching.most_usd is None else (StoreError, InvalidInputError)
    for this in history.batching.tries:
        if this.error is not None and not isinstance(this.error, allowed):
            yield f"try {this.process} ended with {this.error!r}"
    if (last.ended_at, last.jobs_cancelled_at, last.error) == (None, None, None):
        yield f"try {last.process} has not ended: {len(last.outcomes)} outcomes"


def one_outcome_for_each_input(history: BatchHistory) -> Iterator[str]:
    """No input has two outcomes in a try, and one that has ended leaves none out."""
    batching = history.batching
    for this in batching.tries:
        indexes = [outcome.index for _, outcome in this.outcomes]
        if any(count > 1 for count in Counter(indexes).values()):
            yield f"try {this.process}: {indexes}"
        if kept := this.kept.intersection(indexes):
            yield f"try {this.process}: {sorted(kept)}, which were kept"
        if batching.in_order and indexes != sorted(indexes):
            yield f"try {this.process}: {indexes}, out of order"
        complete = this.ended_at is not None and not this.detached
        if complete and set(indexes) | batching.kept != set(range(batching.inputs)):
            yield f"try {this.process}: {sorted(indexes)}, and {sorted(batching.kept)} were kept"


def outcomes_are_true(history: BatchHistory) -> Iterator[str]:
    """An outcome is what became of a job of its input."""
    if history.duplicated:
        return  # a network that sends a request twice makes a job that nobody asked for
    for this in history.batching.tries:
        for moment, outcome in this.outcomes:
            if wrong := _wrong(outcome, moment, history):
                yield f"try {this.process}: {wrong}: {outcome!r}"


def _wrong(outcome: JobOutcome, moment: float, history: BatchHistory) -> str | None:
    if outcome.error is not None and not isinstance(outcome.error, NoukaiError):
        return "an error of another kind"
    if outcome.job_id is None:
        return None if outcome.state in ("rejected", "unknown", "not_submitted") else "no job"
    job = history.simulation.server.job_of(outcome.job_id)
    assert job is not None
    if history.input_of[job.key][0] != outcome.index:
        unknown = outcome.output is None and not history.simulation.habits.recognisable
        if unknown or _crossed_unseen(outcome.index, job, history):
            return None
        return f"the job is that of input {history.input_of[job.key][0]}"
    if outcome.state == OutcomeState.COMPLETED and outcome.output != job.output:
        return f"the output is not {job.output!r}"
    if outcome.state.ended and not _tells(outcome, job, moment, history):
        return f"the job is {job.state(moment)}"
    return None


def _tells(outcome: JobOutcome, job: ServerJob, moment: float, history: BatchHistory) -> bool:
    if job.state(moment) == outcome.state:
        return True
    return outcome.state == OutcomeState.CANCELLED and cancel_was_accepted(job, history)


def _crossed_unseen(index: int, job: ServerJob, history: BatchHistory) -> bool:
    """Whether an input received the response to another one, before its process knew whose job that is."""
    return any(
        isinstance(exchange.end, Response)
        and exchange.end.origin == ANOTHER_REQUEST
        and history.input_of[exchange.submission][0] == index
        and not _knew(job, exchange, history)
        for exchange in history.exchanges
        if exchange.kind == "submit"
    )


def _knew(job: ServerJob, exchange: Exchange, history: BatchHistory) -> bool:
    """Whether a process knew whose job a response names: it had submitted it there, or it waited for it."""
    made_by = job.exchange
    return (
        made_by.process == exchange.process
        and isinstance(made_by.end, Response)
        and made_by.end.own
        and made_by.end.whole
        and made_by.end.status < 300
        and made_by.ended_at is not None
        and exchange.ended_at is not None
        and made_by.ended_at < exchange.ended_at
        and (_shares_lane(made_by, exchange, history) or _waited_for(job, exchange, history))
    )


def _shares_lane(made_by: Exchange, exchange: Exchange, history: BatchHistory) -> bool:
    users = history.batching.users_sessions and history.input_of[exchange.submission][0] % 2
    return made_by.session == exchange.session and not users


def _waited_for(job: ServerJob, exchange: Exchange, history: BatchHistory) -> bool:
    ended_at, server = exchange.ended_at, history.simulation.server
    if history.batching.in_order:
        return False  # its outcome may be held
    return ended_at is not None and not any(
        outcome.job_id is not None and server.job_of(outcome.job_id) is job and moment <= ended_at
        for moment, outcome in history.try_of[exchange.process].outcomes
    )


def outcomes_come_soon(history: BatchHistory) -> Iterator[str]:
    """Without a fault, the outcome of a job comes soon after its end, or with the next try."""
    simulation, batching = history.simulation, history.batching
    if batching.in_order or batching.slowness or not _tells_promptly(history):
        return
    for this in batching.tries:
        began_at = simulation.processes[this.process - 1].began_at
        for moment, outcome in this.outcomes:
            job = None if outcome.job_id is None else simulation.server.job_of(outcome.job_id)
            if job is None or not outcome.state.ended:
                continue
            attached_at = moment - outcome.seconds  # when there was room for one more job
            end = max(min(job.ends_at, job.cancelled_at), began_at, attached_at)
            if moment > end + _slack(end - job.created_at, history):
                yield f"the end of {job.id} was seen after {moment - end:.1f} s"
        yield from _missed(history, this, began_at)


def _tells_promptly(history: BatchHistory) -> bool:
    """Whether the service responds to all requests, and its lists and polls tell of a job at once."""
    simulation = history.simulation
    habits, outage = simulation.habits, math.isfinite(simulation.network.outage[0])
    if simulation.harm or simulation.server.trouble or outage:
        return False
    if not (habits.recognisable and habits.readable and habits.accepted_id in READABLE_IDS):
        return False
    return not (habits.listing_lag or habits.polling_lag or habits.absence == "no route")


def _slack(run_time: float, history: BatchHistory) -> float:
    """Return how many seconds after its end a job may be seen to have ended."""
    queue = 2 * history.batching.inputs / history.simulation.max_polls_per_second
    return _SOON + queue + 0.15 * run_time


def _missed(history: BatchHistory, this: Try, began_at: float) -> Iterator[str]:
    """Yield what has ended before a try began that leaves jobs running, and that it has not reported."""
    batching = history.batching
    reported = this.kept | {outcome.index for _, outcome in this.outcomes}
    if not this.detached or batching.inputs - len(reported) >= batching.most_jobs:
        return
    if batching.lazy or not all(one.detached for one in batching.tries if one.process < this.process):
        return  # it has to look jobs up first, and takes them for new ones
    earlier = [job for job in history.simulation.server.jobs.values() if job.created_at < began_at]
    latest = {history.input_of[job.key][0]: job for job in earlier}
    for index, job in latest.items():
        if job.finished(began_at) and job.final == "completed" and index not in reported:
            yield f"try {this.process} says nothing of {job.id}, which had ended"


def cancelled_for_a_reason_only(history: BatchHistory) -> Iterator[str]:
    """Only a person or the timeout of a job ends a job."""
    batching = history.batching
    for this in batching.tries:
        for exchange in history.of(this):
            if exchange.kind != "cancel":
                continue
            by_a_person = this.cancelled_at is not None and exchange.sent_at >= this.cancelled_at
            if not by_a_person and not (batching.cancels and batching.timeout is not None):
                yield f"{exchange.job_id} was cancelled, and nobody asked for that"


def no_deadline_comes_early(history: BatchHistory) -> Iterator[str]:
    """The time of a job is not over before its submission, or the attaching of this try, is so long ago."""
    batching, simulation = history.batching, history.simulation
    if batching.timeout is None or simulation.clock_errors or _clocks_differ(history):
        return
    for this in batching.tries:
        for moment, outcome in this.outcomes:
            job = None if outcome.job_id is None else simulation.server.job_of(outcome.job_id)
            if job is None or outcome.state != OutcomeState.TIMED_OUT:
                continue
            since = simulation.processes[this.process - 1].began_at
            if this.detach:
                since = history.by_submission[job.key][0].sent_at  # which may be all that is recorded
            elif job.exchange.process == this.process:
                since = job.exchange.sent_at
            if moment < since + batching.timeout - ROUNDING:
                yield f"{job.id} timed out after {moment - since:.1f} s"


def what_has_completed_has_not_timed_out(history: BatchHistory) -> Iterator[str]:
    """Without a fault, a job that has completed well before its time was over has not timed out."""
    simulation, batching = history.simulation, history.batching
    if batching.timeout is None or not _tells_promptly(history):
        return
    for this in batching.tries:
        if this.detach and _clocks_differ(history):
            continue  # the age of what an earlier one left running is that of the wall clock
        for moment, outcome in this.outcomes:
            job = None if outcome.job_id is None else simulation.server.job_of(outcome.job_id)
            if job is None or not isinstance(outcome.error, JobTimeoutError) or job.final != "completed":
                continue
            ended = min(job.ends_at, job.cancelled_at) + _slack(job.ends_at - job.created_at, history)
            if ended < min(moment, job.created_at + batching.timeout):
                yield f"{job.id} timed out, {moment - job.ends_at:.1f} s after it had completed"


def _clocks_differ(history: BatchHistory) -> bool:
    return any(process.wall_error for process in history.simulation.processes)


def running_jobs_are_named(history: BatchHistory) -> Iterator[str]:
    """A person's act leaves no job running that no line has named since."""
    simulation, batching = history.simulation, history.batching
    last = batching.tries[-1]
    if last.cancelled_at is None or last.jobs_cancelled_at is None or not simulation.server.lists_in_time:
        return
    if history.duplicated:
        return  # a job that nobody asked for is taken for that of an interrupted submission
    lines = [(moment, line) for moment, line in batching.lines if moment >= last.cancelled_at]
    for job in simulation.server.jobs.values():
        if job.finished(last.jobs_cancelled_at) or job.exchange.jobs[0] is not job:
            continue  # the network made the others
        if not let_go(simulation, lines, job, math.inf, by_a_person=True):
            yield f"{job.id} is left running, and no line names it"


def nothing_is_submitted_after_the_limit(history: BatchHistory) -> Iterator[str]:
    """When too many jobs have failed, or those that have ended cost too much, nothing more is submitted."""
    for this in history.batching.tries:
        limit = _limit_reached_at(this, history.batching)
        for exchange in history.of(this):
            if exchange.kind == "submit" and exchange.sent_at > limit + ROUNDING:
                yield f"request {exchange.number} submits {exchange.sent_at - limit:.2f} s after the limit"
                return


def _limit_reached_at(this: Try, batching: Batching) -> float:
    failures, spent = 0, this.spent_usd
    for moment, outcome in this.outcomes:
        failures += outcome.state not in (OutcomeState.COMPLETED, OutcomeState.NOT_SUBMITTED)
        spent += outcome.cost_usd or 0
        if batching.most_failures is not None and failures >= batching.most_failures:
            return moment
        if batching.most_usd is not None and (spent >= Decimal(batching.most_usd) or outcome.lacks_cost):
            return moment
    return math.inf


def polls_stay_within_the_limit(history: BatchHistory) -> Iterator[str]:
    """The polls of jobs and sessions are never more than the limit of a process in any second."""
    batching = history.batching
    if batching.timeout is not None or batching.slowness:
        return  # a job is polled once more after its cancel, and by a caller that is always busy at last
    most = max(1, math.ceil(history.simulation.max_polls_per_second))
    for this in batching.tries:
        ends = math.inf if this.cancelled_at is None else this.cancelled_at
        polls = [
            one.sent_at for one in history.of(this) if one.kind in ("poll", "session") and one.sent_at < ends
        ]
        for first, last in zip(polls, polls[most:], strict=False):
            if last - first < 1.0 - ROUNDING:
                yield f"{most + 1} polls in {last - first:.2f} s at a limit of {most}"
                break


def an_outage_meets_few_submissions(history: BatchHistory) -> Iterator[str]:
    """When a submission has met an outage, others follow it one by one, ever more slowly."""
    simulation = history.simulation
    begins, ends = simulation.network.outage
    if history.batching.ledger_fails or simulation.harm or simulation.server.trouble:
        return  # which may hold submissions up that were about to be sent
    for this in history.batching.tries:
        sent = [
            one
            for one in history.of(this)
            if one.kind == "submit" and begins <= one.sent_at < ends and one.ended_at is not None
        ]
        if any(one.sent_at < begins <= (one.ended_at or math.inf) for one in history.of(this)):
            continue  # what responds late tells of no outage
        first_end = min((one.ended_at or 0.0 for one in sent), default=math.inf)
        later = [one.sent_at for one in sent if one.sent_at > first_end + 0.01]
        for count, (before, after) in enumerate(pairwise([first_end, *later])):
            if after - before < min(2**count, 60) * (1 - schedule.JITTER) - 0.01:
                yield f"{count + 1} more submissions, the last after {after - before:.2f} s"
                break


def no_wait_for_sessions_ends_early(history: BatchHistory) -> Iterator[str]:
    """Of the jobs that a wait takes for ended, so many have ended."""
    simulation = history.simulation
    if history.duplicated or not (simulation.server.lists_in_time and simulation.habits.recognisable):
        return  # a session has a job that no input has, or lists jobs twice
    if history.batching.users_sessions:
        return  # what they list may be anybody's
    for wait in history.batching.session_waits:
        running = Counter(
            job.session
            for job in simulation.server.jobs.values()
            if job.created_at <= wait.began_at and not job.finished(wait.ended_at)
        )
        # An unknown outcome may have left one more, which is not waited for.
        awaited = sum(min(size, running[session]) for session, size in wait.sizes.items())
        if wait.left < awaited:
            yield f"a wait for sessions returned {wait.left}, but {awaited} jobs ran"
