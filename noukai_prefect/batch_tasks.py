"""Many jobs: as one task, or as a stream of outcomes in a flow."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Callable
from contextlib import aclosing
from decimal import Decimal
from typing import Any
from uuid import uuid4

import anyio
from prefect.client.schemas.objects import State
from prefect.filesystems import WritableFileSystem
from pydantic import BaseModel

from noukai_core import JobOutcome, NoukaiError
from noukai_prefect import _job_store
from noukai_prefect._batch import BatchOptions, BatchRun, RaiseOn
from noukai_prefect._batch_inputs import BatchInputs, Inputs
from noukai_prefect._cancellation import as_cancelled_state
from noukai_prefect._run_context import RunContext
from noukai_prefect._sync import run_blocking
from noukai_prefect._task_decorator import noukai_task
from noukai_prefect._termination import termination_noted
from noukai_prefect.credentials import NoukaiCredentials, check_credentials

# Submissions that go out together are recorded on Prefect's server together, with one request.
_CONCURRENT_SUBMISSIONS = 64


async def _stream(
    credentials: NoukaiCredentials,
    flow: str,
    given: BatchInputs,
    options: BatchOptions,
    max_polls_per_second: float | None,
    on_begin: Callable[[BatchRun], None] = lambda _: None,
) -> AsyncGenerator[JobOutcome, None]:
    """Run the batch of this place in the run, and yield its outcomes as they end."""
    run = RunContext.current()
    client_options: dict[str, Any] = {"max_concurrent_submissions": _CONCURRENT_SUBMISSIONS}
    if max_polls_per_second is not None:
        client_options["max_polls_per_second"] = max_polls_per_second
    async with check_credentials(credentials).get_client("async", **client_options) as client:
        noukai_flow = client.flow(flow)
        await given.check()
        slot = _slot(run, noukai_flow.path, credentials, given)
        batch = BatchRun(noukai_flow, given, options, run, slot, credentials)
        on_begin(batch)
        with termination_noted():
            async with aclosing(batch.outcomes()) as outcomes:
                async for outcome in outcomes:
                    yield outcome


async def _in_own_task(stream: AsyncGenerator[JobOutcome, None]) -> AsyncGenerator[JobOutcome, None]:
    """Yield what a stream yields. Its cleanup ends before the event loop does, however its consumer ends.

    If its consumer is interrupted between two outcomes, asyncio does not wait for the cleanup of a generator.
    It does wait for that of a task.
    """
    handed_over = asyncio.Queue[JobOutcome | None]()

    async def run() -> None:
        try:
            async with aclosing(stream):
                async for outcome in stream:
                    handed_over.put_nowait(outcome)
                    await handed_over.join()  # nothing is read ahead
        finally:
            handed_over.put_nowait(None)

    task = asyncio.create_task(run())
    try:
        while (outcome := await handed_over.get()) is not None:
            yield outcome
            handed_over.task_done()
        await task
    finally:
        with anyio.CancelScope(shield=True):
            while not task.done():
                if not task.cancelling():  # a second time would interrupt the cleanup
                    task.cancel()
                await asyncio.wait({task}, timeout=1.0)
        if not task.cancelled():
            task.result()


async def _run_batch(
    credentials: NoukaiCredentials,
    flow: str,
    inputs: Any,
    options: BatchOptions,
    max_polls_per_second: float | None,
) -> Any:
    given = BatchInputs(flow, inputs, options.version, options.trace)
    begun: list[BatchRun] = []
    outcomes: list[JobOutcome] = []
    errors: list[NoukaiError] = []

    async def collect() -> int:
        count = 0
        stream = _stream(credentials, flow, given, options, max_polls_per_second, begun.append)
        async with aclosing(stream) as ended:
            async for outcome in ended:
                count += 1
                if outcome.error is not None:
                    if options.raise_on == "first":
                        raise outcome.error
                    errors.append(outcome.error)
                if options.output_storage is None:
                    outcomes.append(outcome)
        return count

    count = await as_cancelled_state(collect())
    if isinstance(count, State):
        return count
    if errors and options.raise_on == "any":
        raise ExceptionGroup(f"{len(errors)} of {count} Noukai jobs of {flow} did not complete", errors)
    if options.output_storage is not None:
        return begun[0].manifest()
    return sorted(outcomes, key=lambda outcome: outcome.index)


def _slot(run: RunContext, flow: str, credentials: NoukaiCredentials, inputs: BatchInputs) -> str:
    """Return which of the flow run's batches this is."""
    store = _job_store.store_of(run)
    if store is None:
        return str(uuid4())
    content = {
        "server": credentials.api_url,
        "credentials": credentials.stored_name,
        "batch": inputs.content,
    }
    return store.slot(run, flow, content)


@noukai_task("run-noukai-jobs")
async def arun_noukai_jobs(
    credentials: NoukaiCredentials,
    flow: str,
    inputs: Inputs,
    *,
    version: str | int = "production",
    trace: bool = False,
    timeout: float | None = None,
    poll_interval: float | None = None,
    cancel_on_timeout: bool = True,
    max_concurrency: int = 1000,
    max_polls_per_second: float | None = None,
    max_cost_usd: Decimal | float | str | None = None,
    output_type: type[BaseModel] | None = None,
    output_storage: WritableFileSystem | None = None,
    concurrency: str | None = None,
    raise_on: RaiseOn = "any",
) -> Any:
    """Run many jobs, for async flows; see `run_noukai_jobs`."""
    options = BatchOptions(
        version=version,
        trace=trace,
        timeout=timeout,
        poll_interval=poll_interval,
        cancel_on_timeout=cancel_on_timeout,
        max_concurrency=max_concurrency,
        max_cost_usd=max_cost_usd,
        output_type=output_type,
        output_storage=output_storage,
        concurrency=concurrency,
        raise_on=raise_on,
    )
    return await _run_batch(credentials, flow, inputs, options, max_polls_per_second)


@noukai_task("run-noukai-jobs")
def run_noukai_jobs(
    credentials: NoukaiCredentials,
    flow: str,
    inputs: Inputs,
    *,
    version: str | int = "production",
    trace: bool = False,
    timeout: float | None = None,
    poll_interval: float | None = None,
    cancel_on_timeout: bool = True,
    max_concurrency: int = 1000,
    max_polls_per_second: float | None = None,
    max_cost_usd: Decimal | float | str | None = None,
    output_type: type[BaseModel] | None = None,
    output_storage: WritableFileSystem | None = None,
    concurrency: str | None = None,
    raise_on: RaiseOn = "any",
) -> Any:
    """Run many jobs of one Noukai flow in one task run, and return their outcomes.

    The jobs share one event loop and one client, and one request tells the states of up to a hundred of them.
    A table artifact shows the jobs, and a progress artifact how many have ended. A retry of the task or a
    rerun of the flow run keeps the outputs of completed jobs, attaches to running ones, and submits only what
    is missing.

    Args:
        credentials: The project's credentials.
        flow: The Noukai flow, as `org/project/slug`; a slug is enough if the credentials have the rest.
        inputs: One per job: a message, a `JobRequest`, or a mapping with `message`, `parameters`,
            `block_overrides` and `key` (your own name of the input, which comes back with its outcome). They
            may be a list, a generator, an async generator, or the path or URI of a file: a `.jsonl` file with
            one of them on each line, or a `.csv` file with a header, whose columns other than `message` and
            `key` are parameters. In a rerun, a generator has to yield
            the same inputs in the same order: they are not compared. A set is refused, since it has no order.
        version: `"production"`, `"draft"` or the number of a published version.
        trace: Whether the runs are traced. The outcomes then have tokens and cost, if traces are readable.
        timeout: The longest wait for one job in seconds; no limit by default.
        poll_interval: Seconds between two polls of one job. By default the pause grows with the job's age.
        cancel_on_timeout: Whether a job is cancelled when it, the task or the flow times out.
        max_concurrency: The number of jobs that run at the same time.
        max_polls_per_second: The rate limit for polls of all jobs together; by default that of the
            credentials.
        max_cost_usd: Submit nothing more once the jobs that have ended cost this much. Needs `trace`.
        output_type: A pydantic model. Outputs are its instances; an output that is not such an instance leads
            to a `JobOutputInvalidError`, and a retry submits a new job for it.
        output_storage: A storage block, such as `LocalFileSystem`, for the outcomes, which are then not
            returned: completed jobs in `part-00001-….jsonl` and so on, which the manifest names, the
            others in `failed.jsonl`.
        concurrency: The name of a global concurrency limit of Prefect, each slot of which is for one running
            job. Slots are leased in blocks.
        raise_on: `"any"` waits for all jobs, then raises an `ExceptionGroup` if some did not complete.
            `"first"` raises the first error at once, and leaves the other jobs running for a rerun. `"none"`
            never raises for a job.

    Returns:
        The outcomes (`list[JobOutcome]`), in the order of the inputs. With `output_storage`, a manifest: a
        dict with `jobs`, `counts` by state, `tokens`, `cost_usd`, `jobs_without_cost`, `output_path`, `parts`
        and `seconds`.

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
        version=version,
        trace=trace,
        timeout=timeout,
        poll_interval=poll_interval,
        cancel_on_timeout=cancel_on_timeout,
        max_concurrency=max_concurrency,
        max_cost_usd=max_cost_usd,
        output_type=output_type,
        output_storage=output_storage,
        concurrency=concurrency,
        raise_on=raise_on,
    )
    return run_blocking(
        _run_batch(credentials, flow, inputs, options, max_polls_per_second), "arun_noukai_jobs"
    )


def stream_noukai_jobs(
    credentials: NoukaiCredentials,
    flow: str,
    inputs: Inputs,
    *,
    version: str | int = "production",
    trace: bool = False,
    timeout: float | None = None,
    poll_interval: float | None = None,
    cancel_on_timeout: bool = True,
    max_concurrency: int = 1000,
    max_polls_per_second: float | None = None,
    max_cost_usd: Decimal | float | str | None = None,
    output_type: type[BaseModel] | None = None,
    concurrency: str | None = None,
) -> AsyncGenerator[JobOutcome, None]:
    """Run many jobs in an async flow, and yield the outcome of each as it ends.

    It is no task, so that a flow can go on with each outcome while other jobs run. A rerun of the flow run
    yields every outcome again, but submits only what is missing or did not complete. A job that does not
    complete raises nothing. A flow that leaves the loop early leaves the jobs running. When a person cancels
    the flow run, the jobs are cancelled, even while the flow works on an outcome.

    Args:
        credentials: The project's credentials.
        flow: The Noukai flow, as `org/project/slug`; a slug is enough if the credentials have the rest.
        inputs: One per job, or the path or URI of a file; see `run_noukai_jobs`.
        version: `"production"`, `"draft"` or the number of a published version.
        trace: Whether the runs are traced.
        timeout: The longest wait for one job in seconds; no limit by default.
        poll_interval: Seconds between two polls of one job. By default the pause grows with the job's age.
        cancel_on_timeout: Whether a job is cancelled when it, the task or the flow times out.
        max_concurrency: The number of jobs that run at the same time. No more inputs are read.
        max_polls_per_second: The rate limit for polls of all jobs together; by default that of the
            credentials.
        max_cost_usd: Submit nothing more once the jobs that have ended cost this much. Needs `trace`.
        output_type: A pydantic model that outputs have to be instances of.
        concurrency: The name of a global concurrency limit of Prefect, leased in blocks.

    Returns:
        An async iterator. Close it, for example with `contextlib.aclosing`, unless it is read to its end.

    Raises:
        InvalidInputError: An argument or an input is invalid.

    Example:
        ```python
        from contextlib import aclosing
        from prefect import flow
        from noukai_prefect import NoukaiCredentials, stream_noukai_jobs

        @flow
        async def spelling(texts: list[str]):
            credentials = await NoukaiCredentials.aload("default")
            async with aclosing(stream_noukai_jobs(credentials, "acme/spelling/grade-3", texts)) as stream:
                async for outcome in stream:
                    print(outcome.index, outcome.state)
        ```
    """
    options = BatchOptions(
        version=version,
        trace=trace,
        timeout=timeout,
        poll_interval=poll_interval,
        cancel_on_timeout=cancel_on_timeout,
        max_concurrency=max_concurrency,
        max_cost_usd=max_cost_usd,
        output_type=output_type,
        concurrency=concurrency,
    )
    given = BatchInputs(flow, inputs, version, trace)
    return _in_own_task(_stream(credentials, flow, given, options, max_polls_per_second))
