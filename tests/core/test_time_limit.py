"""Time limits hold while a task that was cancelled tidies up, on every supported Python."""

from __future__ import annotations

import asyncio

import pytest

from noukai_core.time_limit import time_limit


async def late() -> None:
    async with time_limit(0.01):
        await asyncio.Event().wait()


async def test_a_limit_that_passes() -> None:
    """The block is interrupted, and the task that it is in was not cancelled."""
    with pytest.raises(TimeoutError):
        await late()
    task = asyncio.current_task()
    assert task is not None
    assert task.cancelling() == 0


async def test_a_limit_that_passes_in_a_task_that_was_cancelled() -> None:
    """It is a `TimeoutError`, as anywhere else: what follows it must happen."""
    said = list[str]()

    async def tidying_up() -> None:
        try:
            await asyncio.Event().wait()
        finally:
            try:
                await late()
            except TimeoutError:
                said.append("timed out")

    task = asyncio.ensure_future(tidying_up())
    await asyncio.sleep(0)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert said == ["timed out"]


async def test_a_cancellation_inside_a_limit() -> None:
    """It stays a cancellation, even if the limit passes in the same moment."""

    async def cancelled() -> None:
        async with time_limit(0.01):
            await asyncio.Event().wait()

    task = asyncio.ensure_future(cancelled())
    await asyncio.sleep(0)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
