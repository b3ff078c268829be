"""The async driver: `AsyncNoukai`, `AsyncFlow`, `AsyncJob`. It does what `client` does, awaitable."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator, AsyncIterable, Awaitable, Callable, Iterable, Mapping, Sequence
from datetime import datetime
from decimal import Decimal
from typing import TYPE_CHECKING, Any, Self, Unpack
from uuid import UUID

from noukai_core._api import endpoints
from noukai_core._api.parsing import HttpResponse
from noukai_core._async_batch import AsyncJobBatch, perform_all, sleep
from noukai_core._engine.batch import Batch
from noukai_core._engine.batch_options import BatchOptions
from noukai_core._engine.effects import (
    Effect,
    Effects,
    Emit,
    EmitStep,
    FollowEffects,
    Receive,
    Send,
    Sleep,
    T,
    send_with_retries,
)
from noukai_core._engine.sessions import jobs_in, running_in
from noukai_core._handles import FlowHandle, JobHandle, listing_runs, reading_ended_runs
from noukai_core._http.connection import AsyncConnection
from noukai_core._http.event_receiver import AsyncEventReceiver
from noukai_core._options import ClientArguments, ClientOptions, describe, refuse_unknown
from noukai_core._validation import Version, hidden
from noukai_core.batch import BatchLedger, JobInput, MemoryLedger
from noukai_core.job_request import JobRequest
from noukai_core.models import ExecuteResult, JobAccepted, JobStatus, KeyInfo, RunTrace, TraceStep
from noukai_core.runs import EndedRuns, FlowRun, RunsCursor
from noukai_core.submission import Submission
from noukai_core.telemetry import JobSpan

if TYPE_CHECKING:
    import httpx
    from pydantic import BaseModel


LARGE_BODY = 256 * 1024
"""Bytes of a response from which on it is parsed in a thread, and not on the event loop."""


class AsyncRunner:
    """Runs the steps of decisions: sends what they ask for, and sleeps when they pause."""

    def __init__(self, settings: ClientOptions, transport: httpx.AsyncBaseTransport | None) -> None:
        self._connection = AsyncConnection(settings, transport)
        self._key = settings.api_key
        self._submitting = asyncio.Semaphore(settings.max_concurrent_submissions)

    async def run(self, effects: Effects[T]) -> T:
        """Run effects to their end, and return what was decided."""
        return await perform_all(effects, self._perform)

    def jobs(
        self,
        batch: Batch,
        inputs: Iterable[JobInput] | AsyncIterable[JobInput],
        ledger: BatchLedger,
        *,
        cancel_on_close: bool,
    ) -> AsyncJobBatch:
        """Return the outcomes of a batch."""
        return AsyncJobBatch(self._perform, batch, inputs, ledger, cancel_on_close=cancel_on_close)

    async def show(self, effects: Effects[Any]) -> AsyncGenerator[JobStatus, None]:
        """Run effects, and pass on what they emit."""
        outcome: Any = None
        try:
            while True:
                try:
                    effect = effects.send(outcome)
                except StopIteration:
                    return
                if isinstance(effect, Emit):
                    yield effect.status
                outcome = await self._perform(effect)
        finally:
            effects.close()

    async def follow(self, effects: FollowEffects) -> AsyncGenerator[TraceStep, None]:
        """Run effects that receive a stream, and pass on the steps that they emit."""
        receiver = AsyncEventReceiver(self._connection, self._key)
        outcome: Any = None
        try:
            while True:
                try:
                    effect = effects.send(outcome)
                except StopIteration:
                    return
                outcome = None
                match effect:
                    case Receive():
                        outcome = await receiver.next(effect.call)
                    case EmitStep():
                        yield effect.step
                    case _:
                        outcome = await self._perform(effect)
        finally:
            effects.close()
            await receiver.aclose()

    @property
    def is_closed(self) -> bool:
        """Whether nothing more can be sent."""
        return self._connection.is_closed

    async def aclose(self) -> None:
        """Close the connections; a second time does nothing."""
        await self._connection.aclose()

    async def _perform(self, effect: Effect) -> Any:
        match effect:
            case Sleep():
                await sleep(effect)
            case Send():
                return await self._send(effect)
            case _:
                pass
        return None

    async def _send(self, request: Send) -> Any:
        call = request.call
        if call.submits:
            async with self._submitting:
                response = await self._connection.send(call, request.timeout)
        else:
            response = await self._connection.send(call, request.timeout)
        if isinstance(response, HttpResponse) and call.cut_at is None and len(response.body) > LARGE_BODY:
            return await asyncio.to_thread(endpoints.outcome, call, response, self._key)
        return endpoints.outcome(call, response, self._key)


class AsyncNoukai:
    """The async client of the Noukai job API. It belongs to one event loop, and is an async context manager.

    Its arguments are those of `Noukai`; `transport` is an async one.

    Example:
        >>> import asyncio
        >>> from noukai_core import AsyncNoukai
        >>> from noukai_core.emulator import Emulator
        >>> async def spell(message: str, base_url: str) -> str:
        ...     async with AsyncNoukai("nk_test_key", base_url=base_url) as client:
        ...         job = await client.flow("acme/spelling/grade-3").job(message=message)
        ...         return (await job.wait(timeout_ms=60_000)).output["message"]
        >>> with Emulator() as emulator:
        ...     asyncio.run(spell("Helo", emulator.base_url))
        'Helo'
    """

    def __init__(
        self,
        api_key: str | None = None,
        *,
        transport: httpx.AsyncBaseTransport | None = None,
        **options: Unpack[ClientArguments],
    ) -> None:
        api_key = hidden(api_key)
        refuse_unknown(self, options)
        self._settings = ClientOptions.of(api_key=api_key, **options)
        self._runner = AsyncRunner(self._settings, transport)

    def flow(self, path: str) -> AsyncFlow:
        """Name a flow, as `"org/project/slug"` or, inside this client's org and project, as a slug.

        Raises:
            InvalidInputError: It is not the address of a flow.
        """
        return AsyncFlow(self._runner, self._settings.flow_path(path), self._settings)

    async def verify_key(self) -> KeyInfo:
        """Check the key; see `Noukai.verify_key`."""
        return await self._runner.run(send_with_retries(endpoints.verify_key(), time.monotonic))

    async def runs(self, flow_id: str, *, state: str | None = None, limit: int = 100) -> tuple[FlowRun, ...]:
        """List the newest runs of a flow, the newest first; see `Noukai.runs`."""
        return await self._runner.run(listing_runs(flow_id, state, limit))

    async def ended_runs(self, flow_id: str, cursor: RunsCursor | None = None) -> EndedRuns:
        """Read which runs of a flow have ended since the previous read; see `Noukai.ended_runs`."""
        return await self._runner.run(reading_ended_runs(flow_id, cursor))

    @property
    def is_closed(self) -> bool:
        """Whether the client is closed, and sends nothing more."""
        return self._runner.is_closed

    async def aclose(self) -> None:
        """Close the connections. Closing twice is fine."""
        await self._runner.aclose()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.aclose()

    def __repr__(self) -> str:
        return describe(self)


class AsyncFlow(FlowHandle[AsyncRunner]):
    """A flow that jobs can be submitted to. Made by `AsyncNoukai.flow`."""

    async def job(
        self,
        message: str | None = None,
        *,
        parameters: Mapping[str, Any] | None = None,
        block_overrides: Mapping[str, Mapping[str, Any]] | None = None,
        trace: bool = False,
        version: Version = "production",
        session_id: str | UUID | None = None,
        callback_url: str | None = None,
        callback_events: Sequence[str] | None = None,
        submission: Submission | None = None,
    ) -> AsyncJob:
        """Submit a job, once; see `Flow.job` for the arguments and errors."""
        request = JobRequest(
            flow=self.path,
            message=message,
            parameters=parameters,
            block_overrides=block_overrides,
            version=version,
            trace=trace,
            session_id=session_id,
            callback_url=callback_url,
            callback_events=callback_events,
        )
        return await self.submit(request, submission=submission)

    async def submit(self, request: JobRequest, *, submission: Submission | None = None) -> AsyncJob:
        """Submit the job of a request, once; see `Flow.submit`."""
        span = JobSpan(self.path)
        effects = self._submitting(request, submission, span)
        submitted = await self._runner.run(effects)
        return self._job(submitted.job.id, submitted.at, submitted.job, span=span)

    def jobs(
        self,
        inputs: Iterable[JobInput] | AsyncIterable[JobInput],
        *,
        version: Version = "production",
        trace: bool = False,
        in_order: bool = False,
        max_concurrency: int = 1000,
        timeout: float | None = None,
        poll_interval: float | None = None,
        cancel_on_timeout: bool | Callable[[], bool | Awaitable[bool]] = False,
        max_cost_usd: Decimal | float | str | None = None,
        spent_usd: Decimal | float | str | None = Decimal(0),
        stop_after_failures: int | float | None = None,
        stopped: str | None = None,
        ledger: BatchLedger | None = None,
        batch_id: str | UUID | None = None,
        detach: bool = False,
        cancel_on_close: bool = False,
        output_type: type[BaseModel] | None = None,
    ) -> AsyncJobBatch:
        """Run many jobs, and return their outcomes as an async iterator; see `Flow.jobs`.

        `inputs` may be an async iterable, and the methods of `ledger` and `cancel_on_timeout` may be
        coroutines.
        """
        options = BatchOptions(
            version=version,
            trace=trace,
            in_order=in_order,
            max_concurrency=max_concurrency,
            timeout=timeout,
            poll_interval=poll_interval,
            cancel_on_timeout=cancel_on_timeout,
            max_cost_usd=max_cost_usd,
            spent_usd=spent_usd,
            stop_after_failures=stop_after_failures,
            stopped=stopped,
            batch_id=batch_id,
            detach=detach,
            output_type=output_type,
        )
        batch = self._batch(inputs, options)
        return self._runner.jobs(
            batch, inputs, MemoryLedger() if ledger is None else ledger, cancel_on_close=cancel_on_close
        )

    async def wait_for_sessions(
        self,
        sessions: Mapping[str, int],
        *,
        until: int = 0,
        age: float = 0.0,
        timeout: float | None = None,
        poll_interval: float | None = None,
        report: Callable[[int], None] | None = None,
    ) -> int:
        """Wait for the jobs of a batch by the lists of their sessions; see `Flow.wait_for_sessions`."""
        effects = self._waiting_for_sessions(sessions, until, age, timeout, poll_interval, report)
        return await self._runner.run(effects)

    async def running_in(self, session_id: str) -> tuple[list[AsyncJob], int]:
        """Return the jobs of a session that have not ended, and how many have; see `Flow.running_in`."""
        job_ids, ended = await self._runner.run(running_in(session_id, time.monotonic))
        return [self._job(job_id, None, None) for job_id in job_ids], ended

    async def jobs_in(self, session_id: str) -> frozenset[str]:
        """Return the ids of all jobs that a session lists; see `Flow.jobs_in`."""
        return await self._runner.run(jobs_in(session_id, time.monotonic))

    def attach(
        self,
        job_id: str,
        *,
        submitted_at: datetime | None = None,
        last_status: JobStatus | None = None,
    ) -> AsyncJob:
        """Return the handle of a job that exists, without a request; see `Flow.attach`."""
        return self._job(job_id, submitted_at, None, last_status)

    async def find(self, submission: Submission) -> AsyncJob | None:
        """Look up the job of a submission, and submit nothing; see `Flow.find`."""
        found = await self._runner.run(self._finding(submission))
        return None if found is None else self._job(found.id, submission.last_sent_at, None)

    def _job(
        self,
        job_id: str,
        submitted_at: datetime | None,
        accepted: JobAccepted | None,
        last_status: JobStatus | None = None,
        span: JobSpan | None = None,
    ) -> AsyncJob:
        return AsyncJob(
            self._runner,
            job_id,
            self._path,
            self._settings,
            submitted_at=submitted_at,
            accepted=accepted,
            last_status=last_status,
            span=span,
        )


class AsyncJob(JobHandle[AsyncRunner]):
    """A job that exists. Made by `AsyncFlow.job` and `AsyncFlow.attach`."""

    async def status(self) -> JobStatus:
        """Poll the job once; see `Job.status`."""
        return await self._runner.run(self._polling())

    async def wait(
        self, *, timeout_ms: float | None = None, poll_interval: float | None = None
    ) -> ExecuteResult:
        """Wait for the end of the job; see `Job.wait` for the arguments and errors."""
        status = await self._runner.run(self._waiting(timeout_ms, poll_interval))
        return status.result_or_raise()

    def watch(
        self,
        *,
        timeout: float | None = None,
        poll_interval: float | None = None,
        max_poll_bytes: int | None = None,
        log_changes: bool = True,
    ) -> AsyncGenerator[JobStatus, None]:
        """Wait for the end of the job, and yield what is new; see `Job.watch`."""
        return self._runner.show(self._watching(timeout, poll_interval, max_poll_bytes, log_changes))

    async def cancel(self) -> None:
        """Cancel the job; see `Job.cancel`."""
        await self._runner.run(self._cancelling())

    async def trace(self) -> RunTrace:
        """Read how the run went; see `Job.trace`."""
        return await self._runner.run(self._tracing())

    def steps(self, *, skip: int = 0) -> AsyncGenerator[TraceStep, None]:
        """Follow the steps of the job live; see `Job.steps`."""
        return self._runner.follow(self._following(skip))
