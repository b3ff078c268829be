"""Artifacts on the Prefect server: how the package finds its own, and the progress bar."""

from __future__ import annotations

import sys
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Any, TypeVar
from uuid import UUID

from prefect.artifacts import acreate_progress_artifact, aupdate_progress_artifact
from prefect.client.schemas.filters import (
    ArtifactFilter,
    ArtifactFilterKey,
    ArtifactFilterTaskRunId,
    ArtifactFilterType,
    FlowRunFilter,
)
from prefect.client.schemas.objects import Artifact, FlowRun

from noukai_core import JobState, JobStatus
from noukai_prefect._prefect_client import prefect_client
from noukai_prefect._run_context import RunContext

T = TypeVar("T")

PROGRESS_SECONDS = 2.0
"""The shortest time between two updates of a progress artifact. Each costs Prefect's server some 16 ms."""

_PAGE_SIZE = 200


JOB_RECORDS = ArtifactFilter(key=ArtifactFilterKey(like_="noukai-job-%"))
"""The artifacts of single jobs, each of which shows the job and keeps its record."""

BATCH_RECORDS = ArtifactFilter(type=ArtifactFilterType(any_=["result"]))
"""The records of batches. No other artifact of current versions of Prefect has this type."""


def artifact_key(prefix: str, flow: str) -> str:
    """Return the key of a Noukai flow's artifacts. Prefect's web page shows the latest one of each key."""
    return f"{prefix}-{flow.replace('/', '-')}"


async def own_artifacts(run: RunContext, wanted: ArtifactFilter) -> list[Artifact]:
    """Return artifacts from all attempts of a flow run, or of a task run without a flow."""
    if run.flow_run_id is not None:
        return await artifacts_of([run.called_by or run.flow_run_id], wanted)
    assert run.recorded_on is not None, "outside a run, nothing is recorded"
    own = ArtifactFilterTaskRunId(any_=[run.recorded_on])
    async with prefect_client() as client:
        return await _read_all(
            client.read_artifacts, artifact_filter=wanted.model_copy(update={"task_run_id": own})
        )


async def artifacts_of(scopes: Sequence[UUID], wanted: ArtifactFilter) -> list[Artifact]:
    """Return artifacts of flow runs. A scope is a flow run, or the task run that represents a subflow."""
    either: dict[str, Any] = {"any_": list(scopes)}
    runs = FlowRunFilter.model_validate({"operator": "or_", "id": either, "parent_task_run_id": either})
    async with prefect_client() as client:
        return await _read_all(client.read_artifacts, artifact_filter=wanted, flow_run_filter=runs)


async def scoped_artifacts(
    scopes: Mapping[UUID, UUID], wanted: ArtifactFilter
) -> list[tuple[Artifact, UUID]]:
    """Return artifacts of flow runs, each with its scope; for `scopes` see `with_subflows`."""
    return [
        (artifact, scopes[artifact.flow_run_id])
        for artifact in await artifacts_of(list(scopes), wanted)
        if artifact.flow_run_id is not None and artifact.flow_run_id in scopes
    ]


async def with_subflows(flow_run: FlowRun) -> dict[UUID, UUID]:
    """Return the scopes of a flow run, the subflow runs that it called, those that they called, and so on.

    Returns:
        The scope of each flow run, by the id of the flow run; see `RunContext.scope`.
    """
    found: dict[UUID, UUID] = {}
    level = [flow_run]
    async with prefect_client() as client:
        while level:
            found |= {one.id: one.parent_task_run_id or one.id for one in level}
            called_by_level: dict[str, Any] = {"parent_flow_run_id": {"any_": [one.id for one in level]}}
            level = await _read_all(
                client.read_flow_runs, flow_run_filter=FlowRunFilter.model_validate(called_by_level)
            )
    return found


async def _read_all(read: Callable[..., Awaitable[list[T]]], **filters: Any) -> list[T]:
    found: list[T] = []
    while True:
        page = await read(**filters, limit=_PAGE_SIZE, offset=len(found))
        found += page
        if len(page) < _PAGE_SIZE:
            return found


class ProgressArtifact:
    """A progress bar in a task run of a flow.

    Args:
        run: Where the code runs. Outside a flow run, there is no bar.
        flow: The Noukai flow.
        subject: What makes progress, as log lines name it.
    """

    def __init__(self, run: RunContext, flow: str, subject: str) -> None:
        self._run = run
        self._key = artifact_key("noukai-progress", flow)
        self._subject = subject
        self._artifact: UUID | None = None
        self._shown: float | None = None
        self._next_update = 0.0

    async def update(self, percentage: float, outcome: str | None = None) -> None:
        """Update the bar, unless the last update was a moment ago. A failure is only logged.

        Args:
            percentage: The progress, from 0 to 100.
            outcome: At the end, how it ended, which the bar's description then says.
        """
        if self._run.flow_run_id is None or self._run.task_run_id is None:
            return
        if outcome is None and (percentage == self._shown or time.monotonic() < self._next_update):
            return
        self._next_update = time.monotonic() + PROGRESS_SECONDS
        try:
            await self._write(percentage, f"{self._subject}: {outcome}" if outcome else self._subject)
        except Exception as error:
            self._run.logger().warning("%s: progress bar not written: %s", self._subject, error)

    async def update_from(self, status: JobStatus) -> None:
        """Update the bar from a job's status, if its progress can be expressed as a percentage."""
        if status.finished:
            if self._shown is not None:
                completed = status.state == JobState.COMPLETED
                await self.update(100.0 if completed else self._shown, str(status.state))
        elif (percentage := percent(status.progress)) is not None:
            await self.update(percentage)

    async def _write(self, percentage: float, description: str) -> None:
        if self._artifact is None:
            self._artifact = await acreate_progress_artifact(
                percentage, key=self._key, description=description
            )
        else:
            await aupdate_progress_artifact(self._artifact, percentage, description)
        self._shown = percentage


def percent(progress: dict[str, Any] | None) -> float | None:
    """Return a job's progress as a percentage; `None` when it contains no suitable number.

    Noukai leaves the form of the progress to the flow. The known forms are `percent`, `percentage`,
    `fraction`, and `completed`, `current` or `done` with `total`.
    """
    values = {name: float(value) for name, value in (progress or {}).items() if _is_number(value)}
    for name in ("percent", "percentage"):
        if name in values:
            return min(max(values[name], 0.0), 100.0)
    if "fraction" in values:
        return min(max(100.0 * values["fraction"], 0.0), 100.0)
    for name in ("completed", "current", "done"):
        if name in values and values.get("total", 0) > 0:
            return min(max(100.0 * values[name] / values["total"], 0.0), 100.0)
    return None


def _is_number(value: Any) -> bool:
    # False for infinity, for nan, and for whole numbers that no float can hold.
    number = isinstance(value, int | float) and not isinstance(value, bool)
    return number and abs(value) <= sys.float_info.max
