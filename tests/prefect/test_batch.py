"""When a batch is interrupted, each running job is cancelled, even one that no task is waiting for."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import suppress
from typing import TYPE_CHECKING
from uuid import uuid4

import pytest

from noukai_core import AsyncFlow, JobRequest, Submission
from noukai_prefect import NoukaiCredentials
from noukai_prefect._batch import Batch, BatchOptions
from noukai_prefect._batch_table import BatchTable
from noukai_prefect._job_store import JobRecord
from noukai_prefect._run import SubmissionState, _attach
from noukai_prefect._run_context import RunContext

if TYPE_CHECKING:
    from noukai_core.emulator import Emulator

FLOW = "acme/spelling/grade-3"
SLOT = "0f8e2c52-7d6f-4d0a-9a3e-55a8c8a1b9d4"
INPUTS = [JobRequest(FLOW, "hello")] * 2
TIMED_OUT = RunContext(None, None, 1, time.monotonic(), None)  # an interruption cancels its jobs


@pytest.fixture
async def flow(credentials: NoukaiCredentials, emulator: Emulator) -> AsyncIterator[AsyncFlow]:
    """A Noukai flow whose jobs run until they are cancelled."""
    emulator.control.script("grade-3", outcome="never")
    async with credentials.get_client("async") as client:
        yield client.flow(FLOW)


def table_of(flow: AsyncFlow, credentials: NoukaiCredentials) -> BatchTable:
    """Return the table of two jobs."""
    return BatchTable(TIMED_OUT, SLOT, flow.path, ["hello"] * len(INPUTS), credentials)


async def interrupt(
    flow: AsyncFlow, table: BatchTable, emulator: Emulator, moment: tuple[str, int], timeout: float | None
) -> list[str]:
    """Interrupt a batch that runs one job at a time, after a request, and return the states of the jobs."""
    options = BatchOptions(
        timeout=timeout,
        poll_interval=None,
        cancel_on_timeout=False,
        max_concurrency=1,
        max_polls_per_second=50,
        raise_on="none",
    )
    batch = asyncio.ensure_future(Batch(flow, INPUTS, options, TIMED_OUT, table).outcomes())
    await asyncio.to_thread(emulator.control.wait_for, *moment)
    batch.cancel()
    with suppress(asyncio.CancelledError):
        await batch
    return [job["state"] for job in emulator.control.jobs()]


async def test_jobs_that_wait_for_the_semaphore(
    flow: AsyncFlow, credentials: NoukaiCredentials, emulator: Emulator
) -> None:
    """A job of an earlier attempt is cancelled even if its row still waits for `max_concurrency`."""
    table = table_of(flow, credentials)
    for row in table.rows:
        row.job_id, row.state = (await flow.job("hello")).id, "running"
    assert await interrupt(flow, table, emulator, ("poll", 1), None) == ["cancelled"] * 2


async def test_jobs_that_timed_out(
    flow: AsyncFlow, credentials: NoukaiCredentials, emulator: Emulator
) -> None:
    """A job that timed out and was left running is cancelled with the others."""
    table = table_of(flow, credentials)
    assert await interrupt(flow, table, emulator, ("submit", 2), 1.5) == ["cancelled"] * 2


async def test_a_job_that_only_its_session_knows_is_not_replaced(
    flow: AsyncFlow, credentials: NoukaiCredentials, emulator: Emulator
) -> None:
    """A row whose job the server does not know waits for the job that its submission's session lists."""
    emulator.control.script("grade-3", outcome="completed")
    table = BatchTable(TIMED_OUT, str(uuid4()), FLOW, ["hello"], credentials)
    (row,) = table.rows
    made = await flow.job("hello", submission=table.submission(row))
    row.job_id, row.state = "job-gone", "running"
    options = BatchOptions(
        timeout=None,
        poll_interval=None,
        cancel_on_timeout=False,
        max_concurrency=1,
        max_polls_per_second=50,
        raise_on="none",
    )
    (outcome,) = await Batch(flow, INPUTS[:1], options, TIMED_OUT, table).outcomes()
    assert (outcome.state, row.state) == ("completed", "completed")
    assert [job["id"] for job in emulator.control.jobs()] == [made.id]


async def test_a_record_whose_job_only_its_session_knows_is_attached(
    flow: AsyncFlow, emulator: Emulator
) -> None:
    """A rerun whose job the server does not know asks the session before it submits."""
    submission = Submission.new()
    made = await flow.job("hello", submission=submission)
    record = JobRecord(submission_id=submission.id, flow=FLOW, slot=SLOT, job_id="job-gone")
    attached = await _attach(flow, record, TIMED_OUT, SubmissionState(), listed=True)
    assert attached is not None
    assert attached.id == made.id
    unknown = JobRecord(submission_id=Submission.new().id, flow=FLOW, slot=SLOT, job_id="job-gone")
    assert await _attach(flow, unknown, TIMED_OUT, SubmissionState(), listed=True) is None
