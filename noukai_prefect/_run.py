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
    JobCancelledError,
    JobNotFoundError,
    JobState,
    JobStatus,
    JobTimeoutError,
    Submission,
)
from noukai_prefect import _job_store
from noukai_prefect._arguments import check_one_of, check_seconds
from noukai_prefect._cancellation import (
    StoppedInThread,
    SubmissionState,
    cancel_on_timeout,
    cancel_or_keep,
    interrupts,
    run_until_stopped,
)
from noukai_prefect._events import ProgressArtifact, job_event
from noukai_prefect._job_store import JobRecord, JobStore
from noukai_prefect._run_context import RunContext
from noukai_prefect.credentials import NoukaiCredentials

T = TypeVar("T")

OnCancelled: TypeAlias = Literal["fail", "cancel"]


@dataclass(frozen=True, slots=True)
class JobRequest:
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
class WaitOptions:
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
    credentials: NoukaiCredentials, client: AsyncNoukai, inputs: JobRequest, run: RunContext
) -> AsyncJob:
    """Submit a job, or attach to the one that this flow run has already submitted in this place.

    A job that this flow run has seen fail, or that is no longer known, makes way for a new one.
    """
    state_of_submission = SubmissionState()
    return await _settled(
        _submit(credentials, client.flow(inputs.flow), inputs, run, state_of_submission),
        run,
        state_of_submission,
    )


async def wait(job: AsyncJob, options: WaitOptions, run: RunContext) -> Any:
    """Wait for a job, and return its output.

    Returns:
        The output; or, for a job that was cancelled and with `on_cancelled="cancel"`, a `Cancelled` state.

    Raises:
        JobFailedError: The job failed.
        JobCancelledError: The job was cancelled on the Noukai side.
        JobTimeoutError: The deadline passed. It is a `TimeoutError`, so the task run ends as `TimedOut`.
        StoppedInThread: The task was told to stop.
    """
    return await _settled(_wait(job, options, run), run, SubmissionState(job=job))


async def submit_and_wait(
    credentials: NoukaiCredentials,
    client: AsyncNoukai,
    inputs: JobRequest,
    options: WaitOptions,
    run: RunContext,
) -> Any:
    """Submit a job, wait for it, and return its output; see `submit` and `wait`."""
    state_of_submission = SubmissionState()

    async def both() -> Any:
        job = await _submit(credentials, client.flow(inputs.flow), inputs, run, state_of_submission)
        return await _wait(job, options, run)

    return await _settled(both(), run, state_of_submission)


async def _settled(
    operation: Coroutine[Any, Any, T], run: RunContext, state_of_submission: SubmissionState
) -> T:
    """Do something about a job. Wherever an interruption strikes, it is decided what becomes of the job."""
    try:
        return await operation
    except BaseException as interruption:
        if interrupts(interruption):
            cancelled = await cancel_or_keep(state_of_submission, run, interruption)
            if state_of_submission.job is not None:
                job_event(
                    run,
                    "cancelled" if cancelled else "detached",
                    state_of_submission.job.flow,
                    state_of_submission.job.id,
                )
        raise


async def _submit(
    credentials: NoukaiCredentials,
    flow: AsyncFlow,
    inputs: JobRequest,
    run: RunContext,
    state_of_submission: SubmissionState,
) -> AsyncJob:
    if run.stop_requested:
        raise StoppedInThread(f"The flow run was stopped before a job of {flow.path} was submitted")
    store = _job_store.store_of(run)
    if store is None:
        submission = Submission.new()
        state_of_submission.submission = flow, submission
        state_of_submission.job = await flow.job(**inputs.arguments(), submission=submission)
        return state_of_submission.job
    given = {"server": credentials.base_url, **inputs.arguments()}
    record = replace(await store.record(run, flow.path, given), credentials=credentials.saved_as)
    attached = await _attached(flow, record, run, state_of_submission)
    return attached or await _submitted(credentials, flow, inputs, run, store, record, state_of_submission)


async def _attached(
    flow: AsyncFlow, record: JobRecord, run: RunContext, state_of_submission: SubmissionState
) -> AsyncJob | None:
    """Return the job of a record, also when it has failed since: that is then seen by who waits for it."""
    if record.job_id is None or record.ended:
        return None
    state_of_submission.job = job = flow.attach(record.job_id, submitted_at=record.last_sent_at)
    try:
        await run_until_stopped(job.status(), run, f"Noukai job {job.id} of {job.flow} was attached to")
    except JobNotFoundError:
        state_of_submission.job = None
    return state_of_submission.job


async def _submitted(
    credentials: NoukaiCredentials,
    flow: AsyncFlow,
    inputs: JobRequest,
    run: RunContext,
    store: JobStore,
    record: JobRecord,
    state_of_submission: SubmissionState,
) -> AsyncJob:
    """Submit under a record that is written down before the request, and completed after it."""
    if record.job_id is not None or record.ended:
        record = record.next()
    before = record.submission
    record = await store.keep(
        run, replace(record, last_sent_at=_job_store.now()), f"Noukai job of `{record.flow}`: submitting"
    )
    state_of_submission.submission = flow, record.submission
    submitting = flow.job(**inputs.arguments(), submission=before)
    state_of_submission.job = job = await run_until_stopped(
        submitting, run, f"a job of {record.flow} was submitted"
    )
    await _note_job(run, store, replace(record, job_id=job.id), _shown(credentials, job))
    run.logger().info("Noukai job %s of %s: submitted%s", job.id, job.flow, _at(credentials, job))
    job_event(run, "submitted", job.flow, job.id)
    return job


async def _note_job(run: RunContext, store: JobStore, record: JobRecord, shown: str) -> None:
    """Write down the id of a job. Its identity is kept already, so that this may fail."""
    try:
        await store.keep(run, record, shown)
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


async def _wait(job: AsyncJob, options: WaitOptions, run: RunContext) -> Any:
    following = _follow(job, options, run)
    try:
        status = await run_until_stopped(following, run, f"Noukai job {job.id} of {job.flow} ran")
    except JobTimeoutError as late:
        if options.cancel_on_timeout:
            raise await cancel_on_timeout(job, late, run) from None
        raise
    return await _outcome(job, status, options, run)


async def _follow(job: AsyncJob, options: WaitOptions, run: RunContext) -> JobStatus:
    logger = run.logger()
    bar = ProgressArtifact(run, f"Noukai job {job.id} of {job.flow}")
    state = None
    status: JobStatus | None = None
    async for status in job.watch(timeout=options.timeout, poll_interval=options.poll_interval):
        if status.state != state:
            logger.info("Noukai job %s of %s: %s", job.id, job.flow, status.state)
            state = status.state
        await bar.show_job(status)
    assert status is not None, "a watch ends with a status or an error"
    return status


async def _outcome(
    job: AsyncJob, status: JobStatus, options: WaitOptions, run: RunContext
) -> Any | State[Any]:
    error = {"error": status.error[:500]} if status.error else {}
    job_event(run, status.state, job.flow, job.id, **error)
    if status.state != JobState.COMPLETED:
        await _job_store.note_end(run, job)
    try:
        return status.result_or_raise().output
    except JobCancelledError as error:
        if options.on_cancelled == "cancel":
            return Cancelled(message=str(error))
        raise
