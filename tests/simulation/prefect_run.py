"""A Prefect flow run on the simulated network: attempts that die, people who cancel, a server that fails."""

from __future__ import annotations

import asyncio
import json
import logging
import sys
import uuid
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from functools import cache
from types import ModuleType, SimpleNamespace
from typing import Any
from unittest.mock import patch

from prefect.client.orchestration import get_client as real_get_client
from prefect.client.schemas.filters import ArtifactFilter
from prefect.client.schemas.objects import State
from prefect.states import Pending, Running
from pydantic import SecretStr

import noukai_prefect._artifacts
import noukai_prefect._batch
import noukai_prefect._batch_record
import noukai_prefect._batch_table
import noukai_prefect._cancellation
import noukai_prefect._events
import noukai_prefect._job_store
import noukai_prefect._run
from noukai_core import AsyncNoukai, JobOutcome, NoukaiError, batch_files
from noukai_core._http import connection
from noukai_prefect import NoukaiCredentials
from noukai_prefect._batch import BatchOptions, BatchRun
from noukai_prefect._batch_inputs import BatchInputs
from noukai_prefect._batch_table import WRITE_SECONDS
from noukai_prefect._run import JobRequest, WaitOptions
from noukai_prefect._run_context import RunContext
from tests.simulation import core_state
from tests.simulation.clock import EPOCH, Clock
from tests.simulation.interleaving import Interleaving, LiveProcess
from tests.simulation.process import StoreError
from tests.simulation.server import FLOW
from tests.simulation.simulation import Simulation
from tests.simulation.storage import SimulatedStorage
from tests.simulation.transports import BASE_URL, AsyncTransport, VirtualLoop

SLOT = str(uuid.UUID(int=7))

_MOST_ATTEMPTS = 4
_FLOW_RUN = uuid.UUID(int=5)
_TASK_RUN = uuid.UUID(int=6)
_TOLD = ("submission_id", "job_id", "last_sent_at", "resubmission", "ended", "possibly_sent_at")
_KEY = "nk_test_simulated_prefect"
_CREDENTIALS = NoukaiCredentials(api_key=SecretStr(_KEY), base_url=BASE_URL)


@dataclass(frozen=True)
class _Run(RunContext):
    """Where the code runs, without Prefect's own contexts."""

    flow_run: PrefectFlowRun | None = None

    @property
    def stop_requested(self) -> bool:
        return False

    @property
    def must_ask_server(self) -> bool:
        return False

    def logger(self) -> Any:
        return _LOGGER


_LOGGER = logging.getLogger("noukai_prefect")


class _Attempt(LiveProcess):
    """An attempt of the flow run, and its process.

    Attributes:
        dead: Whether the process was killed.
        interrupted: Is set when it is to end, from its start to its end.
        how: How it ends.
        times_out_at: When Prefect's timeout of the flow expires, on its own monotonic clock, if it has one.
    """

    def __init__(self, number: int, clock: Clock, wall_error: float, time_limit: float | None) -> None:
        super().__init__(number, clock, wall_error)
        self.times_out_at = None if time_limit is None else clock.now + self.boot + time_limit
        self.dead = False
        self.interrupted: asyncio.Event | None = None
        self.how = ""
        self._memory = core_state.Memory()

    @property
    def can_act(self) -> bool:
        """Whether it runs, nothing has ended it, and Prefect knows of it."""
        return self.interrupted is not None and not self.how and self.presumed_dead_at is None

    def enter(self) -> None:
        super().enter()
        self._memory.enter()


@dataclass
class _Artifact:
    id: uuid.UUID
    type: str | None
    key: str | None
    data: Any
    metadata_: dict[str, str] | None
    updated: datetime
    flow_run_id: uuid.UUID = _FLOW_RUN

    def wanted(self, artifact_filter: ArtifactFilter) -> bool:
        """Whether a filter lets it through; of all that a filter can ask for, only what is used."""
        key, kind = artifact_filter.key, artifact_filter.type
        if key is not None:
            assert key.like_ is not None
            return self.key is not None and self.key.startswith(key.like_.removesuffix("%"))
        assert kind is not None
        assert kind.any_ is not None
        return self.type in kind.any_


@dataclass
class _State:
    cancelling: bool = False

    def is_cancelling(self) -> bool:
        return self.cancelling

    def is_cancelled(self) -> bool:
        return False


@dataclass
class PrefectServer:
    """Prefect's server: it keeps artifacts, and knows whether the flow run is being cancelled."""

    flow_run: PrefectFlowRun
    artifacts: list[_Artifact] = field(default_factory=list)
    _told: dict[str, str] = field(default_factory=dict)

    async def __aenter__(self) -> PrefectServer:
        return self

    async def __aexit__(self, *_: object) -> None:
        pass

    async def create_artifact(self, artifact: Any) -> _Artifact:
        end = await self._access("write", written=True)
        made = _Artifact(
            uuid.UUID(int=100 + len(self.artifacts)),
            artifact.type,
            artifact.key,
            artifact.data,
            artifact.metadata_,
            self._now(),
        )
        if end != "failed":
            self.artifacts.append(made)
            self._tell(made)
        if end != "written":
            raise StoreError(end)
        return made

    async def update_artifact(self, artifact_id: uuid.UUID, update: Any) -> None:
        end = await self._access("write", written=True)
        kept = next(one for one in self.artifacts if one.id == artifact_id)
        if end != "failed":
            fields = update.model_dump(exclude_unset=True)
            kept.data = fields.get("data", kept.data)
            kept.metadata_ = fields.get("metadata_", kept.metadata_)
            kept.updated = self._now()
            self._tell(kept)
        if end != "written":
            raise StoreError(end)

    def _tell(self, artifact: _Artifact) -> None:
        content = {name: value for name, value in (artifact.metadata_ or {}).items() if name in _TOLD}
        if content != self._told:
            self._told = content
            self.flow_run.simulation.story.tell("stored: {0}", content)

    async def read_artifacts(
        self, *, artifact_filter: ArtifactFilter, flow_run_filter: Any, limit: int, offset: int
    ) -> list[_Artifact]:
        await self._access("read", written=False)
        wanted = [one for one in self.artifacts if one.wanted(artifact_filter)]
        return wanted[offset : offset + limit]

    async def read_flow_run(self, flow_run_id: uuid.UUID) -> Any:
        await self._access("read", written=False)
        return SimpleNamespace(
            state=_State(self.flow_run.cancelling),
            run_count=len(self.flow_run.simulation.live),
            parent_task_run_id=None,
            deployment_id=uuid.UUID(int=9),
        )

    async def read_flow_run_states(self, flow_run_id: uuid.UUID) -> list[State[Any]]:
        await self._access("read", written=False)
        return [state for _ in self.flow_run.simulation.live for state in (Pending(), Running())]

    async def _access(self, what: str, *, written: bool) -> str:
        choices, process = self.flow_run.choices, self.flow_run.running
        await asyncio.sleep(choices.pick(f"slowness of a {what}", (0.01, 3.0, 30.0), 0.05))
        if process.dead:
            await asyncio.sleep(1e6)
        if not written:
            if choices.happens("Prefect does not answer", 0.04):
                raise StoreError("failed")
            return "read"
        return choices.pick("end of a write", ("written", "failed", "written, but failed"), 0.06)

    def _now(self) -> datetime:
        return datetime.fromtimestamp(EPOCH + self.flow_run.simulation.clock.now, UTC)


class PrefectFlowRun:
    """A flow run with its attempts, each in a process of its own.

    Attributes:
        lines: What was logged or raised.
        cancelling: Whether a person has cancelled the flow run.
        acted_in_time: Whether a process ran at that moment.
        results: What the attempts returned: pairs of an index and an output.
        lost: What is wrong with the files of a batch.
        errors: What the attempts ended with.
        began: When each process began.
    """

    def __init__(self, simulation: Simulation) -> None:
        self.simulation = simulation
        self.choices = choices = simulation.choices
        self.server = PrefectServer(self)
        self.lines: list[tuple[float, str]] = []
        self.cancelling = False
        self.acted_in_time = False
        self.interleaving = Interleaving(simulation.clock)
        self.current: _Attempt | None = None
        self.over_at: float | None = None
        self.handled = False
        self.running_at_the_end: list[str] = []
        self.results: list[tuple[int, Any]] = []
        self.lost: list[str] = []
        self.errors: list[BaseException] = []
        self.began: dict[int, float] = {}
        self.size = choices.pick("jobs", (0, 1, 2, 4))
        self.timeout = choices.pick("timeout of the wait", (1000.0, 20.0, 100.0), 0.5)
        self.cancel_on_timeout = choices.pick("cancel_on_timeout", (True, False), 0.2)
        self.max_concurrency = choices.pick("max_concurrency", (10, 2), 0.5)
        writes = self.size and choices.happens("output_storage", 0.4)
        self.storage = SimulatedStorage.of(self) if writes else None
        self.time_limit = choices.pick("timeout_seconds of the flow", (None, 30.0, 200.0), 0.2)

    def begin(self) -> None:
        """Start the first attempt, and let a person act."""
        self.simulation.clock.after(0.0, self._next_attempt)
        if self.choices.happens("a person cancels", 0.3):
            moment = self.choices.pick("after", (2.0, 0.03, 0.05, 6.0, 15.0, 40.0, 400.0))
            self.simulation.clock.after(moment, self._cancel)

    @property
    def running(self) -> _Attempt:
        """The attempt whose code runs now."""
        running = self.interleaving.running
        assert isinstance(running, _Attempt)
        return running

    def logged(self, line: str) -> None:
        """Take what was logged or raised."""
        if not self.running.dead:
            self.lines.append((self.simulation.clock.now, line))
            self.simulation.story.tell("log: {0}", line)
            self._read(line)

    def _read(self, line: str) -> None:
        """Let a person cancel who reads that jobs are left running, while the process still ends."""
        if (
            self.running.can_act
            and "left running" in line
            and self.choices.happens("a person cancels what is left", 0.3)
        ):
            self.simulation.clock.after(self.choices.pick("reads for", (0.005, 0.015, 1.0)), self._cancel)

    def _cancel(self) -> None:
        if self.over_at is None and not self.cancelling:
            self.simulation.story.tell("a person cancels the flow run")
            self.cancelling = True
            self.acted_in_time = self.current is not None and self.current.can_act
            if self.current is not None:
                self._interrupt(self.current, "cancelled")

    def _interrupt(self, attempt: _Attempt, how: str) -> None:
        if not attempt.can_act:
            return
        assert attempt.interrupted is not None
        self.simulation.story.tell("process {0} is {1}", attempt.number, how)
        if how == "given up":
            attempt.presumed_dead_at = self.simulation.clock.now
            self._ended(handled=False, pauses=(1.0, 10.0, 70.0))
            return
        attempt.how = how
        if how == "killed":
            attempt.dead = True
            self.simulation.network.cut_off(attempt.number)
        attempt.interrupted.set()

    def _time_out(self, attempt: _Attempt) -> None:
        """Let Prefect interrupt an attempt because of the flow's timeout, even one that it takes for dead."""
        if attempt.interrupted is not None and not attempt.how:
            self.simulation.story.tell("process {0} times out", attempt.number)
            attempt.how = "timed out"
            attempt.interrupted.set()

    def _next_attempt(self) -> None:
        if self.cancelling:
            self._finish()
            return
        simulation, choices, clock = self.simulation, self.choices, self.simulation.clock
        wall_error = choices.pick("error of the wall clock", (0.0, 600.0, -600.0, 45.0), 0.1)
        number = len(simulation.live) + 1
        self.current = attempt = _Attempt(number, clock, wall_error, self.time_limit)
        simulation.live.append(attempt)
        if self.time_limit is not None:
            clock.after(self.time_limit, lambda: self._time_out(attempt))
        if number > 1 and choices.happens("a person cancels the rerun", 0.1):
            clock.after(choices.pick("cancels after", (0.005, 0.02, 2.0)), self._cancel)
        if choices.happens("a process ends", 0.4):
            how = choices.pick("how", ("killed", "shut down", "given up"))
            moment = choices.pick("process ends after", (0.03, 0.05, 0.08, 1.0, 5.0, 31.0, 65.0))
            clock.after(moment, lambda: self._interrupt(attempt, how))
        self.began[attempt.number] = clock.now
        simulation.story.tell("process {0} begins", attempt.number)
        self.interleaving.start(attempt, lambda: self._run(attempt))

    def _run(self, attempt: _Attempt) -> None:
        clock = self.simulation.clock
        with asyncio.Runner(loop_factory=lambda: VirtualLoop(clock, self.interleaving)) as runner:
            error = runner.run(self._attempt(attempt))
        if error is not None and not attempt.dead:
            self.errors.append(error)
            self.logged(f"raised {type(error).__name__}: {error}")
        if attempt.presumed_dead_at is None:
            self._ended(handled=not attempt.dead, completed=error is None and not attempt.dead)

    def _ended(
        self,
        *,
        handled: bool,
        completed: bool = False,
        pauses: Sequence[float] = (1.0, 30.0, 70.0, 300.0, 900.0),
    ) -> None:
        """Decide what follows an attempt that has ended, or that Prefect takes for dead.

        Args:
            handled: Whether the attempt has ended by itself.
            completed: Whether its jobs have completed.
            pauses: After how many seconds the next attempt may begin.
        """
        self.handled = handled
        if completed or len(self.simulation.live) == _MOST_ATTEMPTS or self.cancelling:
            self._finish()
        else:
            pause = self.choices.pick("pause before the next attempt", pauses)
            self.simulation.clock.after(pause, self._next_attempt)

    async def _attempt(self, attempt: _Attempt) -> BaseException | None:
        attempt.interrupted = asyncio.Event()
        client = AsyncNoukai(
            _KEY,
            base_url=BASE_URL,
            timeout=self.simulation.timeout,
            retry_timeout=self.simulation.retry_timeout,
            recovery_timeout=self.simulation.recovery_timeout,
        )
        work = asyncio.ensure_future(
            self._batch(client, attempt) if self.size else self._single(client, attempt)
        )
        stop = asyncio.ensure_future(attempt.interrupted.wait())
        await asyncio.wait({work, stop}, return_when=asyncio.FIRST_COMPLETED)
        while not work.done():
            work.cancel()
            await asyncio.wait({work}, timeout=60.0)
        stop.cancel()
        attempt.interrupted = None
        await client.aclose()
        return asyncio.CancelledError() if work.cancelled() else work.exception()

    async def _single(self, client: AsyncNoukai, attempt: Any) -> None:
        options = WaitOptions(timeout=self.timeout, cancel_on_timeout=self.cancel_on_timeout)
        tries = 1 + self.choices.index("retries of the task", 3, 0.3)
        for number in range(1, tries + 1):
            run = self._context(attempt, number)
            try:
                output = await noukai_prefect._run.submit_and_wait(
                    _CREDENTIALS, client, JobRequest(FLOW, "text"), options, run
                )
                self.results.append((0, output))
                return
            except (NoukaiError, StoreError) as error:
                if number == tries:
                    raise
                self.logged(f"raised {type(error).__name__}: {error}")
            await asyncio.sleep(self.choices.pick("pause before the retry", (1.0, 30.0, 100.0)))

    async def _batch(self, client: AsyncNoukai, attempt: Any) -> None:
        run = self._context(attempt, 1)
        options = BatchOptions(
            timeout=self.timeout,
            cancel_on_timeout=self.cancel_on_timeout,
            max_concurrency=self.max_concurrency,
            output_storage=self.storage,
        )
        inputs = BatchInputs(FLOW, [f"text {number}" for number in range(self.size)], "production", False)
        batch = BatchRun(client.flow(FLOW), inputs, options, run, SLOT, _CREDENTIALS)
        outcomes = [outcome async for outcome in batch.outcomes()]
        if self.storage is None:
            self.results += [(one.index, one.output) for one in outcomes if one.state == "completed"]
        else:
            self._read_output(batch.manifest(), outcomes)
        for one in outcomes:
            if one.error is not None:
                self.logged(f"outcome {one.index}: {one.error}")
        if any(one.error is not None for one in outcomes):
            raise StoreError("some jobs did not complete")

    def _read_output(self, manifest: dict[str, Any], outcomes: list[JobOutcome]) -> None:
        """Read the files that a batch has written, as whoever gets its manifest does."""
        assert self.storage is not None
        rows: list[dict[str, Any]] = []
        for name in manifest["parts"]:
            for line in self.storage.lines(f"{manifest['output_path']}/{name}"):
                try:
                    rows.append(json.loads(line))
                except ValueError:
                    self.lost.append(f"a line of {name} is no JSON: {line!r}")
        self.results += [(row["index"], row["output"]) for row in rows]
        written = {row["index"] for row in rows}
        others = {one.index for one in outcomes if one.state != "completed"}
        if missing := set(range(self.size)) - written - others:
            self.lost.append(f"no part has the inputs {missing}: {manifest}")
        counted = manifest["counts"].get("completed", 0)
        if counted != len(written - others) or manifest["jobs"] != self.size:
            self.lost.append(f"{len(written - others)} inputs are written: {manifest}")

    def _context(self, attempt: Any, number: int) -> _Run:
        return _Run(
            flow_run_id=_FLOW_RUN,
            task_run_id=_TASK_RUN,
            task_attempt=number,
            times_out_at=attempt.times_out_at,
            cancel_event=None,
            attempt=attempt,
            flow_runs=((_FLOW_RUN, attempt.number),),
            flow_run=self,
        )

    def _finish(self) -> None:
        now = self.simulation.clock.now
        self.over_at = now
        self.running_at_the_end = [
            job.id
            for job in self.simulation.server.jobs.values()
            if not job.finished(now) and now < job.cancelled_at
        ]
        self.simulation.story.tell("the flow run is over; running: {0}", self.running_at_the_end)


@cache
def _modules_with_client() -> tuple[ModuleType, ...]:
    """Return the modules of the integration that speak with Prefect's server."""
    return tuple(
        module
        for name, module in sys.modules.items()
        if name.startswith("noukai_prefect.") and getattr(module, "get_client", None) is real_get_client
    )


@contextmanager
def prefect_world(flow_run: PrefectFlowRun, clock: Clock) -> Iterator[None]:
    """Let the integration live in the simulated world."""

    async def nothing(*_: Any, **__: Any) -> Any:
        return uuid.UUID(int=1)

    def get_client() -> PrefectServer:
        return flow_run.server

    def async_transport(*_: Any) -> AsyncTransport:
        return AsyncTransport(flow_run.running.number, flow_run.simulation.network)

    with ExitStack() as stack:
        for module in _modules_with_client():
            stack.enter_context(patch.object(module, "get_client", get_client))
        stack.enter_context(patch.object(connection, "async_transport", async_transport))
        # As often as the record is written; more often changes nothing that is checked, and takes time.
        stack.enter_context(patch.object(noukai_prefect._batch, "PROGRESS_SECONDS", WRITE_SECONDS))
        # So that the few rows of a small batch fill several artifacts.
        stack.enter_context(patch.object(noukai_prefect._batch_record, "_CHUNK_CHARACTERS", 800))
        # So that its few jobs fill several parts.
        stack.enter_context(patch.object(batch_files, "_MAX_ROWS", 2))
        # Tasks in threads are not simulated, so that nothing ever asks for a stop.
        stack.enter_context(patch.object(noukai_prefect._cancellation, "STOP_CHECK_SECONDS", 1e4))
        stack.enter_context(patch.object(noukai_prefect._events, "emit_event", lambda *_, **__: None))
        stack.enter_context(patch.object(noukai_prefect._artifacts, "acreate_progress_artifact", nothing))
        stack.enter_context(patch.object(noukai_prefect._artifacts, "aupdate_progress_artifact", nothing))
        root = logging.getLogger()
        before = root.handlers, root.level, _LOGGER.propagate
        root.handlers, root.level, _LOGGER.propagate = [_Handler(flow_run)], logging.INFO, True
        try:
            yield
        finally:
            root.handlers, root.level, _LOGGER.propagate = before


class _Handler(logging.Handler):
    def __init__(self, flow_run: PrefectFlowRun) -> None:
        super().__init__()
        self._flow_run = flow_run

    def emit(self, record: logging.LogRecord) -> None:
        if record.name.startswith("noukai"):
            self._flow_run.logged(record.getMessage())
