"""The task for many jobs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, cast
from uuid import uuid4

from prefect import task
from prefect.cache_policies import NO_CACHE
from prefect.client.schemas.objects import State

from noukai_core import InvalidInputError
from noukai_prefect import _job_store
from noukai_prefect._batch import Batch, BatchOptions, JobOutcome, RaiseOn
from noukai_prefect._batch_table import BatchTable
from noukai_prefect._cancellation import as_cancelled_state
from noukai_prefect._run import JobRequest
from noukai_prefect._run_context import RunContext
from noukai_prefect._sync import run_blocking
from noukai_prefect.credentials import NoukaiCredentials
from noukai_prefect.tasks import is_retryable


async def _run_batch(
    credentials: NoukaiCredentials, flow: str, inputs: Sequence[JobRequest], options: BatchOptions
) -> Any:
    run = RunContext.current()
    async with credentials.get_client("async", max_polls_per_second=options.max_polls_per_second) as client:
        noukai_flow = client.flow(flow)
        slot = _slot(run, noukai_flow.path, credentials.base_url, inputs)
        record = BatchTable(run, slot, noukai_flow.path, len(inputs), credentials.saved_as)
        outcomes = await as_cancelled_state(Batch(noukai_flow, inputs, options, run, record).outcomes())
    if isinstance(outcomes, State):
        return outcomes
    bad = [outcome.error for outcome in outcomes if outcome.error is not None]
    run.logger().info("%d Noukai jobs of %s: %d completed", len(outcomes), flow, len(outcomes) - len(bad))
    if bad and options.raise_on == "any":
        raise ExceptionGroup(f"{len(bad)} of {len(outcomes)} Noukai jobs of {flow} did not complete", bad)
    return outcomes


def _slot(run: RunContext, flow: str, server: str | None, inputs: Sequence[JobRequest]) -> str:
    """Return which of the flow run's batches it is."""
    store = _job_store.store_of(run)
    if store is None:
        return str(uuid4())
    return store.slot(run, flow, {"server": server, "batch": [one.arguments() for one in inputs]})


def _inputs_of(flow: str, inputs: Sequence[Any], version: str | int, trace: bool) -> list[JobRequest]:
    """Read each input: a message, or the arguments of one job."""
    if isinstance(inputs, str | Mapping):
        raise InvalidInputError(
            f"inputs is a {type(inputs).__name__}, but must be a list with an input for each job"
        )
    read: list[JobRequest] = []
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
        read.append(JobRequest(flow, **arguments, version=version, trace=trace))
    return read


@task(name="run-noukai-jobs", cache_policy=NO_CACHE, persist_result=False, retry_condition_fn=is_retryable)
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
        credentials, flow, _inputs_of(flow, inputs, version, trace), options
    )
    return outcomes


@task(name="run-noukai-jobs", cache_policy=NO_CACHE, persist_result=False, retry_condition_fn=is_retryable)
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
    """Run many jobs of one Noukai flow in one task run, and return what became of each.

    They share one event loop and one client. A table artifact shows every job, a progress artifact how many
    have ended. A retry or a rerun of the flow run takes the output of what completed, attaches to what runs,
    and submits only what is missing.

    Args:
        credentials: The project's credentials.
        flow: The Noukai flow, as `org/project/slug`, or a slug alone when the credentials have both.
        inputs: One for each job: a message, or a mapping with `message`, `parameters` and `block_overrides`.
        version: `"production"`, `"draft"` or the number of a published version.
        trace: Whether the runs are traced; the outcomes then have tokens and cost, where they can be read.
        timeout: Seconds to wait for one job at most.
        poll_interval: Seconds between two looks at one job; by default the pause grows with its age.
        cancel_on_timeout: Whether a job that does not end in time is cancelled.
        max_concurrency: How many jobs run at the same time.
        max_polls_per_second: The most looks a second at all of them.
        raise_on: `"any"` waits for all jobs, then raises an `ExceptionGroup` when some did not complete;
            `"first"` raises the first error at once, and leaves the other jobs running for a rerun; `"none"`
            never raises for a job.

    Returns:
        The outcomes, in the order of the inputs.

    Raises:
        InvalidInputError: An input is wrong. With `raise_on="none"` that is an outcome as well.
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
    return run_blocking(_run_batch(credentials, flow, _inputs_of(flow, inputs, version, trace), options))
