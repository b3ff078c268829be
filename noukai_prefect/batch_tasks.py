"""The task that runs many jobs."""

from __future__ import annotations

import reprlib
from collections.abc import Mapping, Sequence
from typing import Any, cast
from uuid import uuid4

from prefect.client.schemas.objects import State

from noukai_core import InvalidInputError, JobRequest
from noukai_prefect import _job_store
from noukai_prefect._batch import Batch, BatchOptions, JobOutcome, RaiseOn
from noukai_prefect._batch_table import BatchTable
from noukai_prefect._cancellation import as_cancelled_state
from noukai_prefect._run_context import RunContext
from noukai_prefect._sync import run_blocking
from noukai_prefect._task_decorator import noukai_task
from noukai_prefect.credentials import NoukaiCredentials


async def _run_batch(
    credentials: NoukaiCredentials, flow: str, requests: Sequence[JobRequest], options: BatchOptions
) -> Any:
    run = RunContext.current()
    async with credentials.get_client("async", max_polls_per_second=options.max_polls_per_second) as client:
        noukai_flow = client.flow(flow)
        slot = _slot(run, noukai_flow.path, credentials, requests)
        table = BatchTable(run, slot, noukai_flow.path, [_beginning(one) for one in requests], credentials)
        outcomes = await as_cancelled_state(Batch(noukai_flow, requests, options, run, table).outcomes())
    if isinstance(outcomes, State):
        return outcomes
    errors = [outcome.error for outcome in outcomes if outcome.error is not None]
    if errors and options.raise_on == "any":
        raise ExceptionGroup(
            f"{len(errors)} of {len(outcomes)} Noukai jobs of {flow} did not complete", errors
        )
    return outcomes


def _beginning(request: JobRequest) -> str:
    """Return the beginning of an input, for the table."""
    return request.message[:200] if isinstance(request.message, str) else reprlib.repr(request.parameters)


def _slot(run: RunContext, flow: str, credentials: NoukaiCredentials, requests: Sequence[JobRequest]) -> str:
    """Return which of the flow run's batches this is."""
    store = _job_store.store_of(run)
    if store is None:
        return str(uuid4())
    batch = [request.arguments() for request in requests]
    inputs = {"server": credentials.base_url, "credentials": credentials.saved_as, "batch": batch}
    return store.slot(run, flow, inputs)


def _requests(flow: str, inputs: Sequence[Any], version: str | int, trace: bool) -> list[JobRequest]:
    """Read each input: a message, or the arguments of one job."""
    if isinstance(inputs, str | Mapping):
        raise InvalidInputError(
            f"inputs is a {type(inputs).__name__}, but must be a list with one input per job"
        )
    requests: list[JobRequest] = []
    for index, given in enumerate(inputs):
        if not isinstance(given, str | Mapping):
            raise InvalidInputError(
                f"inputs[{index}] is a {type(given).__name__}, but must be a message or a mapping"
            )
        arguments = {"message": given} if isinstance(given, str) else cast("Mapping[str, Any]", given)
        unknown = set(arguments) - {"message", "parameters", "block_overrides"}
        if unknown:
            raise InvalidInputError(
                f"inputs[{index}] has {', '.join(sorted(map(str, unknown)))}, but may be a message, or have "
                "message, parameters and block_overrides"
            )
        requests.append(JobRequest(flow, **arguments, version=version, trace=trace))
    return requests


@noukai_task("run-noukai-jobs")
async def arun_noukai_jobs(
    credentials: NoukaiCredentials,
    flow: str,
    inputs: Sequence[str | Mapping[str, Any]],
    *,
    version: str | int = "production",
    trace: bool = False,
    timeout: float | None = None,
    poll_interval: float | None = None,
    cancel_on_timeout: bool = True,
    max_concurrency: int = 1000,
    max_polls_per_second: float = 50.0,
    raise_on: RaiseOn = "any",
) -> list[JobOutcome]:
    """Run many jobs, for async flows; see `run_noukai_jobs`."""
    options = BatchOptions(
        timeout, poll_interval, cancel_on_timeout, max_concurrency, max_polls_per_second, raise_on
    )
    outcomes: list[JobOutcome] = await _run_batch(
        credentials, flow, _requests(flow, inputs, version, trace), options
    )
    return outcomes


@noukai_task("run-noukai-jobs")
def run_noukai_jobs(
    credentials: NoukaiCredentials,
    flow: str,
    inputs: Sequence[str | Mapping[str, Any]],
    *,
    version: str | int = "production",
    trace: bool = False,
    timeout: float | None = None,
    poll_interval: float | None = None,
    cancel_on_timeout: bool = True,
    max_concurrency: int = 1000,
    max_polls_per_second: float = 50.0,
    raise_on: RaiseOn = "any",
) -> list[JobOutcome]:
    """Run many jobs of one Noukai flow in one task run, and return their outcomes.

    The jobs share one event loop and one client. A table artifact shows every job, and a progress artifact
    how many have ended. A retry of the task or a rerun of the flow run keeps the outputs of completed jobs,
    attaches to running ones, and submits only what is missing.

    Args:
        credentials: The project's credentials.
        flow: The Noukai flow, as `org/project/slug`; a slug is enough if the credentials have the rest.
        inputs: One per job: a message, or a mapping with `message`, `parameters` and `block_overrides`.
        version: `"production"`, `"draft"` or the number of a published version.
        trace: Whether the runs are traced. The outcomes then have tokens and cost, if traces are readable.
        timeout: The longest wait for one job in seconds; no limit by default.
        poll_interval: Seconds between two polls of one job. By default the pause grows with the job's age.
        cancel_on_timeout: Whether a job that times out is cancelled.
        max_concurrency: The number of jobs that run at the same time.
        max_polls_per_second: The rate limit for polls of all jobs together.
        raise_on: `"any"` waits for all jobs, then raises an `ExceptionGroup` if some did not complete.
            `"first"` raises the first error at once, and leaves the other jobs running for a rerun. `"none"`
            never raises for a job.

    Returns:
        The outcomes, in the order of the inputs.

    Raises:
        InvalidInputError: An argument or an input is invalid. What only the job client can detect about an
            input is that input's outcome instead.
        ExceptionGroup: Some jobs did not complete.

    Example:
        ```python
        from prefect import flow
        from noukai_prefect import NoukaiCredentials, run_noukai_jobs

        @flow
        def spelling(texts: list[str]):
            outcomes = run_noukai_jobs(NoukaiCredentials.load("default"), "acme/spelling/grade-3", texts)
            return [outcome.output for outcome in outcomes]
        ```
    """
    options = BatchOptions(
        timeout, poll_interval, cancel_on_timeout, max_concurrency, max_polls_per_second, raise_on
    )
    return run_blocking(_run_batch(credentials, flow, _requests(flow, inputs, version, trace), options))
