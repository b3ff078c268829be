"""A wait is interrupted: is the job to be cancelled, or kept for the rerun that attaches to it?

Only a person's act, or the timeout of the task or of the flow, cancels a job. A worker that is shut down,
moved or evicted does not.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Coroutine, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, TypeVar
from uuid import UUID

import anyio
from prefect.client.orchestration import PrefectClient, get_client
from prefect.client.schemas.objects import State
from prefect.exceptions import CancelledRun
from prefect.states import Cancelled

from noukai_core import (
    AsyncFlow,
    AsyncJob,
    CancelUnsupportedError,
    JobState,
    JobStatus,
    JobTimeoutError,
    NoukaiError,
    Submission,
)
from noukai_prefect import _job_store
from noukai_prefect._run_context import RunContext, interrupted_by_a_person

T = TypeVar("T")

CLEANUP_SECONDS = 10.0
"""How long all of it may take: Prefect kills a cancelled run after 30 s."""

WATCH_SECONDS = 0.3
"""How often a task that runs in a thread looks whether it is to stop."""

ASK_SECONDS = 5.0
"""How often such a task asks Prefect's server, when nothing else can tell it."""

_GENERATIONS = 20

# Noukai may still be busy with a request that was given up.
_SUBMISSION_LOOKUPS = 3
_LOOKUP_PAUSE = 1.0


class StoppedInThread(CancelledRun):
    """A task in a thread of its own has been told to stop."""


def interrupts(error: BaseException) -> bool:
    """Tell an interruption of the task from an error in what it does."""
    return isinstance(error, StoppedInThread) or not isinstance(error, Exception)


async def watch_for_stop(run: RunContext) -> None:
    """Return when the task is told to stop."""
    ask_at = time.monotonic() + ASK_SECONDS
    while not run.stop_requested:
        await asyncio.sleep(WATCH_SECONDS)
        if run.must_ask_server and time.monotonic() >= ask_at:
            if await to_be_cancelled(run, None):
                return
            ask_at = time.monotonic() + ASK_SECONDS


async def run_until_stopped(operation: Coroutine[Any, Any, T], run: RunContext, meanwhile: str) -> T:
    """Do something to its end.

    Raises:
        StoppedInThread: The task was told to stop before that; the message tells what happened meanwhile.
    """
    done = asyncio.ensure_future(operation)
    stopping = asyncio.ensure_future(watch_for_stop(run))
    try:
        await asyncio.wait((done, stopping), return_when=asyncio.FIRST_COMPLETED)
        if done.done():
            return done.result()
        stopping.result()  # a signal that struck inside of it is raised here
        raise StoppedInThread(f"The flow run was stopped while {meanwhile}")
    finally:
        await end((done, stopping))


async def end(tasks: Sequence[asyncio.Future[Any]]) -> None:
    """End what is still going on in this loop."""
    for unfinished in tasks:
        unfinished.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)


async def as_cancelled_state(operation: Awaitable[T]) -> T | State[Any]:
    """Do what a task does. When it is told to stop, that is no failure: it ends as `Cancelled`."""
    try:
        return await operation
    except StoppedInThread as stopped:
        return Cancelled(message=str(stopped))


@dataclass
class SubmissionState:
    """What is known of a job at each moment, as a signal may strike at any.

    Attributes:
        submission: To which flow it is submitted, and the identity, from when that may have been sent.
        job: The job, once it is known.
    """

    submission: tuple[AsyncFlow, Submission] | None = None
    job: AsyncJob | None = None

    def __str__(self) -> str:
        if self.job is not None:
            return f"Noukai job {self.job.id} of {self.job.flow}"
        return f"A Noukai job of {self.submission[0].path}" if self.submission else "A Noukai job"


async def cancel_or_keep(
    state_of_submission: SubmissionState, run: RunContext, because: BaseException
) -> bool:
    """Cancel the job when that is what the interruption means, and tell whether it was.

    It is shielded from the interruption itself, and bounded in time.

    Args:
        state_of_submission: What is known of the job.
        run: Where it was submitted or waited for.
        because: What interrupted that.
    """
    logger = run.logger()
    with anyio.move_on_after(CLEANUP_SECONDS, shield=True):
        if not await to_be_cancelled(run, because):
            if state_of_submission.job is not None:
                logger.warning("%s goes on; a rerun of this flow run attaches to it", state_of_submission)
            return False
        if state_of_submission.job is not None:
            return await cancel(state_of_submission.job, run)
        if state_of_submission.submission is not None:
            state_of_submission.job = await cancel_by_submission(*state_of_submission.submission, run)
        return state_of_submission.job is not None
    logger.warning("%s may go on: it could not be cancelled in time", state_of_submission)
    return False


async def cancel_by_submission(flow: AsyncFlow, submission: Submission, run: RunContext) -> AsyncJob | None:
    """Look for the job of a submission whose answer was not seen, and return it when it was cancelled."""
    for look in range(_SUBMISSION_LOOKUPS):
        if look:
            await asyncio.sleep(_LOOKUP_PAUSE)
        try:
            job = await flow.find(submission)
        except NoukaiError as error:
            run.logger().warning("The job of submission %s could not be looked up: %s", submission.id, error)
            continue
        if job is not None:
            return job if await cancel(job, run, submission) else None
    run.logger().warning(
        "Submission %s to %s was interrupted; if Noukai made a job of it, that goes on",
        submission.id,
        flow.path,
    )
    return None


async def cancel(job: AsyncJob, run: RunContext, submission: Submission | None = None) -> bool:
    """Cancel a job, and tell whether that ended it; an impossibility is a warning that names the job."""
    status: JobStatus | None = None
    try:
        await job.cancel()
        # A job that has ended by itself takes no cancel, and a rerun shall have what it completed with.
        with suppress(NoukaiError):
            status = await job.status()
    except CancelUnsupportedError as error:
        run.logger().warning("%s", error)
        return False
    except NoukaiError as error:
        run.logger().warning("Noukai job %s of %s could not be cancelled: %s", job.id, job.flow, error)
        return False
    if status is not None and status.finished and status.state != JobState.CANCELLED:
        run.logger().info("Noukai job %s of %s: %s before it was cancelled", job.id, job.flow, status.state)
        return False
    run.logger().info("Noukai job %s of %s: cancelled", job.id, job.flow)
    await _job_store.note_end(run, job, submission)
    return True


async def cancel_on_timeout(job: AsyncJob, late: JobTimeoutError, run: RunContext) -> JobTimeoutError:
    """Cancel a job that did not end in time, and return the error that says so."""
    if not await cancel(job, run):
        return late
    seen = f" (last state: {late.status.state})" if late.status else ""
    return JobTimeoutError(
        f"Noukai job {job.id} of {job.flow} did not end in time{seen}, and was cancelled",
        job_id=job.id,
        status=late.status,
    )


async def to_be_cancelled(run: RunContext, because: BaseException | None) -> bool:
    """Tell whether an interruption of a wait means that the job is to end."""
    if run.timed_out:
        return True
    if run.flow_run_id is None:
        return interrupted_by_a_person() or isinstance(because, KeyboardInterrupt)
    try:
        async with get_client() as client:
            return await _cancelled_in_prefect(client, run.flow_run_id, because)
    except Exception as error:
        run.logger().warning("Whether a person cancelled this run could not be read from Prefect: %s", error)
        return False


async def _cancelled_in_prefect(
    client: PrefectClient, flow_run_id: UUID, because: BaseException | None
) -> bool:
    """Look whether the flow run, or one that it is a part of, is being cancelled."""
    for _ in range(_GENERATIONS):
        flow_run = await client.read_flow_run(flow_run_id)
        if flow_run.state is not None and (flow_run.state.is_cancelling() or flow_run.state.is_cancelled()):
            return True
        if flow_run.parent_task_run_id is None:
            # Nobody starts a local run again, so the person at the terminal is the one who decides. With a
            # deployment, an interrupt is how its process is shut down.
            local = flow_run.deployment_id is None
            return local and (isinstance(because, KeyboardInterrupt) or interrupted_by_a_person())
        parent = await client.read_task_run(flow_run.parent_task_run_id)
        if parent.flow_run_id is None:
            return False
        flow_run_id = parent.flow_run_id
    return False
