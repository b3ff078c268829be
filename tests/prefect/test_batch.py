"""When a batch is interrupted, each running job is cancelled, even one that no task is waiting for."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import suppress
from typing import TYPE_CHECKING

import pytest

from noukai_core import AsyncFlow, JobRequest
from noukai_prefect import NoukaiCredentials
from noukai_prefect._batch import Batch, BatchOptions
from noukai_prefect._batch_table import BatchTable
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


async def test_jobs_that_wait_for_the_semaphore(flow: AsyncFlow, emulator: Emulator) -> None:
    """A job of an earlier attempt is cancelled even if its row still waits for `max_concurrency`."""
    table = BatchTable(TIMED_OUT, SLOT, FLOW, len(INPUTS), None)
    for row in table.rows:
        row.job_id, row.state = (await flow.job("hello")).id, "running"
    assert await interrupt(flow, table, emulator, ("poll", 1), None) == ["cancelled"] * 2


async def test_jobs_that_timed_out(flow: AsyncFlow, emulator: Emulator) -> None:
    """A job that timed out and was left running is cancelled with the others."""
    table = BatchTable(TIMED_OUT, SLOT, FLOW, len(INPUTS), None)
    assert await interrupt(flow, table, emulator, ("submit", 2), 1.5) == ["cancelled"] * 2
