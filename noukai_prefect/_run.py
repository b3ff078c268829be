"""Submit a job, wait for it, or both: the coroutines behind the tasks and the blocks."""

from __future__ import annotations

import time
from collections.abc import AsyncGenerator, Coroutine
from contextlib import AbstractAsyncContextManager, nullcontext
from dataclasses import dataclass, replace
from typing import Any, Literal, TypeAlias, TypeVar, get_args

from prefect.client.schemas.objects import State
from prefect.states import Cancelled
from pydantic import BaseModel

from noukai_core import (
    AsyncFlow,
    AsyncJob,
    AsyncNoukai,
    JobCancelledError,
    JobNotFoundError,
    JobOutputInvalidError,
    JobRequest,
    JobState,
    JobStatus,
    JobTimeoutError,
    Submission,
)
from noukai_core.checks import check_choice, check_seconds
from noukai_core.following import FOLLOW, Follow, StepCount, log_steps
from noukai_core.output_types import typed_output
from noukai_prefect import _job_store
from noukai_prefect._artifacts import ProgressArtifact
from noukai_prefect._cancellation import (
    StoppedInThread,
    SubmissionState,
    cancel_on_timeout,
    cancel_or_keep,
    interrupts,
    log_record_not_read,
    run_until_stopped,
)
from noukai_prefect._events import emit_job_event, outcome_payload
from noukai_prefect._job_artifact import JobArtifact, JobCost, job_markdown, read_cost, seconds_of
from noukai_prefect._job_store import JobRecord, JobStore
from noukai_prefect._output_type import check_output_type
from noukai_prefect._run_context import RunContext
from noukai_prefect._termination import termination_noted
from noukai_prefect.credentials import NoukaiCredentials, stored_reference

T = TypeVar("T")

OnCancelled: TypeAlias = Literal["fail", "cancel"]

# Others may be able to write any number of records.
_MOST_LOOKUPS = 10


@dataclass(frozen=True)
class WaitOptions:
    """How to wait for a job.

    Attributes:
        timeout: The longest wait in seconds; `None` for no limit.
        poll_interval: A fixed pause between polls in seconds. By default it grows with the age of the job.
        on_cancelled: How the task ends when the job was cancelled on the Noukai side.
        cancel_on_timeout: Whether the job is cancelled when the wait, the task or the flow times out.
        follow: What of the job is logged while it runs: `"state"`, `"steps"` or, with `None`, nothing.
        output_type: A pydantic model that the output has to be an instance of.
    """

    timeout: float | None = None
    poll_interval: float | None = None
    on_cancelled: OnCancelled = "fail"
    cancel_on_timeout: bool = True
    follow: Follow = "state"
    output_type: type[BaseModel] | None = None

    def __post_init__(self) -> None:
        if self.timeout is not None:
            check_seconds(self.timeout, "timeout")
        if self.poll_interval is not None:
            check_seconds(self.poll_interval, "poll_interval")
        check_choice(self.on_cancelled, get_args(OnCancelled), "on_cancelled")
        check_choice(self.follow, FOLLOW, "follow")
        check_output_type(self.output_type)


async def submit(
    credentials: NoukaiCredentials, client: AsyncNoukai, request: JobRequest, run: RunContext
) -> AsyncJob:
    """Submit a job, or attach to the one that this flow run has already submitted in the same slot.

    A job that this flow run saw fail, or that Noukai no longer knows, is replaced by a new one.
    """
    submission_state = SubmissionState()
    flow = client.flow(request.flow)
    operation = _submit_or_attach(credentials, flow, request, run, submission_state)
    return await _cancel_if_interrupted(operation, run, submission_state)


async def wait(
    credentials: NoukaiCredentials,
    job: AsyncJob,
    wait_options: WaitOptions,
    run: RunContext,
    request: JobRequest | None = None,
) -> Any:
    """Wait for a job, and return its output.

    Args:
        credentials: The project's credentials.
        job: The job.
        wait_options: How to wait.
        run: Where the code runs.
        request: What was submitted, if that is known.

    Returns:
        The output; or a `Cancelled` state, if the job was cancelled and `on_cancelled` is `"cancel"`.

    Raises:
        JobFailedError: The job failed.
        JobCancelledError: The job was cancelled on the Noukai side.
        JobTimeoutError: The wait timed out. It is a `TimeoutError`, so the task run ends as `TimedOut`.
        StoppedInThread: The task had to stop.
    """
    run = replace(run, cancel_on_timeout=wait_options.cancel_on_timeout)
    submission_state = SubmissionState(job=job)
    operation = _wait(credentials, job, wait_options, run, request, submission_state)
    return await _cancel_if_interrupted(operation, run, submission_state)


async def submit_and_wait(
    credentials: NoukaiCredentials,
    client: AsyncNoukai,
    request: JobRequest,
    wait_options: WaitOptions,
    run: RunContext,
) -> Any:
    """Submit a job, wait for it, and return its output; see `submit` and `wait`."""
    run = replace(run, cancel_on_timeout=wait_options.cancel_on_timeout)
    submission_state = SubmissionState()

    async def both() -> Any:
        flow = client.flow(request.flow)
        job = await _submit_or_attach(credentials, flow, request, run, submission_state)
        return await _wait(credentials, job, wait_options, run, request, submission_state)

    return await _cancel_if_interrupted(both(), run, submission_state)


async def _cancel_if_interrupted(
    operation: Coroutine[Any, Any, T], run: RunContext, submission_state: SubmissionState
) -> T:
    """Run an operation. If it is interrupted, at whatever point, cancel its job or leave it running."""
    try:
        with termination_noted():
            return await operation
    except BaseException as error:
        if interrupts(error):
            cancelled = await cancel_or_keep(submission_state, run, error)
            if job := submission_state.job:
                what = "cancelled" if cancelled else "left-running"
                if not cancelled and job.last_status is not None and job.last_status.finished:
                    what = str(job.last_status.state)  # before it could be cancelled
                page = submission_state.artifact.page if submission_state.artifact else None
                emit_job_event(run, what, job.flow, job.id, {"state": what, "url": page})
        elif submission_state.earlier is not None:
            log_record_not_read(submission_state.earlier[0].path, run, error)
        raise


async def _submit_or_attach(
    credentials: NoukaiCredentials,
    flow: AsyncFlow,
    request: JobRequest,
    run: RunContext,
    submission_state: SubmissionState,
) -> AsyncJob:
    store = _job_store.store_of(run)
    if store is not None:
        slot = store.slot_of_job(run, flow.path, _recorded_inputs(credentials, request))
        submission_state.earlier = flow, lambda: _record(credentials, flow, request, run, store, slot)
    if run.stop_requested:
        raise StoppedInThread(f"The flow run was stopped before a job of {flow.path} was submitted")
    if store is None:
        submission = Submission.new()
        submission_state.submission = flow, submission
        submission_state.job = await flow.submit(request, submission=submission)
        _log_submitted(credentials, submission_state.job, run)
        return submission_state.job
    stored = await run_until_stopped(
        submission_state.read_earlier(), run, f"the record of a job of {flow.path} was read"
    )
    record = replace(stored, credentials=stored_reference(credentials))
    job = await _attach(flow, record, run, submission_state, listed=request.session_id is None)
    return job or await _submit(credentials, flow, request, run, store, record, submission_state)


async def _record(
    credentials: NoukaiCredentials,
    flow: AsyncFlow,
    request: JobRequest,
    run: RunContext,
    store: JobStore,
    slot: str,
) -> JobRecord:
    """Return the record of a submission. If it is not verified, it is the latest whose job has not failed."""
    record = await store.record(run, flow.path, slot, credentials.api_key)
    if record.artifact_id is not None or request.session_id is not None or record.resubmission == 0:
        return record
    for number in record.unverified[:_MOST_LOOKUPS]:
        earlier = record.numbered(number)
        if (job := await flow.find(earlier.submission)) is not None:
            state = (await job.status()).state
            return record if state in (JobState.FAILED, JobState.CANCELLED) else earlier
    return record


def _recorded_inputs(credentials: NoukaiCredentials, request: JobRequest) -> dict[str, Any]:
    return {"server": credentials.api_url, "credentials": credentials.stored_name, **request.arguments()}


async def _attach(
    flow: AsyncFlow, record: JobRecord, run: RunContext, submission_state: SubmissionState, *, listed: bool
) -> AsyncJob | None:
    """Return the job of a record, even one that has failed since: the wait is what reports that.

    Args:
        flow: The Noukai flow.
        record: The record.
        run: Where the code runs.
        submission_state: How far the submission has come.
        listed: Whether the server lists the job under its submission.
    """
    if (job := submission_state.job) is None:
        return None
    logger = run.logger()
    try:
        status = await run_until_stopped(
            job.status(), run, f"Noukai job {job.id} of {job.flow} was attached to"
        )
    except JobNotFoundError as error:
        submission_state.job = found = (
            await run_until_stopped(flow.find(record.submission), run, f"a job of {flow.path} was looked up")
            if listed
            else None
        )
        if found is None:
            logger.warning("Noukai job %s of %s: replaced (%s)", job.id, job.flow, error)
        else:
            logger.info(
                "Noukai job %s of %s: found by its submission %s", found.id, found.flow, record.submission_id
            )
        return found
    logger.info("Noukai job %s of %s: attached (%s)", job.id, job.flow, status.state)
    return job


async def _submit(
    credentials: NoukaiCredentials,
    flow: AsyncFlow,
    request: JobRequest,
    run: RunContext,
    store: JobStore,
    record: JobRecord,
    submission_state: SubmissionState,
) -> AsyncJob:
    """Submit a job. Its record is stored before the request, and gets the job's id after it."""
    if record.job_id is not None or record.ended:
        record = record.next()
    submission = record.submission
    record = await store.store(
        run, replace(record, last_sent_at=_job_store.now()), f"Noukai job of {record.flow}: submitting"
    )
    submission_state.submission = flow, record.submission
    submission_state.job = job = await run_until_stopped(
        flow.submit(request, submission=submission), run, f"a job of {record.flow} was submitted"
    )
    page = credentials.page_of(job.flow, job.id)
    text = job_markdown(job.flow, job.id, page=page, state=JobState.PENDING.value, version=request.version)
    await _record_job(run, store, replace(record, job_id=job.id), text)
    _log_submitted(credentials, job, run)
    emit_job_event(run, "submitted", job.flow, job.id, {"version": str(request.version), "url": page})
    return job


async def _record_job(run: RunContext, store: JobStore, record: JobRecord, text: str) -> None:
    """Store the id of a job. That may fail, as the submission is already stored."""
    try:
        await store.store(run, record, text)
    except Exception as error:
        run.logger().warning("Noukai job %s of %s: not recorded (%s)", record.job_id, record.flow, error)


def _log_submitted(credentials: NoukaiCredentials, job: AsyncJob, run: RunContext) -> None:
    logger = run.logger()
    logger.info("Noukai job %s of %s: submitted", job.id, job.flow)
    if page := credentials.page_of(job.flow, job.id):
        logger.info("Noukai job %s of %s: page %s", job.id, job.flow, page)


async def _wait(
    credentials: NoukaiCredentials,
    job: AsyncJob,
    wait_options: WaitOptions,
    run: RunContext,
    request: JobRequest | None,
    submission_state: SubmissionState,
) -> Any:
    page = credentials.page_of(job.flow, job.id)
    artifact = JobArtifact(run, job, page, request.version if request else None)
    submission_state.artifact = artifact
    traced = request is not None and request.trace
    return await _Wait(job, wait_options, run, artifact, page=page, traced=traced).output()


class _Wait:
    """One wait for one job.

    Args:
        job: The job.
        wait_options: How to wait.
        run: Where the code runs.
        artifact: What shows the job.
        page: The address of the job's page.
        traced: Whether the job is traced.
    """

    def __init__(
        self,
        job: AsyncJob,
        wait_options: WaitOptions,
        run: RunContext,
        artifact: JobArtifact,
        *,
        page: str | None,
        traced: bool,
    ) -> None:
        self._job = job
        self._options = wait_options
        self._run = run
        self._artifact = artifact
        self._page = page
        self._traced = traced
        self._since = time.monotonic()

    async def output(self) -> Any | State[Any]:
        """Wait for the job, and return its output, or a `Cancelled` state."""
        job, timeout = self._job, self._options.timeout
        try:
            status = await run_until_stopped(
                self._watch(), self._run, f"Noukai job {job.id} of {job.flow} ran"
            )
        except JobTimeoutError as timed_out:
            if timeout is None or not self._options.cancel_on_timeout:
                raise
            error = await cancel_on_timeout(job, timed_out, timeout, self._run)
            if error is not timed_out:
                reason = f"timed out after {timeout:g} s"
                await self._artifact.write(JobState.CANCELLED.value, reason=reason, status=error.status)
            raise error from None
        output, invalid = self._typed_output(status)
        cost = await self._show_outcome(status, invalid)
        if invalid is not None:
            raise invalid
        try:
            status.result_or_raise(step=cost.step)
            return output
        except JobCancelledError as cancelled:
            if self._options.on_cancelled == "cancel":
                return Cancelled(message=str(cancelled))
            raise

    def _typed_output(self, status: JobStatus) -> tuple[Any, JobOutputInvalidError | None]:
        """Return the output of a completed job, and what is wrong with it, if something is."""
        if status.state != JobState.COMPLETED:
            return None, None
        output, output_type = status.result_or_raise().output, self._options.output_type
        if output_type is None:
            return output, None
        try:
            return typed_output(output, output_type, job_id=self._job.id, flow=self._job.flow), None
        except JobOutputInvalidError as error:
            return None, error

    async def _watch(self) -> JobStatus:
        job = self._job
        progress = ProgressArtifact(self._run, job.flow, f"Noukai job {job.id} of {job.flow}")
        before = job.last_status
        status: JobStatus | None = None
        async with self._following():
            async for status in self._statuses():
                self._log(before, status)
                before = status
                await progress.update_from(status)
                if not status.finished:
                    await self._artifact.update(status)
        assert status is not None, "a watch ends with a status or an error"
        return status

    def _statuses(self) -> AsyncGenerator[JobStatus, None]:
        options = self._options
        return self._job.watch(
            timeout=options.timeout,
            poll_interval=options.poll_interval,
            log_changes=options.follow is not None,
        )

    def _following(self) -> AbstractAsyncContextManager[None]:
        if self._options.follow != "steps":
            return nullcontext()
        return log_steps(self._job, self._run.logger(), StepCount())

    def _log(self, before: JobStatus | None, status: JobStatus) -> None:
        job, logger = self._job, self._run.logger()
        if self._options.follow is None and not status.finished:
            return
        if before is None:
            logger.info("Noukai job %s of %s: %s", job.id, job.flow, status.state)
        elif status.state != before.state:
            logger.info("Noukai job %s of %s: %s → %s", job.id, job.flow, before.state, status.state)
        elif status.progress is not None and status.progress != before.progress:
            logger.info("Noukai job %s of %s: progress %s", job.id, job.flow, status.progress_text)

    async def _show_outcome(self, status: JobStatus, invalid: JobOutputInvalidError | None) -> JobCost:
        """Show how the job ended: in the log, an event, the artifact, and the record for a rerun."""
        job, run = self._job, self._run
        failed = status.state == JobState.FAILED
        cost = await read_cost(job, run) if self._traced or failed else JobCost()
        if not failed:
            cost = replace(cost, step=None)  # a later attempt of the step has succeeded
        if cost.tokens is not None or cost.cost_usd is not None:
            run.logger().info("Noukai job %s of %s: used %s", job.id, job.flow, cost)
        seconds = seconds_of(status, self._since)
        payload = outcome_payload(
            status,
            url=self._page,
            seconds=seconds,
            tokens=cost.tokens,
            cost_usd=cost.cost_usd,
            failed_step=None if cost.step is None else cost.step.label,
        )
        emit_job_event(run, status.state, job.flow, job.id, payload)
        if status.state != JobState.COMPLETED or invalid is not None:
            await _job_store.record_end(run, job)
        reason = status.error if invalid is None else str(invalid)
        await self._artifact.write(
            str(status.state), reason=reason, status=status, seconds=seconds, cost=cost
        )
        return cost
