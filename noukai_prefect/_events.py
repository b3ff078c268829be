"""What other parts of Prefect see of a job: events for automations, artifacts for people."""

from __future__ import annotations

import math
import time
from typing import Any
from uuid import UUID

from prefect.artifacts import acreate_progress_artifact, aupdate_progress_artifact
from prefect.events import emit_event

from noukai_core import JobState, JobStatus
from noukai_prefect._run_context import RunContext

PROGRESS_SECONDS = 2.0
"""The shortest time between two changes of a progress artifact; each takes some 16 ms of Prefect's server."""


def job_event(run: RunContext, what: str, flow: str, job_id: str, **payload: Any) -> None:
    """Emit `noukai.job.submitted`, `.completed`, `.failed`, `.cancelled` or `.detached` for a run's job."""
    if run.scope is None:
        return
    emit_event(
        f"noukai.job.{what}",
        resource={
            "prefect.resource.id": f"noukai.job.{job_id}",
            "prefect.resource.name": job_id,
            "noukai.flow": flow,
        },
        payload=payload,
    )


class ProgressArtifact:
    """A bar that shows how far something is, in a task run of a flow.

    Args:
        run: Where it happens.
        description: What it is.
    """

    def __init__(self, run: RunContext, description: str) -> None:
        self._run = run
        self._description = description
        self._artifact: UUID | None = None
        self._shown: float | None = None
        self._next = 0.0

    async def show(self, share: float, *, final: bool = False) -> None:
        """Bring the bar up to date, unless that was done a moment ago. Without Prefect it stands still.

        Args:
            share: How far it is, from 0 to 100.
            final: Whether it gets no further.
        """
        if self._run.flow_run_id is None or self._run.task_run_id is None or share == self._shown:
            return
        if time.monotonic() < self._next and not final:
            return
        self._next = time.monotonic() + PROGRESS_SECONDS
        try:
            await self._show(share)
        except Exception as error:
            self._run.logger().warning("The progress of %s is not shown: %s", self._description, error)

    async def show_job(self, status: JobStatus) -> None:
        """Bring the bar of a job up to date, when the job reports a progress that has a share in it."""
        completed = status.state == JobState.COMPLETED
        share = 100.0 if completed and self._artifact else percent(status.progress)
        if share is not None:
            await self.show(share, final=completed)

    async def _show(self, share: float) -> None:
        if self._artifact is None:
            self._artifact = await acreate_progress_artifact(
                share, key="noukai-progress", description=self._description
            )
        else:
            await aupdate_progress_artifact(self._artifact, share)
        self._shown = share


def percent(progress: dict[str, Any] | None) -> float | None:
    """Return how far a job says it is, from 0 to 100; `None` when its progress has no such number.

    Noukai leaves the form of the progress to the flow. Understood are `percent`, `percentage`, `fraction`,
    and `completed`, `current` or `done` with `total`.
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
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
