"""When a wait is interrupted, decide whether to cancel the job or to leave it running for a rerun.

Only a person's act, or the timeout of the task or of the flow, cancels a job. A worker that is shut down,
moved or evicted does not.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Coroutine, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING, Any, TypeVar
from uuid import UUID

import anyio
from prefect.client.orchestration import PrefectClient
from prefect.client.schemas.objects import State
from prefect.exceptions import CancelledRun
from prefect.states import Cancelled

from noukai_core import (
    AsyncFlow,
    AsyncJob,
    CancelOutcome,
    JobState,
    JobTimeoutError,
    NoukaiError,
    Submission,
    acancel_job,
)
from noukai_core.time_limit import time_limit
from noukai_prefect import _job_store
from noukai_prefect._job_artifact import JobArtifact
from noukai_prefect._job_store import JobRecord
from noukai_prefect._prefect_client import prefect_client
from noukai_prefect._run_context import RunContext, in_main_thread, interrupted_by_a_person
from noukai_prefect._termination import was_terminated

if TYPE_CHECKING:
    from noukai_prefect._run_context import LoggerOrAdapter

T = TypeVar("T")

CLEANUP_SECONDS = 10.0
"""The time limit for everything that follows an interruption. Prefect kills a cancelled run after 30 s."""

RECORD_SECONDS = 5.0
"""The part of that time in which the record of an earlier attempt has to be read."""

ATTEMPTS_SECONDS = 2.0
"""The part of that time in which Prefect's server has to say whether another attempt has begun."""

STOP_CHECK_SECONDS = 0.3
"""How often a task in a thread checks whether it has to stop."""

SERVER_CHECK_SECONDS = 5.0
"""How often such a task asks Prefect's server, when nothing else can notify it."""

CANCEL_CONCURRENCY = 32
"""How many jobs of one flow run are cancelled at the same time."""

_REPLACED = "Prefect has begun another attempt of this flow run"

_MAX_NESTED_FLOWS = 20

# Noukai may still be processing a request that the client no longer waits for.
_LOOKUPS = 3
_LOOKUP_PAUSE = 1.0


def why_left_running(run: RunContext, jobs: str = "it") -> str:
    """Return what attaches to jobs that are left running, if anything does."""
    if run.flow_run_id is not None:
        return f"a rerun of this flow run attaches to {jobs}"
    if run.task_run_id is not None:
        return f"a retry of this task run attaches to {jobs}"
    return f"outside a run, nothing attaches to {jobs}"


class StoppedInThread(CancelledRun):
    """The task has to stop, but no exception was raised in it: it runs in a thread, or a signal was lost.

    Attributes:
        reason: Why its jobs are cancelled, if Prefect's server has said so.
    """

    def __init__(self, message: str, reason: str | None = None) -> None:
        super().__init__(message)
        self.reason = reason


def interrupts(error: BaseException) -> bool:
    """Return whether an error interrupted the task from outside."""
    return isinstance(error, StoppedInThread) or not isinstance(error, Exception)


async def watch_for_stop(run: RunContext) -> str | None:
    """Return when the task has to stop, with what Prefect's server said if it was asked why."""
    check_server_at = time.monotonic() + SERVER_CHECK_SECONDS
    while not run.stop_requested:
        await asyncio.sleep(STOP_CHECK_SECONDS)
        must_ask_server = run.must_ask_server or was_terminated()
        if must_ask_server and time.monotonic() >= check_server_at:
            if reason := await cancel_reason(run, None):
                return reason
            if run.timed_out and not run.cancel_on_timeout:
                return None
            check_server_at = time.monotonic() + SERVER_CHECK_SECONDS
    return None


async def run_until_stopped(operation: Coroutine[Any, Any, T], run: RunContext, meanwhile: str) -> T:
    """Run an operation, and stop it when the task has to stop.

    Args:
        operation: The operation.
        run: Where the code runs.
        meanwhile: What the operation does, for the error.

    Raises:
        StoppedInThread: The task had to stop before the operation ended.
    """
    done = asyncio.ensure_future(operation)
    stopping = asyncio.ensure_future(watch_for_stop(run))
    try:
        await asyncio.wait((done, stopping), return_when=asyncio.FIRST_COMPLETED)
        if done.done():
            return done.result()
        reason = stopping.result()  # raises a signal that struck inside it
        raise StoppedInThread(f"The flow run was stopped while {meanwhile}", reason)
    finally:
        await cancel_tasks((done, stopping))


async def cancel_tasks(tasks: Sequence[asyncio.Future[Any]]) -> None:
    """Cancel the unfinished ones of this loop's tasks, and wait until all have ended."""
    for unfinished in tasks:
        unfinished.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)


async def as_cancelled_state(operation: Awaitable[T]) -> T | State[Any]:
    """Run an operation. When the task has to stop, return the state `Cancelled` instead of failing.

    A timeout that was lost in the main thread is raised again, so that the task run ends as `TimedOut`.
    For a task that called this one, the state would be an output, which Prefect may cache. It is interrupted,
    as Prefect itself interrupts the tasks of a flow run that has ended.
    """
    try:
        return await operation
    except StoppedInThread as stopped:
        run = RunContext.current()
        if run.timed_out and in_main_thread():  # as Prefect does, whose exception was lost
            raise TimeoutError(str(stopped)) from None
        if run.called_by_task:
            raise asyncio.CancelledError(str(stopped)) from None
        return Cancelled(message=str(stopped))


@dataclass
class SubmissionState:
    """What is known about a job at any moment; a signal may strike at each.

    Attributes:
        submission: The flow and the submission, from the moment at which it may have been sent.
        job: The job, once it is known.
        artifact: The artifact that shows the job, once there is one.
        earlier: The flow, and what reads the record of an earlier attempt, until that has been read.
    """

    submission: tuple[AsyncFlow, Submission] | None = None
    job: AsyncJob | None = None
    artifact: JobArtifact | None = None
    earlier: tuple[AsyncFlow, Callable[[], Awaitable[JobRecord]]] | None = None

    async def read_earlier(self) -> JobRecord:
        """Read the record of an earlier attempt, and take note of what it says."""
        assert self.earlier is not None, "it has been read"
        flow, read = self.earlier
        record = await read()
        self.earlier = None
        if record.ended:
            return record
        if record.job_id is not None:
            self.job = flow.attach(record.job_id, submitted_at=record.last_sent_at)
        elif record.last_sent_at is not None:
            self.submission = flow, record.submission
        return record

    async def write(self, state: str, reason: str) -> None:
        """Show in the artifact what an interruption did to the job."""
        if self.artifact is not None:
            await self.artifact.write(state, reason=reason)


async def cancel_or_keep(
    submission_state: SubmissionState, run: RunContext, interruption: BaseException
) -> bool:
    """Cancel the job if the interruption calls for that, and return whether it was cancelled.

    It is shielded from the interruption itself, and bounded in time.

    Args:
        submission_state: What is known about the job.
        run: Where the code runs.
        interruption: What interrupted it.
    """
    logger = run.logger()
    cancelled = False
    with anyio.move_on_after(CLEANUP_SECONDS, shield=True):
        reason = await cancel_reason(run, interruption)
        if reason is not None and submission_state.earlier is not None:
            await read_record(submission_state.read_earlier(), submission_state.earlier[0].path, run)
        job = submission_state.job
        if reason is None:
            why = why_left_running(run)
            if job is not None:
                logger.warning("Noukai job %s of %s: left running (%s)", job.id, job.flow, why)
                await submission_state.write("left running", why)
            elif submission_state.submission is not None:
                _log_possibly_running(*submission_state.submission, logger, why)
            elif submission_state.earlier is not None:
                log_record_not_read(submission_state.earlier[0].path, run)
            return False
        if job is not None:
            cancelled = (await acancel_job(job)).log(reason, logger)
            if cancelled:
                await _job_store.record_end(run, job)
                await submission_state.write(JobState.CANCELLED.value, reason)
            return cancelled
        if submission_state.submission is not None:
            submission_state.job = await cancel_by_submission(*submission_state.submission, run, reason)
        return submission_state.job is not None
    late = f"no confirmation within {CLEANUP_SECONDS:g} s"
    if (job := submission_state.job) is not None and cancelled:
        logger.warning("Noukai job %s of %s: not recorded (%s)", job.id, job.flow, late)
        return True
    if job is not None:
        CancelOutcome(job.id, job.flow, error=late).log("interrupted", logger)
    elif submission_state.submission is not None:
        _log_possibly_running(*submission_state.submission, logger, late)
    elif submission_state.earlier is not None:
        log_record_not_read(submission_state.earlier[0].path, run, late)
    return False


async def read_record(read: Coroutine[Any, Any, T], flow: str, run: RunContext) -> T | None:
    """Read what an earlier attempt recorded, after an interruption that came before it had been read.

    Args:
        read: Reads it.
        flow: The Noukai flow.
        run: Where the code runs.

    Returns:
        What it recorded; `None` if that cannot be read, which is logged.
    """
    try:
        async with time_limit(RECORD_SECONDS):
            return await read
    except TimeoutError:
        log_record_not_read(flow, run, f"no response within {RECORD_SECONDS:g} s")
    except Exception as error:
        log_record_not_read(flow, run, error)
    return None


def log_record_not_read(flow: str, run: RunContext, reason: object = "the attempt ended first") -> None:
    """Log that nobody knows which jobs an earlier attempt has left running."""
    run.logger().warning("Noukai jobs of %s: may be left running (record not read: %s)", flow, reason)


def _log_possibly_running(
    flow: AsyncFlow, submission: Submission, logger: LoggerOrAdapter, reason: str
) -> None:
    logger.warning("Noukai submission %s to %s: may be left running (%s)", submission.id, flow.path, reason)


async def cancel_by_submission(
    flow: AsyncFlow, submission: Submission, run: RunContext, reason: str
) -> AsyncJob | None:
    """Cancel the job of a submission that got no response, and return the job if it was cancelled."""
    job = await find_submitted(flow, submission, run.logger())
    return job if job is not None and await cancel(job, run, reason, submission) else None


async def find_submitted(flow: AsyncFlow, submission: Submission, logger: LoggerOrAdapter) -> AsyncJob | None:
    """Return the job of a submission that got no response; if none is found, a line names the submission."""
    for attempt in range(_LOOKUPS):
        if attempt:
            await asyncio.sleep(_LOOKUP_PAUSE)
        try:
            job = await flow.find(submission)
        except NoukaiError as error:
            logger.warning("Noukai submission %s to %s: lookup failed: %s", submission.id, flow.path, error)
            continue
        if job is not None:
            return job
    _log_possibly_running(flow, submission, logger, "interrupted before the response")
    return None


async def cancel(job: AsyncJob, run: RunContext, reason: str, submission: Submission | None = None) -> bool:
    """Cancel a job, and return whether that ended it. A failure is logged with the job's id.

    Args:
        job: The job.
        run: Where the code runs.
        reason: Why, for the log.
        submission: The submission, if the record may not have the job's id yet.
    """
    if not (await acancel_job(job)).log(reason, run.logger()):
        return False
    await _job_store.record_end(run, job, submission)
    return True


async def cancel_on_timeout(
    job: AsyncJob, timed_out: JobTimeoutError, timeout: float, run: RunContext
) -> JobTimeoutError:
    """Cancel a job at its deadline, unless another attempt waits for it, and return the error to raise.

    Args:
        job: The job.
        timed_out: The error of the wait.
        timeout: The timeout in seconds.
        run: Where the code runs.
    """
    reason = f"timed out after {timeout:g} s"
    if await is_replaced(run):
        run.logger().warning("Noukai job %s of %s: left running (%s)", job.id, job.flow, _REPLACED)
        return timed_out
    if not await cancel(job, run, reason):
        return timed_out
    last_state = f" (last state: {timed_out.status.state})" if timed_out.status else ""
    return JobTimeoutError(
        f"Noukai job {job.id} of {job.flow} {reason}{last_state} and was cancelled",
        job_id=job.id,
        status=timed_out.status,
    )


async def is_replaced(run: RunContext) -> bool:
    """Return whether Prefect has begun another attempt of the flow run although this one still runs.

    Prefect may take the process of a flow run for dead while it is only cut off. The deadline of such a
    process is not that of the attempt that now waits for its jobs. A server that does not respond must not
    keep a job running whose time is over, and Prefect's client repeats its requests for minutes.
    """
    try:
        async with time_limit(ATTEMPTS_SECONDS):
            for flow_run_id, run_count in run.flow_runs:
                async with prefect_client() as client:
                    if await _has_begun_again(client, flow_run_id, run_count):
                        return True
    except Exception as error:
        timed_out = isinstance(error, TimeoutError)
        reason = f"no response within {ATTEMPTS_SECONDS:g} s" if timed_out else error
        run.logger().warning("Prefect flow run %s: attempts unknown: %s", run.flow_run_id, reason)
    return False


async def _has_begun_again(client: PrefectClient, flow_run_id: UUID, run_count: int) -> bool:
    """Check whether a flow run has begun again since a start, and not only gone on after a pause."""
    starts = (await client.read_flow_run(flow_run_id)).run_count - run_count
    if starts <= 0:
        return False
    states = await client.read_flow_run_states(flow_run_id)
    # Prefect counts the end of `pause_flow_run`, for which the process waits, as a start.
    before_starts = [before for before, state in pairwise(states) if state.is_running()]
    return starts > sum(before.is_paused() for before in before_starts[-starts:])


async def cancel_reason(run: RunContext, interruption: BaseException | None) -> str | None:
    """Return why an interruption cancels the job; `None` when it leaves the job running."""
    if isinstance(interruption, StoppedInThread) and interruption.reason is not None:
        return interruption.reason
    if run.timed_out and run.cancel_on_timeout and not await is_replaced(run):
        return "the task or flow timed out"
    # Ctrl-C in a terminal also ends the server that Prefect starts for a local run, so that is not asked.
    if (run.local or run.flow_run_id is None) and _interrupted(interruption):
        return "interrupted"
    if run.flow_run_id is None:
        return None
    try:
        async with prefect_client() as client:
            return await _cancel_reason_of_flow_run(client, run.flow_run_id, interruption)
    except Exception as error:
        run.logger().warning(
            "Prefect flow run %s: cancellation unknown (Noukai jobs are left running): %s",
            run.flow_run_id,
            error,
        )
        return None


async def _cancel_reason_of_flow_run(
    client: PrefectClient, flow_run_id: UUID, interruption: BaseException | None
) -> str | None:
    """Check whether the flow run, or one that called it, is being cancelled."""
    for _ in range(_MAX_NESTED_FLOWS):
        flow_run = await client.read_flow_run(flow_run_id)
        if flow_run.state is not None and (flow_run.state.is_cancelling() or flow_run.state.is_cancelled()):
            return "the flow run was cancelled"
        if flow_run.parent_task_run_id is None:
            # Nothing restarts a local run, so the person at the terminal decides. In a deployment, an
            # interrupt is how the process is shut down.
            local = flow_run.deployment_id is None
            return "interrupted" if local and _interrupted(interruption) else None
        parent = await client.read_task_run(flow_run.parent_task_run_id)
        if parent.flow_run_id is None:
            return None
        flow_run_id = parent.flow_run_id
    return None


def _interrupted(interruption: BaseException | None) -> bool:
    return isinstance(interruption, KeyboardInterrupt) or interrupted_by_a_person()
