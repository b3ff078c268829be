"""A process of the user: its coroutines run on virtual time, and it dies or is interrupted at any effect."""

from __future__ import annotations

import asyncio
import math
from collections.abc import AsyncGenerator, Callable, Coroutine, Iterable
from dataclasses import dataclass
from typing import Any, TypeVar

from noukai_core import AsyncFlow, JobStatus
from noukai_core._api import endpoints
from noukai_core._api.endpoints import Call as ApiCall
from noukai_core._api.parsing import HttpResponse
from noukai_core._async_batch import perform_all
from noukai_core._engine.batch import Batch
from noukai_core._engine.effects import Effects, Emit, Send, Sleep
from noukai_core._options import ClientOptions
from noukai_core.batch import BatchLedger
from noukai_core.errors import TransientError
from tests.simulation.batch_driver import SimulatedBatch
from tests.simulation.clock import Clock
from tests.simulation.effect import Effect
from tests.simulation.network import NOT_SENT, End, Exchange, Network
from tests.simulation.pages import Response
from tests.simulation.server import FLOW

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class StoreWrite:
    """Write into the user's store, which survives the process."""

    key: str
    value: Any


class StoreError(Exception):
    """The user's store failed."""


class Runner:
    """In the place of the client's driver: hands the effects of the core to the task that runs them."""

    def __init__(
        self,
        key: str,
        start: Callable[[str, Coroutine[Any, Any, Any]], Task],
        clock: Callable[[], float],
    ) -> None:
        self.key = key
        self._start = start
        self._clock = clock

    def jobs(
        self, batch: Batch, inputs: Iterable[Any], ledger: BatchLedger, *, cancel_on_close: bool
    ) -> SimulatedBatch:
        assert not cancel_on_close
        return SimulatedBatch(batch, inputs, ledger, self._start, self._clock)

    async def run(self, effects: Effects[T]) -> T:
        return await perform_all(effects, Effect)

    async def show(self, effects: Effects[Any]) -> AsyncGenerator[JobStatus, None]:
        outcome: Any = None
        try:
            while True:
                try:
                    effect = effects.send(outcome)
                except StopIteration:
                    return
                if isinstance(effect, Emit):
                    yield effect.status
                outcome = await Effect(effect)
        finally:
            effects.close()

    async def aclose(self) -> None:
        pass


class Call:
    """One call of the client's interface.

    Attributes:
        kind: `job`, `wait`, `status`, `cancel`, `find` or `trace`.
        process: The process.
        about: The submission's id, or the job's.
        started: When it began.
        timeout: Seconds until its deadline.
        ended: When it ended; `None` when its process died.
        result: What it returned.
        error: What it raised.
        exchanges: Its requests.
        grace_ends: Until when a job that is not known may still turn up.
        poll_interval: The fixed pause between its polls.
    """

    __slots__ = (
        "about",
        "ended",
        "error",
        "exchanges",
        "grace_ends",
        "kind",
        "poll_interval",
        "process",
        "result",
        "started",
        "timeout",
    )

    def __init__(
        self,
        kind: str,
        process: int,
        about: str,
        started: float,
        timeout: float | None,
        grace_ends: float,
        poll_interval: float | None,
    ) -> None:
        self.kind = kind
        self.process = process
        self.about = about
        self.started = started
        self.timeout = timeout
        self.grace_ends = grace_ends
        self.poll_interval = poll_interval
        self.ended: float | None = None
        self.result: Any = None
        self.error: BaseException | None = None
        self.exchanges: list[Exchange] = []


class Task:
    """A coroutine that runs in a process.

    Attributes:
        process: Where it runs.
        name: What the story calls it.
        finished: Whether it has ended, in whatever way.
        error: What it ended with, if that was an error.
    """

    def __init__(
        self,
        process: Process,
        name: str,
        coroutine: Coroutine[Any, Any, Any],
        on_end: Callable[[Task], None] | None,
    ) -> None:
        self.process = process
        self.name = name
        self._coroutine = coroutine
        self._exchange: Exchange | None = None
        self._turn = 0
        self.finished = False
        self.error: BaseException | None = None
        self.result: Any = None
        self._on_end = on_end
        self.call: Call | None = None

    def step(self, value: Any = None, error: BaseException | None = None) -> None:
        """Go on with what an effect came to."""
        process = self.process
        if self.finished or not process.alive:
            return
        process.enter()
        self._exchange = None
        while True:
            self._turn += 1
            try:
                effect = self._coroutine.throw(error) if error is not None else self._coroutine.send(value)
            except StopIteration as end:
                self._end(None, end.value)
                return
            except (Exception, asyncio.CancelledError) as raised:
                self._end(raised, None)
                return
            error = None
            process.effects += 1
            if process.on_effect is not None:
                process.on_effect(process.effects, effect)
                if not process.alive or self.finished:
                    return
            if isinstance(effect, Emit) or (isinstance(effect, Sleep) and effect.seconds <= 0):
                value = None
                continue
            self._perform(effect, self._turn)
            return

    def interrupt(self) -> None:
        """Cancel it, as `asyncio` or Ctrl-C do."""
        if self.finished:
            return
        if self._exchange is not None:
            self.process.network.abandon(self._exchange)
        self.step(error=asyncio.CancelledError())

    def kill(self) -> None:
        """Let it end with its process."""
        self.finished = True
        if self._exchange is not None:
            self.process.network.abandon(self._exchange)

    def dispose(self) -> None:
        """Drop what is left of the coroutine of a process that has died."""
        self._coroutine.close()

    def _end(self, error: BaseException | None, result: Any) -> None:
        self.finished, self.error, self.result = True, error, result
        if self._on_end is not None:
            self._on_end(self)

    def _resume(self, turn: int, value: Any, error: BaseException | None = None) -> None:
        if turn == self._turn:
            self.step(value, error)

    def _perform(self, effect: Any, turn: int) -> None:
        process = self.process
        match effect:
            case Sleep():
                if effect.wake is None:
                    process.clock.after(effect.seconds, lambda: self._resume(turn, None))
                else:
                    self._sleep_until_woken(effect, turn)
            case Send():
                queued = process.queue_wait() if effect.call.submits else 0.0
                if queued:
                    process.clock.after(queued, lambda: self._send(effect, turn))
                else:
                    self._send(effect, turn)
            case StoreWrite():
                process.write(effect, lambda error: self._resume(turn, None, error))
            case _:
                raise AssertionError(f"the simulator does not know the effect {effect!r}")

    def _sleep_until_woken(self, effect: Sleep, turn: int) -> None:
        wake, clock = effect.wake, self.process.clock
        assert wake is not None

        def wake_up() -> None:
            wake.remove(sleeper)
            self._resume(turn, None)

        sleeper = wake.add(lambda: clock.after(0.0, wake_up))
        if math.isfinite(effect.seconds):
            clock.after(effect.seconds, wake_up)

    def _send(self, effect: Send, turn: int) -> None:
        process = self.process
        if turn != self._turn or self.finished or not process.alive:
            return
        call = effect.call
        timeout = process.options.timeout if effect.timeout is None else effect.timeout

        def arrived(end: End) -> None:
            try:
                outcome = _outcome(call, end, process.options.api_key)
            except Exception as error:
                self._resume(turn, None, error)
            else:
                self._resume(turn, outcome)

        self._exchange = process.network.send(
            process.number, call.method, call.path, call.headers, timeout, arrived
        )
        if self.call is not None:
            self.call.exchanges.append(self._exchange)
        if process.on_request is not None:
            process.on_request(self._exchange)


_outcomes: dict[tuple[Any, ...], Any] = {}

_MOST_OUTCOMES = 20_000


def _outcome(call: ApiCall[Any], end: End, key: str) -> Any:
    """Return what a response says. The same one says the same: to read it takes a quarter of all time."""
    if not isinstance(end, Response):
        return endpoints.outcome(call, as_seen(end, call.operation, call.job_id), key)
    same = (call.operation, call.cut_at, end.status, end.body, key, tuple(end.headers.items()))
    outcome = _outcomes.get(same)
    if outcome is None:
        outcome = endpoints.outcome(call, as_seen(end, call.operation, call.job_id), key)
        if not isinstance(outcome, Exception):  # an error keeps where it was raised
            if len(_outcomes) >= _MOST_OUTCOMES:
                _outcomes.clear()
            _outcomes[same] = outcome
    return outcome


def as_seen(end: End, operation: str, job_id: str | None) -> HttpResponse | TransientError:
    """Return what the driver of the client makes of the end of a request."""
    if isinstance(end, Response):
        return HttpResponse(end.status, end.headers, end.body)
    return TransientError(f"{operation}: {end}", job_id=job_id, never_processed=end == NOT_SENT)


class Process:
    """One process, with a client of its own.

    Args:
        number: Which of the schedule's processes it is.
        clock: The time.
        network: Carries its requests.
        options: Those of its client.
        wall_error: By how many seconds its wall clock is wrong.
        queue_wait: Tells how long the next submission waits for its turn.
        write: Writes into the store, and calls back.

    Attributes:
        on_effect: Is called before each effect; may kill.
        on_request: Is called when a request has been sent.
        alive: Whether it runs.
        effects: How many effects it has performed.
        tasks: Its coroutines.
        began_at: When it began, with what the store then had, or with what the process knew that forked it.
    """

    def __init__(
        self,
        number: int,
        clock: Clock,
        network: Network,
        options: ClientOptions,
        wall_error: float,
        *,
        queue_wait: Callable[[], float],
        write: Callable[[StoreWrite, Callable[[BaseException | None], None]], None],
    ) -> None:
        self.number = number
        self.clock = clock
        self.network = network
        self.options = options
        self.wall_error = wall_error
        self.queue_wait = queue_wait
        self.write = write
        self.on_effect: Callable[[int, Any], None] | None = None
        self.on_request: Callable[[Exchange], None] | None = None
        self.alive = True
        self.effects = 0
        self.tasks: list[Task] = []
        self.began_at = clock.now
        runner: Any = Runner(options.api_key, self.start, lambda: clock.now + clock.boot)
        self.flow = AsyncFlow(runner, options.flow_path(FLOW), options)

    def start(
        self, name: str, coroutine: Coroutine[Any, Any, Any], on_end: Callable[[Task], None] | None = None
    ) -> Task:
        """Run a coroutine as a task of its own."""
        task = Task(self, name, coroutine, on_end)
        self.tasks.append(task)
        task.step()
        return task

    def enter(self) -> None:
        """Let its clocks be those that are read."""
        self.clock.wall_error = self.wall_error
        self.clock.boot = self.number * 10_000.0

    def kill(self) -> None:
        """End at once: nothing of it runs any more, but what it has sent is on its way."""
        self.alive = False
        for task in self.tasks:
            task.kill()
