"""The tasks: submit a job, wait for one, or both.

Each has a twin for async flows, whose name begins with `a`. The tasks are never cached and persist no result:
what a rerun needs to find its jobs is kept on the Prefect server (see `records`), and an outcome must not be
replayed.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any

from prefect import task
from prefect.cache_policies import NO_CACHE
from prefect.client.schemas.objects import State, TaskRun
from prefect.tasks import Task

from noukai_core import InvalidInputError, JobCancelledError, PermanentError
from noukai_prefect._cancellation import as_cancelled_state
from noukai_prefect._run import JobRequest, OnCancelled, WaitOptions, submit, submit_and_wait, wait
from noukai_prefect._run_context import RunContext
from noukai_prefect._sync import run_blocking
from noukai_prefect.credentials import NoukaiCredentials

_NOT_RETRYABLE = (PermanentError, InvalidInputError, JobCancelledError)


def is_retryable(task: Task[..., Any], task_run: TaskRun, state: State[Any]) -> bool:
    """Tell whether a retry can help, for `retry_condition_fn`; it is set on every task of this package.

    A refusal for good and wrong input stay what they are, and a job that somebody cancelled was stopped on
    purpose. Of many jobs it is enough when a retry can help one.
    """
    error: Any = getattr(state.data, "result", state.data)
    errors: Sequence[Any] = getattr(error, "exceptions", (error,))
    return not all(isinstance(one, _NOT_RETRYABLE) for one in errors)


async def _submit(credentials: NoukaiCredentials, inputs: JobRequest) -> Any:
    async with credentials.get_client("async") as client:
        job = await as_cancelled_state(submit(credentials, client, inputs, RunContext.current()))
    return job if isinstance(job, State) else job.id


async def _wait(
    credentials: NoukaiCredentials,
    flow: str,
    job_id: str,
    submitted_at: datetime | None,
    options: WaitOptions,
) -> Any:
    async with credentials.get_client("async") as client:
        job = client.flow(flow).attach(job_id, submitted_at=submitted_at)
        return await as_cancelled_state(wait(job, options, RunContext.current()))


async def _run(credentials: NoukaiCredentials, inputs: JobRequest, options: WaitOptions) -> Any:
    async with credentials.get_client("async") as client:
        operation = submit_and_wait(credentials, client, inputs, options, RunContext.current())
        return await as_cancelled_state(operation)


@task(name="submit-noukai-job", cache_policy=NO_CACHE, persist_result=False, retry_condition_fn=is_retryable)
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
) -> str:
    """Submit a job, for async flows; see `submit_noukai_job`."""
    inputs = JobRequest(flow, message, parameters, block_overrides, version, trace, session_id)
    job_id: str = await _submit(credentials, inputs)
    return job_id


@task(name="submit-noukai-job", cache_policy=NO_CACHE, persist_result=False, retry_condition_fn=is_retryable)
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
) -> str:
    """Submit a job, and return its id without waiting for it.

    A retry or a rerun of the flow run that comes to the same place finds the job that is there; only when
    that one failed or was cancelled is a new one submitted.

    Args:
        credentials: The project's credentials.
        flow: The Noukai flow, as `org/project/slug`, or a slug alone when the credentials have org and
            project.
        message: The flow's input. It or `parameters` is needed.
        parameters: Named inputs that JSON can carry.
        block_overrides: Settings of single steps, by step id.
        version: `"production"`, `"draft"` or the number of a published version.
        trace: Whether the run is traced.
        session_id: A UUID of your own that groups jobs. With one, a submission with an ambiguous end cannot
            be looked up.

    Returns:
        The job's id.

    Raises:
        InvalidInputError: An argument is wrong; nothing was sent.
        Refused: Noukai refused the job for good.
        SubmissionUnknownError: It could not be settled whether there is a job; a retry asks again first.

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
    inputs = JobRequest(flow, message, parameters, block_overrides, version, trace, session_id)
    job_id: str = run_blocking(_submit(credentials, inputs))
    return job_id


@task(
    name="wait-for-noukai-job", cache_policy=NO_CACHE, persist_result=False, retry_condition_fn=is_retryable
)
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
) -> Any:
    """Wait for a job, for async flows; see `wait_for_noukai_job`."""
    options = WaitOptions(timeout, poll_interval, on_cancelled, cancel_on_timeout)
    return await _wait(credentials, flow, job_id, submitted_at, options)


@task(
    name="wait-for-noukai-job", cache_policy=NO_CACHE, persist_result=False, retry_condition_fn=is_retryable
)
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
) -> Any:
    """Wait for a job that exists, whoever submitted it, and return its output.

    Whoever waits for a job takes it over: when a person cancels this flow run, or the task times out, the job
    is cancelled, also one that something else submitted.

    Args:
        credentials: The project's credentials.
        flow: The Noukai flow, as `org/project/slug`, or a slug alone when the credentials have org and
            project.
        job_id: The job.
        submitted_at: When it was submitted, if that was a moment ago: then the server may not know it yet.
        timeout: Seconds to wait at most; by default there is no end to it.
        poll_interval: Seconds between two looks; by default the pause grows with the age of the job.
        on_cancelled: What becomes of a job that somebody cancels on the Noukai side: `"fail"` raises
            `JobCancelledError`, `"cancel"` ends the task run as `Cancelled`. The call then returns that
            state: return it from the flow, or the flow run continues.
        cancel_on_timeout: Whether the job is cancelled when it does not end in time.

    Returns:
        The output of the completed job.

    Raises:
        JobFailedError: The job failed.
        JobCancelledError: The job was cancelled on the Noukai side.
        JobTimeoutError: The time is over; the task run ends as `TimedOut`.
        JobNotFoundError: Noukai does not know the job.
        Unavailable: Noukai gave no good answer for five minutes.
    """
    options = WaitOptions(timeout, poll_interval, on_cancelled, cancel_on_timeout)
    return run_blocking(_wait(credentials, flow, job_id, submitted_at, options))


@task(name="run-noukai-job", cache_policy=NO_CACHE, persist_result=False, retry_condition_fn=is_retryable)
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
    timeout: float | None = None,
    poll_interval: float | None = None,
    on_cancelled: OnCancelled = "fail",
    cancel_on_timeout: bool = True,
) -> Any:
    """Run a job, for async flows; see `run_noukai_job`."""
    inputs = JobRequest(flow, message, parameters, block_overrides, version, trace, session_id)
    return await _run(
        credentials, inputs, WaitOptions(timeout, poll_interval, on_cancelled, cancel_on_timeout)
    )


@task(name="run-noukai-job", cache_policy=NO_CACHE, persist_result=False, retry_condition_fn=is_retryable)
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
    timeout: float | None = None,
    poll_interval: float | None = None,
    on_cancelled: OnCancelled = "fail",
    cancel_on_timeout: bool = True,
) -> Any:
    """Submit a job, wait for it, and return its output.

    When a person cancels the flow run, or the task times out, the job is cancelled. When the process is shut
    down or dies, the job is kept, and a rerun of the flow run attaches to it.

    Args:
        credentials: The project's credentials.
        flow: The Noukai flow, as `org/project/slug`, or a slug alone when the credentials have org and
            project.
        message: The flow's input. It or `parameters` is needed.
        parameters: Named inputs that JSON can carry.
        block_overrides: Settings of single steps, by step id.
        version: `"production"`, `"draft"` or the number of a published version.
        trace: Whether the run is traced.
        session_id: A UUID of your own that groups jobs; see `submit_noukai_job`.
        timeout: Seconds to wait at most; by default there is no end to it.
        poll_interval: Seconds between two looks; by default the pause grows with the age of the job.
        on_cancelled: `"fail"` or `"cancel"`; see `wait_for_noukai_job`.
        cancel_on_timeout: Whether the job is cancelled when it does not end in time.

    Returns:
        The output of the completed job.

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
    inputs = JobRequest(flow, message, parameters, block_overrides, version, trace, session_id)
    return run_blocking(
        _run(credentials, inputs, WaitOptions(timeout, poll_interval, on_cancelled, cancel_on_timeout))
    )
