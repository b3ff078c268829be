"""Many jobs in one task: one loop, one client, a bound on what is in flight, results in the inputs' order."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias, get_args

import anyio

from noukai_core import (
    AsyncFlow,
    AsyncJob,
    InvalidInputError,
    JobCancelledError,
    JobFailedError,
    JobNotFoundError,
    JobState,
    JobStatus,
    JobTimeoutError,
    NoukaiError,
    PermanentError,
)
from noukai_prefect import _cancellation
from noukai_prefect._arguments import check_count, check_one_of, check_seconds
from noukai_prefect._batch_table import BatchRow, BatchTable
from noukai_prefect._cancellation import StoppedInThread
from noukai_prefect._events import PROGRESS_SECONDS, ProgressArtifact, job_event
from noukai_prefect._run import JobRequest
from noukai_prefect._run_context import RunContext

RaiseOn: TypeAlias = Literal["first", "any", "none"]

_CANCELS_IN_FLIGHT = 32
_SHOWN_ERROR = 200


@dataclass(frozen=True, slots=True)
class JobOutcome:
    """What became of one of many inputs.

    Attributes:
        index: Its place among the inputs.
        job_id: The job, if there is one.
        state: How the job ended; or the kind of error, when there is no job or its end was not seen.
        output: The output of a completed job.
        error: What went wrong, or `None`.
        seconds: From its submission, or from the attachment to an earlier job, to its end.
        tokens: What the job's trace counts, when it was traced and the trace can be read.
        cost_usd: What the job cost in US dollars, likewise.
    """

    index: int
    job_id: str | None
    state: str
    output: Any = None
    error: NoukaiError | None = None
    seconds: float = 0.0
    tokens: int | None = None
    cost_usd: str | None = None


@dataclass(frozen=True)
class BatchOptions:
    """How a batch runs; the arguments of `run_noukai_jobs`."""

    timeout: float | None
    poll_interval: float | None
    cancel_on_timeout: bool
    max_concurrency: int
    max_polls_per_second: float
    raise_on: RaiseOn

    def __post_init__(self) -> None:
        check_seconds(self.timeout, "timeout")
        check_seconds(self.poll_interval, "poll_interval")
        check_count(self.max_concurrency, "max_concurrency")
        check_one_of(self.raise_on, get_args(RaiseOn), "raise_on")


class Batch:
    """One run over many inputs."""

    def __init__(
        self,
        flow: AsyncFlow,
        inputs: Sequence[JobRequest],
        options: BatchOptions,
        run: RunContext,
        record: BatchTable,
    ) -> None:
        self._flow = flow
        self._inputs = inputs
        self._options = options
        self._run = run
        self._record = record
        self._progress = ProgressArtifact(run, f"{len(inputs)} Noukai jobs of {flow.path}")
        self._jobs: dict[int, AsyncJob] = {}
        self._semaphore = asyncio.Semaphore(options.max_concurrency)
        self._ended = 0
        self._first_error: asyncio.Future[NoukaiError] = asyncio.get_running_loop().create_future()

    async def outcomes(self) -> list[JobOutcome]:
        """Run every job, and return the outcomes in the order of the inputs."""
        if self._run.stop_requested:
            raise StoppedInThread(f"The flow run was stopped before jobs of {self._flow.path} were submitted")
        await self._record.open()
        for row in self._record.rows:
            if row.job_id is not None:
                self._jobs[row.index] = self._flow.attach(row.job_id, submitted_at=self._record.written_at)
        jobs = [asyncio.ensure_future(self._one(row)) for row in self._record.rows]
        together = asyncio.gather(*jobs)
        stop = asyncio.ensure_future(_cancellation.watch_for_stop(self._run))
        show = asyncio.ensure_future(self._show())
        try:
            await asyncio.wait((together, stop, show, self._first_error), return_when=asyncio.FIRST_COMPLETED)
            for task in (stop, show):
                if task.done():
                    task.result()  # a signal that struck inside of it is raised here
            if self._first_error.done():
                raise self._first_error.result()
            if stop.done():
                raise StoppedInThread(f"The flow run was stopped while jobs of {self._flow.path} ran")
            return together.result()
        except BaseException as interrupted:
            if _cancellation.interrupts(interrupted):
                await self._settle(jobs, interrupted)
            raise
        finally:
            with anyio.move_on_after(_cancellation.CLEANUP_SECONDS, shield=True):
                await _cancellation.end([*jobs, together, stop, show])
                await self._bring_up_to_date(final=True)

    async def _one(self, row: BatchRow) -> JobOutcome:
        async with self._semaphore:
            began = time.monotonic()
            try:
                outcome = await self._completed(row, began)
            except NoukaiError as error:
                outcome = self._bad(row, error, time.monotonic() - began)
            row.seconds = round(outcome.seconds, 1)
            row.error = str(outcome.error)[:_SHOWN_ERROR] if outcome.error else None
            self._ended += 1
            return outcome

    def _bad(self, row: BatchRow, error: NoukaiError, seconds: float) -> JobOutcome:
        if isinstance(error, JobFailedError | JobCancelledError):
            job_event(self._run, row.state, self._flow.path, error.job_id)
        elif not isinstance(error, JobTimeoutError):
            row.state = type(error).__name__
        if self._options.raise_on == "first" and not self._first_error.done():
            self._first_error.set_result(error)
        return JobOutcome(row.index, row.job_id, row.state, error=error, seconds=seconds)

    async def _completed(self, row: BatchRow, began: float) -> JobOutcome:
        """Attach to the job of an earlier attempt, or submit one, and wait for it."""
        if row.index in self._jobs:
            try:
                return await self._follow(self._jobs[row.index], row, began)
            except JobNotFoundError:
                del self._jobs[row.index]
                row.renew()
        return await self._follow(await self._submitted(row), row, began)

    async def _submitted(self, row: BatchRow) -> AsyncJob:
        row.state, row.sent = "submitting", True
        inputs = self._inputs[row.index].arguments()
        try:
            job = await self._flow.job(**inputs, submission=self._record.submission(row))
        except (InvalidInputError, PermanentError):
            row.sent = False
            raise
        self._jobs[row.index] = job
        row.job_id, row.state = job.id, JobState.PENDING.value
        return job

    async def _follow(self, job: AsyncJob, row: BatchRow, began: float) -> JobOutcome:
        status: JobStatus | None = None
        try:
            async for status in job.watch(
                timeout=self._options.timeout, poll_interval=self._options.poll_interval
            ):
                row.state = str(status.state)
        except JobTimeoutError as late:
            if not self._options.cancel_on_timeout:
                raise
            error = await _cancellation.cancel_on_timeout(job, late, self._run)
            if error is not late:
                row.state = JobState.CANCELLED.value
            raise error from None
        assert status is not None, "a watch ends with a status or an error"
        output = status.result_or_raise().output
        await self._read_trace(job, row)
        seconds = time.monotonic() - began
        return JobOutcome(
            row.index, job.id, row.state, output, seconds=seconds, tokens=row.tokens, cost_usd=row.cost_usd
        )

    async def _read_trace(self, job: AsyncJob, row: BatchRow) -> None:
        if self._inputs[row.index].trace:
            with suppress(NoukaiError):  # a trace is an extra: some servers refuse it to API keys
                trace = await job.trace()
                row.tokens = trace.total_tokens
                row.cost_usd = None if trace.cost_usd is None else str(trace.cost_usd)

    async def _show(self) -> None:
        """Keep the table and the progress up to date."""
        while True:
            await self._bring_up_to_date(final=False)
            await asyncio.sleep(PROGRESS_SECONDS)

    async def _bring_up_to_date(self, *, final: bool) -> None:
        """Show how far the jobs are. Prefect's server is no reason to fail them."""
        try:
            await self._record.write(final=final)
        except Exception as error:
            self._run.logger().warning("The table of the Noukai jobs could not be written: %s", error)
        if self._inputs:
            await self._progress.show(100.0 * self._ended / len(self._inputs), final=final)

    async def _settle(self, tasks: Sequence[asyncio.Future[Any]], interrupted: BaseException) -> None:
        """End the jobs that go on, when a person or the timeout of the task wants that."""
        logger, going_on = self._run.logger(), sum(row.going_on for row in self._record.rows)
        with anyio.move_on_after(_cancellation.CLEANUP_SECONDS, shield=True):
            await _cancellation.end(tasks)  # or each job that ends makes room for one more
            if not await _cancellation.to_be_cancelled(self._run, interrupted):
                logger.warning("%d Noukai jobs go on; a rerun of this flow run attaches to them", going_on)
                return
            semaphore = asyncio.Semaphore(_CANCELS_IN_FLIGHT)
            await asyncio.gather(*(self._stop(row, semaphore) for row in self._record.rows))
            return
        logger.warning("Some of %d Noukai jobs may go on: they could not be cancelled in time", going_on)

    async def _stop(self, row: BatchRow, semaphore: asyncio.Semaphore) -> None:
        """Cancel the job of a row, also the one that an interrupted submission may have made."""
        job = self._jobs.get(row.index) if row.going_on else None
        if job is None and not row.unsettled:
            return
        async with semaphore:
            if job is None:
                job = await _cancellation.cancel_by_submission(
                    self._flow, self._record.submission(row), self._run
                )
            elif not await _cancellation.cancel(job, self._run):
                job = None
        if job is not None:
            row.job_id, row.state = job.id, JobState.CANCELLED.value
