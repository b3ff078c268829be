"""Background tasks: `.delay()` in one process, and the worker that runs the task in another."""

from __future__ import annotations

import asyncio
import json
from contextlib import suppress
from typing import TYPE_CHECKING, Any

import pytest
from prefect import flow, task
from prefect.client.orchestration import get_client
from prefect.client.schemas.objects import State, TaskRun
from prefect.serializers import JSONSerializer
from prefect.task_worker import TaskWorker
from prefect.tasks import Task

from noukai_core import InvalidInputError
from noukai_prefect import NoukaiCredentials, arun_noukai_job, run_noukai_job
from tests.prefect.conftest import KEY

if TYPE_CHECKING:
    from uuid import UUID

    from noukai_core.emulator import Emulator

NOUKAI_FLOW = "acme/spelling/grade-3"

# Prefect changes a task that is delayed, so these are copies.
FORMS = (run_noukai_job.with_options(), arun_noukai_job.with_options())

pytestmark = pytest.mark.usefixtures("prefect_server")


@pytest.fixture
async def saved(credentials: NoukaiCredentials) -> NoukaiCredentials:
    """Credentials that are stored, so that no key is written with the arguments of a task."""
    await credentials.asave("background", overwrite=True)
    return credentials


@task
async def calls_the_task(credentials: NoukaiCredentials, noukai_flow: str, message: str) -> Any:
    """Run a job in a task of the user's own."""
    return await arun_noukai_job(credentials, noukai_flow, message)


async def read(task_run_id: UUID) -> TaskRun:
    """Read a task run."""
    async with get_client() as client:
        return await client.read_task_run(task_run_id)


async def run_in_worker(delayed: Task[..., Any], task_run: TaskRun) -> State[Any]:
    """Run a task that is scheduled, as the worker of background tasks does."""
    await TaskWorker(delayed).execute_task_run(task_run)
    assert task_run.state is not None
    return task_run.state


@pytest.mark.parametrize("delayed", FORMS)
async def test_equal_submissions_are_separate_jobs(
    saved: NoukaiCredentials, emulator: Emulator, delayed: Task[..., Any]
) -> None:
    """Two equal background tasks of one flow run are two jobs: a worker replays no result."""

    @flow
    async def twice() -> list[UUID]:
        return [delayed.delay(saved, NOUKAI_FLOW, "a").task_run_id for _ in range(2)]

    for task_run_id in await twice():
        state = await run_in_worker(delayed, await read(task_run_id))
        assert state.name == "Completed"
    assert len(emulator.control.jobs()) == 2


@pytest.mark.parametrize("delayed", [FORMS[1], calls_the_task])
async def test_a_task_that_starts_again_attaches(
    saved: NoukaiCredentials, emulator: Emulator, delayed: Task[..., Any]
) -> None:
    """A background task that was interrupted, and is scheduled again, attaches to its job."""
    emulator.control.script("grade-3", outcome="never")
    scheduled = await read(delayed.delay(saved, NOUKAI_FLOW, "a").task_run_id)
    again = scheduled.model_copy(deep=True)
    interrupted = asyncio.create_task(run_in_worker(delayed, scheduled))
    await asyncio.to_thread(emulator.control.wait_for, "poll", 1, timeout=120)
    interrupted.cancel()
    with suppress(asyncio.CancelledError):
        await interrupted
    (job,) = emulator.control.jobs()
    assert job["state"] == "running"

    emulator.control.finish(job["id"])
    state = await run_in_worker(delayed, again)
    assert state.is_completed()
    assert len(emulator.control.jobs()) == 1


def through_json(credentials: NoukaiCredentials, **changes: str) -> NoukaiCredentials:
    """Write credentials with Prefect's JSON serializer, and read what was written, with the changes."""
    written = JSONSerializer().dumps(credentials)
    assert KEY.encode() not in written
    content = json.loads(written)
    content["data"] |= changes
    read: NoukaiCredentials = JSONSerializer().loads(json.dumps(content).encode())
    return read


async def test_json_writes_stored_credentials_as_their_name(saved: NoukaiCredentials) -> None:
    """What JSON masks is loaded again, with the address that is stored beside it: a key goes to no other."""
    read = await asyncio.to_thread(through_json, saved, base_url="https://attacker.example")
    assert read == saved
    assert read.saved_as == saved.saved_as == "background"


def test_json_masks_credentials_that_are_not_stored(credentials: NoukaiCredentials) -> None:
    """Credentials whose key was masked say why they cannot be used, and what to do."""
    with pytest.raises(InvalidInputError, match=r"written as JSON.*save the block.*pickle"):
        through_json(credentials).get_client()
