"""What the hooks do with the jobs of a flow run when something fails, on a Prefect server."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable
from contextlib import aclosing, suppress
from typing import TYPE_CHECKING, Any
from uuid import UUID

import pytest
from prefect import Flow, flow
from prefect.client.orchestration import get_client
from prefect.context import FlowRunContext
from pydantic import SecretStr

from noukai_core import AsyncFlow, AsyncJob, InvalidInputError, JobTimeoutError, Submission
from noukai_prefect import (
    NoukaiCredentials,
    arun_noukai_job,
    arun_noukai_jobs,
    asubmit_noukai_job,
    cancel_noukai_jobs,
    hooks,
    log_resumable_noukai_jobs,
    stream_noukai_jobs,
)
from noukai_prefect._artifacts import JOB_RECORDS, artifacts_of
from noukai_prefect._job_store import read_records
from noukai_prefect.credentials import load_stored

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


class TeamCredentials(NoukaiCredentials):
    """Credentials with a block type of their own."""

    _block_type_name = "Team Credentials"
    _block_type_slug = "team-credentials"


@pytest.mark.parametrize("of", [single, batch], ids=["single", "batch"])
async def test_a_block_of_another_type(
    credentials: NoukaiCredentials, control: EmulatorControl, of: Flow[..., Awaitable[UUID]]
) -> None:
    """A job is cancelled with the block that submitted it, even if the block's type is a subclass's own."""
    team = TeamCredentials(api_key=credentials.api_key, base_url=credentials.base_url)
    await team.asave("of-a-team", overwrite=True)
    flow_run_id = await of(team)
    await call(cancel_noukai_jobs, of, flow_run_id)
    assert [job["state"] for job in control.jobs()] == ["cancelled"]


async def test_a_record_that_names_a_block_of_something_else() -> None:
    """A record does not make a hook load a block that is no credentials."""
    with pytest.raises(InvalidInputError, match="secret is not a type of Noukai credentials"):
        await load_stored("secret/of-somebody")


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


async def test_a_job_that_had_ended_before_its_cancel(
    credentials: NoukaiCredentials, control: EmulatorControl, log: pytest.LogCaptureFixture
) -> None:
    """A job that had ended, as the server says to the cancel, is none that a rerun submits again."""
    await credentials.save("ended", overwrite=True)
    flow_run_id = await single(credentials)
    control.fault("status", on="cancel", times=None, status=409)
    await call(cancel_noukai_jobs, single, flow_run_id)
    (job,) = control.jobs()
    assert f"Noukai job {job['id']} of {FLOW}: not cancelled (already ended)" in log.text
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


@flow
async def interrupted(credentials: NoukaiCredentials, emulator_control: Any) -> UUID:
    """Submit a job, and lose its response to a shutdown."""
    submitting = asyncio.ensure_future(asubmit_noukai_job(credentials, FLOW, "hello"))
    await asyncio.to_thread(emulator_control.wait_for, "submit", timeout=300)
    submitting.cancel()
    await asyncio.gather(submitting, return_exceptions=True)
    return run_id()


@pytest.mark.parametrize("exists", [True, False], ids=["made", "not made"])
async def test_a_submission_without_a_response(
    credentials: NoukaiCredentials, control: EmulatorControl, log: pytest.LogCaptureFixture, exists: bool
) -> None:
    """The job of a submission whose response a shutdown lost is cancelled, if there is one."""
    await credentials.save("unanswered", overwrite=True)
    if exists:
        control.fault("slow", on="submit", seconds=30)
    else:
        control.fault("status", on="submit", times=None, status=503)
    flow_run_id = await interrupted(credentials, control)
    await call(log_resumable_noukai_jobs, interrupted, flow_run_id)
    assert [line for line in log.messages if "a retry of this flow run" in line] == []
    await call(cancel_noukai_jobs, interrupted, flow_run_id)
    assert [job["state"] for job in control.jobs()] == ["cancelled"] * exists
    assert ("may be left running (interrupted before the response)" in log.text) is not exists


async def test_a_submission_whose_job_is_listed_late(
    credentials: NoukaiCredentials, control: EmulatorControl, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A job that the server does not list yet is looked up again."""
    await credentials.save("late", overwrite=True)
    control.fault("slow", on="submit", seconds=30)
    flow_run_id = await interrupted(credentials, control)
    find = AsyncFlow.find
    lookups: list[object] = []

    async def find_late(self: AsyncFlow, submission: Submission) -> AsyncJob | None:
        lookups.append(submission)
        return await find(self, submission) if len(lookups) > 1 else None

    monkeypatch.setattr(AsyncFlow, "find", find_late)
    await call(cancel_noukai_jobs, interrupted, flow_run_id)
    assert [job["state"] for job in control.jobs()] == ["cancelled"]


async def test_a_submission_of_another_key(
    credentials: NoukaiCredentials, control: EmulatorControl, log: pytest.LogCaptureFixture
) -> None:
    """A submission that another key recorded is not looked up; the log says that its job may be running."""
    await credentials.save("rotated", overwrite=True)
    control.fault("slow", on="submit", seconds=30)
    flow_run_id = await interrupted(credentials, control)
    other = NoukaiCredentials(api_key=SecretStr("nk_test_rotated"), base_url=credentials.base_url)
    await other.save("rotated", overwrite=True)
    await call(cancel_noukai_jobs, interrupted, flow_run_id)
    assert f"to {FLOW}: may be left running (record not verified with credentials block rotated)" in log.text
    assert control.counts()["cancel"] == 0


@flow
async def with_an_ended_job(credentials: NoukaiCredentials) -> UUID:
    """Run a job until it is cancelled at its deadline, and leave another one running."""
    with suppress(JobTimeoutError):
        await arun_noukai_job(credentials, FLOW, "too slow", timeout=0.3)
    await asubmit_noukai_job(credentials, FLOW, "hello")
    return run_id()


@pytest.mark.parametrize("usable", [True, False], ids=["usable", "deleted"])
async def test_jobs_that_have_ended_are_left_alone(
    credentials: NoukaiCredentials, control: EmulatorControl, log: pytest.LogCaptureFixture, usable: bool
) -> None:
    """A job that the run itself saw end is neither cancelled again nor named."""
    await credentials.save("ended", overwrite=True)
    flow_run_id = await with_an_ended_job(credentials)
    if not usable:
        await NoukaiCredentials.adelete("ended")
    log.clear()
    await call(cancel_noukai_jobs, with_an_ended_job, flow_run_id)
    ended, running = control.jobs()
    assert (control.counts(ended["id"])["cancel"], control.counts(running["id"])["cancel"]) == (
        1,
        int(usable),
    )
    assert ended["id"] not in log.text
    assert running["id"] in log.text


@flow
async def half_a_batch(credentials: NoukaiCredentials) -> UUID:
    """Run a batch until one of its jobs has completed, and leave the other running."""
    async with aclosing(stream_noukai_jobs(credentials, FLOW, ["quick", "endless"])) as outcomes:
        assert (await anext(outcomes)).index == 0
    return run_id()


async def test_what_is_left_of_a_batch(
    credentials: NoukaiCredentials, control: EmulatorControl, log: pytest.LogCaptureFixture
) -> None:
    """Both hooks leave completed jobs of a batch alone, and use the default block if none is recorded."""
    await credentials.model_copy().save("default", overwrite=True)

    async def finish_the_quick_one() -> None:
        while len(jobs := await asyncio.to_thread(control.jobs)) < 2:
            await asyncio.sleep(0.05)
        (quick,) = (job for job in jobs if job["message"] == "quick")
        await asyncio.to_thread(control.finish, quick["id"])

    flow_run_id, _ = await asyncio.gather(half_a_batch(credentials), finish_the_quick_one())
    quick, endless = sorted(control.jobs(), key=lambda job: job["message"], reverse=True)
    await call(log_resumable_noukai_jobs, half_a_batch, flow_run_id)
    assert f"Noukai job {endless['id']} of {FLOW}: left running (a retry" in log.text
    assert quick["id"] not in log.text
    for _ in range(2):
        await call(cancel_noukai_jobs, half_a_batch, flow_run_id)
    assert [control.counts(job["id"])["cancel"] for job in (quick, endless)] == [0, 1]


async def test_a_batch_whose_cancel_is_rejected(
    credentials: NoukaiCredentials, control: EmulatorControl, log: pytest.LogCaptureFixture
) -> None:
    """A job of a batch that the server does not let be cancelled stays recorded as running."""
    await credentials.save("batch-rejected", overwrite=True)
    flow_run_id = await batch(credentials)
    control.fault("status", on="cancel", status=403)
    for _ in range(2):
        await call(cancel_noukai_jobs, batch, flow_run_id)
    (job,) = control.jobs()
    assert f"Noukai job {job['id']} of {FLOW}: cancel failed (" in log.text
    assert job["state"] == "cancelled"
