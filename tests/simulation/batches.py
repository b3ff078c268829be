"""Batches: one input after the other, in shared sessions, by processes that die and begin again."""

from __future__ import annotations

import uuid
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping

from noukai_core import JobOutcome, LedgerEntry, NoukaiError
from noukai_core._engine import batch as engine
from noukai_core._engine import lanes
from noukai_core.batch import SUBMITTING
from tests.simulation import core_state
from tests.simulation.choices import Choices, Decision
from tests.simulation.clock import Clock
from tests.simulation.explore import LIVING, Outcome
from tests.simulation.invariants import History, Violation, one_job_per_submission
from tests.simulation.network import Exchange
from tests.simulation.pages import ANOTHER_REQUEST, Response
from tests.simulation.process import Process, Task
from tests.simulation.server import ServerJob
from tests.simulation.simulation import Simulation

_BATCH = uuid.UUID(int=7)
_MOST_TRIES = 3
_RESUBMISSIONS = 6

_FEW_JOBS_IN_A_SESSION = 4
_JOBS_BEFORE_NEXT_LANE = 2


class WeakLedger:
    """A ledger that keeps no more than its contract demands: what is not durable dies with the process."""

    def __init__(self, durable: dict[int, LedgerEntry], *, lazy: bool) -> None:
        self._durable = durable
        self._lazy = lazy
        self._pending: defaultdict[str, dict[int, LedgerEntry]] = defaultdict(dict)

    def read(self) -> Mapping[int, LedgerEntry]:
        return dict(self._durable)

    def write(self, entry: LedgerEntry) -> None:
        if self._lazy and entry.state != SUBMITTING:
            self._pending[entry.session_id][entry.index] = entry
            return
        self._durable.update(self._pending.pop(entry.session_id, {}))
        self._durable[entry.index] = entry


class Batching:
    """A batch that is run again, with what its ledger has kept, until it has ended by itself.

    Attributes:
        inputs: How many inputs there are.
        in_order: Whether outcomes come in their order.
        most: How many jobs run at the same time.
        outcomes: What each try yielded.
        ended: The tries that ended by themselves.
    """

    def __init__(self, simulation: Simulation) -> None:
        self._simulation = simulation
        self._choices = choices = simulation.choices
        self._durable: dict[int, LedgerEntry] = {}
        self.inputs = 1 + choices.index("inputs", 12)
        self.most = choices.pick("max_concurrency", (4, 1, 20))
        self.in_order = choices.pick("in_order", (False, True), 0.3)
        self.lazy = choices.pick("lazy ledger", (False, True), 0.5)
        simulation.network.crosses_submissions = choices.pick("a pool out of step", (False, True), 0.3)
        simulation.network.crosses_sessions = False  # which no client can notice
        self.outcomes: list[list[JobOutcome]] = []
        self.ended: list[int] = []
        self._detached: list[int] = []
        self.errors: list[BaseException] = []

    def begin(self) -> None:
        """Start the first try, or the next."""
        simulation, choices = self._simulation, self._choices
        process = simulation.process()
        number = len(self.outcomes)
        self.outcomes.append([])
        last = number + 1 == _MOST_TRIES
        detach = not last and not self.in_order and choices.happens("a detached try", 0.3)
        dies = not last and choices.happens("death of a process", 0.6)
        if dies:
            effect = 1 + choices.index("effect at which it dies", 60)
            delay = choices.pick("seconds after it", (0.0, 0.01, 0.03, 5.0))

            def die() -> None:
                if process.alive and number not in (*self.ended, *self._detached):
                    simulation.story.tell("process {0} dies", process.number)
                    process.kill()
                    self._begin_later()

            def on_effect(count: int, _: object) -> None:
                if count == effect:
                    simulation.clock.after(delay, die)

            process.on_effect = on_effect
        process.start("the batch", self._run(process, number, detach), self._note)

    def _begin_later(self) -> None:
        pause = self._choices.pick("pause before the next try", (1.0, 30.0, 300.0))
        self._simulation.clock.after(pause, self.begin)

    def _note(self, task: Task) -> None:
        if task.error is not None:
            self.errors.append(task.error)

    async def _run(self, process: Process, number: int, detach: bool) -> None:
        ledger = WeakLedger(self._durable, lazy=self.lazy)
        batch = process.flow.jobs(
            (f"input {index}" for index in range(self.inputs)),
            ledger=ledger,
            batch_id=str(_BATCH),
            max_concurrency=self.most,
            in_order=self.in_order,
            detach=detach,
        )
        async for outcome in batch:
            self._simulation.story.tell("process {0}: {1!r}", process.number, outcome)
            self.outcomes[number].append(outcome)
        running = self.inputs - len(self.outcomes[number])
        if detach and running:
            self._simulation.story.tell("process {0}: {1} jobs are left running", process.number, running)
            self._detached.append(number)
            self._begin_later()
        else:
            self.ended.append(number)


def violations(history: History, scenario: Batching) -> Iterator[Violation]:
    """Yield what does not hold of a schedule that is over."""
    for what in one_job_per_submission(history):
        yield Violation("one_job_per_submission", what)
    simulation = history.simulation
    indexes = {
        str(uuid.uuid5(_BATCH, f"{index}:{again}")): (index, again)
        for index in range(scenario.inputs)
        for again in range(_RESUBMISSIONS)
    }
    for error in scenario.errors:
        yield Violation("every_batch_ends_well", repr(error))
    last = len(scenario.outcomes) - 1
    if last not in scenario.ended and not scenario.errors:
        yield Violation("every_batch_ends", f"try {last + 1} has not ended: {len(scenario.outcomes[last])}")
    for number, outcomes in enumerate(scenario.outcomes):
        seen = Counter(outcome.index for outcome in outcomes)
        if any(count > 1 for count in seen.values()):
            yield Violation("one_outcome_for_each_input", f"try {number + 1}: {seen}")
        if number in scenario.ended and set(seen) != set(range(scenario.inputs)):
            yield Violation("one_outcome_for_each_input", f"try {number + 1}: {sorted(seen)}")
        if scenario.in_order and [one.index for one in outcomes] != sorted(seen):
            yield Violation("outcomes_in_order", f"try {number + 1}: {[one.index for one in outcomes]}")
        if any(len(exchange.jobs) > 1 for exchange in history.exchanges):
            continue  # a network that sends a request twice makes a job that nobody asked for
        for outcome in outcomes:
            if wrong := _wrong(outcome, history, indexes):
                yield Violation("outcomes_are_true", f"try {number + 1}: {wrong}: {outcome!r}")
    duplicated = any(len(exchange.jobs) > 1 for exchange in history.exchanges)
    if simulation.server.lists_in_time and not duplicated:
        yield from _no_second_job(simulation, indexes)


def _wrong(outcome: JobOutcome, history: History, indexes: Mapping[str, tuple[int, int]]) -> str | None:
    if outcome.error is not None and not isinstance(outcome.error, NoukaiError):
        return "an error of another kind"
    if outcome.job_id is None:
        return None if outcome.state in ("rejected", "unknown", "not_submitted") else "no job"
    job = history.simulation.server.job_of(outcome.job_id)
    assert job is not None
    if indexes[job.key][0] != outcome.index:
        unknown = outcome.output is None and not history.simulation.habits.recognisable
        if unknown or _crossed_unseen(outcome.index, job, history, indexes):
            return None
        return f"the job is that of input {indexes[job.key][0]}"
    if outcome.state in ("completed", "failed", "cancelled"):
        return None if job.final == outcome.state else f"the job ended as {job.final}"
    return None


def _crossed_unseen(
    index: int, job: ServerJob, history: History, indexes: Mapping[str, tuple[int, int]]
) -> bool:
    """Whether an input received the response to another one, before its process knew whose job that is."""
    return any(
        isinstance(exchange.end, Response)
        and exchange.end.origin == ANOTHER_REQUEST
        and indexes[exchange.submission][0] == index
        and not _knew(job, exchange)
        for exchange in history.exchanges
        if exchange.kind == "submit"
    )


def _knew(job: ServerJob, exchange: Exchange) -> bool:
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
    )


def _no_second_job(simulation: Simulation, indexes: Mapping[str, tuple[int, int]]) -> Iterator[Violation]:
    """An input has a second job only when the one before did not complete."""
    by_input: defaultdict[int, list[ServerJob]] = defaultdict(list)
    for job in simulation.server.jobs.values():
        by_input[indexes[job.key][0]].append(job)
    for index, jobs in by_input.items():
        latest = max(indexes[job.key][1] for job in jobs)
        for earlier in jobs:
            if indexes[earlier.key][1] < latest and earlier.final == "completed":
                yield Violation("no_second_job", f"input {index} has {[job.id for job in jobs]}")


def run(seed: int, replayed: Mapping[Decision, int] | None = None, *, told: bool = False) -> Outcome:
    """Run one schedule, inside of `virtual_time`."""
    choices = Choices(seed, replayed)
    clock = Clock()
    LIVING.clock, LIVING.jitter = clock, choices.jitter
    core_state.forget(choices.jitter.random())
    sizes = lanes.MAX_JOBS, engine.JOBS_BEFORE_NEXT_LANE
    lanes.MAX_JOBS, engine.JOBS_BEFORE_NEXT_LANE = _FEW_JOBS_IN_A_SESSION, _JOBS_BEFORE_NEXT_LANE
    try:
        simulation = Simulation(choices, clock, told=told)
        scenario = Batching(simulation)
        scenario.begin()
        simulation.run()
        simulation.dispose()
    finally:
        lanes.MAX_JOBS, engine.JOBS_BEFORE_NEXT_LANE = sizes
    history = History(simulation)
    return Outcome(
        seed,
        choices.made,
        list(violations(history, scenario)),
        set(),
        simulation.story.lines,
        [choices.described.get(decision, decision[0]) for decision in choices.made],
    )
