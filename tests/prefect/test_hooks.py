"""What the hooks do with the jobs of a flow run when something fails, on a Prefect server."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, Any
from uuid import UUID

import pytest
from prefect import Flow, flow
from prefect.client.orchestration import get_client
from prefect.context import FlowRunContext
from pydantic import SecretStr

from noukai_prefect import (
    NoukaiCredentials,
    arun_noukai_jobs,
    asubmit_noukai_job,
    cancel_noukai_jobs,
    hooks,
    log_resumable_noukai_jobs,
)
from noukai_prefect._artifacts import JOB_RECORDS, artifacts_of
from noukai_prefect._job_store import read_records

if TYPE_CHECKING:
    from noukai_core.emulator import Emulator, EmulatorControl

pytestmark = pytest.mark.usefixtures("prefect_server")

FLOW = "acme/spelling/grade-3"


@pytest.fixture
def control(emulator: Emulator) -> EmulatorControl:
    """The control API of the local Noukai, whose jobs run until they are cancelled."""
    emulator.control.script("grade-3", outcome="never")
    return emulator.control


def run_id() -> UUID:
    """Return the id of the flow run that calls this."""
    context = FlowRunContext.get()
    assert context is not None
    assert context.flow_run is not None
    return context.flow_run.id


@flow
async def single(*all_credentials: NoukaiCredentials) -> UUID:
    """Submit a job with each of the credentials, and leave it running."""
    for credentials in all_credentials:
        await asubmit_noukai_job(credentials, FLOW, "hello")
    return run_id()


@flow
async def batch(credentials: NoukaiCredentials) -> UUID:
    """Submit a job as a batch, and leave it running."""
    options: dict[str, Any] = {"timeout": 0.3, "cancel_on_timeout": False, "raise_on": "none"}
    await arun_noukai_jobs(credentials, FLOW, ["hello"], **options)
    return run_id()


async def call(hook: Callable[..., None], of: Flow[..., Any], flow_run_id: UUID) -> None:
    """Call a hook as Prefect does when a flow run has ended."""
    async with get_client() as client:
        flow_run = await client.read_flow_run(flow_run_id)
    await asyncio.to_thread(hook, of, flow_run, flow_run.state)


@pytest.mark.parametrize("of", [single, batch], ids=["single", "batch"])
async def test_young_job(
    credentials: NoukaiCredentials, control: EmulatorControl, of: Flow[..., Awaitable[UUID]]
) -> None:
    """A job that Noukai does not know yet is cancelled as soon as Noukai knows it."""
    control.script("grade-3", outcome="never", visible_after_seconds=4)
    await credentials.save("young", overwrite=True)
    flow_run_id = await of(credentials)
    await call(cancel_noukai_jobs, of, flow_run_id)
    assert [job["state"] for job in control.jobs()] == ["cancelled"]


async def test_record_gone(
    credentials: NoukaiCredentials, control: EmulatorControl, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A job that Prefect's server cannot record does not prevent the cancellation of other jobs."""
    monkeypatch.setattr(hooks, "CANCEL_CONCURRENCY", 1)
    await credentials.save("gone", overwrite=True)
    flow_run_id = await single(credentials, credentials, credentials)
    control.fault("slow", on="cancel", seconds=2)
    hook = asyncio.ensure_future(call(cancel_noukai_jobs, single, flow_run_id))
    await asyncio.to_thread(control.wait_for, "cancel", timeout=300)
    async with get_client() as client:
        for artifact in await artifacts_of([flow_run_id], JOB_RECORDS):
            await client.delete_artifact(artifact.id)
    await hook
    assert [job["state"] for job in control.jobs()] == ["cancelled"] * 3


async def test_end_not_seen(credentials: NoukaiCredentials, control: EmulatorControl) -> None:
    """A job that was cancelled counts as ended for a rerun, even if its last poll failed."""
    await credentials.save("unseen", overwrite=True)
    flow_run_id = await single(credentials)
    control.fault("slow", on="cancel", seconds=2)
    hook = asyncio.ensure_future(call(cancel_noukai_jobs, single, flow_run_id))
    await asyncio.to_thread(control.wait_for, "cancel", timeout=300)
    control.fault("status", status=403, on="poll")
    await hook
    assert [record.ended for record, _ in await read_records({flow_run_id: flow_run_id})] == [True]


async def test_broken_block(credentials: NoukaiCredentials, control: EmulatorControl) -> None:
    """A block that was broken later does not prevent the cancellation of jobs of other blocks."""
    blocks = {name: credentials.model_copy() for name in ("first", "second", "third")}
    for name, block in blocks.items():
        await block.save(name, overwrite=True)
    flow_run_id = await single(*blocks.values())
    broken = NoukaiCredentials(api_key=SecretStr("no key"), base_url=credentials.base_url)
    for name in ("first", "third"):
        await broken.model_copy().save(name, overwrite=True)
    await call(cancel_noukai_jobs, single, flow_run_id)
    assert control.jobs()[1]["state"] == "cancelled"


@pytest.fixture
def log(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> pytest.LogCaptureFixture:
    """What the hooks log."""
    logger = logging.getLogger("noukai_prefect.of_a_test")
    monkeypatch.setattr(hooks, "flow_run_logger", lambda *_: logger)
    caplog.set_level(logging.INFO, logger.name)
    logger.addHandler(caplog.handler)
    return caplog


@pytest.mark.parametrize("of", [single, batch], ids=["single", "batch"])
async def test_what_a_crash_leaves_running(
    credentials: NoukaiCredentials,
    control: EmulatorControl,
    log: pytest.LogCaptureFixture,
    of: Flow[..., Awaitable[UUID]],
) -> None:
    """After a crash, the log names the jobs that a retry attaches to, and nothing is cancelled."""
    await credentials.save("resumable", overwrite=True)
    flow_run_id = await of(credentials)
    await call(log_resumable_noukai_jobs, of, flow_run_id)
    (job,) = control.jobs()
    assert f"Noukai job {job['id']} of {FLOW}: left running (a retry of this flow run" in log.text
    assert control.counts(job["id"])["cancel"] == 0


@pytest.mark.parametrize("of", [single, batch], ids=["single", "batch"])
async def test_a_block_that_is_gone(
    credentials: NoukaiCredentials,
    control: EmulatorControl,
    log: pytest.LogCaptureFixture,
    of: Flow[..., Awaitable[UUID]],
) -> None:
    """Both hooks say which block they cannot use, and that the jobs of it may still be running."""
    await credentials.save("deleted", overwrite=True)
    flow_run_id = await of(credentials)
    await NoukaiCredentials.adelete("deleted")
    await call(log_resumable_noukai_jobs, of, flow_run_id)
    assert "Noukai credentials block deleted: not usable: " in log.text
    await call(cancel_noukai_jobs, of, flow_run_id)
    (job,) = control.jobs()
    subject = f"job {job['id']} of {FLOW}" if of is single else f"batch of 1 jobs of {FLOW}"
    assert f"Noukai {subject}: cancel failed (credentials block deleted cannot be used" in log.text


@pytest.mark.parametrize("fails", ["poll", "cancel"])
async def test_a_cancel_that_is_rejected(
    credentials: NoukaiCredentials, control: EmulatorControl, log: pytest.LogCaptureFixture, fails: str
) -> None:
    """A job that the server does not let be cancelled is named, and a rerun still attaches to it."""
    await credentials.save("rejected", overwrite=True)
    flow_run_id = await single(credentials)
    control.fault("status", on=fails, times=None, status=403)
    await call(cancel_noukai_jobs, single, flow_run_id)
    (job,) = control.jobs()
    assert f"Noukai job {job['id']} of {FLOW}: cancel failed (" in log.text
    assert [record.ended for record, _ in await read_records({flow_run_id: flow_run_id})] == [False]


async def test_a_job_that_completed_meanwhile(
    credentials: NoukaiCredentials, control: EmulatorControl
) -> None:
    """A job that completed before the hook ran keeps its output for a rerun."""
    await credentials.save("completed", overwrite=True)
    flow_run_id = await single(credentials)
    (job,) = control.jobs()
    control.finish(job["id"], result="paid for")
    await call(cancel_noukai_jobs, single, flow_run_id)
    assert control.counts(job["id"])["cancel"] == 0
    assert [record.ended for record, _ in await read_records({flow_run_id: flow_run_id})] == [False]
