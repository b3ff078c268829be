"""What is reported to OpenLineage about a job. Imported only by request of Airflow's OpenLineage provider."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import attrs
from airflow.providers.common.compat.openlineage.facet import ExternalQueryRunFacet, RunFacet
from airflow.providers.openlineage.extractors import OperatorLineage

if TYPE_CHECKING:
    from noukai_airflow._outcome import JobOutcome

    Lineage = OperatorLineage[Any, Any]


@attrs.define
class NoukaiJobRunFacet(RunFacet):
    """The job of a task's run.

    Attributes:
        flow: The flow as `org/project/slug`; while there is no job, as the task names it.
        jobId: The job, once there is one.
        url: The job's page, if the connection has a template for it.
        state: How the job ended. This and the rest only at the end of the task.
        reason: Why it failed.
        failedStep: The step that failed.
        failedStepModel: Its model.
        totalTokens: The tokens that the job used. This and the cost only if the trace was read.
        costUsd: What the job cost in US dollars, as a decimal string.
    """

    flow: str
    jobId: str | None = None  # noqa: N815
    url: str | None = None
    state: str | None = None
    reason: str | None = None
    failedStep: str | None = None  # noqa: N815
    failedStepModel: str | None = None  # noqa: N815
    totalTokens: int | None = None  # noqa: N815
    costUsd: str | None = None  # noqa: N815


def job_lineage(flow: str, job_id: str | None, outcome: JobOutcome | None = None) -> Lineage:
    """Return the facets of a task that runs a job of a flow, or waits for it.

    Args:
        flow: The flow.
        job_id: The job, once there is one.
        outcome: How the job ended, once it has.
    """
    known = {} if outcome is None else outcome.summary()
    facet = NoukaiJobRunFacet(
        flow,
        job_id,
        url=None if outcome is None else outcome.url,
        state=known.get("state"),
        reason=known.get("error"),
        failedStep=known.get("failed_step"),
        failedStepModel=known.get("failed_step_model"),
        totalTokens=known.get("total_tokens"),
        costUsd=known.get("cost_usd"),
    )
    facets: dict[str, RunFacet] = {"noukai_job": facet}
    if job_id is not None:
        facets["externalQuery"] = ExternalQueryRunFacet(externalQueryId=job_id, source="noukai")
    # Its defaults are not typed.
    return OperatorLineage(run_facets=facets)  # pyright: ignore[reportUnknownArgumentType]
