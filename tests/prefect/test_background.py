"""Background tasks: `.delay()` in one process, and the worker that runs the task in another."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
from prefect import flow
from prefect.client.orchestration import get_client
from prefect.client.schemas.objects import State
from prefect.task_worker import TaskWorker
from prefect.tasks import Task

from noukai_prefect import NoukaiCredentials, arun_noukai_job, run_noukai_job

if TYPE_CHECKING:
    from uuid import UUID

    from noukai_core.emulator import Emulator

NOUKAI_FLOW = "acme/spelling/grade-3"

pytestmark = pytest.mark.usefixtures("prefect_server")


@pytest.fixture
async def saved(credentials: NoukaiCredentials) -> NoukaiCredentials:
    """Credentials that are stored, so that no key is written with the arguments of a task."""
    await credentials.asave("background", overwrite=True)
    return credentials


async def run_in_worker(delayed: Task[..., Any], task_run_id: UUID) -> State[Any]:
    """Run a task that is scheduled, as the worker of background tasks does."""
    async with get_client() as client:
        task_run = await client.read_task_run(task_run_id)
    await TaskWorker(delayed).execute_task_run(task_run)
    assert task_run.state is not None
    return task_run.state


@pytest.mark.parametrize("delayed", [run_noukai_job, arun_noukai_job])
async def test_equal_submissions_are_separate_jobs(
    saved: NoukaiCredentials, emulator: Emulator, delayed: Task[..., Any]
) -> None:
    """Two equal background tasks of one flow run are two jobs: a worker replays no result."""
    delayed = delayed.with_options()  # Prefect changes a task that is delayed

    @flow
    async def twice() -> list[UUID]:
        return [delayed.delay(saved, NOUKAI_FLOW, "a").task_run_id for _ in range(2)]

    for task_run_id in await twice():
        state = await run_in_worker(delayed, task_run_id)
        assert state.name == "Completed"
    assert len(emulator.control.jobs()) == 2
