"""The flows that watch a Noukai flow and that resume suspended flow runs, against a Prefect server."""

from __future__ import annotations

import logging
from collections.abc import AsyncIterator
from typing import TYPE_CHECKING, Any
from uuid import UUID

import pytest
from prefect import flow
from prefect.client.orchestration import get_client
from prefect.client.schemas.filters import FlowRunFilter
from prefect.exceptions import Pause
from prefect.flow_engine import run_flow
from prefect.flow_runs import asuspend_flow_run
from pydantic import SecretStr

from noukai_core import InvalidInputError, Noukai
from noukai_prefect import (
    NoukaiCredentials,
    NoukaiJobRun,
    asubmit_noukai_job,
    asuspend_until_noukai_job,
    await_for_noukai_job,
    suspend_until_noukai_job,
)
from noukai_prefect import (
    suspending as noukai_suspending,
)
from noukai_prefect._run_context import RunContext
from noukai_prefect._watching import _event
from noukai_prefect.flows import resume_noukai_runs, watch_noukai_runs

if TYPE_CHECKING:
    from noukai_core import Job
    from noukai_core.emulator import Emulator

pytestmark = pytest.mark.usefixtures("prefect_server")
FLOW = "acme/books/translate"


@pytest.fixture
def saved(credentials: NoukaiCredentials) -> NoukaiCredentials:
    """The default credentials."""
    credentials.save("default", overwrite=True, _sync=True)  # type: ignore[call-arg]
    return credentials


@pytest.fixture(autouse=True)
async def no_suspended_runs() -> AsyncIterator[None]:
    """A flow run that one test leaves suspended is not resumed by the next one."""
    yield
    suspended = FlowRunFilter.model_validate({"state": {"name": {"any_": ["Suspended"]}}})
    async with get_client() as client:
        for run in await client.read_flow_runs(flow_run_filter=suspended):
            await client.delete_flow_run(run.id)


def ended_job(emulator: Emulator, of: str = FLOW) -> Job:
    with Noukai("nk_test_any", base_url=emulator.base_url) as client:
        job = client.flow(of).job("hello")
        job.wait()
        return job


async def test_each_run_is_one_event(saved: NoukaiCredentials, emulator: Emulator) -> None:
    """A run that ended between two runs of the flow is emitted once, and none from before the first."""
    job = ended_job(emulator)
    assert job.accepted is not None
    flow_id = job.accepted.flow_id
    assert flow_id is not None
    assert await watch_noukai_runs(flow_id) == 0
    another = ended_job(emulator)
    assert await watch_noukai_runs(flow_id) == 1
    assert await watch_noukai_runs(flow_id) == 0
    with Noukai("nk_test_any", base_url=emulator.base_url) as client:
        listed = client.runs(flow_id)
    assert [run.id for run in listed] == [another.id, job.id]
    first, again = _event(listed[0]), _event(listed[0])
    assert (first.id, first.event) == (again.id, "noukai.run.completed")
    assert first.id != _event(listed[1]).id


def flow_id_of(path: str, emulator: Emulator) -> str:
    """Return the id of a flow, of which a job has ended."""
    job = ended_job(emulator, path)
    assert job.accepted is not None
    assert job.accepted.flow_id is not None
    return job.accepted.flow_id


async def test_watchers_of_different_states(saved: NoukaiCredentials, emulator: Emulator) -> None:
    """A run that one watcher of a flow passes over is emitted by another one that watches its state."""
    path = "acme/books/watched-by-two"
    flow_id = flow_id_of(path, emulator)
    for state in ("failed", "completed"):
        assert await watch_noukai_runs(flow_id, states=[state]) == 0
    ended_job(emulator, path)
    assert await watch_noukai_runs(flow_id, states=["failed"]) == 0
    assert await watch_noukai_runs(flow_id, states=["completed", "completed"]) == 1


async def test_a_watcher_whose_address_gets_a_slash(saved: NoukaiCredentials, emulator: Emulator) -> None:
    """An address that is written differently and means the same loses no run."""
    path = "acme/books/watched-at-another-address"
    flow_id = flow_id_of(path, emulator)
    assert await watch_noukai_runs(flow_id) == 0
    ended_job(emulator, path)
    edited = NoukaiCredentials(api_key=saved.api_key, base_url=f" {emulator.base_url}/ ")
    assert await watch_noukai_runs(flow_id, edited) == 1


@flow
async def suspending() -> Any:
    credentials = await NoukaiCredentials.aload("default")
    job_id = await asubmit_noukai_job(credentials, FLOW, "A long book")
    await asuspend_until_noukai_job(job_id, timeout=3600)
    return await await_for_noukai_job(credentials, FLOW, job_id)


@flow
async def suspending_for_the_second() -> Any:
    credentials = await NoukaiCredentials.aload("default")
    await asubmit_noukai_job(credentials, FLOW, "A book that nobody waits for")
    job_id = await asubmit_noukai_job(credentials, FLOW, "A long book")
    await asuspend_until_noukai_job(job_id, timeout=3600)
    return await await_for_noukai_job(credentials, FLOW, job_id)


@flow
async def suspending_for_a_person() -> None:
    await asuspend_flow_run(key="until-somebody-agrees", timeout=3600)


async def start(name: str, of: Any = suspending) -> Any:
    """Return a new run of a deployment of the flow, which nothing runs yet."""
    async with get_client() as client:
        flow_id = await client.create_flow(of)
        deployment = await client.create_deployment(flow_id, name)
        return await client.create_flow_run_from_deployment(deployment)


async def run_of(flow_run_id: UUID) -> Any:
    async with get_client() as client:
        return await client.read_flow_run(flow_run_id)


async def test_a_run_is_resumed_when_its_job_has_ended(saved: NoukaiCredentials, emulator: Emulator) -> None:
    """While the job runs, the flow run stays suspended; afterwards it attaches to the job."""
    emulator.control.script("translate", outcome="never")
    started = await start("suspending")
    with pytest.raises(Pause):
        await run_flow(suspending, flow_run=started)  # type: ignore[misc]
    assert (await run_of(started.id)).state.name == "Suspended"
    (job,) = emulator.control.jobs()
    assert await resume_noukai_runs() == 0
    assert (await run_of(started.id)).state.name == "Suspended"
    emulator.control.finish(job["id"], result="Ein langes Buch")
    assert await resume_noukai_runs() == 1
    resumed = await run_of(started.id)
    assert resumed.state.is_scheduled()
    assert await run_flow(suspending, flow_run=resumed) == "Ein langes Buch"  # type: ignore[misc]
    assert len(emulator.control.jobs()) == 1


async def suspend(of: Any) -> Any:
    """Run a flow until it is suspended, and return its run."""
    started = await start(of.name, of)
    with pytest.raises(Pause):
        await run_flow(of, flow_run=started)  # type: ignore[misc]
    return started


@flow
async def suspending_without_await() -> None:
    suspend_until_noukai_job("job_1", timeout=3600)


async def test_the_blocking_function_in_an_async_flow() -> None:
    """`suspend_until_noukai_job` suspends an async flow as well, in which nothing would await it."""
    run = await suspend(suspending_without_await)
    assert (await run_of(run.id)).state.name == "Suspended"


@flow
async def suspending_for(job_id: Any) -> None:
    with pytest.raises(InvalidInputError, match="job_id is "):
        await asuspend_until_noukai_job(job_id)
    with pytest.raises(InvalidInputError, match="job_id is "):
        suspend_until_noukai_job(job_id)


@pytest.mark.parametrize("job_id", [None, 1, "", "no id", "a/b"], ids=repr)
async def test_what_is_no_job_suspends_nothing(job_id: Any) -> None:
    """A run is not suspended for what cannot be the id of a job, since nothing would resume it."""
    started = await start("suspending-for", suspending_for)
    await run_flow(suspending_for, flow_run=started, parameters={"job_id": job_id})  # type: ignore[misc]
    assert (await run_of(started.id)).state.name == "Completed"


def test_the_run_of_what_is_no_job(credentials: NoukaiCredentials) -> None:
    """A job block's run is not made for what cannot be the id of a job."""
    with pytest.raises(InvalidInputError, match="job_id is "):
        NoukaiJobRun.from_id(credentials, FLOW, "no id")


async def test_each_run_waits_for_its_own_job(
    saved: NoukaiCredentials, emulator: Emulator, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Those suspended runs are resumed whose job has ended, and none that waits for something else."""
    monkeypatch.setattr(noukai_suspending, "_PAGE_SIZE", 2)
    emulator.control.script("translate", outcome="never")
    flows = suspending_for_a_person, suspending, suspending_for_the_second, suspending
    runs = [await suspend(of) for of in flows]
    first, not_waited_for, _, third = emulator.control.jobs()
    for job in (first, not_waited_for, third):
        emulator.control.finish(job["id"])
    assert await resume_noukai_runs() == 2
    states = [(await run_of(run.id)).state.name for run in runs]
    assert [state == "Suspended" for state in states] == [True, False, True, False]


@pytest.fixture
def log(caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch) -> pytest.LogCaptureFixture:
    """What the flow logs."""
    logger = logging.getLogger("noukai_prefect.of_a_test")
    logger.addHandler(caplog.handler)
    monkeypatch.setattr(RunContext, "logger", lambda _: logger)
    return caplog


async def test_a_run_that_somebody_else_resumes(
    saved: NoukaiCredentials, monkeypatch: pytest.MonkeyPatch, log: pytest.LogCaptureFixture
) -> None:
    """A run that Prefect's server does not resume is not said to be resumed."""
    run = await suspend(suspending)

    async def ended(suspended: Any, *_: object) -> str | None:
        if suspended.id != run.id:
            return None
        async with get_client() as client:
            await client.resume_flow_run(run.id)
        return "completed"

    monkeypatch.setattr(noukai_suspending, "_ended", ended)
    assert await resume_noukai_runs() == 0
    assert f"Prefect flow run {run.id}: not resumed (Prefect: Cannot resume a flow run that" in log.text


async def test_a_run_whose_record_another_key_signed(
    saved: NoukaiCredentials,
    emulator: Emulator,
    log: pytest.LogCaptureFixture,
) -> None:
    """A record that the block's key did not sign resumes no run, and the log says so."""
    run = await suspend(suspending)
    other = NoukaiCredentials(api_key=SecretStr("nk_test_another"), base_url=saved.base_url)
    await other.asave("default", overwrite=True)
    assert await resume_noukai_runs() == 0
    assert (await run_of(run.id)).state.name == "Suspended"
    assert f"Prefect flow run {run.id}: not resumed (it has no verified record of Noukai job" in log.text
