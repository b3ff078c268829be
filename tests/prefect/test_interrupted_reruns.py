"""What an interruption does to the job of an earlier attempt, before a rerun has read the record of it."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from dataclasses import replace
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, TypeAlias
from uuid import uuid4

import pytest
from prefect.client.schemas.objects import Artifact
from prefect.context import FlowRunContext

from noukai_core import AsyncJob, AsyncNoukai, JobRequest, Submission
from noukai_prefect import NoukaiCredentials, _cancellation, _job_store, _run
from noukai_prefect._cancellation import StoppedInThread
from noukai_prefect._job_store import JobStore, store_of
from noukai_prefect._run import submit
from noukai_prefect._run_context import RunContext
from noukai_prefect._signing import RecordSigner

if TYPE_CHECKING:
    from noukai_core.emulator import Emulator

FLOW = "acme/spelling/grade-3"
REQUEST = JobRequest(FLOW, "hello")

Read: TypeAlias = Callable[..., Awaitable[list[Artifact]]]


class Rerun:
    """The rerun of a flow run that a person cancels while it reads its records.

    Attributes:
        run: Where its code runs.
        reading: Is set when the records are first read, which never ends.
        read: What reads them again.
    """

    def __init__(self, credentials: NoukaiCredentials, client: AsyncNoukai) -> None:
        self.run = RunContext(uuid4(), None, 1, None, None, attempt=FlowRunContext.model_construct())
        self.reading = asyncio.Event()
        self.read: Read = self._nothing
        self._credentials = credentials
        self._client = client

    async def _nothing(self) -> list[Artifact]:
        return []

    async def own_artifacts(self, *_: object) -> list[Artifact]:
        if self.reading.is_set():
            return await self.read()
        self.reading.set()
        return await asyncio.Event().wait()

    async def recorded(self, *, job_known: bool) -> AsyncJob:
        """Let the earlier attempt have submitted a job, and have recorded its id if that is known."""
        credentials, run = self._credentials, self.run
        inputs = {
            "server": credentials.api_url,
            "credentials": credentials.stored_name,
            **REQUEST.arguments(),
        }
        assert run.scope is not None
        slot = JobStore(run.scope).slot(run, FLOW, inputs)
        record = replace(_job_store._new_record(FLOW, slot, 0), last_sent_at=datetime.now(UTC))
        job = await self._client.flow(FLOW).submit(REQUEST, submission=Submission(record.submission_id))
        if job_known:
            record = replace(record, job_id=job.id)
        metadata = record.metadata(RecordSigner(credentials.api_key, run.scope))

        async def read() -> list[Artifact]:
            return [Artifact(id=uuid4(), metadata_=metadata)]

        self.read = read
        return job

    async def interrupted(self) -> None:
        """Begin, and be interrupted while the records are read."""
        submitting = asyncio.ensure_future(submit(self._credentials, self._client, REQUEST, self.run))
        await self.reading.wait()
        submitting.cancel()
        with pytest.raises(asyncio.CancelledError):
            await submitting

    async def stopped(self) -> None:
        """Begin in a thread that has to stop."""
        self.reading.set()
        with pytest.raises(StoppedInThread):
            await submit(self._credentials, self._client, REQUEST, self.run)


@pytest.fixture
async def rerun(
    credentials: NoukaiCredentials, emulator: Emulator, monkeypatch: pytest.MonkeyPatch
) -> AsyncIterator[Rerun]:
    """A rerun on a Prefect server that keeps no new record."""

    async def cancelled(*_: object) -> str:
        return "the flow run was cancelled"

    async def not_recorded(*_: object) -> None:
        pass

    emulator.control.script("*", outcome="never")
    async with credentials.get_client("async") as client:
        rerun = Rerun(credentials, client)
        monkeypatch.setattr(_job_store, "own_artifacts", rerun.own_artifacts)
        monkeypatch.setattr(JobStore, "store", not_recorded)
        monkeypatch.setattr(_cancellation, "cancel_reason", cancelled)
        yield rerun


@pytest.fixture
def log(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> Iterator[pytest.LogCaptureFixture]:
    """What the run logs."""
    logger = logging.getLogger("lines of the run")
    monkeypatch.setattr(RunContext, "logger", lambda _: logger)
    with caplog.at_level(logging.INFO, logger="lines of the run"):
        yield caplog


async def states(emulator: Emulator) -> list[str]:
    """Return the states of all jobs."""
    return [job["state"] for job in await asyncio.to_thread(emulator.control.jobs)]


@pytest.mark.parametrize("job_known", [True, False], ids=["job recorded", "submission recorded"])
async def test_a_cancel_while_the_record_is_read(rerun: Rerun, emulator: Emulator, job_known: bool) -> None:
    """The job of an earlier attempt is cancelled if a person cancels the rerun before it knows the job."""
    await rerun.recorded(job_known=job_known)
    await rerun.interrupted()
    assert await states(emulator) == ["cancelled"]


async def test_a_cancel_of_a_job_that_has_ended(
    rerun: Rerun, emulator: Emulator, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The event about a job that had completed before it could be cancelled does not say that it runs."""
    job = await rerun.recorded(job_known=True)
    emulator.control.finish(job.id)
    events: list[str] = []
    monkeypatch.setattr(_run, "emit_job_event", lambda _, what, *rest: events.append(what))
    await rerun.interrupted()
    assert events == ["completed"]


async def test_a_stop_before_the_record_is_read(
    rerun: Rerun, emulator: Emulator, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The job of an earlier attempt is cancelled if a rerun in a thread has to stop before it has begun."""
    await rerun.recorded(job_known=True)
    monkeypatch.setattr(RunContext, "stop_requested", True)
    await rerun.stopped()
    assert await states(emulator) == ["cancelled"]


async def test_nothing_is_left_of_a_first_attempt(rerun: Rerun, log: pytest.LogCaptureFixture) -> None:
    """A first attempt that is cancelled before it has submitted anything logs nothing."""
    await rerun.interrupted()
    assert log.messages == []


async def test_a_record_that_cannot_be_read(rerun: Rerun, log: pytest.LogCaptureFixture) -> None:
    """A line says that jobs may be left running if the record of an earlier attempt cannot be read."""

    async def fail() -> list[Artifact]:
        raise OSError("the server is gone")

    rerun.read = fail
    await rerun.interrupted()
    said = "may be left running (record not read: the server is gone)"
    assert log.messages == [f"Noukai jobs of {FLOW}: {said}"]


@pytest.mark.parametrize("limit", ["RECORD_SECONDS", "CLEANUP_SECONDS"])
async def test_a_record_that_takes_too_long(
    rerun: Rerun, log: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch, limit: str
) -> None:
    """An interrupted rerun does not wait for its record for longer than its time allows."""

    async def never() -> list[Artifact]:
        return await asyncio.Event().wait()

    monkeypatch.setattr(_cancellation, limit, 0.01)
    rerun.read = never
    await rerun.interrupted()
    (line,) = log.messages
    assert "may be left running (record not read: no " in line


async def test_a_record_of_a_job_that_has_ended(rerun: Rerun, emulator: Emulator) -> None:
    """A job that the earlier attempt saw end is not cancelled again."""
    await rerun.recorded(job_known=True)
    store = store_of(rerun.run)
    assert store is not None
    (artifact,) = await rerun.read()
    record = _job_store.JobRecord.read(artifact.metadata_ or {}, artifact.id)
    assert record is not None
    assert rerun.run.scope is not None
    signer = RecordSigner(rerun._credentials.api_key, rerun.run.scope)
    ended: Any = replace(record, ended=True).metadata(signer)

    async def read() -> list[Artifact]:
        return [Artifact(id=uuid4(), metadata_=ended)]

    rerun.read = read
    await rerun.interrupted()
    assert await states(emulator) != ["cancelled"]
