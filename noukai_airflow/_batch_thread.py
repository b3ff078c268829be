"""The engine of a batch in a thread, so that signals reach the task while thousands of jobs run."""

from __future__ import annotations

import asyncio
import logging
import threading
from collections.abc import Awaitable, Callable, Coroutine
from concurrent.futures import Future
from dataclasses import dataclass, replace
from decimal import Decimal
from typing import TYPE_CHECKING, Any, TypeVar

from noukai_airflow._client_cache import new_async_client
from noukai_airflow._xcom_values import REPLACED, UnreturnableError, as_xcom
from noukai_airflow.exceptions import NoukaiPermanentException
from noukai_core import JobOutputInvalidError, OutcomeState
from noukai_core.batch_files import OutcomePart

if TYPE_CHECKING:
    from noukai_airflow._batch_inputs import BatchInputs
    from noukai_airflow._batch_output import OutputFolder
    from noukai_airflow._connection import ConnectionSettings
    from noukai_core import AsyncJobBatch, AsyncNoukai, JobOutcome
    from noukai_core.batch_record import BatchRecord

T = TypeVar("T")

log = logging.getLogger(__name__)

# The outputs of a batch without an output folder become an XCom, which is stored in Airflow's database.
MAX_OUTPUT_BYTES = 1024 * 1024


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


class BatchThread:
    """Runs one segment of a batch.

    Args:
        settings: The connection.
        options: How the jobs run.
        inputs: The inputs.
        record: The ledger and the outcomes.
        output: Where completed jobs are written; `None` to keep their outputs in the record.

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
    ) -> None:
        self._settings = settings
        self._options = options
        self._inputs = inputs
        self._record = record
        self._output = output
        self._part = OutcomePart(len(record.parts))
        self._output_bytes = 0
        self._changed_outputs = False
        self._loop: asyncio.AbstractEventLoop | None = None
        self._task: asyncio.Task[None] | None = None
        self._batch: AsyncJobBatch | None = None
        self._ready = threading.Event()
        self._end: Future[None] = Future()
        self._cancel_for: str | None = None
        self.session_sizes: dict[str, int] = {}
        self.waiting = 0
        self.first_sent_at: float | None = None
        self._thread = threading.Thread(target=self._run, name="noukai-batch", daemon=True)

    def start(self, *, cancel_for: str | None = None) -> None:
        """Begin.

        Args:
            cancel_for: Instead of running the batch, cancel what an earlier segment left running, for this
                reason.
        """
        self._cancel_for = cancel_for
        self._thread.start()
        self._ready.wait()

    def wait(self, seconds: float) -> bool:
        """Wait for the end for a while, and return whether it has come."""
        self._thread.join(seconds)
        return not self._thread.is_alive()

    def check(self) -> None:
        """Raise what the segment ended with, if it was an error."""
        self._end.result()

    @property
    def running(self) -> int:
        """How many jobs have not ended."""
        batch = self._batch
        return 0 if batch is None else len(batch.unfinished)

    @property
    def sessions(self) -> set[str]:
        """The sessions in which jobs may be running."""
        batch = self._batch
        return set() if batch is None else {entry.session_id for entry in batch.unfinished.values()}

    @property
    def stopped(self) -> str | None:
        """Why nothing more is submitted, if so."""
        return None if self._batch is None else self._batch.stopped

    def stop(self, seconds: float) -> None:
        """End the segment, and leave the jobs running."""
        self._call(self._cancel_task(), seconds)
        self.wait(seconds)

    def cancel_jobs(self, reason: str, seconds: float) -> tuple[int, list[str]]:
        """Cancel the jobs that have not ended, as many as there is time for.

        Args:
            reason: Why they are cancelled.
            seconds: How much time there is.

        Returns:
            How many jobs have ended with this, and the others, with the submissions of which no job is known.
        """
        batch = self._batch
        if batch is None:
            return 0, []
        before = len(batch.unfinished)
        self._call(batch.cancel(reason), seconds)
        left = self.unfinished()
        return before - len(left), left

    def unfinished(self) -> list[str]:
        """Return the jobs that have not ended, and the submissions of which no job is known."""
        entries = () if self._batch is None else self._batch.unfinished.values()
        return [entry.job_id or f"submission {entry.submission_id}" for entry in entries]

    def _call(self, coroutine: Coroutine[Any, Any, T], seconds: float) -> T | None:
        """Run a coroutine on the thread's event loop, for a bounded time."""
        loop = self._loop
        if loop is None or not self._thread.is_alive():
            coroutine.close()
            return None
        called = asyncio.run_coroutine_threadsafe(coroutine, loop)
        try:
            return called.result(seconds)
        except TimeoutError:
            called.cancel()
            return None

    async def _cancel_task(self) -> None:
        if self._task is not None:
            self._task.cancel()

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
            client = await new_async_client(self._settings)
            self._batch = self._jobs(client)
        finally:
            self._ready.set()
        async with client:
            if self._cancel_for is None:
                await self._iterate(self._batch)
            else:
                await self._batch.cancel(self._cancel_for)

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
        )

    async def _iterate(self, batch: AsyncJobBatch) -> None:
        try:
            async for outcome in batch:
                outcome = self._returnable(outcome)
                row = self._record.add(outcome, keep_output=self._output is None)
                if outcome.state is OutcomeState.COMPLETED:
                    await self._keep(row)
        finally:
            await batch.aclose()
            self.session_sizes = self._record.session_sizes(batch.sessions)
            # What has timed out or is unknown has an outcome, and is not waited for any more.
            waiting = [entry for index, entry in batch.unfinished.items() if index in batch.states]
            self.waiting = len(waiting)
            sent = [entry.sent_at.timestamp() for entry in waiting if entry.sent_at]
            self.first_sent_at = min(sent, default=None)
            await asyncio.shield(self._store())

    def _returnable(self, outcome: JobOutcome) -> JobOutcome:
        """Return an outcome whose output an XCom can hold, if it is to be returned."""
        if self._output is not None or outcome.state is not OutcomeState.COMPLETED:
            return outcome
        try:
            output, changed = as_xcom(outcome.output)
        except UnreturnableError as error:
            invalid = JobOutputInvalidError(
                f"Noukai job {outcome.job_id}: {error}", job_id=str(outcome.job_id)
            )
            return self._record.without_output(outcome, invalid)
        if not changed:
            return outcome
        if not self._changed_outputs:
            log.warning("Noukai batch of %s: output changed (%s)", self._options.flow, REPLACED)
        self._changed_outputs = True
        return replace(outcome, output=output)

    async def _keep(self, row: dict[str, Any]) -> None:
        if self._output is None:
            self._output_bytes += len(str(row["output"]))
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
        if self._output is not None:
            if self._part.rows:
                await self._write_part(self._output)
            failures = [self._record.failures[index] for index in sorted(self._record.failures)]
            await asyncio.to_thread(self._output.write_failed, failures)
        await self._record.store()
