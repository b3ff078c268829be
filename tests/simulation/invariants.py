"""What must hold after every schedule, read from the wire, from the service and from what the callers saw."""

from __future__ import annotations

import asyncio
import itertools
import math
import re
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

from noukai_core import (
    APIError,
    CancelUnsupportedError,
    JobCancelledError,
    JobError,
    JobFailedError,
    JobNotFoundError,
    JobTimeoutError,
    NoukaiError,
    PermanentError,
    SubmissionUnknownError,
)
from tests.simulation.network import Exchange
from tests.simulation.pages import ANOTHER_REQUEST, Response
from tests.simulation.process import Call, StoreError
from tests.simulation.server import READABLE_IDS, ServerJob
from tests.simulation.simulation import Simulation

ROUNDING = 1e-3

_LAST_POLL = 1.0
"""What the last poll before a deadline may take."""

_LONGEST_BACKOFF = 66.0
"""The longest pause before a request is sent again, unless the service asks for more: 60 s, jittered."""

_TICK = 0.1

_LAG = 30.0
"""For how long a replica may not know a job that another one has shown."""


class Violation(NamedTuple):
    """An invariant that does not hold."""

    invariant: str
    what: str


class History:
    """What there is to check about one schedule."""

    def __init__(self, simulation: Simulation) -> None:
        self.simulation = simulation
        self.calls = simulation.calls
        self.exchanges = simulation.network.exchanges
        self._calls = {id(exchange): call for call in self.calls for exchange in call.exchanges}
        self.by_submission: defaultdict[str, list[Exchange]] = defaultdict(list)
        for exchange in self.exchanges:
            if exchange.kind == "submit":
                self.by_submission[exchange.submission].append(exchange)

    def at_the_same_time(self, earlier: Exchange, later: Exchange) -> bool:
        """Whether two processes submitted at the same time, so that neither could know of the other.

        That is promised to make one job only where the service honours the idempotency key. But a process
        that begins when the requests of all others have ended makes no second job, even if they live on.
        """
        if earlier.process == later.process:
            return False
        call = self._calls.get(id(later))
        if call is not None:
            began_at = self.simulation.processes[later.process - 1].began_at
            started = call.started
        elif self.simulation.live:
            began_at = started = self.simulation.live[later.process - 1].began_at
        else:
            return False
        return earlier.sent_at >= began_at or earlier.ended_at is None or earlier.ended_at > started


def violations(history: History) -> list[Violation]:
    """Return what does not hold of a schedule that is over."""
    return [Violation(check.__name__, what) for check in INVARIANTS for what in check(history)]


def one_job_per_submission(history: History) -> Iterator[str]:
    """At most one job per submission whenever the service keeps what is documented."""
    if not history.simulation.server.lists_in_time:
        return
    for submission, sent in history.by_submission.items():
        made = [exchange for exchange in sent if exchange.jobs]
        if any(not history.at_the_same_time(*pair) for pair in itertools.combinations(made, 2)):
            numbers = ", ".join(str(exchange.number) for exchange in made)
            yield f"submission {submission} made {len(made)} jobs, by the requests {numbers}"


def nothing_sent_without_proof(history: History) -> Iterator[str]:
    """What may have made a job is followed by no further submission, unless the service proved absence."""
    for sent in history.by_submission.values():
        for number, exchange in enumerate(sent):
            for earlier in sent[:number]:
                if earlier.surely_not_processed or _absence_proved(history, earlier, exchange):
                    continue
                if history.at_the_same_time(earlier, exchange):
                    continue
                yield (
                    f"request {exchange.number} submits again, although request {earlier.number} may have "
                    "made a job and no response proved the opposite"
                )
                return


def _absence_proved(history: History, earlier: Exchange, later: Exchange) -> bool:
    recovery_timeout = history.simulation.recovery_timeout
    if recovery_timeout == 0 or earlier.ended_at is None:
        return False
    settled_at = earlier.ended_at + recovery_timeout - ROUNDING
    return any(
        exchange.kind == "session"
        and exchange.session == earlier.session
        and exchange.sent_at >= settled_at
        and exchange.ended_at is not None
        and exchange.ended_at <= later.sent_at
        and isinstance(exchange.end, Response)
        and _proves_absence(exchange.end, earlier.submission)
        for exchange in history.exchanges
    )


def _proves_absence(response: Response, submission: str) -> bool:
    """Whether a session that may hold the jobs of several submissions has none of this one."""
    return response.proves_absence or (response.listed is not None and submission not in response.listed)


def never_none_when_there_is_one(history: History) -> Iterator[str]:
    """No error says that there is no job when there is one."""
    for call in history.calls:
        if call.kind == "job" and _says_there_is_none(call):
            made = [
                job
                for exchange in history.by_submission[call.about]
                if exchange.sent_at <= _ended(call)
                and not any(history.at_the_same_time(exchange, own) for own in call.exchanges[:1])
                for job in exchange.jobs
            ]
            if made and history.simulation.server.lists_in_time:
                yield f"{call.error!r}, but there is {made[0].id}"
        if call.kind == "find" and call.ended is not None and call.error is None and call.result is None:
            last = call.exchanges[-1].end if call.exchanges else None
            if not (isinstance(last, Response) and last.proves_absence):
                yield f"find() returned None, although the service did not say that there is none: {last}"


def _says_there_is_none(call: Call) -> bool:
    return isinstance(call.error, NoukaiError) and not isinstance(call.error, SubmissionUnknownError)


def _ended(call: Call) -> float:
    return math.inf if call.ended is None else call.ended


def every_error_is_typed(history: History) -> Iterator[str]:
    """Every error is one of the client's own."""
    for call in history.calls:
        if call.error is not None and not isinstance(call.error, NoukaiError | asyncio.CancelledError):
            yield f"{call.kind}() raised {call.error!r}"
    for process in history.simulation.processes:
        for task in process.tasks:
            if task.error is not None and not isinstance(
                task.error, NoukaiError | asyncio.CancelledError | StoreError
            ):
                yield f"{task.name} ended with {task.error!r}"


def every_call_ends(history: History) -> Iterator[str]:
    """Every call of a process that lives ends, and a wait by its deadline plus one poll."""
    simulation = history.simulation
    for call in history.calls:
        if call.ended is None:
            if simulation.processes[call.process - 1].alive:
                yield f"{call.kind}() about {call.about} has not ended"
        elif call.timeout is not None and call.ended > call.started + call.timeout + _LAST_POLL + ROUNDING:
            yield f"a wait for {call.timeout:g} s took {call.ended - call.started:.2f} s"


def outcomes_are_true(history: History) -> Iterator[str]:
    """A call returns or raises what the service has said, and nothing else."""
    for call in history.calls:
        if call.ended is None or isinstance(call.error, asyncio.CancelledError):
            continue
        check = _OUTCOMES.get(call.kind)
        if call.kind in ("wait", "cancel") and call.about not in history.simulation.server.jobs:
            check = _not_a_job
        wrong = check(history, call) if check else None
        if wrong:
            yield f"{call.kind}() about {call.about}: {wrong}"


def _not_a_job(history: History, call: Call) -> str | None:
    return "the service has no such job"


def _job_outcome(history: History, call: Call) -> str | None:
    if call.error is None:
        made = [job for exchange in history.by_submission[call.about] for job in exchange.jobs]
        job = history.simulation.server.job_of(call.result.id)
        if job in made or _crossed(call):
            return None
        return f"it returned {call.result.id}, which it did not make"
    if isinstance(call.error, SubmissionUnknownError):
        carried = call.error.submission
        if carried.id != call.about or carried.last_sent_at is None:
            return f"it is not known, but passing {carried} would not ask for it"
        return _needlessly_unknown(history, call)
    last = call.exchanges[-1].end if call.exchanges else None
    if isinstance(last, Response) and last.own and last.status == 409:
        return f"the service works on it, and it was taken for refused: {call.error!r}"
    if isinstance(call.error, PermanentError) and not any(
        isinstance(exchange.end, Response) and 400 <= exchange.end.status < 500 for exchange in call.exchanges
    ):
        return f"refused without a refusal: {call.error!r}"
    return _rejected_early(history, call)


def _crossed(call: Call) -> bool:
    """Whether it received the response to another submission, which names a job like its own."""
    last = call.exchanges[-1].end if call.exchanges else None
    return isinstance(last, Response) and last.origin == ANOTHER_REQUEST


def _rejected_early(history: History, call: Call) -> str | None:
    """A submission that was surely not processed is sent again until the retry window is over."""
    error = call.error
    if not isinstance(error, APIError) or not (error.retryable and error.never_processed):
        return None
    last = call.exchanges[-1].end if call.exchanges else None
    by_date = isinstance(last, Response) and "date" in last.headers  # in two seconds, by the service's clock
    pause = _LONGEST_BACKOFF if by_date else max(error.retry_after or 0.0, _LONGEST_BACKOFF)
    if _ended(call) < call.started + history.simulation.retry_timeout - pause - ROUNDING:
        return f"it gave up after {_ended(call) - call.started:.1f} s: {error!r}"
    return None


def _needlessly_unknown(history: History, call: Call) -> str | None:
    """A service that lists jobs readably and in time, and is reached, leaves nothing unknown."""
    simulation = history.simulation
    if not (simulation.habits.readable and simulation.habits.tells_absence and simulation.recovery_timeout):
        return None
    lookups = [exchange for exchange in call.exchanges if exchange.kind == "session"]
    answered = [one for one in lookups if isinstance(one.end, Response) and one.end.status in (200, 404)]
    if (
        lookups
        and len(answered) == len(lookups)
        and all(one.end.own and one.end.whole for one in answered if isinstance(one.end, Response))
    ):
        return "it says that it is not known, although the service has told"
    return None


def _wait_outcome(history: History, call: Call) -> str | None:
    job, error, ended = history.simulation.server.jobs[call.about], call.error, _ended(call)
    if error is None:
        return _wrong_end(job, "completed", ended) or (
            None if call.result.output == job.output else f"the output is {call.result.output!r}"
        )
    if isinstance(error, JobTimeoutError):
        early = call.timeout is None or ended < call.started + call.timeout - ROUNDING
        return "it timed out before its deadline" if early else None
    if isinstance(error, JobFailedError):
        return _wrong_end(job, "failed", ended)
    if isinstance(error, JobCancelledError):
        return _wrong_end(job, "cancelled", ended)
    if isinstance(error, JobError):
        return f"unexpected {error!r}"
    return _refusal(history, call)


def _wrong_end(job: ServerJob, state: str, now: float) -> str | None:
    return None if job.state(now) == state else f"it says {state}, but the job is {job.state(now)}"


def _refusal(history: History, call: Call) -> str | None:
    """A wait or a call that failed has a reason in the responses that it received."""
    error, ended = call.error, _ended(call)
    last = call.exchanges[-1].end if call.exchanges else None
    if isinstance(error, JobNotFoundError):
        if not (isinstance(last, Response) and last.own and last.status == 404):
            return f"a job that is not found, by {last}"
        if ended < call.grace_ends - ROUNDING:
            return f"a job that is not found, {call.grace_ends - ended:.1f} s too early"
        if call.kind == "wait" and any(_known(one, ended - _LAG) for one in call.exchanges):
            return "a job that is not found, although it was known a moment ago"
        return None
    if isinstance(error, PermanentError):
        if isinstance(last, Response) and last.own and 400 <= last.status < 500:
            return None
        return f"refused permanently, by {last}"
    if isinstance(error, APIError):
        return _gave_up_early(history, call) if call.kind == "wait" else None
    return f"unexpected {error!r}"


def cancel_was_accepted(job: ServerJob, history: History) -> bool:
    """Whether the service has accepted a cancel, or a portal that responds as the service may."""
    return any(
        exchange.kind == "cancel"
        and exchange.job_id in history.simulation.server.ids(job)
        and isinstance(exchange.end, Response)
        and exchange.end.status < 300
        and not exchange.end.body.startswith(b"<")
        for exchange in history.exchanges
    )


def _known(exchange: Exchange, since: float) -> bool:
    """Tell whether a poll since some moment has shown the job."""
    shown = isinstance(exchange.end, Response) and exchange.end.own and exchange.end.whole
    return (
        shown
        and isinstance(exchange.end, Response)
        and exchange.end.recognisable
        and exchange.end.status == 200
        and exchange.ended_at is not None
        and exchange.ended_at > since
    )


def _gave_up_early(history: History, call: Call) -> str | None:
    good = [
        exchange.ended_at
        for exchange in call.exchanges
        if exchange.ended_at is not None
        and isinstance(exchange.end, Response)
        and exchange.end.own
        and exchange.end.whole
        and exchange.end.recognisable
        and exchange.end.status in (200, 404)
    ]
    since = max(good, default=call.started)
    if _ended(call) < since + history.simulation.retry_timeout - ROUNDING:
        return f"it gave up {_ended(call) - since:.1f} s after the last good response: {call.error!r}"
    return None


def _single_outcome(history: History, call: Call) -> str | None:
    return None if call.error is None else _refusal(history, call)


def _cancel_outcome(history: History, call: Call) -> str | None:
    simulation = history.simulation
    job = simulation.server.jobs[call.about]
    if call.error is None:
        done = job.cancels or job.finished(_ended(call))
        accepted = any(
            isinstance(exchange.end, Response)
            and (exchange.end.status < 300 or exchange.end.status in (409, 410))
            for exchange in call.exchanges
        )
        return None if done or accepted else "it returned, but the job was not cancelled"
    if isinstance(call.error, CancelUnsupportedError):
        last = call.exchanges[-1].end if call.exchanges else None
        own = isinstance(last, Response) and last.own
        if own and last.status == 404 and _ended(call) < call.grace_ends:
            return "it gave up a job that may turn up"
        return None if own and last.status in (404, 405, 501) else f"no route to cancel, by {last}"
    return _refusal(history, call)


_OUTCOMES: dict[str, Callable[[History, Call], str | None]] = {
    "job": _job_outcome,
    "wait": _wait_outcome,
    "cancel": _cancel_outcome,
    "status": _single_outcome,
    "trace": _single_outcome,
}


def cancelled_by_a_person_only(history: History) -> Iterator[str]:
    """No job is cancelled that nobody ended."""
    asked = {call.about for call in history.calls if call.kind == "cancel"}
    for job in history.simulation.server.jobs.values():
        if job.cancels and job.id not in asked:
            yield f"{job.id} was cancelled, and nobody asked for that"


def poll_rate_within_limit(history: History) -> Iterator[str]:
    """The polls of a process are never more than its limit in any second."""
    most = max(1, math.ceil(history.simulation.max_polls_per_second))
    for process in history.simulation.processes:
        polls = sorted(
            exchange.sent_at
            for call in history.calls
            if call.kind == "wait" and call.process == process.number
            for exchange in call.exchanges
        )
        for first, last in zip(polls, polls[most:], strict=False):
            if last - first < 1.0 - ROUNDING:
                seen = sum(first <= poll < first + 1.0 - ROUNDING for poll in polls)
                yield f"{seen} polls in a second at a limit of {most}"
                break


def every_wait_polls_soon(history: History) -> Iterator[str]:
    """The first poll of a wait comes as soon as the limit allows, however many have waited before."""
    limit = history.simulation.max_polls_per_second
    waits = [call for call in history.calls if call.kind == "wait"]
    if any(_complaint(exchange) for call in waits for exchange in call.exchanges):
        return
    for call in waits:
        others = [
            one
            for one in waits
            if one is not call and one.started <= call.started and _ended(one) >= call.started
        ]
        recent = sum(
            call.started - 1.0 <= exchange.sent_at <= call.started
            for one in waits
            for exchange in one.exchanges
        )
        allowed = (2 * len(others) + recent + 1) / limit + 2 * _TICK
        if call.ended is None:
            continue
        first = call.exchanges[0].sent_at if call.exchanges else math.inf
        left = min(_ended(call), call.started + (math.inf if call.timeout is None else call.timeout))
        if min(first, left) > call.started + allowed + ROUNDING:
            yield (
                f"the first poll of a wait came after {first - call.started:.1f} s, beside {len(others)} "
                f"others and after {recent} polls, at a limit of {limit:g}"
            )


def _complaint(exchange: Exchange) -> bool:
    return isinstance(exchange.end, Response) and exchange.end.status == 429


def ends_are_seen_soon(history: History) -> Iterator[str]:
    """Without a fault, the end of a job is seen within a tenth of its age, and no result is lost."""
    simulation = history.simulation
    if simulation.harm or simulation.server.trouble or not simulation.habits.recognisable:
        return
    jobs = simulation.server.jobs
    waits = [call for call in history.calls if call.kind == "wait" and call.about in jobs]
    for call in waits:
        job = jobs[call.about]
        if call.ended is None or isinstance(call.error, asyncio.CancelledError):
            continue
        known_at = job.created_at + simulation.habits.polling_lag
        end = max(min(job.ends_at, job.cancelled_at), known_at, call.started)
        age = end - min(job.created_at, call.grace_ends - simulation.not_found_grace)
        pause = call.poll_interval or min(max(1.0, age * 0.1), 60.0) * 1.1
        due = end + pause + 2 * len(waits) / simulation.max_polls_per_second + 5 * _TICK
        if isinstance(call.error, JobTimeoutError):
            if call.timeout is not None and due < call.started + call.timeout:
                yield f"{job.id} had ended {call.started + call.timeout - end:.1f} s before the deadline"
        elif call.error is None and call.ended > due:
            yield f"the end of {job.id} was seen after {call.ended - end:.1f} s"


def the_healthy_case_works(history: History) -> Iterator[str]:
    """Where nothing goes wrong, each submission makes its job, and is one request."""
    simulation = history.simulation
    if simulation.harm or simulation.server.trouble or simulation.habits.accepted_id not in READABLE_IDS:
        return
    if len(simulation.processes) > 1:
        return
    for call in history.calls:
        if call.kind == "job" and call.ended is not None and call.error is not None:
            if isinstance(call.error, asyncio.CancelledError | SubmissionUnknownError):
                continue
            yield f"job() raised {call.error!r}"
    for submission, sent in history.by_submission.items():
        calls = [call for call in history.calls if call.kind == "job" and call.about == submission]
        if len(calls) == 1 and calls[0].ended is not None and (len(sent) > 1 or len(calls[0].exchanges) > 1):
            yield f"submission {submission} took {len(calls[0].exchanges)} requests"


INVARIANTS: tuple[Callable[[History], Iterator[str]], ...] = (
    one_job_per_submission,
    nothing_sent_without_proof,
    never_none_when_there_is_one,
    every_error_is_typed,
    every_call_ends,
    outcomes_are_true,
    cancelled_by_a_person_only,
    poll_rate_within_limit,
    every_wait_polls_soon,
    ends_are_seen_soon,
    the_healthy_case_works,
)


NAMED = re.compile(
    r"left running|may still be running|not known whether|not cancelled|replaced \(unknown|lookup failed|"
    r"HTTP 404 (JOB|RUN)_NOT_FOUND"
)
"""What a line says that names a job which may be running."""

_UNKNOWN = re.compile(r"not known whether")
"""What a line says of a submission that a later try has to ask for, and must not replace."""

UNEXPLAINED = re.compile(r"left running \((only the worker is stopping|a rerun of|\d+ jobs)")
"""What a line says of a job that nobody has ended: after a person's act, that is no reason."""


def let_go(
    simulation: Simulation,
    lines: Sequence[tuple[float, str]],
    job: ServerJob,
    until: float,
    *,
    by_a_person: bool = False,
    remembered: bool = False,
) -> bool:
    """Tell whether a job was told to end, or a line names it, or its submission, as one that may run.

    Args:
        simulation: The world.
        lines: What was logged or raised, with the time.
        job: The job.
        until: Until when.
        by_a_person: Whether a person wanted it to end, so that a line has to say why it does not.
        remembered: Whether a later try can know of its submission, so that it may not replace it.
    """
    ids = simulation.server.ids(job)
    told = any(
        exchange.kind == "cancel" and exchange.job_id in ids and exchange.sent_at <= until
        for exchange in simulation.network.exchanges
    )
    names = re.compile(rf"\b({'|'.join(map(re.escape, (*ids, job.exchange.submission)))})\b")
    return told or any(
        moment <= until
        and NAMED.search(line)
        and not (by_a_person and UNEXPLAINED.search(line))
        and not (remembered and _UNKNOWN.search(line))
        and names.search(line)
        for moment, line in lines
    )
