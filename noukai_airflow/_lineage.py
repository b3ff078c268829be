"""What is reported to OpenLineage about a job or a batch. Imported only by request of its provider."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import attrs
from airflow.providers.common.compat.openlineage.facet import Dataset, ExternalQueryRunFacet, RunFacet
from airflow.providers.openlineage.extractors import OperatorLineage
from airflow.sdk import ObjectStoragePath

if TYPE_CHECKING:
    from noukai_airflow._outcome import JobOutcome

    Lineage = OperatorLineage[Any, Any]

_AZURE = ("abfs", "abfss", "wasb", "wasbs")
_QUERY = re.compile("[?#].*", re.DOTALL)  # may be a signature


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


@attrs.define
class NoukaiBatchRunFacet(RunFacet):
    """The batch of a task's run.

    Attributes:
        flow: The flow as `org/project/slug`; while there is no batch, as the task names it.
        batchId: The batch, once there is one.
        jobs: How many inputs have ended. This and the rest only at the end of the task.
        counts: How many of them in which state.
        totalTokens: The tokens that they used, as far as they are known.
        costUsd: What they cost in US dollars, as a decimal string, as far as it is known.
        jobsWithoutCost: Of how many jobs that have ended it is not known what they cost.
    """

    flow: str
    batchId: str | None = None  # noqa: N815
    jobs: int | None = None
    counts: dict[str, int] | None = None
    totalTokens: int | None = None  # noqa: N815
    costUsd: str | None = None  # noqa: N815
    jobsWithoutCost: int | None = None  # noqa: N815


def batch_lineage(
    flow: str,
    batch_id: str | None,
    summary: Mapping[str, Any] | None,
    *,
    inputs: object,
    outputs: object,
) -> Lineage:
    """Return the facets of a task that runs a batch, and its files as datasets.

    Args:
        flow: The flow.
        batch_id: The batch, once there is one.
        summary: What came of it, once it has ended or the task has.
        inputs: The argument of the task. A dataset if it is the location of a file.
        outputs: The location of the folder with the outcomes, if there is one.
    """
    known: Mapping[str, Any] = {} if summary is None else summary
    facet = NoukaiBatchRunFacet(
        flow,
        batch_id,
        jobs=known.get("jobs"),
        counts=known.get("counts"),
        totalTokens=known.get("tokens"),
        costUsd=known.get("cost_usd"),
        jobsWithoutCost=known.get("jobs_without_cost"),
    )
    facets: dict[str, RunFacet] = {"noukai_batch": facet}
    if batch_id is not None:
        facets["externalQuery"] = ExternalQueryRunFacet(externalQueryId=batch_id, source="noukai")
    return OperatorLineage(  # pyright: ignore[reportUnknownArgumentType]
        inputs=_datasets(inputs), outputs=_datasets(outputs), run_facets=facets
    )


def _datasets(location: object) -> list[Dataset]:
    uri = str(location) if isinstance(location, str | ObjectStoragePath) else ""
    if "://" not in uri:
        return []
    scheme, _, path = uri.partition("://")
    if scheme == "file":
        _, slash, name = path.partition("/")
        return [Dataset(namespace="file", name=slash + name)]
    authority, _, name = _QUERY.sub("", path).partition("/")
    user, _, bucket = authority.rpartition("@")
    # Airflow reads a connection there; Azure, whose accounts have the name of a host, a container.
    if scheme in _AZURE and "." in bucket and ":" not in user:
        bucket = authority
    return [Dataset(namespace=f"{scheme}://{bucket}", name=name)]


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
