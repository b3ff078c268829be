"""Submit a job, wait for it, or both: what the tasks and the blocks do, once, as coroutines."""

from __future__ import annotations

from collections.abc import Coroutine, Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal, TypeAlias, TypeVar, get_args

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
    Submission,
)

from . import records
from .arguments import check_one_of, check_seconds
from .context import RunContext
from .credentials import NoukaiCredentials
from .events import ProgressArtifact, job_event
from .interruption import (
    Known,
    StoppedInThread,
    give_up,
    interrupts,
    settle,
    unless_stopped,
)
from .records import JobBook, JobRecord

T = TypeVar("T")

OnCancelled: TypeAlias = Literal["fail", "cancel"]

_MILLISECONDS = 1000.0


@dataclass(frozen=True, slots=True)
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
    known = Known()
    return await _settled(_submit(credentials, client.flow(inputs.flow), inputs, run, known), run, known)


async def wait(job: AsyncJob, waiting: Waiting, run: RunContext) -> Any:
    """Wait for a job, and return its output.

    Returns:
        The output; or, for a job that was cancelled and with `on_cancelled="cancel"`, a `Cancelled` state.

    Raises:
        JobFailed: The job failed.
        JobCancelled: The job was cancelled on the Noukai side.
        JobWaitTimeout: The deadline passed. It is a `TimeoutError`, so the task run ends as `TimedOut`.
        StoppedInThread: The task was told to stop.
    """
    return await _settled(_wait(job, waiting, run), run, Known(job=job))


async def submit_and_wait(
    credentials: NoukaiCredentials, client: AsyncNoukai, inputs: JobInputs, waiting: Waiting, run: RunContext
) -> Any:
    """Submit a job, wait for it, and return its output; see `submit` and `wait`."""
    known = Known()

    async def both() -> Any:
        job = await _submit(credentials, client.flow(inputs.flow), inputs, run, known)
        return await _wait(job, waiting, run)

    return await _settled(both(), run, known)


async def _settled(doing: Coroutine[Any, Any, T], run: RunContext, known: Known) -> T:
    """Do something about a job. Wherever an interruption strikes, it is decided what becomes of the job."""
    try:
        return await doing
    except BaseException as interruption:
        if interrupts(interruption):
            cancelled = await settle(known, run, interruption)
            if known.job is not None:
                job_event(run, "cancelled" if cancelled else "detached", known.job.flow, known.job.id)
        raise


async def _submit(
    credentials: NoukaiCredentials, flow: AsyncFlow, inputs: JobInputs, run: RunContext, known: Known
) -> AsyncJob:
    if run.told_to_stop:
        raise StoppedInThread(f"The flow run was stopped before a job of {flow.path} was submitted")
    book = records.book_of(run)
    if book is None:
        submission = Submission.new()
        known.submission = flow, submission
        known.job = await flow.job(**inputs.arguments(), submission=submission)
        return known.job
    given = {"server": credentials.base_url, **inputs.arguments()}
    record = replace(await book.record(run, flow.path, given), credentials=credentials.saved_as)
    attached = await _attached(flow, record, run, known)
    return attached or await _submitted(credentials, flow, inputs, run, book, record, known)


async def _attached(flow: AsyncFlow, record: JobRecord, run: RunContext, known: Known) -> AsyncJob | None:
    """Return the job of a record, also when it has failed since: that is then seen by who waits for it."""
    if record.job_id is None or record.ended:
        return None
    known.job = job = flow.attach(record.job_id, submitted_at=record.sent_at)
    try:
        await unless_stopped(job.status(), run, f"Noukai job {job.id} of {job.flow} was attached to")
    except JobNotFound:
        known.job = None
    return known.job


async def _submitted(
    credentials: NoukaiCredentials,
    flow: AsyncFlow,
    inputs: JobInputs,
    run: RunContext,
    book: JobBook,
    record: JobRecord,
    known: Known,
) -> AsyncJob:
    """Submit under a record that is written down before the request, and completed after it."""
    if record.job_id is not None or record.ended:
        record = record.next()
    before = record.submission
    record = await book.keep(
        run, replace(record, sent_at=records.now()), f"Noukai job of `{record.flow}`: submitting"
    )
    known.submission = flow, record.submission
    submitting = flow.job(**inputs.arguments(), submission=before)
    known.job = job = await unless_stopped(submitting, run, f"a job of {record.flow} was submitted")
    await _note_job(run, book, replace(record, job_id=job.id), _shown(credentials, job))
    run.logger().info("Noukai job %s of %s: submitted%s", job.id, job.flow, _at(credentials, job))
    job_event(run, "submitted", job.flow, job.id)
    return job


async def _note_job(run: RunContext, book: JobBook, record: JobRecord, shown: str) -> None:
    """Write down the id of a job. Its identity is kept already, so that this may fail."""
    try:
        await book.keep(run, record, shown)
    except Exception as error:
        run.logger().warning("Noukai job %s could not be noted in Prefect: %s", record.job_id, error)


def _shown(credentials: NoukaiCredentials, job: AsyncJob) -> str:
    page = credentials.page_of(job.flow, job.id)
    return (
        f"Noukai job [{job.id}]({page}) of `{job.flow}`" if page else f"Noukai job `{job.id}` of `{job.flow}`"
    )


def _at(credentials: NoukaiCredentials, job: AsyncJob) -> str:
    page = credentials.page_of(job.flow, job.id)
    return f", see {page}" if page else ""


async def _wait(job: AsyncJob, waiting: Waiting, run: RunContext) -> Any:
    following = _follow(job, waiting, run)
    try:
        status = await unless_stopped(following, run, f"Noukai job {job.id} of {job.flow} ran")
    except JobWaitTimeout as late:
        if waiting.cancel_on_timeout:
            raise await give_up(job, late, run) from None
        raise
    return await _outcome(job, status, waiting, run)


async def _follow(job: AsyncJob, waiting: Waiting, run: RunContext) -> JobStatus:
    logger = run.logger()
    bar = ProgressArtifact(run, f"Noukai job {job.id} of {job.flow}")
    state = None
    status: JobStatus | None = None
    limit = None if waiting.timeout is None else waiting.timeout * _MILLISECONDS
    async for status in job.watch(timeout_ms=limit, poll_interval=waiting.poll_interval):
        if status.state != state:
            logger.info("Noukai job %s of %s: %s", job.id, job.flow, status.state)
            state = status.state
        await bar.show_job(status)
    assert status is not None, "a watch ends with a status or an error"
    return status


async def _outcome(job: AsyncJob, status: JobStatus, waiting: Waiting, run: RunContext) -> Any | State[Any]:
    error = {"error": status.error[:500]} if status.error else {}
    job_event(run, status.state, job.flow, job.id, **error)
    if status.state != JobState.COMPLETED:
        await records.note_end(run, job)
    try:
        return status.outcome().output
    except JobCancelled as error:
        if waiting.on_cancelled == "cancel":
            return Cancelled(message=str(error))
        raise
