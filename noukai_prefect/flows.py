"""Flows to deploy without writing code. Their parameters are a form on Prefect's web page.

Example:
    ```python
    from noukai_prefect.flows import noukai_job

    noukai_job.serve(name="noukai-job")
    ```
"""

from __future__ import annotations

from typing import Any, Literal

from prefect import flow
from pydantic.json_schema import SkipJsonSchema

from noukai_prefect._block_fields import VersionText
from noukai_prefect._run_context import RunContext
from noukai_prefect._watching import emit_ended_runs
from noukai_prefect.batch_tasks import arun_noukai_jobs
from noukai_prefect.credentials import NoukaiCredentials, OptionalNumber, OptionalObject, OptionalText
from noukai_prefect.hooks import cancel_noukai_jobs
from noukai_prefect.suspending import resume_ended
from noukai_prefect.tasks import arun_noukai_job


@flow(name="noukai-job", on_cancellation=[cancel_noukai_jobs])
async def noukai_job(
    noukai_flow: str,
    message: OptionalText = None,
    parameters: OptionalObject = None,
    credentials: NoukaiCredentials | SkipJsonSchema[None] = None,
    version: VersionText = "production",
    trace: bool = False,
    timeout: OptionalNumber = None,
    on_cancelled: Literal["fail", "cancel"] = "fail",
    follow: Literal["state", "steps"] = "state",
) -> Any:
    """Run one Noukai job, and return its output.

    Args:
        noukai_flow: The Noukai flow, as `org/project/slug`; a slug alone if the credentials have the rest.
        message: The flow's input. Either it or `parameters` is required.
        parameters: Named inputs of the flow.
        credentials: The project's credentials. By default, the block `default`.
        version: `production`, `draft` or the number of a published version.
        trace: Whether the run is traced, so that its tokens and cost are shown.
        timeout: Seconds until an unfinished job is cancelled; no limit by default.
        on_cancelled: How this run ends if the job is cancelled on the Noukai side: `fail` or `cancel`.
        follow: What of the job is logged while it runs: its `state`, or its `steps` as well, live.
    """
    return await arun_noukai_job(
        credentials or await _default_credentials(),
        noukai_flow,
        message,
        parameters=parameters,
        version=version,
        trace=trace,
        timeout=timeout,
        on_cancelled=on_cancelled,
        follow=follow,
    )


@flow(name="noukai-jobs", on_cancellation=[cancel_noukai_jobs])
async def noukai_jobs(
    noukai_flow: str,
    messages: list[str],
    credentials: NoukaiCredentials | SkipJsonSchema[None] = None,
    version: VersionText = "production",
    trace: bool = False,
    timeout: OptionalNumber = None,
    max_concurrency: int = 1000,
) -> list[Any]:
    """Run one Noukai job per message, and return the outputs in the same order.

    Args:
        noukai_flow: The Noukai flow, as `org/project/slug`; a slug alone if the credentials have the rest.
        messages: The inputs, one per job.
        credentials: The project's credentials. By default, the block `default`.
        version: `production`, `draft` or the number of a published version.
        trace: Whether the run is traced, so that its tokens and cost are shown.
        timeout: Seconds until an unfinished job is cancelled; no limit by default.
        max_concurrency: The number of jobs that run at the same time.
    """
    outcomes = await arun_noukai_jobs(
        credentials or await _default_credentials(),
        noukai_flow,
        messages,
        version=version,
        trace=trace,
        timeout=timeout,
        max_concurrency=max_concurrency,
    )
    return [outcome.output for outcome in outcomes]


@flow(name="watch-noukai-runs")
async def watch_noukai_runs(
    flow_id: str,
    credentials: NoukaiCredentials | SkipJsonSchema[None] = None,
    states: list[Literal["completed", "failed", "cancelled"]] = ["completed", "failed", "cancelled"],  # noqa: B006
) -> int:
    """Emit an event for each run of a Noukai flow that ended since this flow last ran.

    Deploy it with a schedule, and one run at a time: `watch_noukai_runs.serve(interval=60, limit=1, ...)`.
    The events are `noukai.run.completed`, `.failed` and `.cancelled`. The first run emits none.

    Args:
        flow_id: The Noukai flow, by the id that Noukai gave it.
        credentials: The project's credentials. By default, the block `default`.
        states: Which ends are an event.
    """
    ended = await emit_ended_runs(
        credentials or await _default_credentials(), flow_id, states, RunContext.current()
    )
    return len(ended)


@flow(name="resume-noukai-runs")
async def resume_noukai_runs(credentials_block: str = "default") -> int:
    """Resume the flow runs that are suspended until a Noukai job ends, if the job has ended.

    Deploy it with a schedule: `resume_noukai_runs.serve(interval=60, ...)`. Each of its runs polls each of
    those jobs once.

    Args:
        credentials_block: The credentials block for jobs that were not submitted with a stored block.
    """
    return len(await resume_ended(RunContext.current(), credentials_block))


async def _default_credentials() -> NoukaiCredentials:
    return await NoukaiCredentials.aload("default")
