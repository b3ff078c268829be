"""The distinct states that schedules reach: what a caller sees of a request, and what is true then."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Set
from typing import TypeAlias

from tests.simulation.invariants import History
from tests.simulation.network import End, Exchange
from tests.simulation.pages import Response
from tests.simulation.process import Call

State: TypeAlias = tuple[str | int | bool, ...]

_MANY = 3


class Growth:
    """How many states are reached by how many schedules.

    Attributes:
        schedules: The schedules.
        reached: The states.
    """

    STEP = 100_000

    def __init__(self) -> None:
        self.schedules = 0
        self.reached: set[State] = set()
        self._counts = [(0, 0)]

    def add(self, schedules: int, states: Set[State]) -> None:
        """Take what some more schedules reached."""
        self.schedules += schedules
        self.reached |= states
        self._counts.append((self.schedules, len(self.reached)))

    def __str__(self) -> str:
        """Say what each step has added, and what the last one says of those to come."""
        states = len(self.reached)
        step = self.STEP if self.schedules >= 2 * self.STEP else max(1, self.schedules // 10)
        counts = [self._count(end) for end in range(0, self.schedules + 1, step)]
        added = [after - before for before, after in itertools.pairwise(counts)]
        late = added[-1] / max(states, 1) if added else 1.0
        verdict = "a plateau" if late < 0.001 else "no plateau yet"
        return (
            f"{states} states by {self.schedules} schedules; new ones per {step} schedules: "
            f"{', '.join(map(str, added))}; {late:.2%} of all in the last: {verdict}"
        )

    def _count(self, schedules: int) -> int:
        return max(states for done, states in self._counts if done <= schedules)


def states(history: History) -> Iterator[State]:
    """Yield the states of one schedule."""
    for call in history.calls:
        before = "begins"
        for number, exchange in enumerate(call.exchanges):
            seen = _seen(exchange.end)
            yield _state(history, call, exchange, before, seen, number)
            before = seen
        outcome = "died" if call.ended is None else type(call.error or call.result).__name__
        yield (call.kind, outcome, before, min(call.process, _MANY), min(len(call.exchanges), _MANY))


def wire_states(history: History) -> Iterator[State]:
    """Yield the states of a schedule that is known by its requests alone."""
    before = "begins"
    for exchange in history.exchanges:
        seen = _seen(exchange.end)
        sent = history.by_submission.get(exchange.submission, ())
        jobs = sum(job.created_at <= exchange.sent_at for one in sent for job in one.jobs)
        yield (exchange.kind, before, seen, min(exchange.process, _MANY), min(len(sent), _MANY), min(jobs, 2))
        before = f"{exchange.kind} {seen}"


def _state(history: History, call: Call, exchange: Exchange, before: str, seen: str, number: int) -> State:
    ended_at = exchange.sent_at if exchange.ended_at is None else exchange.ended_at
    sent = history.by_submission.get(exchange.submission, ())
    jobs = sum(job.created_at <= ended_at for one in sent for job in one.jobs)
    doubts = [
        one.ended_at
        for one in sent
        if one is not exchange and not one.surely_not_processed and one.ended_at is not None
    ]
    settled = bool(doubts) and max(doubts) + history.simulation.recovery_timeout <= exchange.sent_at
    return (
        call.kind,
        exchange.kind,
        before,
        seen,
        min(sum(one.number < exchange.number for one in sent), _MANY),
        min(jobs, 2),
        min(len(doubts), 2),
        settled,
        min(call.process, _MANY),
        number == 0,
    )


def _seen(end: End | None) -> str:
    if not isinstance(end, Response):
        return end or "nobody there"
    return f"{end.status}{'' if end.own else ' foreign'}{' proof' if end.proves_absence else ''}"
