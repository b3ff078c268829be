"""Batches whose caller is late: busy in the body of its loop, gone, or interrupted once more."""

from __future__ import annotations

import asyncio
import json
import re
import threading
from collections.abc import Callable
from contextlib import suppress
from typing import Any

import httpx
import pytest

from noukai_core import AsyncNoukai, JobTimeoutError, LedgerEntry, MemoryLedger, Noukai
from noukai_core._engine.effects import Send, Sleep
from noukai_core._engine.rate_limit import PollRateLimiter
from noukai_core._engine.wait import Poller
from noukai_core._options import ClientOptions
from noukai_core.models import JobState, JobStatus
from tests.core.scripted_server import FLOW, KEY

BATCH = "3b241101-e2bb-4255-8caf-4136c566a962"
RUNNING = JobStatus(id="job-1", state=JobState.RUNNING)
ENDED = JobStatus(id="job-1", state=JobState.COMPLETED)


class Service:
    """Runs the job of the input "0" to its end, and never ends any other.

    Args:
        on_cancel: Is called when a job is cancelled.

    Attributes:
        submitted: The inputs that were submitted.
    """

    def __init__(self, on_cancel: Callable[[], None] = lambda: None) -> None:
        self.submitted: list[str] = []
        self._on_cancel = on_cancel

    @property
    def transport(self) -> httpx.MockTransport:
        """What takes the requests of a client to it."""
        return httpx.MockTransport(self._respond)

    def _respond(self, request: httpx.Request) -> httpx.Response:
        if request.url.path.endswith("/cancel"):
            self._on_cancel()
        elif request.method == "POST":
            self.submitted.append(json.loads(request.content)["message"])
            return httpx.Response(202, json={"executionId": f"job-{self.submitted[-1]}", "status": "started"})
        state = "completed" if request.url.path.endswith("job-0") else "running"
        return httpx.Response(200, json={"status": state, "result": 1})


@pytest.mark.parametrize("late", ["in a pause", "with a response"])
@pytest.mark.parametrize("last", [RUNNING, ENDED], ids=["runs on", "has ended"])
def test_a_wait_that_is_resumed_long_after_its_deadline(late: str, last: JobStatus) -> None:
    """A job that ended while the caller was busy has not timed out; one that runs on has."""
    now = 0.0
    settings = ClientOptions.of(api_key=KEY)
    limiter = PollRateLimiter(1.0)
    flow = settings.flow_path(FLOW)
    effects = Poller(flow, "job-1", settings, limiter, lambda: now, timeout=30.0).effects()
    polls, response, busy = 0, None, False
    try:
        while True:
            step = effects.send(response)
            response = None
            if isinstance(step, Sleep):
                now += step.seconds
            elif isinstance(step, Send):
                polls += 1
                response = last if busy else RUNNING
            if polls == 1 and not busy and isinstance(step, Send if late == "with a response" else Sleep):
                busy, now = True, 600.0
                for _ in range(3):
                    limiter.reserve(now)  # other waits are as late
    except StopIteration as end:
        assert end.value == last == ENDED
    except JobTimeoutError:
        assert last == RUNNING
    assert polls == 2


class Turns:
    """Lets the first submission go, and holds the second one."""

    def __init__(self) -> None:
        self.waiting, self.go, self.gone = threading.Event(), threading.Event(), threading.Event()
        self._entered = 0

    def __enter__(self) -> None:
        self._entered += 1
        if self._entered == 2:
            self.waiting.set()
            assert self.go.wait(60)

    def __exit__(self, *_: object) -> None:
        if self._entered == 2:
            self.gone.set()


def test_a_submission_whose_turn_comes_after_the_close() -> None:
    """What waits for its turn when a batch is closed is not sent."""
    service, turns = Service(), Turns()
    with Noukai(KEY, transport=service.transport, poll_interval=0.01) as client:
        vars(client._runner)["_submitting"] = turns
        with client.flow(FLOW).jobs(["0", "1"]) as batch:
            assert next(batch).state == "completed"
            assert turns.waiting.wait(60)
        turns.go.set()
        assert turns.gone.wait(60)
    assert service.submitted == ["0"]


@pytest.mark.parametrize("driver", ["sync", "async"])
def test_a_cancel_on_close_that_is_interrupted(driver: str, caplog: pytest.LogCaptureFixture) -> None:
    """When a person does not wait for the cancels of a batch either, its jobs are named."""
    interruption = KeyboardInterrupt if driver == "sync" else asyncio.CancelledError

    def interrupt() -> None:
        raise interruption

    transport, inputs = Service(interrupt).transport, ["0", "1", "2"]
    with pytest.raises(interruption):
        if driver == "async":
            asyncio.run(_leave(transport, inputs))
        else:
            with (
                Noukai(KEY, transport=transport) as client,
                client.flow(FLOW).jobs(inputs, cancel_on_close=True) as batch,
            ):
                next(batch)
    (line,) = [record.getMessage() for record in caplog.records if "left running" in record.getMessage()]
    assert re.search(r"left running \((2 jobs|1 jobs, perhaps 1 more|0 jobs, perhaps 2 more);", line)


async def _leave(transport: httpx.MockTransport, inputs: list[str]) -> None:
    async with (
        AsyncNoukai(KEY, transport=transport) as client,
        client.flow(FLOW).jobs(inputs, cancel_on_close=True) as batch,
    ):
        await anext(batch)


def test_a_batch_that_was_stopped_before_it_began() -> None:
    """A stopped batch says what an earlier run left, and `cancel` may follow."""
    service = Service()
    ledger = MemoryLedger()
    with Noukai(KEY, transport=service.transport) as client:
        flow = client.flow(FLOW)
        options: Any = {"ledger": ledger, "batch_id": BATCH}
        with flow.jobs(["0", "1"], **options) as batch:
            next(batch)
        later = flow.jobs(["0", "1"], **options)
        later.stop()
        assert list(later.unfinished) == [1]
        assert list(later) == []
        (outcome,) = later.cancel("a test")
        assert outcome.cancelled
    assert service.submitted == ["0", "1"]


class StubbornLedger(MemoryLedger):
    """A ledger whose writes swallow a cancellation.

    Attributes:
        writes: Set once something is written.
    """

    def __init__(self) -> None:
        super().__init__()
        self.writes = asyncio.Event()

    async def write(self, entry: LedgerEntry) -> None:  # type: ignore[override]
        """Write an entry."""
        super().write(entry)
        self.writes.set()
        with suppress(asyncio.CancelledError):
            await asyncio.sleep(60)


async def test_a_strand_that_goes_on_after_the_close() -> None:
    """An async batch whose ledger swallowed a cancellation submits nothing more."""
    service, ledger = Service(), StubbornLedger()
    async with AsyncNoukai(KEY, transport=service.transport) as client:
        batch = client.flow(FLOW).jobs([42, "0"], ledger=ledger)
        assert (await anext(batch)).state == "rejected"
        await ledger.writes.wait()
        await batch.aclose()
    assert service.submitted == []


def test_a_submission_that_is_on_its_way_at_the_close(caplog: pytest.LogCaptureFixture) -> None:
    """The log says that a submission without a response may have made one more job, and in which session."""
    arrived, released = threading.Event(), threading.Event()

    def respond(request: httpx.Request) -> httpx.Response:
        arrived.set()
        assert released.wait(60)
        return httpx.Response(202, json={"executionId": "job-1", "status": "started"})

    ledger = MemoryLedger()
    with Noukai(KEY, transport=httpx.MockTransport(respond)) as client:
        with client.flow(FLOW).jobs([42, "one"], ledger=ledger) as batch:
            assert next(batch).state == "rejected"
            assert arrived.wait(60)
        released.set()
    assert "left running (0 jobs, perhaps 1 more; " in caplog.text
    assert ledger.entries[1].session_id in caplog.text


@pytest.mark.parametrize("cancels", [False, True])
@pytest.mark.parametrize("driver", ["sync", "async"])
def test_a_close_after_a_stop(driver: str, cancels: bool, caplog: pytest.LogCaptureFixture) -> None:
    """A batch that was stopped, and is closed without a cancel, still cancels or names its jobs."""
    cancelled: list[None] = []
    transport = Service(lambda: cancelled.append(None)).transport
    if driver == "async":
        asyncio.run(_stop(transport, cancels))
    else:
        with (
            Noukai(KEY, transport=transport) as client,
            client.flow(FLOW).jobs(["1", 42], cancel_on_close=cancels) as batch,
        ):
            next(batch)
            batch.stop()
    assert len(cancelled) == cancels
    assert ("left running (" in caplog.text) is not cancels


async def _stop(transport: httpx.MockTransport, cancels: bool) -> None:
    async with (
        AsyncNoukai(KEY, transport=transport) as client,
        client.flow(FLOW).jobs(["1", 42], cancel_on_close=cancels) as batch,
    ):
        await anext(batch)
        await batch.stop()
