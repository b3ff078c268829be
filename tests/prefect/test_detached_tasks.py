"""Equal submissions of tasks that share no memory: process pools, Dask, Ray and background tasks."""

from __future__ import annotations

import asyncio
import random
from dataclasses import replace
from datetime import UTC, datetime
from types import SimpleNamespace
from typing import Any
from uuid import UUID, uuid4

import pytest
from prefect.client.schemas.actions import ArtifactCreate, ArtifactUpdate
from prefect.client.schemas.objects import Artifact, FlowRun
from prefect.context import FlowRunContext
from prefect.states import Running
from pydantic import SecretStr

from noukai_prefect import _job_store, _prefect_client
from noukai_prefect._job_store import JobRecord, JobStore
from noukai_prefect._run_context import RunContext

FLOW = "acme/spelling/grade-3"
INPUTS = {"message": "hello"}
KEY = SecretStr("nk_test_detached")
FIRST, SECOND = "1", "2"


class Artifacts:
    """The artifacts of one flow run, as Prefect's server keeps them. Each request takes a random time."""

    def __init__(self, seed: int) -> None:
        self.stored: dict[UUID, Artifact] = {}
        self._random = random.Random(seed)

    async def _pass(self) -> None:
        for _ in range(self._random.randrange(20)):
            await asyncio.sleep(0)

    async def __aenter__(self) -> Artifacts:
        return self

    async def __aexit__(self, *_: object) -> None:
        pass

    async def read(self, *_: object) -> list[Artifact]:
        await self._pass()
        found = list(self.stored.values())
        await self._pass()
        return found

    async def create_artifact(self, artifact: ArtifactCreate) -> Artifact:
        await self._pass()
        created = Artifact(id=uuid4(), metadata_=artifact.metadata_)
        self.stored[created.id] = created
        await self._pass()
        return created

    async def update_artifact(self, artifact_id: UUID, artifact: ArtifactUpdate) -> None:
        await self._pass()
        self.stored[artifact_id] = Artifact(id=artifact_id, metadata_=artifact.metadata_)
        await self._pass()


@pytest.fixture(params=range(5))
def artifacts(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Artifacts:
    """A Prefect server without artifacts."""
    server = Artifacts(request.param)
    monkeypatch.setattr(_job_store, "own_artifacts", server.read)
    monkeypatch.setattr(_prefect_client, "get_client", lambda: server)
    monkeypatch.setattr(_job_store, "asyncio", SimpleNamespace(sleep=_longer_than_any_request))
    return server


async def _longer_than_any_request(seconds: float) -> None:
    for _ in range(100):
        await asyncio.sleep(0)


class Attempt:
    """One attempt of the flow run, each of whose tasks runs in another process."""

    def __init__(self, name: str, scope: UUID) -> None:
        self._name = name
        self._scope = scope

    async def task(self, task_run_id: UUID, key: SecretStr = KEY) -> JobRecord:
        """Submit or attach, as a task does, and return what is stored about its job."""
        store = JobStore(self._scope)
        run = RunContext(self._scope, task_run_id, 1, None, None, detached_attempt=self._name)
        record = await store.record(run, FLOW, store.slot_of_job(run, FLOW, INPUTS), key)
        if record.job_id is None:
            record = await store.store(run, replace(record, last_sent_at=datetime.now(UTC)), "submitting")
            record = await store.store(
                run, replace(record, job_id=f"job-{record.submission_id}"), "submitted"
            )
        return record

    async def tasks(self, count: int, **options: Any) -> list[JobRecord]:
        """Run equal tasks at the same time."""
        return await asyncio.gather(*(self.task(uuid4(), **options) for _ in range(count)))


async def test_equal_submissions_are_separate_jobs(artifacts: Artifacts) -> None:
    """Equal submissions of detached tasks are as many jobs, however the tasks interleave."""
    first = await Attempt(FIRST, uuid4()).tasks(4)
    assert len({record.job_id for record in first}) == 4


async def test_a_rerun_attaches_to_each_job_once(artifacts: Artifacts) -> None:
    """In a rerun, equal submissions attach to the jobs of the attempt before, each to another one."""
    scope = uuid4()
    first = await Attempt(FIRST, scope).tasks(4)
    second = await Attempt(SECOND, scope).tasks(5)
    before, after = {record.job_id for record in first}, {record.job_id for record in second}
    assert len(after) == 5
    assert before < after


async def test_a_task_that_starts_again_has_its_job(artifacts: Artifacts) -> None:
    """A task run that is started again elsewhere attaches to its job, in the first attempt and in a rerun."""
    scope, mine, other = uuid4(), uuid4(), uuid4()
    for name in (FIRST, SECOND):
        attempt = Attempt(name, scope)
        before = await attempt.task(mine)
        await attempt.task(other)
        assert (await attempt.task(mine)).job_id == before.job_id
    assert len(artifacts.stored) == 2


def execution(flow_run: FlowRun) -> str | None:
    """Return what tells an execution of a flow run from the others, as its detached tasks see it."""
    started = flow_run.model_copy(update={"state": Running()})
    copied = FlowRunContext.model_construct(flow=None, flow_run=started, task_runner=None, detached=True)
    with copied:
        first, second = RunContext.current(), RunContext.current()
    assert first.detached_attempt == second.detached_attempt
    return first.detached_attempt


async def test_a_resumed_flow_run_attaches_to_each_job_once(artifacts: Artifacts) -> None:
    """A flow run that was suspended, which Prefect does not count as another run, attaches to its jobs."""
    flow_run = FlowRun(flow_id=uuid4(), run_count=1)
    jobs: list[set[str | None]] = []
    for _ in range(3):
        name = execution(flow_run)
        assert name is not None
        jobs.append({record.job_id for record in await Attempt(name, flow_run.id).tasks(3)})
    assert len(jobs[0]) == 3
    assert jobs[0] == jobs[1] == jobs[2]


async def test_another_key_looks_for_the_job(artifacts: Artifacts) -> None:
    """A rerun with another key cannot verify the record, and asks the server about the same submission."""
    scope = uuid4()
    (first,) = await Attempt(FIRST, scope).tasks(1)
    store = JobStore(scope)
    run = RunContext(scope, uuid4(), 1, None, None, detached_attempt=SECOND)
    slot = store.slot_of_job(run, FLOW, INPUTS)
    record = await store.record(run, FLOW, slot, SecretStr("nk_test_rotated"))
    assert (record.submission_id, record.job_id) == (first.submission_id, None)
    assert record.last_sent_at is not None


def test_a_detached_task_asks_for_a_cancellation() -> None:
    """Nothing notifies a task that runs in the main thread of another process, as a worker of Ray does."""
    assert RunContext(uuid4(), uuid4(), 1, None, None, detached_attempt=FIRST).must_ask_server
    assert not RunContext(uuid4(), uuid4(), 1, None, None).must_ask_server


def test_a_rerun_of_a_batch_has_the_same_slot() -> None:
    """A batch in a detached task has the slot of the attempt before, which is a UUID."""
    scope = uuid4()
    runs = [RunContext(scope, uuid4(), 1, None, None, detached_attempt=one) for one in (FIRST, SECOND)]
    first, second = (JobStore(scope).slot(run, FLOW, INPUTS) for run in runs)
    assert UUID(first) == UUID(second)
