"""What is reported to OpenLineage about a job. Imported only by request of Airflow's OpenLineage provider."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import attrs
from airflow.providers.common.compat.openlineage.facet import ExternalQueryRunFacet, RunFacet
from airflow.providers.openlineage.extractors import OperatorLineage

if TYPE_CHECKING:
    Lineage = OperatorLineage[Any, Any]


@attrs.define
class NoukaiJobRunFacet(RunFacet):
    """The job of a task's run.

    Attributes:
        flow: The flow as `org/project/slug`; while there is no job, as the task names it.
        jobId: The job, once there is one.
    """

    flow: str
    jobId: str | None = None  # noqa: N815


def job_lineage(flow: str, job_id: str | None) -> Lineage:
    """Return the facets of a task that runs a job of a flow, or waits for it."""
    facets: dict[str, RunFacet] = {"noukai_job": NoukaiJobRunFacet(flow, job_id)}
    if job_id is not None:
        facets["externalQuery"] = ExternalQueryRunFacet(externalQueryId=job_id, source="noukai")
    # Its defaults are not typed.
    return OperatorLineage(run_facets=facets)  # pyright: ignore[reportUnknownArgumentType]
