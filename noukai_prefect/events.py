"""What other parts of Prefect see of a job: events for automations, artifacts for people."""

from __future__ import annotations

import math
import time
from typing import Any
from uuid import UUID

from prefect.artifacts import acreate_progress_artifact, aupdate_progress_artifact
from prefect.events import emit_event
from prefect.logging import get_logger

from noukai_core import JobStatus

PROGRESS_SECONDS = 2.0
"""The shortest time between two changes of a progress artifact; each takes some 16 ms of Prefect's server."""


def job_event(what: str, flow: str, job_id: str, **payload: Any) -> None:
    """Emit `noukai.job.submitted`, `.completed`, `.failed`, `.cancelled` or `.detached`."""
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
    """Shows a job's progress as a bar, when the job reports one that has a share in it."""

    def __init__(self, flow: str, job_id: str) -> None:
        self._description = f"Noukai job {job_id} of {flow}"
        self._artifact: UUID | None = None
        self._shown: float | None = None
        self._next = 0.0
        self._broken = False

    async def show(self, status: JobStatus) -> None:
        """Bring the bar up to date, unless that was done a moment ago. Without Prefect it stands still."""
        if self._broken:
            return
        try:
            await self._show(status)
        except Exception as error:
            self._broken = True
            get_logger("noukai_prefect").warning("The progress bar of a Noukai job stands still: %s", error)

    async def _show(self, status: JobStatus) -> None:
        share = 100.0 if status.state == "completed" and self._artifact else percent(status.progress)
        if share is None or share == self._shown or (time.monotonic() < self._next and share < 100):
            return
        self._shown, self._next = share, time.monotonic() + PROGRESS_SECONDS
        if self._artifact is None:
            self._artifact = await acreate_progress_artifact(
                share, key="noukai-progress", description=self._description
            )
        else:
            await aupdate_progress_artifact(self._artifact, share)


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
