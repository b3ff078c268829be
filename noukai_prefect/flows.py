"""Two flows to deploy as they are: their parameters are a form in Prefect's web page.

from noukai_prefect.flows import noukai_job

noukai_job.serve(name="noukai-job")
"""

from __future__ import annotations

from typing import Any, Literal

from prefect import flow

# Not relative: Prefect loads a deployed file under a name of its own, and with it everything that it imports
# relatively; a stored block would then not be an instance of that other NoukaiCredentials.
from noukai_prefect.batch_tasks import arun_noukai_jobs
from noukai_prefect.credentials import NoukaiCredentials
from noukai_prefect.hooks import cancel_noukai_jobs
from noukai_prefect.tasks import arun_noukai_job


@flow(name="noukai-job", on_cancellation=[cancel_noukai_jobs])
async def noukai_job(
    credentials: NoukaiCredentials,
    noukai_flow: str,
    message: str | None = None,
    parameters: dict[str, Any] | None = None,
    version: str = "production",
    timeout: float | None = None,
    on_cancelled: Literal["fail", "cancel"] = "fail",
) -> Any:
    """Run one Noukai job, and return its output.

    Args:
        credentials: The project's credentials.
        noukai_flow: The Noukai flow, as `org/project/slug`; or a slug alone when the credentials have both.
        message: The flow's input. It or `parameters` is needed.
        parameters: Named inputs of the flow.
        version: `production`, `draft` or the number of a published version.
        timeout: Seconds that the job may take before it is cancelled; no limit by default.
        on_cancelled: How this run ends when somebody cancels the job on the Noukai side: `fail` or `cancel`.
    """
    return await arun_noukai_job(
        credentials,
        noukai_flow,
        message,
        parameters=parameters,
        version=version,
        timeout=timeout,
        on_cancelled=on_cancelled,
    )


@flow(name="noukai-jobs", on_cancellation=[cancel_noukai_jobs])
async def noukai_jobs(
    credentials: NoukaiCredentials,
    noukai_flow: str,
    messages: list[str],
    version: str = "production",
    timeout: float | None = None,
    max_concurrency: int = 1000,
) -> list[Any]:
    """Run one Noukai job for each message, and return the outputs in their order.

    Args:
        credentials: The project's credentials.
        noukai_flow: The Noukai flow, as `org/project/slug`; or a slug alone when the credentials have both.
        messages: The inputs, one for each job.
        version: `production`, `draft` or the number of a published version.
        timeout: Seconds that one job may take before it is cancelled; no limit by default.
        max_concurrency: How many jobs run at the same time at most.
    """
    outcomes = await arun_noukai_jobs(
        credentials, noukai_flow, messages, version=version, timeout=timeout, max_concurrency=max_concurrency
    )
    return [outcome.output for outcome in outcomes]
