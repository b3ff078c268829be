"""The Markdown artifact of one job, which shows people how it goes, and how it ended."""

from __future__ import annotations

import time
from dataclasses import dataclass
from datetime import datetime
from decimal import Decimal
from uuid import UUID

from prefect.client.schemas.actions import ArtifactCreate, ArtifactUpdate

from noukai_core import AsyncJob, JobStatus, NoukaiError, TraceStep
from noukai_prefect import _job_store
from noukai_prefect._artifacts import PROGRESS_SECONDS, artifact_key
from noukai_prefect._prefect_client import prefect_client
from noukai_prefect._run_context import RunContext
from noukai_prefect._text import dollars, markdown, markdown_link


@dataclass(frozen=True, slots=True)
class JobCost:
    """What a job used, as far as its trace says.

    Attributes:
        tokens: The tokens of its steps.
        cost_usd: The cost of its steps in US dollars.
        step: The step that failed.
    """

    tokens: int | None = None
    cost_usd: Decimal | None = None
    step: TraceStep | None = None

    def __str__(self) -> str:
        tokens = [] if self.tokens is None else [f"{self.tokens:,} tokens"]
        return ", ".join(tokens if self.cost_usd is None else [*tokens, dollars(self.cost_usd)])


async def read_cost(job: AsyncJob, run: RunContext) -> JobCost:
    """Read what a job used. Some servers refuse traces to API keys, so a failure is only logged."""
    try:
        trace = await job.trace()
    except NoukaiError as error:
        run.logger().info("Noukai job %s of %s: trace not available: %s", job.id, job.flow, error)
        return JobCost()
    return JobCost(trace.total_tokens, trace.cost_usd, trace.failed_step)


def job_markdown(
    flow: str,
    job_id: str,
    *,
    page: str | None,
    state: str,
    reason: str | None = None,
    version: str | int | None = None,
    status: JobStatus | None = None,
    seconds: float | None = None,
    cost: JobCost | None = None,
) -> str:
    """Return the text of the artifact. What has no value has no line.

    Args:
        flow: The Noukai flow.
        job_id: The job.
        page: The address of the job's page.
        state: The job's state, or what happens to it.
        reason: Why it is in that state.
        version: The version of the flow that was asked for.
        status: The job's last status.
        seconds: How long it took.
        cost: What it used.
    """
    lines = {
        "Reason": markdown(reason, 2000) if reason else None,
        "Failed step": markdown(cost.step.label) if cost and cost.step else None,
        "Progress": markdown(status.progress_text) if status and status.progress_text else None,
        "Version": None if version is None else markdown(str(version)),
        "Started": markdown(status.started_at) if status and status.started_at else None,
        "Duration": None if seconds is None else f"{seconds:,.1f} s",
        "Tokens": f"{cost.tokens:,}" if cost and cost.tokens is not None else None,
        "Cost": dollars(cost.cost_usd) if cost and cost.cost_usd is not None else None,
    }
    table = [f"| {name} | {value} |" for name, value in lines.items() if value is not None]
    heading = f"Noukai job {markdown_link(job_id, page)} of {markdown(flow)}: **{markdown(state)}**"
    return "\n".join([heading, *(["", "| | |", "| --- | --- |", *table] if table else [])])


def seconds_of(status: JobStatus | None, since: float) -> float:
    """Return how long a job took by the server's clock; without that, how long this process waited.

    Args:
        status: The job's last status.
        since: When this process began to wait, on the monotonic clock.
    """
    try:
        began, ended = (status and (status.started_at or status.created_at)), status and status.completed_at
        return (datetime.fromisoformat(ended or "") - datetime.fromisoformat(began or "")).total_seconds()
    except (TypeError, ValueError):
        return time.monotonic() - since


class JobArtifact:
    """Keeps the artifact of one job up to date. A failure to do so is only logged.

    Args:
        run: Where the code runs. Outside a flow run, there is no artifact.
        job: The job.
        page: The address of the job's page.
        version: The version of the flow that was asked for, if it is known.
    """

    def __init__(self, run: RunContext, job: AsyncJob, page: str | None, version: str | int | None) -> None:
        self._run = run
        self._job = job
        self.page = page
        self._version = version
        self._artifact: UUID | None = None
        self._text: str | None = None
        self._next_update = time.monotonic() + PROGRESS_SECONDS

    async def update(self, status: JobStatus) -> None:
        """Show a status, unless the last update was a moment ago."""
        if time.monotonic() >= self._next_update:
            self._next_update = time.monotonic() + PROGRESS_SECONDS
            await self.write(str(status.state), status=status)

    async def write(
        self,
        state: str,
        *,
        reason: str | None = None,
        status: JobStatus | None = None,
        seconds: float | None = None,
        cost: JobCost | None = None,
    ) -> None:
        """Write the artifact; for the arguments see `job_markdown`."""
        if self._run.flow_run_id is None:
            return
        text = job_markdown(
            self._job.flow,
            self._job.id,
            page=self.page,
            state=state,
            reason=reason,
            version=self._version,
            status=status,
            seconds=seconds,
            cost=cost,
        )
        if text == self._text:
            return
        try:
            await self._store(text)
        except Exception as error:
            self._run.logger().warning(
                "Noukai job %s of %s: artifact not written: %s", self._job.id, self._job.flow, error
            )
        self._text = text

    async def _store(self, text: str) -> None:
        if self._artifact is None and (store := _job_store.store_of(self._run)):
            self._artifact = store.artifact_of(self._job.id)
        async with prefect_client() as client:
            if self._artifact is not None:
                await client.update_artifact(self._artifact, ArtifactUpdate(data=text))
                return
            # A job that something else submitted.
            artifact = await client.create_artifact(
                ArtifactCreate(
                    key=artifact_key("noukai-job", self._job.flow),
                    type="markdown",
                    description=f"A Noukai job of {self._job.flow}",
                    data=text,
                    flow_run_id=self._run.flow_run_id,
                    task_run_id=self._run.task_run_id,
                )
            )
            self._artifact = artifact.id
