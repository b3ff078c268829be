"""One schedule: a world that is chosen, the processes in it, and the record of all that happens."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Coroutine
from typing import TYPE_CHECKING, Any, TypeVar

from noukai_core._engine.submission_registry import shared_registry
from noukai_core._options import ClientOptions
from tests.simulation.choices import Choices
from tests.simulation.clock import Clock
from tests.simulation.network import Exchange, Network
from tests.simulation.process import Call, Process, StoreError, StoreWrite, Task
from tests.simulation.server import FLOW, Habits, Server, ServerJob
from tests.simulation.story import Story

if TYPE_CHECKING:
    from tests.simulation.interleaving import LiveProcess

T = TypeVar("T")

HORIZON = 200_000.0
"""Seconds after which a schedule has to be over."""


class Simulation:
    """The world of one schedule.

    Args:
        choices: What decides.
        clock: The time.
        told: Whether a story is told.

    Attributes:
        calls: The calls of the client's interface.
        processes: The processes, in the order of their starts.
        store: What the user has stored.
        clock_errors: Whether the wall clock of a process is wrong.
        live: The processes of an orchestrator, by their numbers from 1 on.
    """

    def __init__(self, choices: Choices, clock: Clock, *, told: bool = False) -> None:
        self.choices = choices
        self.clock = clock
        self.story = Story(clock, told=told)
        self.harm = choices.pick("harm of the network", (0.0, 0.1, 0.3, 0.6), 0.8)
        trouble = choices.pick("trouble of the service", (0.0, 0.1, 0.3), 0.6)
        self.habits = Habits.chosen(choices, trouble)
        self.recovery_timeout = choices.pick("recovery_timeout", (60.0, 10.0, 0.0), 0.15)
        self.retry_timeout = choices.pick("retry_timeout", (300.0, 20.0), 0.1)
        self.timeout = choices.pick("timeout", (30.0, 5.0), 0.15)
        self.not_found_grace = 60.0
        self.max_polls_per_second = 50.0
        self.server = Server(clock, choices, self.habits, self.recovery_timeout, trouble)
        self.network = Network(clock, choices, self.server, self.story, self.harm, self.recovery_timeout)
        self.processes: list[Process] = []
        self.calls: list[Call] = []
        self.store: dict[str, Any] = {}
        self.clock_errors = False
        self.live: list[LiveProcess] = []

    def process(self) -> Process:
        """Start a process."""
        number = len(self.processes) + 1
        wall_error = self.choices.pick("error of the wall clock", (0.0, 600.0, -600.0, 45.0), 0.3)
        process = Process(
            number,
            self.clock,
            self.network,
            self._options(number),
            wall_error,
            queue_wait=self._queue_wait,
            write=self._write,
        )
        self.processes.append(process)
        self.story.tell("process {0} starts, its clock wrong by {1:g} s", number, wall_error)
        return process

    def fork(self, parent: Process) -> Process:
        """Start a process that knows what another one knows of its submissions."""
        child = self.process()
        known, inherited = (
            shared_registry(one.options.base_url, one.options.api_key) for one in (parent, child)
        )
        vars(inherited).update(copy.deepcopy({**vars(known), "_lock": None}))
        inherited.after_fork()
        return child

    def plant_job(self) -> ServerJob:
        """Let a job exist that was submitted otherwise."""
        exchange = Exchange(0, self.clock, 0, "POST", f"seq/{FLOW}/jobs", {})
        exchange.ended_at = self.clock.now
        job = self.server.new_job(exchange, f"planted-{len(self.server.jobs)}", "planted")
        self.story.tell("{0} exists and runs for {1:g} s", job.id, job.ends_at - job.created_at)
        return job

    async def call(
        self,
        task: Task,
        kind: str,
        about: str,
        coroutine: Coroutine[Any, Any, T],
        *,
        timeout: float | None = None,
        grace_ends: float = -math.inf,
        poll_interval: float | None = None,
    ) -> T:
        """Make a call of the client's interface, and keep a record of it."""
        job = self.server.job_of(about)
        about = about if job is None else job.id
        call = Call(kind, task.process.number, about, self.clock.now, timeout, grace_ends, poll_interval)
        self.calls.append(call)
        task.call = call
        self.story.tell("process {0}: {1} calls {2}() about {3}", call.process, task.name, kind, about)
        try:
            call.result = result = await coroutine
        except GeneratorExit:
            raise
        except BaseException as error:
            call.ended, call.error = self.clock.now, error
            self.story.tell("process {0}: {1}() raises {2!r}", call.process, kind, error)
            raise
        call.ended = self.clock.now
        self.story.tell("process {0}: {1}() returns {2!r}", call.process, kind, result)
        return result

    def run(self) -> None:
        """Let time pass until nothing happens any more."""
        clock = self.clock
        ends = clock.now + HORIZON
        while clock.now <= ends and clock.step():
            pass

    def dispose(self) -> None:
        """Drop what is left of the processes."""
        for process in self.processes:
            process.enter()
            for task in process.tasks:
                task.dispose()

    def _options(self, number: int) -> ClientOptions:
        return _options(
            number,
            self.recovery_timeout,
            self.retry_timeout,
            self.timeout,
            self.not_found_grace,
            self.max_polls_per_second,
        )

    def _queue_wait(self) -> float:
        return self.choices.pick("wait for a turn to submit", (0.0, 20.0, 400.0, 900.0), 0.15)

    def _write(self, write: StoreWrite, done: Callable[[BaseException | None], None]) -> None:
        choices = self.choices
        delay = choices.pick("slowness of the store", (0.01, 5.0, 60.0), 0.1)
        outcome = choices.pick("end of a write", ("written", "failed", "written, but failed"), 0.1)

        def written() -> None:
            if outcome != "failed":
                self.store[write.key] = write.value
            self.story.tell("the store: {0} = {1} {2}", write.key, write.value, outcome)
            done(None if outcome == "written" else StoreError(outcome))

        self.clock.after(delay, written)


_cache: dict[tuple[Any, ...], ClientOptions] = {}


def _options(
    number: int,
    recovery_timeout: float,
    retry_timeout: float,
    timeout: float,
    not_found_grace: float,
    max_polls_per_second: float,
) -> ClientOptions:
    """Return the options of a client; to check them takes longer than a request."""
    key = (number, recovery_timeout, retry_timeout, timeout, not_found_grace, max_polls_per_second)
    if key not in _cache:
        _cache[key] = ClientOptions.of(
            api_key=f"nk_test_{number:08d}_simulated",
            base_url="https://noukai.test/api/v1",
            org=None,
            project=None,
            timeout=timeout,
            poll_interval=None,
            retry_timeout=retry_timeout,
            not_found_grace=not_found_grace,
            recovery_timeout=recovery_timeout,
            max_polls_per_second=max_polls_per_second,
            max_concurrent_submissions=16,
            max_response_bytes=1_000_000,
        )
    return _cache[key]
