"""The percentage in a job's progress, and what people see of it."""

from __future__ import annotations

from contextlib import nullcontext
from typing import TYPE_CHECKING, Any
from uuid import UUID

import pytest
from prefect import flow
from prefect.client.schemas.filters import ArtifactFilter, ArtifactFilterType
from prefect.context import FlowRunContext

from noukai_core import JobFailedError
from noukai_prefect import (
    NoukaiCredentials,
    _artifacts,
    _job_artifact,
    arun_noukai_job,
    await_for_noukai_job,
)
from noukai_prefect._artifacts import artifacts_of, percent

if TYPE_CHECKING:
    from noukai_core.emulator import Emulator

FLOW = "acme/spelling/grade-3"


@pytest.mark.parametrize(
    ("progress", "shown"),
    [
        ({"percent": 40}, 40.0),
        ({"percentage": 40.5}, 40.5),
        ({"fraction": 0.25}, 25.0),
        ({"completed": 3, "total": 4}, 75.0),
        ({"current": 1, "total": 4, "step": "read"}, 25.0),
        ({"done": 1, "total": 2}, 50.0),
        ({"percent": 140}, 100.0),
        ({"percent": -1}, 0.0),
        ({"completed": 3, "total": 0}, None),
        ({"completed": 3}, None),
        ({"percent": "forty"}, None),
        ({"percent": True}, None),
        ({"percent": float("nan")}, None),
        ({"percent": 10**400}, None),
        ({"fraction": -(10**400)}, None),
        ({"done": 1, "total": 10**400}, None),
        ({"step": "read"}, None),
        ({}, None),
        (None, None),
    ],
)
def test_percent(progress: dict[str, Any] | None, shown: float | None) -> None:
    """The usual forms give a percentage from 0 to 100; anything else gives none."""
    assert percent(progress) == shown


def run_id() -> UUID:
    """Return the id of the flow run that calls this."""
    context = FlowRunContext.get()
    assert context is not None
    assert context.flow_run is not None
    return context.flow_run.id


async def shown(flow_run_id: UUID, kind: str) -> list[Any]:
    """Return the artifacts of a kind that people see in a flow run."""
    return await artifacts_of([flow_run_id], ArtifactFilter(type=ArtifactFilterType(any_=[kind])))


@pytest.mark.usefixtures("prefect_server")
@pytest.mark.parametrize(("outcome", "last"), [("completed", 100.0), ("failed", 40.0)])
async def test_the_bar_of_a_job(
    credentials: NoukaiCredentials,
    emulator: Emulator,
    monkeypatch: pytest.MonkeyPatch,
    outcome: str,
    last: float,
) -> None:
    """The bar of a job says how it ended: at 100 if it completed, and otherwise where it was."""
    monkeypatch.setattr(_artifacts, "PROGRESS_SECONDS", 0.0)
    monkeypatch.setattr(_job_artifact, "PROGRESS_SECONDS", 0.0)
    emulator.control.script("grade-3", after_polls=4, outcome=outcome, progress=[{"percent": 40}])
    runs: list[UUID] = []

    @flow
    async def one_job() -> None:
        runs.append(run_id())
        with pytest.raises(JobFailedError) if outcome == "failed" else nullcontext():
            await arun_noukai_job(credentials, FLOW, "a", poll_interval=1)

    await one_job()
    (bar,) = await shown(runs[0], "progress")
    assert float(bar.data) == last
    assert str(bar.description).endswith(f": {outcome}")
    (job,) = await shown(runs[0], "markdown")
    assert f"**{outcome}**" in job.data


@pytest.mark.usefixtures("prefect_server")
async def test_a_job_that_something_else_submitted(
    credentials: NoukaiCredentials, emulator: Emulator, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A flow run that only waits for a job shows it in one artifact, from its first status to its end."""
    monkeypatch.setattr(_job_artifact, "PROGRESS_SECONDS", 0.0)
    emulator.control.script("grade-3", after_polls=5, outcome="failed", error="no luck")
    async with credentials.get_client("async") as client:
        job = await client.flow(FLOW).job("a")
    runs: list[UUID] = []

    @flow
    async def waits() -> None:
        runs.append(run_id())
        with pytest.raises(JobFailedError, match="no luck"):
            await await_for_noukai_job(credentials, FLOW, job.id, poll_interval=1)

    await waits()
    (artifact,) = await shown(runs[0], "markdown")
    assert job.id in artifact.data
    assert "no luck" in artifact.data
