"""Many jobs in one task run or flow run: what is recorded and shown, and what an interruption does."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator, AsyncIterator, Collection, Mapping
from dataclasses import dataclass, replace
from decimal import Decimal
from typing import Any, Literal, TypeAlias, get_args

import anyio
from prefect.filesystems import WritableFileSystem
from pydantic import BaseModel

from noukai_core import (
    AsyncFlow,
    AsyncJobBatch,
    InvalidInputError,
    JobCancelledError,
    JobFailedError,
    JobOutcome,
    JobOutputInvalidError,
    LedgerEntry,
    OutcomeState,
)
from noukai_core.batch_deadline import CancelUnlessReplaced
from noukai_core.batch_record import BatchRecord
from noukai_core.checks import check_choice, check_count, check_seconds
from noukai_prefect import _cancellation
from noukai_prefect._artifacts import PROGRESS_SECONDS, ProgressArtifact
from noukai_prefect._batch_inputs import BatchInputs, beginning_of
from noukai_prefect._batch_output import OutputStorage, another_storage, check_output_storage
from noukai_prefect._batch_record import BatchRecordLog
from noukai_prefect._batch_table import WRITE_SECONDS, BatchTable, size_text
from noukai_prefect._cancellation import StoppedInThread
from noukai_prefect._concurrency import LeasedSlots
from noukai_prefect._events import emit_job_event, outcome_payload
from noukai_prefect._output_type import check_output_type
from noukai_prefect._run_context import RunContext, interrupted_by_a_person
from noukai_prefect.credentials import NoukaiCredentials

RaiseOn: TypeAlias = Literal["first", "any", "none"]

_LOG_SECONDS = 10.0
_MAX_NAMED = 20
_DAMAGED = (
    "a part of the record that earlier attempts wrote on Prefect's server cannot be read, so it is not known "
    "whether this input has a job. Cancel the batch's jobs in the Noukai console, and start a new flow run"
)


@dataclass(frozen=True, kw_only=True)
class BatchOptions:
    """How a batch runs; the arguments of `run_noukai_jobs`."""

    version: str | int = "production"
    trace: bool = False
    timeout: float | None = None
    poll_interval: float | None = None
    cancel_on_timeout: bool = True
    max_concurrency: int = 1000
    max_cost_usd: Decimal | float | str | None = None
    output_type: type[BaseModel] | None = None
    output_storage: WritableFileSystem | None = None
    concurrency: str | None = None
    raise_on: RaiseOn = "none"

    def __post_init__(self) -> None:
        if self.timeout is not None:
            check_seconds(self.timeout, "timeout")
        if self.poll_interval is not None:
            check_seconds(self.poll_interval, "poll_interval")
        check_count(self.max_concurrency, "max_concurrency")
        check_choice(self.raise_on, get_args(RaiseOn), "raise_on")
        check_output_type(self.output_type)
        check_output_storage(self.output_storage)
        if self.max_cost_usd is not None and not self.trace:
            raise InvalidInputError(
                "max_cost_usd needs trace=True, since only the trace of a job tells what it cost"
            )


class BatchRun:
    """One run over many inputs.

    Args:
        flow: The Noukai flow.
        inputs: What to submit.
        options: How the batch runs.
        run: Where the code runs.
        slot: Which of the flow run's batches it is; a UUID that is the same in each attempt.
        credentials: The credentials that submit the jobs.

    Attributes:
        record: What a rerun needs; there is one as soon as the first outcome is asked for.
    """

    def __init__(
        self,
        flow: AsyncFlow,
        inputs: BatchInputs,
        options: BatchOptions,
        run: RunContext,
        slot: str,
        credentials: NoukaiCredentials,
    ) -> None:
        run = replace(run, cancel_on_timeout=options.cancel_on_timeout)
        self.record: BatchRecord | None = None
        self._flow = flow
        self._inputs = inputs
        self._options = options
        self._run = run
        self._slot = slot
        self._credentials = credentials
        self._log = BatchRecordLog(run, slot, flow.path, inputs.total, credentials)
        self._table = BatchTable(run, flow.path, inputs.total, credentials, traced=options.trace)
        self._progress = ProgressArtifact(run, flow.path, self._table.subject)
        self._logged = ""
        self._log_at = time.monotonic() + _LOG_SECONDS
        self._store_at = 0.0
        self._started = time.monotonic()
        self._cancel_on_timeout = CancelUnlessReplaced(lambda: _cancellation.is_replaced(run))
        self._output: OutputStorage | None = None
        self._slots = (
            None if options.concurrency is None else LeasedSlots(options.concurrency, options.max_concurrency)
        )

    @property
    def progress(self) -> str:
        """How many jobs are in each state."""
        return self._table.counts()

    def manifest(self) -> dict[str, Any]:
        """Return how many jobs ended in which state, what they used, and where the outcomes are."""
        assert self.record is not None
        assert self._output is not None
        seconds = round(time.monotonic() - self._started, 1)
        parts = sorted(self.record.parts)
        return {**self.record.summary(), "output_path": self._output.path, "parts": parts, "seconds": seconds}

    async def outcomes(self) -> AsyncGenerator[JobOutcome, None]:
        """Run every job, and yield an outcome for each input, as it ends."""
        run, path = self._run, self._flow.path
        batch: AsyncJobBatch | None = None
        waiting = set[asyncio.Future[Any]]()
        interrupted = False
        try:
            if run.stop_requested:
                raise StoppedInThread(f"The flow run was stopped before jobs of {path} were submitted")
            batch = await _cancellation.run_until_stopped(
                self._begin(), run, f"the record of jobs of {path} was read"
            )
            stop = asyncio.ensure_future(_cancellation.watch_for_stop(run))
            waiting.add(stop)
            await self._open_table()
            updates = asyncio.ensure_future(self._update_regularly(batch))
            waiting.add(updates)
            while True:
                following = asyncio.ensure_future(anext(batch, None))
                waiting.add(following)
                await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)
                for task in (stop, updates):
                    if task.done():
                        task.result()  # raises a signal that struck inside it
                if stop.done():
                    raise StoppedInThread(f"The flow run was stopped while jobs of {path} ran", stop.result())
                waiting.discard(following)
                if (outcome := following.result()) is None:
                    await self._write_output()
                    return
                yield await self._note(outcome)
        except BaseException as error:
            if interrupted := _cancellation.interrupts(error):
                batch = await self._end_jobs(batch, error)
            raise
        finally:
            try:
                await self._close(batch, waiting, name_left=not interrupted)
            except BaseException as error:
                if not interrupted and _cancellation.interrupts(error):
                    await self._end_jobs(batch, error)
                raise

    async def _close(
        self, batch: AsyncJobBatch | None, waiting: Collection[asyncio.Future[Any]], *, name_left: bool
    ) -> None:
        """Let go of everything, and show how the batch ended. An interruption can strike here as well."""
        with anyio.move_on_after(_cancellation.CLEANUP_SECONDS, shield=True):
            if batch is not None:
                await batch.stop()
            if name_left:
                self._log_left(batch)
            await _cancellation.cancel_tasks(tuple(waiting))
            if self._slots is not None:
                await self._slots.aclose()
            if batch is not None:
                await self._update(batch, final=True)

    async def _begin(self) -> AsyncJobBatch:
        record = await self._read_record()
        await self._open_places(record)
        return self._batch(record)

    async def _read_record(self) -> BatchRecord:
        rows = await self._log.rows(self._flow)
        self._table.artifact = self._log.table
        self.record = BatchRecord.load(rows, self._log.append, retried=bool(rows), retry_cancelled=True)
        return self.record

    def _batch(self, record: BatchRecord) -> AsyncJobBatch:
        options = self._options
        kept = {index for index, entry in record.read().items() if entry.kept}
        return self._flow.jobs(
            self._taken_inputs(kept),
            version=options.version,
            trace=options.trace,
            max_concurrency=options.max_concurrency,
            timeout=options.timeout,
            poll_interval=options.poll_interval,
            cancel_on_timeout=self._cancel_on_timeout if options.cancel_on_timeout else False,
            max_cost_usd=options.max_cost_usd,
            spent_usd=record.spent_usd,
            stopped=_DAMAGED if self._log.damaged else None,
            output_type=options.output_type,
            ledger=record,
            batch_id=self._slot,
        )

    async def _open_table(self) -> None:
        """Show the table, or the one of an earlier attempt again."""
        await self._table.write(final=False)
        self._log.table = self._table.artifact

    async def _open_places(self, record: BatchRecord) -> None:
        storage = self._options.output_storage
        if storage is not None:
            self._output = OutputStorage(storage, self._slot, self._flow.path, record)
            await self._output.open()
        elif record.parts:
            raise another_storage(record, "would be missing in what this attempt returns, which has none")
        if self._slots is not None:
            await self._slots.open()

    async def _taken_inputs(self, kept: Collection[int]) -> AsyncIterator[Any]:
        """Yield the inputs, each as soon as a slot is free for its job.

        Args:
            kept: The inputs whose outcomes an earlier attempt has written.
        """
        index = 0
        async for value in self._inputs:
            if index in kept:
                self._table.note_kept()
            else:
                self._table.note_input(index, beginning_of(value))
                if self._slots is not None:
                    await self._slots.take()
            index += 1
            yield value

    async def _note(self, outcome: JobOutcome) -> JobOutcome:
        """Record and show an outcome, and return what is to be made of it."""
        assert self.record is not None
        if self._slots is not None:
            self._slots.give_back()
        row: dict[str, Any] | None = None
        if outcome.state is not OutcomeState.COMPLETED or self._output is not None:
            try:
                row = self.record.add(outcome, keep_output=False, keep_failure=False)
            except JobOutputInvalidError as invalid:
                outcome = self.record.without_output(outcome, invalid)
                self.record.add(outcome, keep_output=False, keep_failure=False)
        self._table.note_outcome(outcome)
        if row is not None and outcome.state is OutcomeState.COMPLETED and self._output is not None:
            await self._output.add(row)
        error = outcome.error
        if isinstance(error, JobFailedError | JobCancelledError):
            payload = outcome_payload(
                error.status,
                url=self._credentials.page_of(self._flow.path, error.job_id),
                seconds=outcome.seconds,
                tokens=outcome.tokens,
                cost_usd=outcome.cost_usd,
            )
            emit_job_event(self._run, outcome.state, self._flow.path, error.job_id, payload)
        return outcome

    async def _write_output(self) -> None:
        if self._output is not None and self.record is not None:
            await self._output.flush()
            failures = self.record.failures
            await self._output.write_failed(failures[index] for index in sorted(failures))

    async def _update_regularly(self, batch: AsyncJobBatch) -> None:
        """Keep the record, the table and the progress bar up to date."""
        while True:
            await asyncio.sleep(PROGRESS_SECONDS)
            await self._update(batch, final=False)

    async def _update(self, batch: AsyncJobBatch, *, final: bool) -> None:
        """Update all that people see, and the record. A failure to do so does not fail the jobs."""
        unfinished = batch.unfinished
        jobs = {index: entry.job_id for index, entry in unfinished.items() if entry.job_id is not None}
        self._table.note_running(batch.states, jobs)
        self._log_counts(final=final)
        try:
            if final and self._output is not None:
                await self._output.flush()
        except Exception as error:
            self._run.logger().warning(
                "Noukai batch of %s jobs of %s: outcomes not written: %s",
                size_text(self._inputs.total),
                self._flow.path,
                error,
            )
        try:
            await self._store(final=final)
            await self._table.write(final=final)
        except Exception as error:
            self._run.logger().warning(
                "Noukai batch of %s jobs of %s: table not written: %s",
                size_text(self._inputs.total),
                self._flow.path,
                error,
            )
        if self._inputs.total:
            percentage = 100.0 * self._table.ended / self._inputs.total
            await self._progress.update(percentage, self._table.counts() if final else None)

    async def _store(self, *, final: bool) -> None:
        if self.record is not None and (final or time.monotonic() >= self._store_at):
            self._store_at = time.monotonic() + WRITE_SECONDS
            await self.record.store()

    def _log_counts(self, *, final: bool) -> None:
        """Log how many jobs are in each state, if that has changed since a few seconds ago."""
        counts = self._table.counts()
        if counts != self._logged and (final or time.monotonic() >= self._log_at):
            self._logged, self._log_at = counts, time.monotonic() + _LOG_SECONDS
            self._run.logger().info(
                "Noukai batch of %s jobs of %s: %s", size_text(self._inputs.total), self._flow.path, counts
            )

    async def _end_jobs(
        self, batch: AsyncJobBatch | None, interruption: BaseException
    ) -> AsyncJobBatch | None:
        """Cancel the jobs or leave them running, even if the end of the event loop interrupts that."""
        if isinstance(interruption, asyncio.CancelledError | GeneratorExit) and interrupted_by_a_person():
            interruption = KeyboardInterrupt()  # asyncio forgets where the cancellation came from as it ends
        try:
            return await self._cancel_or_keep(batch, interruption)
        except asyncio.CancelledError:
            await self._cancel_or_keep(batch, interruption)
            raise

    async def _cancel_or_keep(
        self, batch: AsyncJobBatch | None, interruption: BaseException
    ) -> AsyncJobBatch | None:
        """Cancel the unfinished jobs, if the interruption calls for that.

        Returns:
            The batch, even if only this has read what an earlier attempt left.
        """
        run, flow, logger = self._run, self._flow.path, self._run.logger()
        with anyio.move_on_after(_cancellation.CLEANUP_SECONDS, shield=True):
            if batch is not None:
                await batch.stop()  # or each job that ends admits one more
            reason = await _cancellation.cancel_reason(run, interruption)
            if reason is None:
                self._log_left(batch)
                return batch
            if batch is None:
                record = self.record or await _cancellation.read_record(self._read_record(), flow, run)
                if record is None:
                    return None  # which is logged
                batch = self._batch(record)
            await batch.stop()
            unfinished = batch.unfinished
            states: dict[str, str] = {}
            for outcome in await batch.cancel(reason):
                outcome.log(reason, logger)
                if outcome.status is not None and (outcome.status.finished or outcome.had_ended):
                    states[outcome.job_id] = str(outcome.status.state)
            left = batch.unfinished
            jobs = {index: entry.job_id or "" for index, entry in unfinished.items() if index not in left}
            self._table.note_cancelled(jobs, states)
            return batch
        late = f"no confirmation within {_cancellation.CLEANUP_SECONDS:g} s"
        if self.record is None:
            _cancellation.log_record_not_read(flow, run, late)
        else:
            logger.warning(
                "Noukai batch of %s jobs of %s: cancel failed (%s; may still be running: %s)",
                size_text(self._inputs.total),
                flow,
                late,
                _named(self._unfinished(batch)),
            )
        return batch

    def _unfinished(self, batch: AsyncJobBatch | None) -> Mapping[int, LedgerEntry]:
        """Return what may be running, even of an earlier attempt and if this one has not begun."""
        if batch is not None:
            return batch.unfinished
        entries = self.record.read() if self.record else dict[int, LedgerEntry]()
        return {index: one for index, one in entries.items() if one.unfinished and not one.kept}

    def _log_left(self, batch: AsyncJobBatch | None) -> None:
        """Name the jobs that are left running, even those of an earlier attempt whose input did not come."""
        if batch is None and self.record is None:
            _cancellation.log_record_not_read(self._flow.path, self._run)
        elif unfinished := self._unfinished(batch):
            self._run.logger().warning(
                "Noukai batch of %s jobs of %s: left running (%s; %s)",
                size_text(self._inputs.total),
                self._flow.path,
                _named(unfinished),
                _cancellation.why_left_running(self._run, "them"),
            )


def _named(entries: Mapping[int, LedgerEntry]) -> str:
    """Return how many jobs may be running, and which: the first ones, by their ids."""
    names = [
        entry.job_id or f"submission {entry.submission_id}" for entry in list(entries.values())[:_MAX_NAMED]
    ]
    more = ["…"] if len(entries) > _MAX_NAMED else []
    return f"{len(entries)} jobs{': ' if names else ''}{', '.join([*names, *more])}"
