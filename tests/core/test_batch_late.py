"""Batches whose caller is late: busy in the body of its loop, gone, or interrupted once more."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import threading
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from typing import Any

import httpx
import pytest

from noukai_core import AsyncNoukai, InvalidInputError, JobTimeoutError, LedgerEntry, MemoryLedger, Noukai
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
        on_poll: Is called when a job is polled.
        running: How many other jobs have to be polled before that of "0" ends: the client knows them then.

    Attributes:
        submitted: The inputs that were submitted.
    """

    def __init__(
        self,
        on_cancel: Callable[[], None] = lambda: None,
        on_poll: Callable[[], None] = lambda: None,
        running: int = 0,
    ) -> None:
        self.submitted: list[str] = []
        self._on_cancel = on_cancel
        self._on_poll = on_poll
        self._running = running
        self._polled: set[str] = set()

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
        else:
            self._polled.add(request.url.path.rpartition("/")[2])
            self._on_poll()
        others = self._polled - {"job-0"}
        ended = request.url.path.endswith("job-0") and len(others) >= self._running
        state = "completed" if ended else "running"
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


def test_a_submission_whose_turn_comes_after_the_close(key: str) -> None:
    """What waits for its turn when a batch is closed is not sent."""
    service, turns = Service(), Turns()
    with Noukai(key, transport=service.transport, poll_interval=0.01) as client:
        vars(client._runner)["_submitting"] = turns
        with client.flow(FLOW).jobs(["0", "1"]) as batch:
            assert next(batch).state == "completed"
            assert turns.waiting.wait(60)
        turns.go.set()
        assert turns.gone.wait(60)
    assert service.submitted == ["0"]


@pytest.mark.parametrize("driver", ["sync", "async"])
def test_a_cancel_on_close_that_is_interrupted(
    driver: str, caplog: pytest.LogCaptureFixture, key: str
) -> None:
    """When a person does not wait for the cancels of a batch either, its jobs are named."""
    interruption = KeyboardInterrupt if driver == "sync" else asyncio.CancelledError

    def interrupt() -> None:
        raise interruption

    transport, inputs = Service(interrupt, running=2).transport, ["0", "1", "2"]
    with pytest.raises(interruption):
        if driver == "async":
            asyncio.run(_leave(transport, inputs, key))
        else:
            with (
                Noukai(key, transport=transport, poll_interval=0.05) as client,
                client.flow(FLOW).jobs(inputs, cancel_on_close=True) as batch,
            ):
                next(batch)
    (line,) = [record.getMessage() for record in caplog.records if "left running" in record.getMessage()]
    assert "left running (2 jobs;" in line


async def _leave(transport: httpx.MockTransport, inputs: list[str], key: str) -> None:
    async with (
        AsyncNoukai(key, transport=transport, poll_interval=0.05) as client,
        client.flow(FLOW).jobs(inputs, cancel_on_close=True) as batch,
    ):
        await anext(batch)


def test_a_batch_that_was_stopped_before_it_began(key: str) -> None:
    """A stopped batch says what an earlier run left, and `cancel` may follow."""
    service = Service(running=1)
    ledger = MemoryLedger()
    with Noukai(key, transport=service.transport, poll_interval=0.05) as client:
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


async def test_a_strand_that_goes_on_after_the_close(key: str) -> None:
    """An async batch whose ledger swallowed a cancellation submits nothing more."""
    service, ledger = Service(), StubbornLedger()
    async with AsyncNoukai(key, transport=service.transport) as client:
        batch = client.flow(FLOW).jobs([42, "0"], ledger=ledger)
        assert (await anext(batch)).state == "rejected"
        await ledger.writes.wait()
        await batch.aclose()
    assert service.submitted == []


def test_a_submission_that_is_on_its_way_at_the_close(caplog: pytest.LogCaptureFixture, key: str) -> None:
    """The log says that a submission without a response may have made one more job, and in which session."""
    arrived, released = threading.Event(), threading.Event()

    def respond(request: httpx.Request) -> httpx.Response:
        arrived.set()
        assert released.wait(60)
        return httpx.Response(202, json={"executionId": "job-1", "status": "started"})

    ledger = MemoryLedger()
    with Noukai(key, transport=httpx.MockTransport(respond)) as client:
        with client.flow(FLOW).jobs([42, "one"], ledger=ledger) as batch:
            assert next(batch).state == "rejected"
            assert arrived.wait(60)
        released.set()
    assert "left running (0 jobs, perhaps 1 more; " in caplog.text
    assert ledger.entries[1].session_id in caplog.text


@pytest.mark.parametrize("cancels", [False, True])
@pytest.mark.parametrize("driver", ["sync", "async"])
def test_a_close_after_a_stop(driver: str, cancels: bool, caplog: pytest.LogCaptureFixture, key: str) -> None:
    """A batch that was stopped, and is closed without a cancel, still cancels or names its jobs."""
    cancelled: list[None] = []
    transport = Service(lambda: cancelled.append(None), running=1).transport
    if driver == "async":
        asyncio.run(_stop(transport, cancels, key))
    else:
        with (
            Noukai(key, transport=transport, poll_interval=0.05) as client,
            client.flow(FLOW).jobs(["0", "1"], cancel_on_close=cancels) as batch,
        ):
            next(batch)
            batch.stop()
    assert len(cancelled) == cancels
    assert ("left running (" in caplog.text) is not cancels


async def _stop(transport: httpx.MockTransport, cancels: bool, key: str) -> None:
    async with (
        AsyncNoukai(key, transport=transport, poll_interval=0.05) as client,
        client.flow(FLOW).jobs(["0", "1"], cancel_on_close=cancels) as batch,
    ):
        await anext(batch)
        await batch.stop()


ENDS: dict[str, Callable[[Any], Any]] = {
    "close": lambda batch: batch.close() if hasattr(batch, "close") else batch.aclose(),
    "stop": lambda batch: batch.stop(),
    "cancel": lambda batch: batch.cancel("a test"),
}
"""What ends a batch, of either driver."""


@pytest.mark.parametrize("end", ENDS.values(), ids=ENDS)
def test_a_signal_ends_a_batch_whose_outcome_is_waited_for(end: Callable[[Any], Any], key: str) -> None:
    """A loop ends if a signal handler ends its batch while no outcome comes."""
    polled = threading.Event()

    def interrupt() -> None:
        if not polled.is_set():
            polled.set()
            os.kill(os.getpid(), signal.SIGUSR1)

    transport = Service(on_poll=interrupt).transport
    with Noukai(key, transport=transport, poll_interval=0.2) as client:
        batch = client.flow(FLOW).jobs(["1"])
        before = signal.signal(signal.SIGUSR1, lambda *_: end(batch))
        try:
            assert list(batch) == []
        finally:
            signal.signal(signal.SIGUSR1, before)


@pytest.mark.parametrize("end", ENDS.values(), ids=ENDS)
def test_a_second_thread_does_not_wait_for_an_outcome_of_a_batch(end: Callable[[Any], Any], key: str) -> None:
    """One thread at a time iterates over a batch: another gets an error at once, but may end the batch."""
    polled = threading.Event()
    transport = Service(on_poll=polled.set).transport
    with Noukai(key, transport=transport, poll_interval=0.05) as client, ThreadPoolExecutor(1) as pool:
        batch = client.flow(FLOW).jobs(["1"])
        loop = pool.submit(list[Any], batch)
        try:
            assert polled.wait(60)
            with pytest.raises(InvalidInputError, match="one thread at a time"):
                next(batch)
            assert batch.counts == {"running": 1}
        finally:
            end(batch)
        assert loop.result(60) == []


def test_threads_that_take_turns_at_a_batch(key: str) -> None:
    """A batch goes on in another thread, also after an input that asked for an outcome itself."""

    def inputs() -> Iterator[Any]:
        yield 42
        with pytest.raises(InvalidInputError, match="one thread at a time"):
            next(batch)
        yield "0"

    with Noukai(key, transport=Service().transport, poll_interval=0.05) as client:
        batch = client.flow(FLOW).jobs(inputs())
        with ThreadPoolExecutor(1) as pool:
            outcomes = [pool.submit(next, batch).result(60), next(batch)]
        assert [outcome.state for outcome in outcomes] == ["rejected", "completed"]
        assert list(batch) == []


@pytest.mark.parametrize("end", ENDS.values(), ids=ENDS)
async def test_a_task_ends_a_batch_whose_outcome_another_waits_for(
    end: Callable[[Any], Any], key: str
) -> None:
    """A loop ends if another task ends its batch while no outcome comes."""
    polled = asyncio.Event()
    async with AsyncNoukai(key, transport=Service(on_poll=polled.set).transport) as client:
        batch = client.flow(FLOW).jobs(["1"])

        async def outcomes() -> list[Any]:
            return [outcome async for outcome in batch]

        loop = asyncio.create_task(outcomes())
        await polled.wait()
        await end(batch)
        assert await loop == []


@pytest.mark.parametrize("end", ENDS.values(), ids=ENDS)
@pytest.mark.parametrize("driver", ["sync", "async"])
def test_inputs_that_end_their_batch(driver: str, end: Callable[[Any], Any], key: str) -> None:
    """An iterable of inputs may end its batch; nothing more is submitted, and the loop ends."""
    service = Service()
    if driver == "async":
        asyncio.run(_end_from_inputs(service, end, key))
        return

    def inputs() -> Iterator[str]:
        yield "1"
        end(batch)
        yield "2"

    with Noukai(key, transport=service.transport) as client:
        batch = client.flow(FLOW).jobs(inputs())
        assert list(batch) == []
    assert service.submitted == ["1"]


async def _end_from_inputs(service: Service, end: Callable[[Any], Any], key: str) -> None:
    async def inputs() -> AsyncIterator[str]:
        yield "1"
        await end(batch)
        yield "2"

    async with AsyncNoukai(key, transport=service.transport) as client:
        batch = client.flow(FLOW).jobs(inputs())
        assert [outcome async for outcome in batch] == []
    assert service.submitted == ["1"]


@pytest.mark.parametrize("driver", ["sync", "async"])
def test_a_cancel_that_is_interrupted(driver: str, caplog: pytest.LogCaptureFixture, key: str) -> None:
    """When a person does not wait for the cancels of `cancel`, the jobs are named as well, once."""
    interruption = KeyboardInterrupt if driver == "sync" else asyncio.CancelledError

    def interrupt() -> None:
        raise interruption

    transport = Service(interrupt, running=1).transport
    with pytest.raises(interruption):
        if driver == "async":
            asyncio.run(_cancel(transport, key))
        else:
            with (
                Noukai(key, transport=transport, poll_interval=0.05) as client,
                client.flow(FLOW).jobs(["0", "1"]) as batch,
            ):
                next(batch)
                batch.cancel("a test")
    assert len([line for line in caplog.messages if "left running (" in line]) == 1


async def _cancel(transport: httpx.MockTransport, key: str) -> None:
    async with (
        AsyncNoukai(key, transport=transport, poll_interval=0.05) as client,
        client.flow(FLOW).jobs(["0", "1"]) as batch,
    ):
        await anext(batch)
        await batch.cancel("a test")


class UnreadableLedger(MemoryLedger):
    """A ledger that cannot be read once."""

    fails = True

    def read(self) -> Mapping[int, LedgerEntry]:
        """Read the entries."""
        if self.fails:
            self.fails = False
            raise OSError("the disk is away")
        return super().read()


@pytest.mark.parametrize("driver", ["sync", "async"])
def test_a_ledger_that_cannot_be_read_at_first(driver: str, key: str) -> None:
    """A second cancel reads the ledger again, and cancels what an earlier run left."""
    cancelled: list[None] = []
    transport, ledger = Service(lambda: cancelled.append(None)).transport, UnreadableLedger()
    ledger.write(
        LedgerEntry(index=0, submission_id=BATCH, session_id=BATCH, job_id="job-1", state="submitted")
    )
    if driver == "async":
        asyncio.run(_cancel_twice(transport, ledger, key))
    else:
        with Noukai(key, transport=transport) as client:
            batch = client.flow(FLOW).jobs(["1"], ledger=ledger, batch_id=BATCH)
            with pytest.raises(OSError, match="the disk is away"):
                batch.cancel("a test")
            batch.cancel("a test")
    assert cancelled == [None]


async def _cancel_twice(transport: httpx.MockTransport, ledger: MemoryLedger, key: str) -> None:
    async with AsyncNoukai(key, transport=transport) as client:
        batch = client.flow(FLOW).jobs(["1"], ledger=ledger, batch_id=BATCH)
        with pytest.raises(OSError, match="the disk is away"):
            await batch.cancel("a test")
        await batch.cancel("a test")


def test_a_close_that_is_interrupted(monkeypatch: pytest.MonkeyPatch, key: str) -> None:
    """A submission that was under way when a close was interrupted keeps no rerun in the process waiting."""
    inputs, arrived, released = [str(number) for number in range(9)], threading.Event(), threading.Event()

    def respond(request: httpx.Request) -> httpx.Response:
        if request.method == "POST":
            message = json.loads(request.content)["message"]
            if message == inputs[-1] and not released.is_set():
                arrived.set()
                assert released.wait(60)
            return httpx.Response(202, json={"executionId": f"job-{message}", "status": "started"})
        session = request.url.path.rpartition("/")[2]
        polled.add(session)
        ended = session == "job-0" and arrived.is_set() and polled - {"job-0"}
        state = "completed" if ended or released.is_set() else "running"
        return httpx.Response(200, json={"sessionId": session, "executions": [], "status": state})

    polled: set[str] = set()
    interruptions = [KeyboardInterrupt()]

    def measure(name: str, amount: int = 1) -> None:
        if (name, amount) == ("noukai.jobs.waiting", -1) and interruptions:
            raise interruptions.pop()

    options: Any = {"ledger": MemoryLedger(), "batch_id": BATCH, "poll_interval": 0.05}
    with Noukai(key, transport=httpx.MockTransport(respond), recovery_timeout=0.1) as client:
        batch = client.flow(FLOW).jobs(inputs, **options)
        assert next(batch).state == "completed"
        with monkeypatch.context() as patched, pytest.raises(KeyboardInterrupt):
            patched.setattr("noukai_core._engine.wait.measure", measure)
            batch.close()
        released.set()
        rerun = list(client.flow(FLOW).jobs(inputs, **options))
    assert len(rerun) == len(inputs)


@pytest.mark.parametrize("code", ["JOB_NOT_FOUND", "RUN_NOT_FOUND"])
async def test_a_cancel_of_a_job_that_only_the_list_shows(code: str, key: str) -> None:
    """A job whose submission was interrupted is cancelled, although a replica does not know it yet."""
    arrived, cancels = asyncio.Event(), 0

    async def respond(request: httpx.Request) -> httpx.Response:
        nonlocal cancels
        if request.url.path.endswith("/cancel"):
            cancels += 1
            if cancels == 1:
                return httpx.Response(404, json={"detail": {"code": code, "message": "unknown"}})
        elif request.method == "POST":
            arrived.set()
            await asyncio.sleep(60)
        elif "/sessions/" in request.url.path:
            job = {"executionId": "job-1", "status": "running", "triggerType": "job"}
            session = request.url.path.rpartition("/")[2]
            return httpx.Response(200, json={"sessionId": session, "executions": [job]})
        return httpx.Response(200, json={"status": "running"})

    async with AsyncNoukai(key, transport=httpx.MockTransport(respond)) as client:
        batch = client.flow(FLOW).jobs(["1"])
        loop = asyncio.ensure_future(anext(batch))
        await arrived.wait()
        (outcome,) = await batch.cancel("a test")
        with suppress(StopAsyncIteration):
            await loop
    assert (cancels, outcome.cancelled) == (2, True)
