"""Other people may be able to write artifacts: what they write leads to no job and no key of another."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable, Callable
from dataclasses import replace
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any
from uuid import UUID, uuid4

import pytest
from prefect import Flow, flow
from prefect.client.orchestration import get_client
from prefect.client.schemas.actions import ArtifactCreate, ArtifactUpdate
from prefect.client.schemas.filters import ArtifactFilter, ArtifactFilterFlowRunId
from prefect.client.schemas.objects import Artifact
from prefect.context import FlowRunContext
from pydantic import SecretStr

from noukai_core import InvalidInputError, LedgerEntry
from noukai_core.batch import SUBMITTING, new_session_of, submission_id_of
from noukai_prefect import (
    NoukaiCredentials,
    _job_store,
    arun_noukai_job,
    arun_noukai_jobs,
    asubmit_noukai_job,
    cancel_noukai_jobs,
    log_resumable_noukai_jobs,
)
from noukai_prefect._batch_record import BatchRecordLog
from noukai_prefect._job_store import JobStore
from noukai_prefect._run_context import RunContext
from noukai_prefect._signing import RecordSigner

if TYPE_CHECKING:
    from noukai_core.emulator import Emulator, EmulatorControl

pytestmark = pytest.mark.usefixtures("prefect_server")

FLOW = "acme/spelling/grade-3"
OTHER_KEY = "nk_test_otherteam_0123456789abcdef0123456789abcdef"
TIMES_OUT: dict[str, Any] = {"timeout": 0.3, "cancel_on_timeout": False}


@pytest.fixture
def control(emulator: Emulator) -> EmulatorControl:
    """The control API of the local Noukai, whose jobs run until they are cancelled."""
    emulator.control.script("grade-3", outcome="never")
    return emulator.control


@pytest.fixture
async def ours(credentials: NoukaiCredentials) -> NoukaiCredentials:
    """Stored credentials of the team whose flow run it is."""
    await credentials.save("ours", overwrite=True)
    return credentials


@pytest.fixture
async def theirs(credentials: NoukaiCredentials) -> NoukaiCredentials:
    """Stored credentials of another team."""
    block = NoukaiCredentials(api_key=SecretStr(OTHER_KEY), base_url=credentials.base_url)
    await block.save("theirs", overwrite=True)
    return block


def run_id() -> UUID:
    """Return the id of the flow run that calls this."""
    context = FlowRunContext.get()
    assert context is not None
    assert context.flow_run is not None
    return context.flow_run.id


@flow
async def single(credentials: NoukaiCredentials) -> UUID:
    """Submit a job, and leave it running."""
    await asubmit_noukai_job(credentials, FLOW, "hello")
    return run_id()


@flow
async def batch(credentials: NoukaiCredentials) -> UUID:
    """Submit two jobs as a batch, and leave them running."""
    await arun_noukai_jobs(credentials, FLOW, ["hello", "world"], raise_on="none", **TIMES_OUT)
    return run_id()


async def artifacts(flow_run_id: UUID) -> list[Artifact]:
    """Return the artifacts of a flow run."""
    wanted = ArtifactFilter(flow_run_id=ArtifactFilterFlowRunId(any_=[flow_run_id]))
    async with get_client() as client:
        return await client.read_artifacts(artifact_filter=wanted)


async def change(flow_run_id: UUID, changed: Callable[[Artifact], ArtifactUpdate | None]) -> None:
    """Change artifacts of a flow run as anybody can who may write artifacts."""
    async with get_client() as client:
        for artifact in await artifacts(flow_run_id):
            if update := changed(artifact):
                await client.update_artifact(artifact.id, update)


async def copy(from_run: UUID, to_run: UUID) -> None:
    """Copy the artifacts of a flow run to another."""
    async with get_client() as client:
        for artifact in await artifacts(from_run):
            await client.create_artifact(
                ArtifactCreate(
                    key=artifact.key,
                    type=artifact.type,
                    data=artifact.data,
                    metadata_=artifact.metadata_,
                    flow_run_id=to_run,
                )
            )


async def call(hook: Callable[..., None], of: Flow[..., Any], flow_run_id: UUID) -> None:
    """Call a hook as Prefect does when a flow run has ended."""
    async with get_client() as client:
        flow_run = await client.read_flow_run(flow_run_id)
    await asyncio.to_thread(hook, of, flow_run, flow_run.state)


def cancelled(control: EmulatorControl) -> list[bool]:
    """Return whether each job was cancelled, oldest first."""
    return [job["state"] == "cancelled" for job in control.jobs()]


async def test_hook_with_the_block_of_another_team(
    ours: NoukaiCredentials, theirs: NoukaiCredentials, control: EmulatorControl
) -> None:
    """A record that names another team's block and job does not make the hook send anything with that key."""
    await single(theirs)
    (job,) = control.jobs()
    flow_run_id = await single(ours)
    requests = len(control.requests())

    def name_the_other_job(artifact: Artifact) -> ArtifactUpdate:
        stored = {**(artifact.metadata_ or {}), "credentials": "theirs", "job_id": job["id"]}
        return ArtifactUpdate(metadata_=stored)

    await change(flow_run_id, name_the_other_job)
    await call(cancel_noukai_jobs, single, flow_run_id)

    assert cancelled(control) == [False, False]
    assert len(control.requests()) == requests


@pytest.mark.parametrize("of", [single, batch], ids=["single", "batch"])
async def test_hook_with_records_of_another_run(
    ours: NoukaiCredentials, control: EmulatorControl, of: Flow[..., Awaitable[UUID]]
) -> None:
    """A record that was copied from another run does not cancel that run's jobs, even with the same key."""
    other = await of(ours)
    count = len(control.jobs())
    flow_run_id = await of(ours)
    await copy(other, flow_run_id)

    await call(cancel_noukai_jobs, of, flow_run_id)

    assert cancelled(control) == [False] * count + [True] * count


@pytest.mark.parametrize("run", ["one", "many"])
async def test_rerun_with_another_job(ours: NoukaiCredentials, control: EmulatorControl, run: str) -> None:
    """A rerun whose record names another job does not return that job's output, but finds its own."""
    await single(ours)
    (other,) = control.jobs()
    control.finish(other["id"])
    attempts: list[str] = []

    @flow(retries=1)
    async def rerun() -> Any:
        attempts.append("attempt")
        if len(attempts) == 2:
            (mine,) = (job["id"] for job in control.jobs() if job["id"] != other["id"])
            await change(run_id(), lambda artifact: replaced(artifact, mine, other["id"]))
            control.finish(mine)
            if run == "one":
                return await arun_noukai_job(ours, FLOW, "mine")
            return (await arun_noukai_jobs(ours, FLOW, ["mine"]))[0].output
        if run == "one":
            return await arun_noukai_job(ours, FLOW, "mine", **TIMES_OUT)
        return await arun_noukai_jobs(ours, FLOW, ["mine"], **TIMES_OUT)

    assert await rerun() == {"message": "mine"}
    assert control.counts()["submit"] == 2


def replaced(artifact: Artifact, job_id: str, other: str) -> ArtifactUpdate | None:
    """Return the update that puts another job in the place of one."""
    metadata = {name: value.replace(job_id, other) for name, value in (artifact.metadata_ or {}).items()}
    data = json.dumps(artifact.data).replace(job_id, other)
    return ArtifactUpdate(metadata_=metadata, data=json.loads(data))


@pytest.mark.parametrize("hook", [cancel_noukai_jobs, log_resumable_noukai_jobs])
async def test_hooks_with_malformed_records(
    ours: NoukaiCredentials, control: EmulatorControl, hook: Callable[..., None]
) -> None:
    """Malformed records of jobs and batches do not keep a hook from the other jobs."""
    flow_run_id = await single(ours)
    async with get_client() as client:
        for artifact in await artifacts(flow_run_id):
            stored = artifact.metadata_ or {}
            for metadata in ({}, {**stored, "resubmission": "many"}, {**stored, "last_sent_at": "now"}):
                await client.create_artifact(
                    ArtifactCreate(key=artifact.key, metadata_=metadata, flow_run_id=flow_run_id)
                )
        for data in ("no JSON", "[7]", '[["a"]]', "{}", None):
            for key, kind in (("noukai-jobs", "table"), (None, "result")):
                metadata = {"slot": "none", "flow": FLOW, "signature": "none", "possibly_sent_at": "never"}
                await client.create_artifact(
                    ArtifactCreate(key=key, type=kind, data=data, metadata_=metadata, flow_run_id=flow_run_id)
                )

    await call(hook, single, flow_run_id)

    assert cancelled(control) == [hook is cancel_noukai_jobs]


async def test_a_changed_row_costs_no_job(ours: NoukaiCredentials, control: EmulatorControl) -> None:
    """Of a batch's record with a row that names another job, the hook still cancels the batch's own jobs."""
    flow_run_id = await batch(ours)
    first = control.jobs()[0]["id"]

    await change(flow_run_id, lambda artifact: replaced(artifact, first, "job_of_another_team"))
    await call(cancel_noukai_jobs, batch, flow_run_id)

    assert cancelled(control) == [True, True]


async def test_a_rotated_key_pays_for_nothing_twice(
    ours: NoukaiCredentials, control: EmulatorControl
) -> None:
    """A rerun with a new key of the project cannot verify its record, asks the server, and finds the job."""

    @flow(retries=1)
    async def rerun() -> Any:
        if control.counts()["submit"] == 0:
            return await arun_noukai_job(ours, FLOW, "mine", **TIMES_OUT)
        ours.api_key = SecretStr(ours.api_key.get_secret_value().replace("unitpref", "rotated0"))
        control.finish(control.jobs()[0]["id"])
        return await arun_noukai_job(ours, FLOW, "mine")

    assert await rerun() == {"message": "mine"}
    assert control.counts()["submit"] == 1


@pytest.mark.parametrize("changed", ["key", "jobs", "sessions"])
async def test_a_batch_whose_record_is_not_verified(
    ours: NoukaiCredentials, control: EmulatorControl, changed: str
) -> None:
    """With a new key, each input gets its own output; where the record was changed, nothing is submitted."""
    attempts: list[str] = []
    messages = [f"m{number}" for number in range(5)]

    @flow(retries=1)
    async def rerun() -> Any:
        attempts.append("attempt")
        if len(attempts) == 2:
            ours.api_key = SecretStr(ours.api_key.get_secret_value().replace("unitpref", "rotated0"))
            for job in control.jobs():
                control.finish(job["id"])
            if changed == "jobs":
                for job in control.jobs():
                    await change(run_id(), lambda one, job=job: replaced(one, job["id"], "job-of-others"))
            if changed == "sessions":
                session = control.jobs()[0]["session_id"]
                await change(run_id(), lambda one: replaced(one, session, str(uuid4())))
            outcomes = await arun_noukai_jobs(ours, FLOW, messages)
            return [outcome.output["message"] for outcome in outcomes]
        return await arun_noukai_jobs(ours, FLOW, messages, **TIMES_OUT)

    if changed == "key":
        assert await rerun() == messages
    else:
        with pytest.raises(InvalidInputError, match="was changed, so it is not known which jobs exist"):
            await rerun()
    assert control.counts()["submit"] == 5


def spoilt(artifact: Artifact, how: str) -> ArtifactUpdate | None:
    """Return the update that makes the record of a batch, or one row of it, unreadable."""
    if artifact.type != "result":
        return None
    rows = json.loads(str(artifact.data))
    index = next(number for number, (row, _) in enumerate(rows) if row.get("entry", [None])[0] == 1)
    match how:
        case "artifact":
            return ArtifactUpdate(data=str(artifact.data)[:-9])
        case "row":
            kept = [one for one in rows if one[0].get("entry", [None])[0] != 1]
            return ArtifactUpdate(data=json.dumps([*kept, rows[index][:1]]))
        case _:
            kept = [one for one in rows if one[0].get("entry", [None])[0] != 1]
            return ArtifactUpdate(data=json.dumps([*kept, [{"entry": [1, "mine"]}, rows[index][1]]]))


@pytest.mark.parametrize("how", ["artifact", "row", "entry"])
async def test_a_record_that_cannot_be_read(
    ours: NoukaiCredentials, control: EmulatorControl, how: str
) -> None:
    """Inputs of which nothing can be read any more get no second job, and the others get their results."""
    attempts: list[str] = []
    control.script("grade-3", after_seconds=0)

    @flow(retries=1)
    async def rerun() -> Any:
        attempts.append("attempt")
        if len(attempts) == 2:
            await change(run_id(), lambda one: spoilt(one, how))
        outcomes = await arun_noukai_jobs(ours, FLOW, ["m0", "m1", "m2"], raise_on="none")
        if len(attempts) == 1:
            raise RuntimeError("once more")
        return outcomes

    known = set[int]() if how == "artifact" else {0, 2}
    outcomes = await rerun()
    assert control.counts()["submit"] == 3
    assert {one.index for one in outcomes if one.state == "completed"} == known
    assert {one.index for one in outcomes if one.state == "not_submitted"} == {0, 1, 2} - known
    assert "a part of the record that earlier attempts wrote" in str(outcomes[1].error)


def test_the_sessions_of_two_attempts_whose_record_is_not_verified() -> None:
    """A submission that two attempts recorded is looked for in both sessions, even with another key."""
    slot = UUID(int=8)
    sessions = {new_session_of(slot), new_session_of(slot)}
    rows = [
        {
            "entry": LedgerEntry(
                index=0,
                submission_id=submission_id_of(slot, 0, 0),
                session_id=session_id,
                state=SUBMITTING,
            ).to_list()
        }
        for session_id in sessions
    ]
    credentials: Any = SimpleNamespace(api_key=SecretStr("key"), saved_as=None)
    record = BatchRecordLog(SimpleNamespace(scope=UUID(int=7)), str(slot), FLOW, 1, credentials)  # type: ignore[arg-type]
    unsure = record._unsure_entries(rows, {})
    asked = {one.session_id for entry in unsure for one in (entry, *entry.concurrent)}
    assert asked == sessions


async def test_a_rotated_key_after_a_resubmission(ours: NoukaiCredentials, control: EmulatorControl) -> None:
    """A rerun with a new key finds the latest job of its submission, not the failed one that it replaced."""
    attempts: list[str] = []

    @flow(retries=2)
    async def rerun() -> Any:
        attempts.append("attempt")
        control.script("grade-3", outcome="failed" if len(attempts) == 1 else "never")
        if len(attempts) < 3:
            return await arun_noukai_job(ours, FLOW, "mine", **TIMES_OUT | {"timeout": 5 - 2 * len(attempts)})
        ours.api_key = SecretStr(ours.api_key.get_secret_value().replace("unitpref", "rotated0"))
        control.finish(next(job["id"] for job in control.jobs() if job["state"] == "running"))
        return await arun_noukai_job(ours, FLOW, "mine", timeout=20)

    assert await rerun() == {"message": "mine"}
    assert control.counts()["submit"] == 2


async def test_a_changed_number_of_a_submission_costs_no_job(
    ours: NoukaiCredentials, control: EmulatorControl
) -> None:
    """A rerun whose record was given another number finds its job under the number that it had."""
    attempts: list[str] = []

    def number(artifact: Artifact) -> ArtifactUpdate:
        return ArtifactUpdate(metadata_={**(artifact.metadata_ or {}), "resubmission": "7"})

    @flow(retries=1)
    async def rerun() -> Any:
        attempts.append("attempt")
        if len(attempts) == 1:
            return await arun_noukai_job(ours, FLOW, "mine", **TIMES_OUT)
        await change(run_id(), number)
        control.finish(control.jobs()[0]["id"])
        return await arun_noukai_job(ours, FLOW, "mine", timeout=20)

    assert await rerun() == {"message": "mine"}
    assert control.counts()["submit"] == 1


async def test_what_replaces_a_job_is_looked_up(monkeypatch: pytest.MonkeyPatch) -> None:
    """What replaces a failed job is looked up if a record that is not verified may be about the same."""
    run = RunContext(uuid4(), None, 1, None, None)
    assert run.scope is not None
    slot = JobStore(run.scope).slot(run, FLOW, {})
    key, rotated = SecretStr(OTHER_KEY), SecretStr(OTHER_KEY.replace("otherteam", "rotated"))
    first = replace(_job_store._new_record(FLOW, slot, 0), job_id="job_0", ended=True)
    second = replace(first.next(), job_id="job_1")
    signed = [(first, rotated), (second, key)]
    stored = [record.metadata(RecordSigner(by, run.scope)) for record, by in signed]

    async def own_artifacts(*_: object) -> list[Artifact]:
        return [Artifact(id=uuid4(), metadata_=metadata) for metadata in stored]

    monkeypatch.setattr(_job_store, "own_artifacts", own_artifacts)
    record = await JobStore(run.scope).record(run, FLOW, slot, rotated)
    assert record.job_id == "job_0"
    after = record.next()
    assert after.submission_id == second.submission_id
    assert after.last_sent_at is not None
