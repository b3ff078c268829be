"""A stream whose consumer is interrupted between two outcomes, while the jobs of the others run."""

from __future__ import annotations

import asyncio
import signal
from collections.abc import AsyncGenerator
from contextlib import aclosing
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import pytest
from prefect.exceptions import TerminationSignal

from noukai_core import JobOutcome
from noukai_prefect import NoukaiCredentials, _cancellation, stream_noukai_jobs
from noukai_prefect._batch import BatchRun
from noukai_prefect._cancellation import StoppedInThread
from noukai_prefect._run_context import RunContext
from noukai_prefect.batch_tasks import _in_own_task

if TYPE_CHECKING:
    from noukai_core.emulator import Emulator

FLOW = "acme/spelling/grade-3"
ENDLESS = {"parameters": {"_emulator": {"outcome": "never"}}}


def stream(credentials: NoukaiCredentials) -> AsyncGenerator[JobOutcome, None]:
    """Stream the outcomes of a quick job and of two that do not end."""
    return stream_noukai_jobs(credentials, FLOW, ["quick", ENDLESS, ENDLESS])


def states(emulator: Emulator) -> list[str]:
    """Return the states of all jobs."""
    return sorted(job["state"] for job in emulator.control.jobs())


async def all_submitted(emulator: Emulator) -> None:
    """Wait until every job is submitted."""
    while len(await asyncio.to_thread(emulator.control.jobs)) < 3:
        await asyncio.sleep(0.05)


@pytest.fixture
def slow_server(monkeypatch: pytest.MonkeyPatch) -> None:
    """A server of Prefect that takes a moment to say that a person has cancelled the flow run."""

    async def cancelled(*_: object) -> str:
        await asyncio.sleep(0.2)
        return "the flow run was cancelled"

    monkeypatch.setattr(_cancellation, "cancel_reason", cancelled)


@pytest.mark.usefixtures("slow_server")
@pytest.mark.parametrize("closed", [True, False], ids=["aclosing", "not closed"])
@pytest.mark.parametrize("reports", [0.0, 0.1], ids=["ends at once", "reports the crash"])
@pytest.mark.parametrize("how", ["signal", "cancellation"])
def test_a_cancel_between_two_outcomes(
    credentials: NoukaiCredentials, emulator: Emulator, how: str, reports: float, closed: bool
) -> None:
    """The jobs are cancelled before the event loop ends, wherever in its loop the flow is interrupted."""

    async def interrupt() -> None:
        await all_submitted(emulator)
        if how == "signal":
            raise TerminationSignal(signal=signal.SIGTERM)
        task = asyncio.current_task()
        assert task is not None
        task.cancel()
        await asyncio.Event().wait()

    async def consume() -> None:
        if closed:
            async with aclosing(stream(credentials)) as outcomes:
                async for _ in outcomes:
                    await interrupt()
        else:
            async for _ in stream(credentials):
                await interrupt()

    async def engine() -> None:
        try:
            await consume()
        finally:
            await asyncio.sleep(reports)

    with pytest.raises((TerminationSignal, asyncio.CancelledError)):
        asyncio.run(engine())
    assert states(emulator) == ["cancelled", "cancelled", "completed"]


def test_an_interrupt_between_two_outcomes(
    credentials: NoukaiCredentials, emulator: Emulator, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Ctrl-C cancels the jobs, even if the flow ends before Prefect's server has responded."""
    interrupted = _cancellation._interrupted

    async def reason(run: RunContext, interruption: BaseException | None) -> str | None:
        await asyncio.sleep(0.2)
        return "interrupted" if interrupted(interruption) else None

    monkeypatch.setattr(_cancellation, "cancel_reason", reason)

    async def consume() -> None:
        async for _ in stream(credentials):
            await all_submitted(emulator)
            signal.raise_signal(signal.SIGINT)
            await asyncio.Event().wait()

    async def engine() -> None:
        try:
            await consume()
        finally:
            await asyncio.sleep(0.1)  # reports the crash

    earlier = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        with pytest.raises(KeyboardInterrupt):
            asyncio.run(engine())
    finally:
        signal.signal(signal.SIGINT, earlier)
    assert states(emulator) == ["cancelled", "cancelled", "completed"]


async def test_nothing_is_read_ahead() -> None:
    """A stream does nothing before its next outcome is asked for, and what it raises reaches the consumer."""
    reached: list[str] = []

    async def stream() -> AsyncGenerator[Any, None]:
        reached.append("first")
        yield "first"
        reached.append("second")
        yield "second"
        raise StoppedInThread("stopped")

    outcomes = _in_own_task(stream())
    assert await anext(outcomes) == "first"
    await asyncio.sleep(0)
    assert reached == ["first"]
    assert await anext(outcomes) == "second"
    with pytest.raises(StoppedInThread):
        await anext(outcomes)


async def test_a_stream_that_is_cancelled_does_not_look_complete() -> None:
    """A consumer whose stream was cancelled from elsewhere is not told that there are no more outcomes."""

    async def stream() -> AsyncGenerator[Any, None]:
        yield "first"
        await asyncio.Event().wait()

    outcomes = _in_own_task(stream())
    await anext(outcomes)
    waiting = asyncio.ensure_future(anext(outcomes))
    await asyncio.sleep(0)
    for task in asyncio.all_tasks() - {waiting, asyncio.current_task()}:
        task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await waiting


async def test_a_cancellation_during_the_cleanup() -> None:
    """A cancellation that interrupts the cleanup is not lost: the cleanup is repeated, and the task ends."""
    cleanups: list[object] = []

    async def cancel_or_keep(batch: None, interruption: BaseException) -> None:
        cleanups.append(interruption)
        if len(cleanups) == 1:
            raise asyncio.CancelledError

    run: Any = SimpleNamespace(_cancel_or_keep=cancel_or_keep)
    closed = GeneratorExit()
    with pytest.raises(asyncio.CancelledError):
        await BatchRun._end_jobs(run, None, closed)
    assert cleanups == [closed, closed]
