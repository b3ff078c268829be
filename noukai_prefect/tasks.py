"""The tasks: submit a job, wait for one, or both. Each has a twin for async flows, prefixed with `a`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any

from prefect.client.schemas.objects import State
from pydantic import BaseModel

from noukai_core import JobRequest
from noukai_core.following import Follow
from noukai_prefect._cancellation import as_cancelled_state
from noukai_prefect._run import OnCancelled, WaitOptions, submit, submit_and_wait, wait
from noukai_prefect._run_context import RunContext
from noukai_prefect._sync import run_blocking
from noukai_prefect._task_decorator import noukai_task
from noukai_prefect.credentials import NoukaiCredentials, check_credentials


async def _submit(credentials: NoukaiCredentials, request: JobRequest) -> Any:
    async with check_credentials(credentials).get_client("async") as client:
        job = await as_cancelled_state(submit(credentials, client, request, RunContext.current()))
    return job if isinstance(job, State) else job.id


async def _wait(
    credentials: NoukaiCredentials,
    flow: str,
    job_id: str,
    submitted_at: datetime | None,
    wait_options: WaitOptions,
) -> Any:
    async with check_credentials(credentials).get_client("async") as client:
        job = client.flow(flow).attach(job_id, submitted_at=submitted_at)
        return await as_cancelled_state(wait(credentials, job, wait_options, RunContext.current()))


async def _run(credentials: NoukaiCredentials, request: JobRequest, wait_options: WaitOptions) -> Any:
    async with check_credentials(credentials).get_client("async") as client:
        operation = submit_and_wait(credentials, client, request, wait_options, RunContext.current())
        return await as_cancelled_state(operation)


@noukai_task("submit-noukai-job")
async def asubmit_noukai_job(
    credentials: NoukaiCredentials,
    flow: str,
    message: str | None = None,
    *,
    parameters: Mapping[str, Any] | None = None,
    block_overrides: Mapping[str, Mapping[str, Any]] | None = None,
    version: str | int = "production",
    trace: bool = False,
    session_id: str | None = None,
    callback_url: str | None = None,
    callback_events: Sequence[str] | None = None,
) -> str:
    """Submit a job, for async flows; see `submit_noukai_job`."""
    request = JobRequest(
        flow,
        message,
        parameters,
        block_overrides,
        version,
        trace,
        session_id,
        callback_url,
        callback_events,
    )
    job_id: str = await _submit(credentials, request)
    return job_id


@noukai_task("submit-noukai-job")
def submit_noukai_job(
    credentials: NoukaiCredentials,
    flow: str,
    message: str | None = None,
    *,
    parameters: Mapping[str, Any] | None = None,
    block_overrides: Mapping[str, Mapping[str, Any]] | None = None,
    version: str | int = "production",
    trace: bool = False,
    session_id: str | None = None,
    callback_url: str | None = None,
    callback_events: Sequence[str] | None = None,
) -> str:
    """Submit a job, and return its id without waiting for it.

    A retry of the task or a rerun of the flow run that gets to the same call finds the existing job. It
    submits a new one only if that job failed or was cancelled.

    Args:
        credentials: The project's credentials.
        flow: The Noukai flow, as `org/project/slug`; a slug is enough if the credentials have the rest.
        message: The flow's input. Either it or `parameters` is required.
        parameters: Named inputs, as JSON values.
        block_overrides: Settings of single steps, by step id.
        version: `"production"`, `"draft"` or the number of a published version.
        trace: Whether the run is traced.
        session_id: A UUID that groups jobs. With one, a submission whose outcome is unknown cannot be looked
            up.
        callback_url: A public https address that Noukai calls when the job has ended.
        callback_events: The events to call it for: `flow.completed`, `flow.failed` or both.

    Returns:
        The job's id.

    Raises:
        InvalidInputError: An argument is invalid; nothing was sent.
        PermanentError: Noukai rejected the job.
        SubmissionUnknownError: It is unknown whether a job exists. A retry checks again before it submits.

    Example:
        ```python
        from prefect import flow
        from noukai_prefect import NoukaiCredentials, submit_noukai_job, wait_for_noukai_job

        @flow
        def spelling(text: str):
            credentials = NoukaiCredentials.load("default")
            job_id = submit_noukai_job(credentials, "acme/spelling/grade-3", text)
            return wait_for_noukai_job(credentials, "acme/spelling/grade-3", job_id)
        ```
    """
    request = JobRequest(
        flow,
        message,
        parameters,
        block_overrides,
        version,
        trace,
        session_id,
        callback_url,
        callback_events,
    )
    job_id: str = run_blocking(_submit(credentials, request), "asubmit_noukai_job")
    return job_id


@noukai_task("wait-for-noukai-job")
async def await_for_noukai_job(
    credentials: NoukaiCredentials,
    flow: str,
    job_id: str,
    *,
    submitted_at: datetime | None = None,
    timeout: float | None = None,
    poll_interval: float | None = None,
    on_cancelled: OnCancelled = "fail",
    cancel_on_timeout: bool = True,
    follow: Follow = "state",
    output_type: type[BaseModel] | None = None,
) -> Any:
    """Wait for a job, for async flows; see `wait_for_noukai_job`."""
    wait_options = WaitOptions(timeout, poll_interval, on_cancelled, cancel_on_timeout, follow, output_type)
    return await _wait(credentials, flow, job_id, submitted_at, wait_options)


@noukai_task("wait-for-noukai-job")
def wait_for_noukai_job(
    credentials: NoukaiCredentials,
    flow: str,
    job_id: str,
    *,
    submitted_at: datetime | None = None,
    timeout: float | None = None,
    poll_interval: float | None = None,
    on_cancelled: OnCancelled = "fail",
    cancel_on_timeout: bool = True,
    follow: Follow = "state",
    output_type: type[BaseModel] | None = None,
) -> Any:
    """Wait for an existing job, regardless of what submitted it, and return its output.

    Waiting for a job takes ownership of it: when a person cancels this flow run, or the task times out, the
    job is cancelled, even if something else submitted it.

    Args:
        credentials: The project's credentials.
        flow: The Noukai flow, as `org/project/slug`; a slug is enough if the credentials have the rest.
        job_id: The job.
        submitted_at: When it was submitted. The server may not know a job that is only seconds old.
        timeout: The longest wait in seconds; no limit by default.
        poll_interval: Seconds between two polls. By default the pause grows with the age of the job.
        on_cancelled: How the task ends if the job is cancelled on the Noukai side: `"fail"` raises
            `JobCancelledError`, `"cancel"` ends the task run as `Cancelled`. The call then returns that
            state. Return it from the flow, or the flow run continues.
        cancel_on_timeout: Whether the job is cancelled when the wait, the task or the flow times out.
        follow: What of the job is logged while it runs: `"state"`, with its progress; `"steps"`, the steps as
            well, live; or `None`, only the submission and the end.
        output_type: A pydantic model that the output has to be an instance of.

    Returns:
        The output of the completed job; with `output_type`, an instance of it.

    Raises:
        JobFailedError: The job failed.
        JobOutputInvalidError: The output is no instance of the `output_type`. The error names the fields.
        JobCancelledError: The job was cancelled on the Noukai side.
        JobTimeoutError: The wait timed out; the task run ends as `TimedOut`.
        JobNotFoundError: Noukai does not know the job.
        TransientError: There was no successful response for five minutes.
    """
    wait_options = WaitOptions(timeout, poll_interval, on_cancelled, cancel_on_timeout, follow, output_type)
    return run_blocking(_wait(credentials, flow, job_id, submitted_at, wait_options), "await_for_noukai_job")


@noukai_task("run-noukai-job")
async def arun_noukai_job(
    credentials: NoukaiCredentials,
    flow: str,
    message: str | None = None,
    *,
    parameters: Mapping[str, Any] | None = None,
    block_overrides: Mapping[str, Mapping[str, Any]] | None = None,
    version: str | int = "production",
    trace: bool = False,
    session_id: str | None = None,
    callback_url: str | None = None,
    callback_events: Sequence[str] | None = None,
    timeout: float | None = None,
    poll_interval: float | None = None,
    on_cancelled: OnCancelled = "fail",
    cancel_on_timeout: bool = True,
    follow: Follow = "state",
    output_type: type[BaseModel] | None = None,
) -> Any:
    """Run a job, for async flows; see `run_noukai_job`."""
    request = JobRequest(
        flow,
        message,
        parameters,
        block_overrides,
        version,
        trace,
        session_id,
        callback_url,
        callback_events,
    )
    wait_options = WaitOptions(timeout, poll_interval, on_cancelled, cancel_on_timeout, follow, output_type)
    return await _run(credentials, request, wait_options)


@noukai_task("run-noukai-job")
def run_noukai_job(
    credentials: NoukaiCredentials,
    flow: str,
    message: str | None = None,
    *,
    parameters: Mapping[str, Any] | None = None,
    block_overrides: Mapping[str, Mapping[str, Any]] | None = None,
    version: str | int = "production",
    trace: bool = False,
    session_id: str | None = None,
    callback_url: str | None = None,
    callback_events: Sequence[str] | None = None,
    timeout: float | None = None,
    poll_interval: float | None = None,
    on_cancelled: OnCancelled = "fail",
    cancel_on_timeout: bool = True,
    follow: Follow = "state",
    output_type: type[BaseModel] | None = None,
) -> Any:
    """Submit a job, wait for it, and return its output.

    When a person cancels the flow run, or the task times out, the job is cancelled. When the process is shut
    down or killed, the job is left running, and a rerun of the flow run attaches to it.

    Args:
        credentials: The project's credentials.
        flow: The Noukai flow, as `org/project/slug`; a slug is enough if the credentials have the rest.
        message: The flow's input. Either it or `parameters` is required.
        parameters: Named inputs, as JSON values.
        block_overrides: Settings of single steps, by step id.
        version: `"production"`, `"draft"` or the number of a published version.
        trace: Whether the run is traced.
        session_id: A UUID that groups jobs; see `submit_noukai_job`.
        callback_url: A public https address that Noukai calls when the job has ended.
        callback_events: The events to call it for: `flow.completed`, `flow.failed` or both.
        timeout: The longest wait in seconds; no limit by default.
        poll_interval: Seconds between two polls. By default the pause grows with the age of the job.
        on_cancelled: `"fail"` or `"cancel"`; see `wait_for_noukai_job`.
        cancel_on_timeout: Whether the job is cancelled when the wait, the task or the flow times out.
        follow: `"state"`, `"steps"` or `None`; see `wait_for_noukai_job`.
        output_type: A pydantic model that the output has to be an instance of. If it is not, a retry submits
            a new job.

    Returns:
        The output of the completed job; with `output_type`, an instance of it.

    Raises:
        NoukaiError: What `submit_noukai_job` and `wait_for_noukai_job` raise.

    Example:
        ```python
        from prefect import flow
        from noukai_prefect import NoukaiCredentials, run_noukai_job

        @flow
        def spelling(text: str):
            return run_noukai_job(NoukaiCredentials.load("default"), "acme/spelling/grade-3", text)
        ```
    """
    request = JobRequest(
        flow,
        message,
        parameters,
        block_overrides,
        version,
        trace,
        session_id,
        callback_url,
        callback_events,
    )
    wait_options = WaitOptions(timeout, poll_interval, on_cancelled, cancel_on_timeout, follow, output_type)
    return run_blocking(_run(credentials, request, wait_options), "arun_noukai_job")
