"""Many jobs in one task: one event loop, one client, bounded concurrency, outcomes in the inputs' order."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence
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
    JobRequest,
    JobState,
    JobStatus,
    JobTimeoutError,
    NoukaiError,
    PermanentError,
)
from noukai_core.checks import check_choice, check_count, check_seconds
from noukai_prefect import _cancellation
from noukai_prefect._artifacts import PROGRESS_SECONDS, ProgressArtifact
from noukai_prefect._batch_table import BatchRow, BatchTable
from noukai_prefect._cancellation import StoppedInThread
from noukai_prefect._events import emit_job_event, outcome_payload
from noukai_prefect._job_artifact import read_cost
from noukai_prefect._run_context import RunContext
from noukai_prefect._text import bare_reason

RaiseOn: TypeAlias = Literal["first", "any", "none"]

_LOG_SECONDS = 10.0
_MAX_NAMED = 20


@dataclass(frozen=True, slots=True)
class JobOutcome:
    """The outcome of one of many inputs.

    Attributes:
        index: The position of the input.
        job_id: The job, if there is one.
        state: How the job ended; or the type of the error, if there is no job or it was not seen to end.
        output: The output of a completed job.
        error: Why the job did not complete, or `None`.
        seconds: From the submission, or from attaching to an earlier job, to the end.
        tokens: The tokens in the job's trace, if it was traced and the trace could be read.
        cost_usd: The job's cost in US dollars, under the same conditions.
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
        if self.timeout is not None:
            check_seconds(self.timeout, "timeout")
        if self.poll_interval is not None:
            check_seconds(self.poll_interval, "poll_interval")
        check_count(self.max_concurrency, "max_concurrency")
        check_choice(self.raise_on, get_args(RaiseOn), "raise_on")


class Batch:
    """One run over many inputs.

    Args:
        flow: The Noukai flow.
        requests: What to submit.
        options: How the batch runs.
        run: Where the code runs.
        table: The table of the batch.
    """

    def __init__(
        self,
        flow: AsyncFlow,
        requests: Sequence[JobRequest],
        options: BatchOptions,
        run: RunContext,
        table: BatchTable,
    ) -> None:
        self._flow = flow
        self._requests = requests
        self._options = options
        self._run = run
        self._table = table
        self._progress = ProgressArtifact(
            run, flow.path, f"Noukai batch of {len(requests)} jobs of {flow.path}"
        )
        self._jobs: dict[int, AsyncJob] = {}
        self._semaphore = asyncio.Semaphore(options.max_concurrency)
        self._ended = 0
        self._logged = ""
        self._log_at = time.monotonic() + _LOG_SECONDS
        self._first_error: asyncio.Future[NoukaiError] = asyncio.get_running_loop().create_future()

    async def outcomes(self) -> list[JobOutcome]:
        """Run every job, and return the outcomes in the order of the inputs."""
        if self._run.stop_requested:
            raise StoppedInThread(f"The flow run was stopped before jobs of {self._flow.path} were submitted")
        await self._table.open()
        for row in self._table.rows:
            if row.job_id is not None:
                self._jobs[row.index] = self._flow.attach(row.job_id, submitted_at=self._table.written_at)
        tasks = [asyncio.ensure_future(self._outcome(row)) for row in self._table.rows]
        all_ended = asyncio.gather(*tasks)
        stop = asyncio.ensure_future(_cancellation.watch_for_stop(self._run))
        updates = asyncio.ensure_future(self._update_regularly())
        try:
            await asyncio.wait(
                (all_ended, stop, updates, self._first_error), return_when=asyncio.FIRST_COMPLETED
            )
            for task in (stop, updates):
                if task.done():
                    task.result()  # raises a signal that struck inside it
            if self._first_error.done():
                raise self._first_error.result()
            if stop.done():
                raise StoppedInThread(f"The flow run was stopped while jobs of {self._flow.path} ran")
            return all_ended.result()
        except BaseException as error:
            if _cancellation.interrupts(error):
                await self._cancel_or_keep(tasks, error)
            raise
        finally:
            with anyio.move_on_after(_cancellation.CLEANUP_SECONDS, shield=True):
                await _cancellation.cancel_tasks([*tasks, all_ended, stop, updates])
                await self._update(final=True)

    async def _outcome(self, row: BatchRow) -> JobOutcome:
        async with self._semaphore:
            started = time.monotonic()
            try:
                outcome = await self._attach_or_submit(row, started)
            except NoukaiError as error:
                outcome = self._unsuccessful(row, error, started)
            row.seconds = round(outcome.seconds, 1)
            row.reason = bare_reason(outcome.error, row.job_id) if outcome.error else None
            self._ended += 1
            return outcome

    def _unsuccessful(self, row: BatchRow, error: NoukaiError, started: float) -> JobOutcome:
        cancelled = isinstance(error, JobTimeoutError) and row.state == JobState.CANCELLED
        if not (cancelled or isinstance(error, JobFailedError | JobCancelledError)):
            row.state = type(error).__name__
        outcome = self._make_outcome(row, started, error=error)
        if isinstance(error, JobFailedError | JobCancelledError):
            payload = outcome_payload(
                error.status,
                url=self._table.page(row),
                seconds=outcome.seconds,
                tokens=row.tokens,
                cost_usd=row.cost_usd,
            )
            emit_job_event(self._run, row.state, self._flow.path, error.job_id, payload)
        if self._options.raise_on == "first" and not self._first_error.done():
            self._first_error.set_result(error)
        return outcome

    def _make_outcome(
        self, row: BatchRow, started: float, *, output: Any = None, error: NoukaiError | None = None
    ) -> JobOutcome:
        return JobOutcome(
            row.index,
            row.job_id,
            row.state,
            output,
            error,
            time.monotonic() - started,
            row.tokens,
            None if row.cost_usd is None else str(row.cost_usd),
        )

    async def _attach_or_submit(self, row: BatchRow, started: float) -> JobOutcome:
        """Attach to the job of an earlier attempt, or submit one, and wait for it."""
        if row.index in self._jobs:
            try:
                return await self._wait(self._jobs[row.index], row, started)
            except JobNotFoundError:
                if (job := await self._listed(row)) is not None:
                    return await self._wait(job, row, started)
                del self._jobs[row.index]
                row.replace_job()
        return await self._wait(await self._submit(row), row, started)

    async def _listed(self, row: BatchRow) -> AsyncJob | None:
        """Return the job that the server lists under the submission of a row."""
        if self._requests[row.index].session_id is not None:
            return None
        return await self._flow.find(self._table.submission(row))

    async def _submit(self, row: BatchRow) -> AsyncJob:
        row.state, sent_before, row.sent = "submitting", row.sent, True
        request = self._requests[row.index]
        try:
            job = await self._flow.submit(request, submission=self._table.submission(row))
        except InvalidInputError:
            row.sent = sent_before  # nothing was sent now
            raise
        except PermanentError:
            row.sent = False
            raise
        self._jobs[row.index] = job
        row.job_id, row.state = job.id, JobState.PENDING.value
        return job

    async def _wait(self, job: AsyncJob, row: BatchRow, started: float) -> JobOutcome:
        timeout = self._options.timeout
        status: JobStatus | None = None
        try:
            async for status in job.watch(timeout=timeout, poll_interval=self._options.poll_interval):
                row.state = str(status.state)
        except JobTimeoutError as timed_out:
            if timeout is None or not self._options.cancel_on_timeout:
                raise
            error = await _cancellation.cancel_on_timeout(job, timed_out, timeout, self._run)
            if error is not timed_out:
                row.state = JobState.CANCELLED.value
            raise error from None
        assert status is not None, "a watch ends with a status or an error"
        await self._read_cost(job, row)
        output = status.result_or_raise().output
        return self._make_outcome(row, started, output=output)

    async def _read_cost(self, job: AsyncJob, row: BatchRow) -> None:
        if self._requests[row.index].trace:
            cost = await read_cost(job, self._run)
            row.tokens, row.cost_usd = cost.tokens, cost.cost_usd

    async def _update_regularly(self) -> None:
        """Keep the table and the progress bar up to date."""
        while True:
            await self._update(final=False)
            await asyncio.sleep(PROGRESS_SECONDS)

    async def _update(self, *, final: bool) -> None:
        """Update the log, the table and the progress bar. A failure to do so does not fail the jobs."""
        self._log_counts(final=final)
        try:
            await self._table.write(final=final)
        except Exception as error:
            self._run.logger().warning(
                "Noukai batch of %d jobs of %s: table not written: %s",
                len(self._requests),
                self._flow.path,
                error,
            )
        if self._requests:
            percentage = 100.0 * self._ended / len(self._requests)
            await self._progress.update(percentage, self._table.counts() if final else None)

    def _log_counts(self, *, final: bool) -> None:
        """Log how many jobs are in each state, if that has changed since a few seconds ago."""
        counts = self._table.counts()
        if counts != self._logged and (final or time.monotonic() >= self._log_at):
            self._logged, self._log_at = counts, time.monotonic() + _LOG_SECONDS
            self._run.logger().info(
                "Noukai batch of %d jobs of %s: %s", len(self._requests), self._flow.path, counts
            )

    async def _cancel_or_keep(
        self, tasks: Sequence[asyncio.Future[Any]], interruption: BaseException
    ) -> None:
        """Cancel the unfinished jobs, if the interruption calls for that."""
        logger, size, path = self._run.logger(), len(self._requests), self._flow.path
        with anyio.move_on_after(_cancellation.CLEANUP_SECONDS, shield=True):
            await _cancellation.cancel_tasks(tasks)  # or each job that ends admits one more
            reason = await _cancellation.cancel_reason(self._run, interruption)
            if reason is None:
                logger.warning(
                    "Noukai batch of %d jobs of %s: left running (%s; a rerun of this flow run attaches to "
                    "them)",
                    size,
                    path,
                    self._unfinished(),
                )
                return
            semaphore = asyncio.Semaphore(_cancellation.CANCEL_CONCURRENCY)
            await asyncio.gather(*(self._cancel(row, reason, semaphore) for row in self._table.rows))
            return
        logger.warning(
            "Noukai batch of %d jobs of %s: cancel failed (no confirmation within %g s; may still be "
            "running: %s)",
            size,
            path,
            _cancellation.CLEANUP_SECONDS,
            self._unfinished(),
        )

    def _unfinished(self) -> str:
        """Return how many jobs may be running, and which: the first ones, by their ids."""
        rows = [row for row in self._table.rows if row.unfinished or row.may_have_job]
        names = [row.job_id or f"submission {self._table.submission(row).id}" for row in rows[:_MAX_NAMED]]
        more = ["…"] if len(rows) > _MAX_NAMED else []
        return f"{len(rows)} jobs{': ' if names else ''}{', '.join([*names, *more])}"

    async def _cancel(self, row: BatchRow, reason: str, semaphore: asyncio.Semaphore) -> None:
        """Cancel the job of a row, even one that an interrupted submission may have created."""
        job = self._jobs.get(row.index) if row.unfinished else None
        if job is None and not row.may_have_job:
            return
        async with semaphore:
            if job is None:
                job = await _cancellation.cancel_by_submission(
                    self._flow, self._table.submission(row), self._run, reason
                )
            elif not await _cancellation.cancel(job, self._run, reason):
                job = None
        if job is not None:
            row.job_id, row.state = job.id, JobState.CANCELLED.value
