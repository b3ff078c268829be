"""When a batch is interrupted, each running job is cancelled, even one that no task is waiting for."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import AsyncIterator, Awaitable, Iterator
from contextlib import nullcontext, suppress
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any
from uuid import uuid4

import pytest
from prefect.filesystems import LocalFileSystem, RemoteFileSystem

from noukai_core import AsyncFlow, LedgerEntry, Submission
from noukai_core.batch_record import BatchRecord
from noukai_prefect import NoukaiCredentials, _cancellation
from noukai_prefect._batch import BatchOptions, BatchRun
from noukai_prefect._batch_inputs import BatchInputs
from noukai_prefect._batch_output import OutputStorage
from noukai_prefect._batch_record import BatchRecordLog
from noukai_prefect._cancellation import StoppedInThread
from noukai_prefect._job_store import JobRecord
from noukai_prefect._run import SubmissionState, _attach
from noukai_prefect._run_context import RunContext

if TYPE_CHECKING:
    from noukai_core.emulator import Emulator

FLOW = "acme/spelling/grade-3"
SLOT = "0f8e2c52-7d6f-4d0a-9a3e-55a8c8a1b9d4"
# An interruption cancels its jobs.
TIMED_OUT = RunContext(None, None, 1, time.monotonic(), None, began_late=True)


@pytest.fixture
async def flow(credentials: NoukaiCredentials, emulator: Emulator) -> AsyncIterator[AsyncFlow]:
    """A Noukai flow whose jobs run until they are cancelled."""
    emulator.control.script("grade-3", outcome="never")
    async with credentials.get_client("async") as client:
        yield client.flow(FLOW)


def batch_of_two(flow: AsyncFlow, credentials: NoukaiCredentials, **options: Any) -> BatchRun:
    """Return a batch that runs one job at a time."""
    inputs = BatchInputs(FLOW, ["hello"] * 2, "production", False)
    return BatchRun(
        flow, inputs, BatchOptions(max_concurrency=1, **options), TIMED_OUT, str(uuid4()), credentials
    )


async def received(emulator: Emulator, kind: str, count: int) -> None:
    """Wait until the local Noukai has received a number of requests of a kind."""
    await asyncio.to_thread(emulator.control.wait_for, kind, count)


async def interrupt(batch: BatchRun, emulator: Emulator, moment: Awaitable[Any]) -> list[str]:
    """Interrupt a batch at a moment, and return the states of the jobs."""

    async def run() -> None:
        async for _ in batch.outcomes():
            pass

    running = asyncio.ensure_future(run())
    await moment
    running.cancel()
    with suppress(asyncio.CancelledError):
        await running
    return [job["state"] for job in emulator.control.jobs()]


async def test_jobs_that_wait_for_their_turn(
    flow: AsyncFlow, credentials: NoukaiCredentials, emulator: Emulator, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A job of an earlier attempt is cancelled even if its input still waits for `max_concurrency`."""
    rows: list[Any] = []
    for index in range(2):
        session_id = str(uuid4())
        job = await flow.job("hello", session_id=session_id)
        entry = LedgerEntry(
            index=index, submission_id=str(uuid4()), session_id=session_id, job_id=job.id, state="submitted"
        )
        rows.append({"entry": entry.to_list()})

    async def stored(*_: object) -> list[Any]:
        return rows

    monkeypatch.setattr(BatchRecordLog, "rows", stored)
    batch = batch_of_two(flow, credentials)
    assert await interrupt(batch, emulator, received(emulator, "poll", 1)) == ["cancelled"] * 2


@pytest.mark.parametrize("end", ["inputs fail", "inputs end", "storage fails"])
async def test_what_is_left_is_named(
    flow: AsyncFlow,
    credentials: NoukaiCredentials,
    emulator: Emulator,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    tmp_path: Path,
    end: str,
) -> None:
    """An error that ends the batch, and inputs that are fewer than before, leave jobs that a line names."""

    def inputs() -> Iterator[str]:
        yield "hello"
        if end == "inputs fail":
            raise ValueError("no more")

    async def stored(*_: object) -> list[Any]:
        return [{"entry": entry.to_list()}]

    job = await flow.job("hello")
    entry = LedgerEntry(
        index=2, submission_id=str(uuid4()), session_id=str(uuid4()), job_id=job.id, state="submitted"
    )
    emulator.control.script("grade-3")
    monkeypatch.setattr(BatchRecordLog, "rows", stored)
    monkeypatch.setattr(RunContext, "logger", lambda _: logging.getLogger("noukai_core"))
    given = BatchInputs(FLOW, inputs(), "production", False)
    (tmp_path / "file").touch()
    storage = LocalFileSystem(basepath=str(tmp_path / "file")) if end == "storage fails" else None
    options = BatchOptions(output_storage=storage)
    batch = BatchRun(flow, given, options, TIMED_OUT, str(uuid4()), credentials)
    reported = r"no more|cannot be written"
    with nullcontext() if end == "inputs end" else pytest.raises(ValueError, match=reported):
        async for _ in batch.outcomes():
            pass
    (line,) = [message for message in caplog.messages if "outside a run, nothing attaches" in message]
    assert "left running" in line
    assert job.id in line


async def test_a_job_that_completes_before_its_cancel(
    flow: AsyncFlow,
    credentials: NoukaiCredentials,
    emulator: Emulator,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The table says of a job that completed before the cancel that it completed."""
    reason_of = _cancellation.cancel_reason

    async def cancel_reason(*arguments: Any) -> str | None:
        emulator.control.finish(emulator.control.jobs()[0]["id"], result=1)
        return await reason_of(*arguments)

    monkeypatch.setattr(_cancellation, "cancel_reason", cancel_reason)
    inputs = BatchInputs(FLOW, ["hello"] * 2, "production", False)
    batch = BatchRun(flow, inputs, BatchOptions(), TIMED_OUT, str(uuid4()), credentials)
    assert sorted(await interrupt(batch, emulator, received(emulator, "poll", 2))) == [
        "cancelled",
        "completed",
    ]
    assert batch.progress == "1 completed, 1 cancelled"


async def test_a_batch_does_not_ask_again_why_it_is_stopped(
    flow: AsyncFlow,
    credentials: NoukaiCredentials,
    emulator: Emulator,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A cancel that Prefect's server has reported reaches the jobs, even if the server then goes away."""

    async def told(_: RunContext) -> str:
        await received(emulator, "poll", 1)
        return "the flow run was cancelled"

    monkeypatch.setattr(_cancellation, "watch_for_stop", told)
    inputs = BatchInputs(FLOW, ["hello"] * 2, "production", False)
    unasked = RunContext(None, None, 1, None, None)
    batch = BatchRun(flow, inputs, BatchOptions(), unasked, str(uuid4()), credentials)
    with pytest.raises(StoppedInThread):
        async for _ in batch.outcomes():
            pass
    assert {job["state"] for job in emulator.control.jobs()} == {"cancelled"}


async def test_jobs_that_timed_out(
    flow: AsyncFlow, credentials: NoukaiCredentials, emulator: Emulator, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A person who cancels a batch cancels a job that timed out and was left running with the others."""

    async def cancelled(*_: object) -> str:
        return "the flow run was cancelled"

    monkeypatch.setattr(_cancellation, "cancel_reason", cancelled)
    batch = batch_of_two(flow, credentials, timeout=1.5, cancel_on_timeout=False)
    assert await interrupt(batch, emulator, received(emulator, "submit", 2)) == ["cancelled"] * 2


async def test_prefects_timeout_leaves_the_jobs_running(
    flow: AsyncFlow, credentials: NoukaiCredentials, emulator: Emulator
) -> None:
    """With `cancel_on_timeout=False`, the timeout of the task or flow cancels no job of a batch."""
    batch = batch_of_two(flow, credentials, cancel_on_timeout=False)
    await interrupt(batch, emulator, received(emulator, "poll", 1))
    assert emulator.control.counts()["cancel"] == 0


async def test_a_record_whose_job_only_its_session_knows_is_attached(
    flow: AsyncFlow, emulator: Emulator
) -> None:
    """A rerun whose job the server does not know asks the session before it submits."""
    submission = Submission.new()
    made = await flow.job("hello", submission=submission)
    record = JobRecord(submission_id=submission.id, flow=FLOW, slot=SLOT, job_id="job-gone")
    gone = SubmissionState(job=flow.attach("job-gone"))
    attached = await _attach(flow, record, TIMED_OUT, replace(gone), listed=True)
    assert attached is not None
    assert attached.id == made.id
    unknown = JobRecord(submission_id=Submission.new().id, flow=FLOW, slot=SLOT, job_id="job-gone")
    assert await _attach(flow, unknown, TIMED_OUT, replace(gone), listed=True) is None


async def test_an_interruption_while_a_failed_batch_ends(
    flow: AsyncFlow, credentials: NoukaiCredentials, emulator: Emulator, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The jobs that a failed batch would leave running are cancelled if it is interrupted while it ends."""
    batch = batch_of_two(flow, credentials)
    ending = asyncio.Event()

    async def fail(*_: object) -> None:
        await asyncio.to_thread(emulator.control.wait_for, "poll", 1)
        raise OSError("the storage is full")

    async def never_ends(*, final: bool) -> None:
        if final:
            ending.set()
            await asyncio.Event().wait()

    monkeypatch.setattr(batch, "_update_regularly", fail)
    monkeypatch.setattr(batch._table, "write", never_ends)

    assert await interrupt(batch, emulator, ending.wait()) == ["cancelled"]


async def test_a_storage_that_fails_at_the_end(
    flow: AsyncFlow,
    credentials: NoukaiCredentials,
    emulator: Emulator,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """The record of an interrupted batch is stored even if the last outcomes cannot be written."""
    monkeypatch.setattr(RunContext, "logger", lambda _: logging.getLogger("noukai_core"))
    batch = batch_of_two(flow, credentials, output_storage=LocalFileSystem(basepath=str(tmp_path)))
    written: list[bool] = []

    async def full() -> None:
        raise OSError("the storage is full")

    async def write(*, final: bool) -> None:
        written.append(final)

    async def begun() -> None:
        await received(emulator, "poll", 1)
        assert batch._output is not None
        monkeypatch.setattr(batch._output, "flush", full)

    monkeypatch.setattr(batch._table, "write", write)
    await interrupt(batch, emulator, begun())
    assert written[-1]
    assert f"jobs of {FLOW}: outcomes not written: the storage is full" in caplog.text


def test_the_password_of_a_storage_is_not_shown() -> None:
    """Neither an error nor the manifest shows the user and the password in a storage's own path."""

    async def forget(_: object) -> None:
        pass

    block = RemoteFileSystem(basepath="sftp://somebody:secret@files.test/out")
    shown = OutputStorage(block, SLOT, FLOW, BatchRecord(forget)).path
    assert shown == f"sftp://files.test/out/noukai-jobs/{SLOT}"


@pytest.mark.parametrize("step", ["rows", "_open_places", "write"])
async def test_an_interruption_while_a_rerun_begins(
    flow: AsyncFlow,
    credentials: NoukaiCredentials,
    emulator: Emulator,
    monkeypatch: pytest.MonkeyPatch,
    step: str,
) -> None:
    """The jobs of an earlier attempt are cancelled, whatever a rerun is doing when it is interrupted."""
    job, session_id = await flow.job("hello"), str(uuid4())
    entry = LedgerEntry(
        index=0, submission_id=str(uuid4()), session_id=session_id, job_id=job.id, state="submitted"
    )
    beginning = asyncio.Event()

    async def reach(reached: str) -> None:
        if reached == step and not beginning.is_set():
            beginning.set()
            await asyncio.Event().wait()

    async def rows(*_: object) -> list[Any]:
        await reach("rows")
        return [{"entry": entry.to_list()}]

    async def open_places(*_: object) -> None:
        await reach("_open_places")

    async def write(*, final: bool) -> None:
        await reach("write")

    batch = batch_of_two(flow, credentials)
    monkeypatch.setattr(BatchRecordLog, "rows", rows)
    monkeypatch.setattr(batch, "_open_places", open_places)
    monkeypatch.setattr(batch._table, "write", write)

    assert await interrupt(batch, emulator, beginning.wait()) == ["cancelled"]
    assert batch.progress == "1 cancelled, 1 waiting"


async def test_an_interruption_while_the_record_cannot_be_read(
    flow: AsyncFlow,
    credentials: NoukaiCredentials,
    emulator: Emulator,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """A line says that jobs may be left running if a rerun is interrupted and its record is not readable."""
    beginning = asyncio.Event()

    async def rows(*_: object) -> list[Any]:
        if beginning.is_set():
            raise OSError("the server is gone")
        beginning.set()
        return await asyncio.Event().wait()

    monkeypatch.setattr(BatchRecordLog, "rows", rows)
    monkeypatch.setattr(RunContext, "logger", lambda _: logging.getLogger("noukai_core"))
    assert await interrupt(batch_of_two(flow, credentials), emulator, beginning.wait()) == []
    assert caplog.messages == [
        f"Noukai jobs of {FLOW}: may be left running (record not read: the server is gone)"
    ]
