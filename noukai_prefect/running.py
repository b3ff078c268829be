"""Submit a job, wait for it, or both: what the tasks and the blocks do, once, as coroutines."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal, TypeAlias, get_args

import anyio
from prefect.client.schemas.objects import State
from prefect.states import Cancelled

from noukai_core import (
    AsyncFlow,
    AsyncJob,
    AsyncNoukai,
    JobCancelled,
    JobNotFound,
    JobState,
    JobStatus,
    JobWaitTimeout,
)

from . import records
from .arguments import check_one_of, check_seconds
from .context import RunContext
from .credentials import NoukaiCredentials
from .events import ProgressArtifact, job_event
from .interruption import (
    CLEANUP_SECONDS,
    StoppedInThread,
    cancel,
    interrupts,
    settle,
    stopped,
    to_be_cancelled,
    unless_stopped,
    withdraw,
)
from .records import JobBook, JobRecord

OnCancelled: TypeAlias = Literal["fail", "cancel"]

_MILLISECONDS = 1000.0


@dataclass(frozen=True)
class JobInputs:
    """What is submitted; the arguments of `noukai_core.Flow.job`."""

    flow: str
    message: str | None = None
    parameters: Mapping[str, Any] | None = None
    block_overrides: Mapping[str, Mapping[str, Any]] | None = None
    version: str | int = "production"
    trace: bool = False
    session_id: str | None = None

    def arguments(self) -> dict[str, Any]:
        """Return what the job client takes beside the flow."""
        return {
            "message": self.message,
            "parameters": self.parameters,
            "block_overrides": self.block_overrides,
            "version": self.version,
            "trace": self.trace,
            "session_id": self.session_id,
        }


@dataclass(frozen=True)
class Waiting:
    """How a job is waited for.

    Attributes:
        timeout: Seconds until the deadline; `None` for none.
        poll_interval: A fixed pause between looks, in seconds; by default it grows with the age of the job.
        on_cancelled: What becomes of a job that was cancelled on the Noukai side.
        cancel_on_timeout: Whether the job is cancelled at the deadline.
    """

    timeout: float | None = None
    poll_interval: float | None = None
    on_cancelled: OnCancelled = "fail"
    cancel_on_timeout: bool = True

    def __post_init__(self) -> None:
        check_seconds(self.timeout, "timeout")
        check_seconds(self.poll_interval, "poll_interval")
        check_one_of(self.on_cancelled, get_args(OnCancelled), "on_cancelled")


async def submit(
    credentials: NoukaiCredentials, client: AsyncNoukai, inputs: JobInputs, run: RunContext
) -> AsyncJob:
    """Submit a job, or attach to the one that this flow run has already submitted in this place.

    A job that this flow run has seen fail, or that is no longer known, makes way for a new one.
    """
    flow = client.flow(inputs.flow)
    book = records.book_of(run)
    if book is None:
        job = await flow.job(**inputs.arguments())
    else:
        given = {"server": credentials.base_url, **inputs.arguments()}
        record = await book.record(run, flow.path, given)
        job = await _attached(client, record, run) or await _submitted(
            credentials, client, inputs, run, book, record
        )
    return job


async def _attached(client: AsyncNoukai, record: JobRecord, run: RunContext) -> AsyncJob | None:
    """Return the job of a record, also when it has failed since: that is then seen by who waits for it."""
    if record.job_id is None or record.ended:
        return None
    job = client.flow(record.flow).attach(record.job_id, submitted_at=record.sent_at)
    try:
        await unless_stopped(job.status(), run)
    except JobNotFound:
        return None
    except BaseException as interruption:
        if interrupts(interruption):
            await settle(job, run, because=interruption)
        raise
    return job


async def _submitted(
    credentials: NoukaiCredentials,
    client: AsyncNoukai,
    inputs: JobInputs,
    run: RunContext,
    book: JobBook,
    record: JobRecord,
) -> AsyncJob:
    """Submit under a record that is written down before the request, and completed after it."""
    if record.job_id is not None:
        record = record.next()
    before = record.submission
    record = await book.keep(
        run, replace(record, sent_at=records.now()), f"Noukai job of `{record.flow}`: submitting"
    )
    flow = client.flow(record.flow)
    try:
        job = await unless_stopped(flow.job(**inputs.arguments(), submission=before), run)
        await _note_job(run, book, replace(record, job_id=job.id), _shown(credentials, job))
    except BaseException as interruption:
        if interrupts(interruption):
            await _withdrawn(flow, run, book, record, interruption)
        raise
    run.logger().info("Noukai job %s of %s: submitted%s", job.id, job.flow, _at(credentials, job))
    job_event("submitted", job.flow, job.id)
    return job


async def _note_job(run: RunContext, book: JobBook, record: JobRecord, shown: str) -> None:
    """Write down the id of a job. Its identity is kept already, so that this may fail."""
    try:
        await book.keep(run, record, shown)
    except Exception as error:
        run.logger().warning("Noukai job %s could not be noted in Prefect: %s", record.job_id, error)


async def _withdrawn(
    flow: AsyncFlow, run: RunContext, book: JobBook, record: JobRecord, because: BaseException
) -> None:
    """Cancel the job that an interrupted submission may have made, or leave it to the rerun."""
    with anyio.move_on_after(CLEANUP_SECONDS, shield=True):
        if await to_be_cancelled(run, because) and (job := await withdraw(flow, record.submission, run)):
            ended = replace(record, job_id=job.id, ended=True)
            await book.keep(run, ended, f"Noukai job `{job.id}` of `{job.flow}`")


def _shown(credentials: NoukaiCredentials, job: AsyncJob) -> str:
    page = credentials.page_of(job.flow, job.id)
    return (
        f"Noukai job [{job.id}]({page}) of `{job.flow}`" if page else f"Noukai job `{job.id}` of `{job.flow}`"
    )


def _at(credentials: NoukaiCredentials, job: AsyncJob) -> str:
    page = credentials.page_of(job.flow, job.id)
    return f", see {page}" if page else ""


async def submit_and_wait(
    credentials: NoukaiCredentials, client: AsyncNoukai, inputs: JobInputs, waiting: Waiting, run: RunContext
) -> Any:
    """Submit a job, wait for it, and return its output; see `submit` and `wait`."""
    try:
        job = await submit(credentials, client, inputs, run)
    except StoppedInThread:
        return stopped(run, f"a job of {inputs.flow} was submitted")
    return await wait(job, waiting, run)


async def wait(job: AsyncJob, waiting: Waiting, run: RunContext) -> Any:
    """Wait for a job, and return its output.

    Returns:
        The output; or, for a job that was cancelled and with `on_cancelled="cancel"`, a `Cancelled` state.

    Raises:
        JobFailed: The job failed.
        JobCancelled: The job was cancelled on the Noukai side.
        JobWaitTimeout: The deadline passed. It is a `TimeoutError`, so the task run ends as `TimedOut`.
    """
    try:
        status = await unless_stopped(_follow(job, waiting, run), run)
    except JobWaitTimeout:
        if waiting.cancel_on_timeout:
            await cancel(job, run)
        raise
    except BaseException as interruption:
        if not interrupts(interruption):
            raise
        cancelled = await settle(job, run, because=interruption)
        job_event("cancelled" if cancelled else "detached", job.flow, job.id)
        if isinstance(interruption, StoppedInThread):
            return stopped(run, f"Noukai job {job.id} of {job.flow} ran")
        raise
    return await _outcome(job, status, waiting, run)


async def _follow(job: AsyncJob, waiting: Waiting, run: RunContext) -> JobStatus:
    logger = run.logger()
    bar = ProgressArtifact(job.flow, job.id)
    state = None
    status: JobStatus | None = None
    limit = None if waiting.timeout is None else waiting.timeout * _MILLISECONDS
    async for status in job.watch(timeout_ms=limit, poll_interval=waiting.poll_interval):
        if status.state != state:
            logger.info("Noukai job %s of %s: %s", job.id, job.flow, status.state)
            state = status.state
        if run.task_run_id is not None:
            await bar.show(status)
    assert status is not None, "a watch ends with a status or an error"
    return status


async def _outcome(job: AsyncJob, status: JobStatus, waiting: Waiting, run: RunContext) -> Any | State[Any]:
    if run.flow_run_id is not None:
        job_event(status.state, job.flow, job.id, **({"error": status.error[:500]} if status.error else {}))
    if status.state != JobState.COMPLETED:
        await records.note_end(run, job.id)
    try:
        return status.outcome().output
    except JobCancelled as error:
        if waiting.on_cancelled == "cancel":
            return Cancelled(message=str(error))
        raise
