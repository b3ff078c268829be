"""The engine of a batch in a thread, so that signals reach the task while thousands of jobs run."""

from __future__ import annotations

import asyncio
import json
import logging
import threading
import time
from collections.abc import Awaitable, Callable, Coroutine
from concurrent.futures import CancelledError, Future
from contextlib import suppress
from dataclasses import dataclass, replace
from decimal import Decimal
from typing import TYPE_CHECKING, Any

from noukai_airflow._client_cache import new_async_client
from noukai_airflow._xcom_values import REPLACED, UnreturnableError, as_xcom
from noukai_airflow.exceptions import NoukaiPermanentException
from noukai_core import JobOutputInvalidError, OutcomeState, one_line
from noukai_core.batch_files import OutcomePart
from noukai_core.output_types import json_output

if TYPE_CHECKING:
    from pydantic import BaseModel

    from noukai_airflow._batch_inputs import BatchInputs
    from noukai_airflow._batch_output import OutputFolder
    from noukai_airflow._connection import ConnectionSettings
    from noukai_core import AsyncJobBatch, AsyncNoukai, JobOutcome, LedgerEntry
    from noukai_core.batch_record import BatchRecord

log = logging.getLogger(__name__)

# The outputs of a batch without an output folder become an XCom, which is stored in Airflow's database.
MAX_OUTPUT_BYTES = 1024 * 1024

_READY_PAUSE = 0.01


@dataclass(frozen=True)
class BatchOptions:
    """How the jobs of a batch run. For the options that are not described here see `NoukaiRunJobsOperator`.

    Attributes:
        batch_id: The id from which the ids of all submissions follow.
        timeout: In seconds.
        poll_interval: In seconds.
        spent_usd: What the jobs that are recorded have cost; `None` if that is not known of all.
        detach: Whether to end as soon as nothing more can be submitted.
    """

    flow: str
    batch_id: str
    version: str | int
    trace: bool
    timeout: float | None
    poll_interval: float | None
    cancel_on_timeout: bool | Callable[[], Awaitable[bool]]
    max_concurrency: int
    max_cost_usd: Decimal | None
    spent_usd: Decimal | None
    detach: bool
    output_type: type[BaseModel] | None


class BatchThread:
    """Runs one segment of a batch.

    Args:
        settings: The connection.
        options: How the jobs run.
        inputs: The inputs.
        record: The ledger and the outcomes.
        output: Where completed jobs are written; `None` to keep their outputs in the record.
        owns_output: Whether that is still the folder of this try.

    Attributes:
        session_sizes: After the end, how many jobs each session has in which some have not ended.
        waiting: After the end, how many jobs have no outcome yet.
        first_sent_at: After the end, when the oldest of those was submitted, in seconds since the epoch.
    """

    def __init__(
        self,
        settings: ConnectionSettings,
        options: BatchOptions,
        inputs: BatchInputs,
        record: BatchRecord,
        output: OutputFolder | None,
        owns_output: Callable[[], bool],
    ) -> None:
        self._settings = settings
        self._options = options
        self._inputs = inputs
        self._record = record
        self._output = output
        self._owns_output = owns_output
        self._part = OutcomePart(len(record.parts))
        self._output_bytes = sum(map(_size_of, record.outputs.values()))  # of earlier segments
        self._changed_outputs = False
        self._loop: asyncio.AbstractEventLoop | None = None
        self._calling = threading.RLock()  # a signal handler may call while its thread does
        self._task: asyncio.Task[None] | None = None
        self._batch: AsyncJobBatch | None = None
        self._end: Future[None] = Future()
        self._begun = self._stopped = self._looping = False
        self._cancel_for: str | None = None
        self._cancelling: asyncio.Task[Any] | None = None
        self.session_sizes: dict[str, int] = {}
        self.waiting = 0
        self.first_sent_at: float | None = None
        self._thread = threading.Thread(target=self._run, name="noukai-batch", daemon=True)

    def start(self) -> None:
        """Begin."""
        self._begun = True
        try:
            self._thread.start()
        except RuntimeError as error:  # there are too many threads
            self._end.set_exception(error)

    def wait(self, seconds: float) -> bool:
        """Wait for the end for a while, and return whether it has come."""
        try:
            self._end.exception(seconds)
        except TimeoutError:
            return False
        return True

    def check(self) -> None:
        """Raise what the segment ended with, if it was an error."""
        self._end.result()

    @property
    def running(self) -> int:
        """How many jobs have not ended."""
        return len(self._unfinished())

    @property
    def sessions(self) -> set[str]:
        """The sessions in which jobs may be running."""
        return {entry.session_id for entry in self._unfinished()}

    @property
    def stopped(self) -> str | None:
        """Why nothing more is submitted, if so."""
        return None if self._batch is None else self._batch.stopped

    def stop(self, seconds: float) -> None:
        """End the segment, and leave the jobs running."""
        self._stopped = True
        if self._begun:
            self._call(self._stop(), seconds)
            self.wait(seconds)

    def cancel_jobs(self, reason: str, seconds: float) -> tuple[int, list[str]]:
        """Cancel the jobs that have not ended, as many as there is time for.

        This includes what an earlier segment left running, even if this one has not started.

        Args:
            reason: Why they are cancelled.
            seconds: How much time there is.

        Returns:
            How many jobs have ended with this, and the others, with the submissions of which no job is known.
        """
        ends = time.monotonic() + seconds
        before = self.running
        self._cancel_for = reason  # a thread that has yet to begin its batch then does nothing else
        if not self._begun:
            self.start()
            self.wait(seconds)
        else:
            while self._batch is None and not self._end.done() and time.monotonic() < ends:
                time.sleep(_READY_PAUSE)
            self._call(self._cancel(), ends - time.monotonic())
        left = self._unfinished()
        named = [entry.job_id or f"submission {entry.submission_id}" for entry in left]
        return max(before - len(left), 0), named

    def _unfinished(self) -> list[LedgerEntry]:
        """Return what was submitted and has not ended; before the batch begins, by an earlier segment."""
        batch = self._batch
        entries = self._record.read() if batch is None else batch.unfinished
        return [entry for entry in entries.values() if entry.unfinished and not entry.kept]

    def _call(self, coroutine: Coroutine[Any, Any, None], seconds: float) -> None:
        """Run a coroutine on the thread's event loop, for a bounded time."""
        with self._calling:
            if self._loop is None:
                coroutine.close()
                return
            called = asyncio.run_coroutine_threadsafe(coroutine, self._loop)
        try:
            called.result(max(seconds, 0.0))
        except TimeoutError:
            called.cancel()
        except CancelledError:  # the loop ends
            pass

    async def _stop(self) -> None:
        if self._batch is not None:
            await self._batch.stop()  # before the loop over it is cancelled, which would log what is left
        if self._looping and self._task is not None:
            self._task.cancel()

    async def _cancel(self) -> None:
        """Cancel the jobs once, even if the caller stops waiting for it."""
        if self._batch is not None and self._cancelling is None:
            self._cancelling = asyncio.create_task(self._batch.cancel(str(self._cancel_for)))
        try:
            if self._cancelling is not None:
                await asyncio.shield(self._cancelling)
        except Exception as error:
            flow = self._options.flow
            log.warning("Noukai batch of %s: cancel failed (%s; may still be running)", flow, error)

    def _run(self) -> None:
        try:
            asyncio.run(self._main())
        except BaseException as error:
            self._end.set_exception(error)
        else:
            self._end.set_result(None)

    async def _main(self) -> None:
        self._loop, self._task = asyncio.get_running_loop(), asyncio.current_task()
        try:
            async with await new_async_client(self._settings) as client:
                self._batch = self._jobs(client)
                try:
                    if self._cancel_for is None and not self._stopped:
                        await self._iterate(self._batch)
                finally:
                    if self._cancel_for is not None:  # perhaps since the segment has ended
                        await self._cancel()
        finally:
            with self._calling:
                self._loop = None
            await asyncio.sleep(0)  # what was called before begins, so that it ends with the loop

    def _jobs(self, client: AsyncNoukai) -> AsyncJobBatch:
        options = self._options
        return client.flow(options.flow).jobs(
            self._inputs,
            version=options.version,
            trace=options.trace,
            max_concurrency=options.max_concurrency,
            timeout=options.timeout,
            poll_interval=options.poll_interval,
            cancel_on_timeout=options.cancel_on_timeout,
            max_cost_usd=options.max_cost_usd,
            spent_usd=options.spent_usd,
            ledger=self._record,
            batch_id=options.batch_id,
            detach=options.detach,
            output_type=options.output_type,
        )

    async def _iterate(self, batch: AsyncJobBatch) -> None:
        try:
            self._looping = True
            async for outcome in batch:
                outcome = self._deliverable(outcome)
                row = self._record.add(outcome, keep_output=self._output is None)
                if outcome.state is OutcomeState.COMPLETED:
                    await self._keep(row)
        finally:
            self._looping = False
            ending = asyncio.create_task(self._end_segment(batch))
            while not ending.done():  # a cancel that comes now was for the loop
                with suppress(asyncio.CancelledError):
                    await asyncio.shield(ending)
            ending.result()

    async def _end_segment(self, batch: AsyncJobBatch) -> None:
        await batch.stop()
        self.session_sizes = self._record.session_sizes(batch.sessions)
        # What has timed out or is unknown has an outcome, and is not waited for any more.
        waiting = [entry for index, entry in batch.unfinished.items() if index in batch.states]
        self.waiting = len(waiting)
        sent = [entry.sent_at.timestamp() for entry in waiting if entry.sent_at]
        self.first_sent_at = min(sent, default=None)
        await self._store()

    def _deliverable(self, outcome: JobOutcome) -> JobOutcome:
        """Return an outcome whose output is of JSON values, and if it is to be returned, of an XCom's."""
        if outcome.state is not OutcomeState.COMPLETED:
            return outcome
        try:
            output = json_output(outcome.output, job_id=str(outcome.job_id))
            if self._output is None:
                output = self._returnable(output)
        except JobOutputInvalidError as error:
            invalid = error
        except UnreturnableError as error:
            invalid = JobOutputInvalidError(
                f"Noukai job {outcome.job_id}: {error}", job_id=str(outcome.job_id)
            )
        else:
            return replace(outcome, output=output)
        return self._without_output(outcome, invalid)

    def _without_output(self, outcome: JobOutcome, error: JobOutputInvalidError) -> JobOutcome:
        outcome = self._record.without_output(outcome, error)
        state, reason = outcome.state.replace("_", " "), one_line(str(outcome.reason))
        flow = self._options.flow
        log.warning(
            "Noukai job %s of %s: %s (input %d: %s)", outcome.job_id, flow, state, outcome.index, reason
        )
        return outcome

    def _returnable(self, output: Any) -> Any:
        """Return an output in a form that an XCom can hold.

        Raises:
            UnreturnableError: There is no such form.
        """
        output, changed = as_xcom(output)
        if changed and not self._changed_outputs:
            log.warning("Noukai batch of %s: output changed (%s)", self._options.flow, REPLACED)
            self._changed_outputs = True
        return output

    async def _keep(self, row: dict[str, Any]) -> None:
        if self._output is None:
            self._output_bytes += _size_of(row["output"])
            if self._output_bytes > MAX_OUTPUT_BYTES:
                raise NoukaiPermanentException(
                    f"The outputs are larger than the {MAX_OUTPUT_BYTES} bytes that a task may return: set "
                    "output_path to a folder for them. The jobs that have completed were paid for; clear the "
                    "task only if they may run again"
                )
            return
        self._part.add(row)
        if self._part.is_due():
            await self._write_part(self._output)

    async def _write_part(self, output: OutputFolder) -> None:
        part = self._part
        await self._record.begin_part(part)
        await asyncio.to_thread(output.write_part, part)
        self._record.end_part(part)
        self._part = part.following()

    async def _store(self) -> None:
        """Make durable what is known, so that the next segment goes on from there."""
        output = self._output
        if output is not None and self._part.rows:
            await self._write_part(output)
        await self._record.store()
        if output is not None and await asyncio.to_thread(self._owns_output):
            failures = [self._record.failures[index] for index in sorted(self._record.failures)]
            await asyncio.to_thread(output.write_failed, failures)


def _size_of(output: object) -> int:
    return len(json.dumps(output, ensure_ascii=False).encode())
