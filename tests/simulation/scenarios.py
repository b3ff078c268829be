"""What the processes of a schedule do: submit and wait with a store, wait in a crowd, ask and cancel."""

from __future__ import annotations

import asyncio
import contextlib
import math
import uuid
from datetime import UTC, datetime, timedelta

from noukai_core import AsyncJob, NoukaiError, Submission, SubmissionUnknownError
from noukai_core._engine.effects import Sleep
from tests.simulation.clock import EPOCH
from tests.simulation.effect import Effect
from tests.simulation.network import Exchange
from tests.simulation.process import Process, StoreError, StoreWrite, Task
from tests.simulation.simulation import Simulation

_NAMESPACE = uuid.UUID(int=1)

DELAYS = (0.0, 0.01, 0.03, 5.0, 40.0, 200.0)
"""Seconds after the beginning of an effect: the request is there after 0.02, its response back after 0.04."""

_MOST_TRIES = 4


class Submitting:
    """A task with a store: each try begins with what the one before has stored."""

    def __init__(self, simulation: Simulation) -> None:
        self._simulation = simulation
        self._choices = simulation.choices
        self._tries = 0
        self._identities = 0
        self._latest: Process | None = None
        self._passed: dict[int, Submission] = {}
        self.over = False

    def begin(self) -> None:
        """Start the first try, or the next."""
        self._tries += 1
        self._latest = process = self._simulation.process()
        self._plan_an_end(process)
        task = process.start("try", self._try(process), self._ended)
        self._plan_an_interruption(process, task)

    def _ended(self, task: Task) -> None:
        if not self.over and task.process.alive:
            self._next_try(task.process)

    def _next_try(self, ended: Process, *, lives_on: bool = False) -> None:
        if ended is self._latest and self._tries < _MOST_TRIES:
            if not lives_on:
                ended.kill()
            pause = self._choices.pick("pause before the next try", (1.0, 30.0, 70.0, 300.0, 900.0, 7200.0))
            self._simulation.clock.after(pause, self.begin)

    def _plan_an_end(self, process: Process) -> None:
        if not self._choices.happens("end of a process", 0.45):
            return
        ends = self._choices.pick("how a process ends", ("dies", "is taken for dead", "forks"), 0.4)
        moment = self._choices.pick("when in it", (-1.0, *DELAYS))

        def die() -> None:
            if not process.alive or self.over:
                return
            self._simulation.story.tell("process {0} {1}", process.number, ends)
            if ends == "forks":
                self._fork(process)
                return
            if ends == "dies":
                process.kill()
            self._next_try(process, lives_on=ends == "is taken for dead")

        def die_now_or_later() -> None:
            if moment < 0:
                die()
            else:
                self._simulation.clock.after(moment, die)

        if self._choices.pick("dies at an effect or a submission", ("effect", "submission")) == "effect":
            number = 1 + self._choices.index("effect at which it dies", 14)
            process.on_effect = lambda count, _: die_now_or_later() if count == number else None
        else:
            sent = 1 + self._choices.index("submission at which it dies", 3)
            submissions: list[Exchange] = []

            def on_request(exchange: Exchange) -> None:
                if exchange.kind == "submit":
                    submissions.append(exchange)
                    if len(submissions) == sent:
                        die_now_or_later()

            process.on_request = on_request

    def _plan_an_interruption(self, process: Process, task: Task) -> None:
        if not self._choices.happens("interruption of a call", 0.2):
            return
        delay = self._choices.pick("seconds until the interruption", (0.015, 0.03, 0.05, 5.0, 31.0, 100.0))

        def interrupt() -> None:
            if process.alive and not task.finished:
                self._simulation.story.tell("process {0}: {1} is interrupted", process.number, task.name)
                task.interrupt()

        self._simulation.clock.after(delay, interrupt)

    def _fork(self, process: Process) -> None:
        """Let a child pass on what its parent passes, with all that the parent knew at that moment."""
        submission = self._passed.get(process.number)
        if submission is None:
            return
        child = self._simulation.fork(process)

        async def go_on() -> None:
            task = child.tasks[0]
            with contextlib.suppress(NoukaiError):
                called = child.flow.job("text", submission=submission)
                job = await self._simulation.call(task, "job", submission.id, called)
                await self._wait(child, task, job)

        self._simulation.clock.after(
            self._choices.pick("pause after the fork", (0.0, 0.01, 5.0, 70.0)),
            lambda: child.start("the child", go_on()),
        )

    def _now(self, process: Process) -> datetime:
        return datetime.fromtimestamp(self._simulation.clock.now + EPOCH + process.wall_error, UTC)

    async def _try(self, process: Process) -> None:
        store = self._simulation.store
        job_id = store.get("job")
        identity, sent_at = store.get("submission") or (self._new_identity(), None)
        if job_id is None:
            submission = Submission(identity, sent_at)
            # As one record: a late write of a process that is dead must not change a half of it.
            await Effect(StoreWrite("submission", (identity, self._now(process))))
            self._passed[process.number] = submission
            job = await self._submit(process, process.tasks[0], submission)
            with contextlib.suppress(StoreError):
                await Effect(StoreWrite("job", job.id))
        else:
            job = process.flow.attach(job_id, submitted_at=sent_at)
        if self._choices.pick("waits for the job", (True, False)):
            await self._wait(process, process.tasks[0], job)
        self.over = True

    def _new_identity(self) -> str:
        self._identities += 1
        return str(uuid.uuid5(_NAMESPACE, str(self._identities)))

    async def _submit(self, process: Process, task: Task, submission: Submission) -> AsyncJob:
        simulation, choices = self._simulation, self._choices
        if choices.happens("the same submission at the same time", 0.06):
            delay = choices.pick("later by", (0.0, 0.01, 0.03, 10.0, 70.0))

            def rival() -> None:
                if process.alive:
                    process.start("a rival", self._submit_as_well(process, submission))

            simulation.clock.after(delay, rival)
        while True:
            try:
                job = await simulation.call(
                    task, "job", submission.id, process.flow.job("text", submission=submission)
                )
                if choices.happens("the same submission after its success", 0.05):
                    await simulation.call(
                        task, "job", submission.id, process.flow.job("text", submission=submission)
                    )
                return job
            except asyncio.CancelledError:
                if not choices.happens("the same submission again after the interruption", 0.7):
                    raise
            except SubmissionUnknownError as unknown:
                if not choices.happens("the same submission again, as it is not known", 0.5):
                    raise
                submission = unknown.submission
            except NoukaiError:
                await Effect(StoreWrite("submission", None))
                raise
            await Effect(Sleep(choices.pick("pause before it is passed again", (0.0, 1.0, 30.0, 100.0))))

    async def _submit_as_well(self, process: Process, submission: Submission) -> None:
        task = process.tasks[-1]
        with contextlib.suppress(NoukaiError):
            await self._simulation.call(
                task, "job", submission.id, process.flow.job("text", submission=submission)
            )

    async def _wait(self, process: Process, task: Task, job: AsyncJob) -> None:
        timeout = self._choices.pick("deadline of the wait", (30.0, 1.0, 0.001, 400.0), 0.5)
        await wait(self._simulation, process, task, job, timeout, None)


async def wait(
    simulation: Simulation,
    process: Process,
    task: Task,
    job: AsyncJob,
    timeout: float | None,
    poll_interval: float | None,
) -> None:
    """Wait for a job, and keep a record of it."""
    grace_ends, now = -math.inf, simulation.clock.now
    if job.submitted_at is not None:
        age = now + EPOCH + process.wall_error - job.submitted_at.timestamp()
        # The clock of an earlier process may be ahead, but what a call has returned was submitted before.
        returned = (call.ended for call in simulation.calls if call.result is job)
        known = max(age, *(now - ended for ended in returned if ended is not None), 0.0)
        grace_ends = now - known + process.options.not_found_grace
    await simulation.call(
        task,
        "wait",
        job.id,
        job.wait(timeout_ms=None if timeout is None else timeout * 1000.0, poll_interval=poll_interval),
        timeout=timeout,
        grace_ends=grace_ends,
        poll_interval=poll_interval,
    )


class Neighbours:
    """Several submissions of one process, whose responses may be those to each other."""

    def __init__(self, simulation: Simulation) -> None:
        self._simulation = simulation
        self._choices = simulation.choices
        simulation.network.crosses_submissions = True

    def begin(self) -> None:
        process = self._simulation.process()
        for number in range(2 + self._choices.index("submissions", 3)):
            begins = self._choices.pick("submission begins at", (5.0, 0.0, 0.01, 0.03)) * (number + 1)
            self._simulation.clock.after(begins, lambda number=number: self._one(process, number))  # type: ignore[misc]

    def _one(self, process: Process, number: int) -> None:
        process.start(f"submission {number + 1}", self._submit(process, number))

    async def _submit(self, process: Process, number: int) -> None:
        task = process.tasks[-1]
        submission = Submission(str(uuid.uuid5(_NAMESPACE, f"neighbour {number}")))
        called = process.flow.job("text", submission=submission)
        with contextlib.suppress(NoukaiError):
            job = await self._simulation.call(task, "job", submission.id, called)
            await wait(self._simulation, process, task, job, 400.0, None)


class Crowd:
    """Many waits of one process, which come and go, and a last one when all have left."""

    def __init__(self, simulation: Simulation) -> None:
        self._simulation = simulation
        self._choices = simulation.choices
        simulation.max_polls_per_second = simulation.choices.pick("limit of the polls", (5.0, 2.0, 10.0, 0.5))
        self._waiting = 0

    def begin(self) -> None:
        simulation, choices = self._simulation, self._choices
        process = simulation.process()
        count = 2 + choices.index("waits", 7)
        for number in range(count):
            begins = choices.pick("wait begins at", (0.0, 0.05, 0.5, 3.0))
            simulation.clock.after(begins, lambda number=number: self._one(process, f"wait {number + 1}"))  # type: ignore[misc]
        simulation.clock.after(
            choices.pick("last wait begins at", (20.0, 6.0, 11.0, 60.0)), lambda: self._last(process)
        )

    def _one(self, process: Process, name: str) -> None:
        choices = self._choices
        timeout = choices.pick("deadline", (4.0, 0.5, 0.001, 2.0, 10.0))
        interval = choices.pick("poll_interval", (None, 0.2, 3.0), 0.4)
        self._start(process, name, timeout, interval)
        if choices.happens("a wait is left", 0.4):
            task = process.tasks[-1]
            self._simulation.clock.after(choices.pick("left after", (0.5, 0.05, 3.0)), task.interrupt)

    def _last(self, process: Process) -> None:
        self._start(process, "the last wait", 30.0, None)

    def _start(self, process: Process, name: str, timeout: float, interval: float | None) -> None:
        job = self._simulation.plant_job()
        process.start(name, self._wait(process, job.id, timeout, interval))

    async def _wait(self, process: Process, job_id: str, timeout: float, interval: float | None) -> None:
        task = process.tasks[-1]
        known = self._choices.pick("time of the submission", (True, False), 0.3)
        job = process.flow.attach(job_id, submitted_at=now(self._simulation, process) if known else None)
        with contextlib.suppress(NoukaiError):
            await wait(self._simulation, process, task, job, timeout, interval)


def now(simulation: Simulation, process: Process) -> datetime:
    """Return what the wall clock of a process shows."""
    return datetime.fromtimestamp(EPOCH + simulation.clock.now + process.wall_error, UTC)


class Asking:
    """Calls about one job: its status, a person's cancel, a look for it by its submission."""

    CALLS = ("status", "cancel", "wait", "trace", "find")

    def __init__(self, simulation: Simulation) -> None:
        self._simulation = simulation
        self._choices = simulation.choices

    def begin(self) -> None:
        process = self._simulation.process()
        process.start("the program", self._program(process))

    async def _program(self, process: Process) -> None:
        simulation, choices = self._simulation, self._choices
        planted = simulation.plant_job()
        session = str(uuid.uuid5(_NAMESPACE, "planted"))
        planted.session = session
        await Effect(Sleep(choices.pick("pause before the call", (0.0, 1.0, 10.0, 61.0, 700.0))))
        submitted_at = now(simulation, process) - timedelta(seconds=simulation.clock.now - planted.created_at)
        known = choices.pick("time of the submission", (True, False), 0.3)
        job = process.flow.attach(planted.id, submitted_at=submitted_at if known else None)
        grace_ends = planted.created_at + process.options.not_found_grace if known else -math.inf
        task = process.tasks[0]
        for _ in range(1 + choices.index("calls", 4)):
            kind = choices.pick("call", self.CALLS)
            try:
                if kind == "find":
                    found = process.flow.find(Submission(session, submitted_at))
                    await simulation.call(task, "find", session, found)
                elif kind == "wait":
                    timeout = choices.pick("deadline of the wait", (None, 30.0, 0.001, 5.0))
                    await wait(simulation, process, task, job, timeout, None)
                else:
                    called = getattr(job, kind)()
                    await simulation.call(task, kind, job.id, called, grace_ends=grace_ends)
            except NoukaiError:
                pass
            await Effect(Sleep(choices.pick("pause before the call", (0.0, 1.0, 10.0, 61.0, 700.0))))
