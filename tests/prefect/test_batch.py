"""A batch is interrupted: each job that goes on is ended, also one that nobody waits for at that moment."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import suppress
from typing import TYPE_CHECKING

import pytest

from noukai_core import AsyncFlow
from noukai_prefect import NoukaiCredentials
from noukai_prefect._batch import Batch, BatchOptions
from noukai_prefect._batch_table import BatchTable
from noukai_prefect._run import JobRequest
from noukai_prefect._run_context import RunContext

if TYPE_CHECKING:
    from noukai_core.emulator import Emulator

FLOW = "acme/spelling/grade-3"
PLACE = "0f8e2c52-7d6f-4d0a-9a3e-55a8c8a1b9d4"
INPUTS = [JobRequest(FLOW, "hello")] * 2
OVER = RunContext(None, None, 1, time.monotonic(), None)  # its time is up: an interruption is to end the jobs


@pytest.fixture
async def flow(credentials: NoukaiCredentials, emulator: Emulator) -> AsyncIterator[AsyncFlow]:
    """A Noukai flow whose jobs do not end by themselves."""
    emulator.control.script("grade-3", outcome="never")
    async with credentials.get_client("async") as client:
        yield client.flow(FLOW)


async def interrupt(
    flow: AsyncFlow, record: BatchTable, emulator: Emulator, moment: tuple[str, int], timeout: float | None
) -> list[str]:
    """Interrupt a batch with room for one job at a moment, and return the states of the jobs."""
    options = BatchOptions(
        timeout=timeout,
        poll_interval=None,
        cancel_on_timeout=False,
        max_concurrency=1,
        max_polls_per_second=50,
        raise_on="none",
    )
    batch = asyncio.ensure_future(Batch(flow, INPUTS, options, OVER, record).outcomes())
    await asyncio.to_thread(emulator.control.wait_for, *moment)
    batch.cancel()
    with suppress(asyncio.CancelledError):
        await batch
    return [job["state"] for job in emulator.control.jobs()]


async def test_jobs_that_wait_for_room(flow: AsyncFlow, emulator: Emulator) -> None:
    """A job of an earlier attempt is cancelled also when its row still waits for room."""
    record = BatchTable(OVER, PLACE, FLOW, len(INPUTS), None)
    for row in record.rows:
        row.job_id, row.state = (await flow.job("hello")).id, "running"
    assert await interrupt(flow, record, emulator, ("poll", 1), None) == ["cancelled"] * 2


async def test_jobs_that_nobody_waits_for_any_more(flow: AsyncFlow, emulator: Emulator) -> None:
    """A job that was left to run when its time was over is cancelled with those that are waited for."""
    record = BatchTable(OVER, PLACE, FLOW, len(INPUTS), None)
    assert await interrupt(flow, record, emulator, ("submit", 2), 1.5) == ["cancelled"] * 2
