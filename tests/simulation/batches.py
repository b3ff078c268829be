"""Batches: one input after the other, in shared sessions, by processes that die and begin again."""

from __future__ import annotations

import asyncio
import math
import uuid
from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from decimal import Decimal

from noukai_core import JobOutcome, JobRequest, LedgerEntry
from noukai_core._engine.effects import Sleep
from noukai_core.batch import SUBMITTING, JobInput, OutcomeState
from tests.simulation.batch_driver import SimulatedBatch
from tests.simulation.choices import Choices
from tests.simulation.effect import Effect
from tests.simulation.process import Process, StoreError, Task
from tests.simulation.server import FLOW
from tests.simulation.simulation import Simulation

BATCH = uuid.UUID(int=7)

_MOST_TRIES = 3

_MOMENTS = (0.0, 0.01, 0.03, 0.05, 1.0, 5.0, 40.0, 200.0)
"""Seconds: the request is there after 0.02, its response back after 0.04."""

_KEPT = (OutcomeState.COMPLETED, OutcomeState.FAILED, OutcomeState.CANCELLED)


class WeakLedger:
    """A ledger that keeps no more than its contract demands: what is not durable dies with the process.

    Args:
        durable: What survives.
        history: All that ever did.
        kept: The inputs whose outcomes the user has.
        choices: Decides how long a write takes, and whether it fails.
        lazy: Whether entries become durable as late as is allowed.
        fails: How probable it is that a write fails.
    """

    def __init__(
        self,
        durable: dict[int, LedgerEntry],
        history: list[LedgerEntry],
        kept: set[int],
        choices: Choices,
        *,
        lazy: bool,
        fails: float,
    ) -> None:
        self._durable = durable
        self._history = history
        self._kept = kept
        self._choices = choices
        self._lazy = lazy
        self._fails = fails
        self._pending: defaultdict[str, dict[int, LedgerEntry]] = defaultdict(dict)

    def read(self) -> Mapping[int, LedgerEntry]:
        # Of what the user has kept, no more than that is known.
        kept = {
            index: replace(self._durable[index], kept=True, job_id=None)
            for index in self._kept
            if index in self._durable
        }
        return {**self._durable, **kept}

    async def write(self, entry: LedgerEntry) -> None:
        end = self._choices.pick("end of a write", ("written", "failed", "written, but failed"), self._fails)
        if end != "failed":
            self._keep(entry)
        # The process may die with the entry written.
        await Effect(Sleep(self._choices.pick("slowness of the ledger", (0.001, 2.0), self._fails)))
        if end != "written":
            raise StoreError("the ledger failed")

    def sizes(self, sessions: Iterable[str]) -> dict[str, int]:
        """Return how many jobs each session has, finished or not."""
        pending = [entry for entries in self._pending.values() for entry in entries.values()]
        entries = [*self._history, *pending]
        return {
            session: len({entry.job_id for entry in entries if entry.session_id == session} - {None})
            for session in sessions
        }

    def _keep(self, entry: LedgerEntry) -> None:
        if self._lazy and entry.state != SUBMITTING:
            self._pending[entry.session_id][entry.index] = entry
            return
        self._history += [*self._pending[entry.session_id].values(), entry]
        self._durable.update(self._pending.pop(entry.session_id, {}))
        self._durable[entry.index] = entry


@dataclass
class Try:
    """One process, and what it saw of the batch.

    Attributes:
        process: The number of the process.
        spent_usd: What it was told that earlier tries have spent.
        outcomes: What it was given, each with the time.
        ended_at: When the batch ended by itself.
        detach: Whether it leaves jobs running.
        kept: The inputs whose outcomes the user had before.
        detached: Whether it did.
        cancelled_at: When a person ended it.
        jobs_cancelled_at: When its jobs had been cancelled after that.
        error: What it ended with.
    """

    process: int
    spent_usd: Decimal
    detach: bool
    kept: frozenset[int]
    outcomes: list[tuple[float, JobOutcome]] = field(default_factory=list)
    ended_at: float | None = None
    detached: bool = False
    cancelled_at: float | None = None
    jobs_cancelled_at: float | None = None
    error: BaseException | None = None


@dataclass(frozen=True)
class SessionWait:
    """What a wait for the sessions of a batch returned.

    Attributes:
        began_at: When it began.
        ended_at: When it ended.
        sizes: The sessions, and how many unfinished jobs each had.
        left: How many had not ended, by what it returned.
    """

    began_at: float
    ended_at: float
    sizes: Mapping[str, int]
    left: int


class Batching:
    """A batch that is run again, with what its ledger has kept, until it has ended by itself.

    Attributes:
        simulation: The world.
        inputs: How many inputs there are.
        most_jobs: How many jobs run at the same time.
        lazy: Whether the ledger keeps as little as it may.
        ledger_fails: How probable it is that the ledger is slow or fails.
        in_order: Whether outcomes come in their order.
        timeout: Seconds for each job.
        cancels: Whether a job that takes longer is cancelled.
        most_failures: After how many failures nothing more is submitted.
        most_usd: After what cost.
        users_sessions: Whether every second input names a session of the user's.
        kept: The inputs whose outcomes the user has kept, and needs no more.
        tries: The processes that ran the batch.
        session_waits: The waits for jobs that a try has left running.
        lines: What was logged, with the time.
        slowness: How long the user takes over an outcome, in seconds, while the batch stands still.
    """

    def __init__(self, simulation: Simulation) -> None:
        self.simulation = simulation
        self._choices = choices = simulation.choices
        self._durable: dict[int, LedgerEntry] = {}
        self._history: list[LedgerEntry] = []
        self._spent_usd = Decimal(0)
        self.most_jobs = choices.pick("max_concurrency", (4, 1, 20))
        self.lazy = choices.pick("lazy ledger", (False, True), 0.5)
        self.ledger_fails = choices.pick("failures of the ledger", (0.0, 0.05, 0.2), 0.3)
        self._keeps = choices.happens("the user keeps outcomes", 0.3)
        self.inputs = 1 + choices.index("inputs", 12)
        self.in_order = choices.pick("in_order", (False, True), 0.3)
        self.timeout = choices.pick("timeout of a job", (None, 0.5, 3.0, 30.0), 0.3)
        self.cancels = choices.pick("cancel_on_timeout", (False, True, "asked"), 0.5)
        self.most_failures = choices.pick("stop_after_failures", (None, 1, 3), 0.2)
        self.most_usd = choices.pick("max_cost_usd", (None, "0.03", "0.05"), 0.2)
        self.users_sessions = choices.happens("sessions of the user", 0.15)
        self.kept: set[int] = set()
        self.tries: list[Try] = []
        self.session_waits: list[SessionWait] = []
        self.lines: list[tuple[float, str]] = []
        simulation.server.traces = choices.pick("traces", ("costs", "no costs", "forbidden"), 0.2)
        simulation.max_polls_per_second = choices.pick("limit of the polls", (50.0, 5.0, 1.0), 0.3)
        simulation.network.crosses_submissions = choices.pick("a pool out of step", (False, True), 0.3)
        self.slowness = choices.pick("slowness of the consumer", (0.0, 5.0, 50.0, 700.0), 0.15)
        if self.slowness:  # what that does to deadlines shows where jobs wait for their slots
            self.timeout = choices.pick("timeout beside it", (self.timeout, 30.0, 52.0), 0.8)
            simulation.max_polls_per_second = choices.pick("limit beside it", (50.0, 5.0, 1.0), 0.8)
        self._changes = choices.pick("changes of the inputs", (0.0, 0.5), 0.3)
        self._ended_by_a_person = False
        begins = choices.pick("beginning of an outage", (math.inf, 0.0, 0.5, 5.0), 0.2)
        if math.isfinite(begins):
            now = simulation.clock.now
            lasts = choices.pick("length of the outage", (5.0, 60.0, 1000.0))
            simulation.network.outage = (now + begins, now + begins + lasts)
            self.inputs *= 4

    def begin(self) -> None:
        """Start the first try."""
        if self._choices.happens("a person ends the batch", 0.25):
            when = self._choices.pick("when a person does", _MOMENTS)
            self.simulation.clock.after(when, self._end_by_a_person)
        self._begin()

    def _begin(self) -> None:
        simulation, choices = self.simulation, self._choices
        process = simulation.process()
        process.queue_wait = lambda: 0.0  # what has waited for its turn does not ask again whether it may go
        last = len(self.tries) + 1 == _MOST_TRIES
        detach = not last and not self.in_order and choices.happens("a detached try", 0.3)
        this = Try(process.number, self._spent_usd, detach, frozenset(self.kept))
        self.tries.append(this)
        if not last and choices.happens("death of a process", 0.6):
            self._plan_its_death(process, this)
        task = process.start("the batch", self._run(process, this), lambda task: self._note(task, this))
        if self._ended_by_a_person:
            task.interrupt()

    def _plan_its_death(self, process: Process, this: Try) -> None:
        number = 1 + self._choices.index("effect at which it dies", 60)
        delay = self._choices.pick("seconds after it", (0.0, 0.01, 0.03, 5.0))

        def die() -> None:
            if process.alive and this.ended_at is None and this.jobs_cancelled_at is None:
                self.simulation.story.tell("process {0} dies", process.number)
                process.kill()
                self._begin_later()

        def on_effect(count: int, _: object) -> None:
            if count == number:
                self.simulation.clock.after(delay, die)

        process.on_effect = on_effect

    def _begin_later(self) -> None:
        pause = self._choices.pick("pause before the next try", (1.0, 30.0, 300.0))
        self.simulation.clock.after(pause, self._begin)

    def _end_by_a_person(self) -> None:
        self._ended_by_a_person = True
        self.simulation.story.tell("a person ends the batch")
        process = self.simulation.processes[-1]
        if process.number != self.tries[-1].process:
            process.kill()  # a triggerer, whose trigger is told to end
            self._begin()
        elif process.alive and process.tasks:
            process.tasks[0].interrupt()

    def _note(self, task: Task, this: Try) -> None:
        this.error = task.error
        if isinstance(task.error, StoreError) and len(self.tries) < _MOST_TRIES:
            task.process.kill()
            self._begin_later()

    async def _run(self, process: Process, this: Try) -> None:
        simulation = self.simulation
        ledger = WeakLedger(
            self._durable,
            self._history,
            self.kept,
            self._choices,
            lazy=self.lazy,
            fails=self.ledger_fails,
        )
        batch = self._batch(process, this, ledger)
        try:
            await Effect(Sleep(0.001))  # a person may have ended it before it begins
            async for outcome in batch:
                simulation.story.tell("process {0}: {1!r}", process.number, outcome)
                this.outcomes.append((simulation.clock.now, outcome))
                self._keep(outcome)
                if self.slowness:
                    await Effect(Sleep(self.slowness))
        except asyncio.CancelledError:
            this.cancelled_at = simulation.clock.now
            await batch.cancel("a person")
            this.jobs_cancelled_at = simulation.clock.now
            return
        this.ended_at = simulation.clock.now
        running = self.inputs - len(self.kept | {outcome.index for _, outcome in this.outcomes})
        if this.detach and running:
            simulation.story.tell("process {0}: {1} jobs are left running", process.number, running)
            this.detached = True
            if self._choices.happens("the sessions are waited for", 0.5):
                self._wait_for_sessions(ledger.sizes(batch.sessions))
            else:
                self._begin_later()

    def _wait_for_sessions(self, sizes: Mapping[str, int]) -> None:
        """Wait for the jobs in another process, as a triggerer does, before the next try begins."""
        process = self.simulation.process()
        until = self._choices.pick("how few jobs are worth a try", (0, 1, 3))
        timeout = self._choices.pick("timeout of that wait", (None, 2.0, 60.0), 0.5)

        async def wait() -> None:
            left = await process.flow.wait_for_sessions(sizes, until=until, timeout=timeout)
            self.session_waits.append(SessionWait(process.began_at, self.simulation.clock.now, sizes, left))

        process.start(
            "the wait for sessions", wait(), lambda _: None if self._ended_by_a_person else self._begin()
        )

    def _batch(self, process: Process, this: Try, ledger: WeakLedger) -> SimulatedBatch:
        cancels: object = self.cancels
        if cancels == "asked":
            cancels = lambda: self._choices.pick("a job is cancelled", (True, False))  # noqa: E731
        batch: object = process.flow.jobs(
            [self._input(index) for index in range(self.inputs)],
            ledger=ledger,
            batch_id=str(BATCH),
            max_concurrency=self.most_jobs,
            in_order=self.in_order,
            detach=this.detach,
            trace=self.most_usd is not None,
            timeout=self.timeout,
            cancel_on_timeout=cancels,  # type: ignore[arg-type]
            stop_after_failures=self.most_failures,
            max_cost_usd=self.most_usd,
            spent_usd=this.spent_usd,
        )
        assert isinstance(batch, SimulatedBatch)
        batch.stands_still = self.slowness > 0
        return batch

    def _input(self, index: int) -> JobInput:
        if len(self.tries) > 1 and self._choices.happens("an input is invalid in a rerun", self._changes):
            return self._choices.pick(
                "invalid input", ({"unknown": 1}, {"message": 7}, JobRequest("another/of/flow"))
            )
        if self.users_sessions and index % 2:
            session = str(uuid.uuid5(BATCH, "the user's"))
            traced = self.most_usd is not None
            return JobRequest(FLOW, message=f"input {index}", session_id=session, trace=traced)
        return f"input {index}"

    def _keep(self, outcome: JobOutcome) -> None:
        """Do what the owner of a ledger does: keep what has ended, and count what it cost."""
        if self._keeps and outcome.state in _KEPT:
            self.kept.add(outcome.index)
            self._spent_usd += outcome.cost_usd or 0
