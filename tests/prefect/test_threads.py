"""Tasks in threads, and sync tasks inside an event loop: how they learn that they have to stop."""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import threading
from collections.abc import AsyncIterator, Coroutine, Iterator
from contextlib import asynccontextmanager, nullcontext
from typing import TYPE_CHECKING, Any
from uuid import uuid4

import pytest
from prefect import flow
from prefect.context import FlowRunContext

from devtools.processes import wait_until
from noukai_prefect import (
    NoukaiCredentials,
    NoukaiJob,
    _cancellation,
    _sync,
    arun_noukai_job,
    run_noukai_job,
    run_noukai_jobs,
)
from noukai_prefect._run_context import RunContext
from noukai_prefect._sync import run_blocking

if TYPE_CHECKING:
    from noukai_core.emulator import Emulator

FLOW = "acme/spelling/grade-3"


class Stopped(BaseException):
    """What the handler raises, as Prefect's does."""


def _raise(number: int, frame: object) -> None:
    raise Stopped


@pytest.fixture
def handler() -> Iterator[None]:
    """A handler like Prefect's."""
    earlier = signal.signal(signal.SIGTERM, _raise)
    yield
    signal.signal(signal.SIGTERM, earlier)


@pytest.mark.usefixtures("handler")
async def test_an_interrupted_sync_task_cleans_up() -> None:
    """A signal that strikes a sync task in an async flow cancels its work, and waits for the cleanup."""
    steps: list[str] = []

    async def work() -> None:
        os.kill(os.getpid(), signal.SIGTERM)
        try:
            await asyncio.sleep(3600)
        finally:
            await asyncio.sleep(0.1)
            steps.append("cleaned up")

    with pytest.raises(Stopped):
        run_blocking(work())
    assert steps == ["cleaned up"]


@pytest.mark.usefixtures("handler")
async def test_a_sync_task_that_is_interrupted_at_its_start(monkeypatch: pytest.MonkeyPatch) -> None:
    """A signal that strikes before the work has begun keeps it from beginning."""
    begun: list[str] = []
    interrupted, ended = threading.Event(), threading.Event()

    async def work() -> None:
        begun.append("begun")

    def late(main: Coroutine[Any, Any, Any]) -> Any:
        os.kill(os.getpid(), signal.SIGTERM)
        interrupted.wait()
        with asyncio.Runner() as runner:
            outcome = runner.run(main)
        ended.set()
        return outcome

    monkeypatch.setattr(_sync.asyncio, "run", late)
    with pytest.raises(Stopped):
        run_blocking(work())
    interrupted.set()
    ended.wait()
    assert begun == []


def test_ctrl_c_stops_a_task_in_a_thread() -> None:
    """A task in a thread has to stop as soon as the event loop of its flow was interrupted."""
    run = RunContext(None, None, 1, None, None)

    async def interrupted_flow() -> list[bool]:
        before = await asyncio.to_thread(lambda: run.stop_requested)
        signal.raise_signal(signal.SIGINT)
        try:
            await asyncio.sleep(3600)
        except asyncio.CancelledError:
            return [before, await asyncio.to_thread(lambda: run.stop_requested)]
        raise AssertionError("not interrupted")

    earlier = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        assert asyncio.run(interrupted_flow()) == [False, True]
    finally:
        signal.signal(signal.SIGINT, earlier)


@pytest.fixture
def endless(emulator: Emulator) -> Emulator:
    """A local Noukai whose jobs run until they are cancelled or finished."""
    emulator.control.script("grade-3", outcome="never")
    return emulator


@pytest.mark.usefixtures("prefect_server")
@pytest.mark.parametrize("task", [run_noukai_job, run_noukai_jobs], ids=["job", "batch"])
def test_ctrl_c_ends_submitted_tasks(credentials: NoukaiCredentials, endless: Emulator, task: Any) -> None:
    """Ctrl-C on a local run ends its tasks in threads as cancelled, with their jobs."""
    given = "a" if task is run_noukai_job else ["a"]
    futures: list[Any] = []

    @flow
    def interrupted() -> None:
        futures.append(task.submit(credentials, FLOW, given))
        wait_until(lambda: any(endless.control.counts()[kind] for kind in ("poll", "session")), "a poll")
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert futures[0].state.is_cancelled()
    assert [job["state"] for job in endless.control.jobs()] == ["cancelled"]


@pytest.mark.usefixtures("prefect_server")
def test_which_runs_are_local() -> None:
    """A flow run is local if neither it nor one that called it belongs to a deployment."""

    @flow
    def inner() -> bool:
        return RunContext.current().local

    @flow
    def outer(deployed: bool) -> bool:
        context = FlowRunContext.get()
        assert context is not None
        assert context.flow_run is not None
        context.flow_run.deployment_id = uuid4() if deployed else None
        return inner()

    assert outer(deployed=False)
    assert not outer(deployed=True)
    assert not RunContext.current().local


@pytest.mark.usefixtures("prefect_server")
def test_ctrl_c_also_ends_the_server_of_prefect(
    credentials: NoukaiCredentials, endless: Emulator, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Ctrl-C on a local run cancels its job although Prefect's server is gone by then."""

    @asynccontextmanager
    async def gone() -> AsyncIterator[Any]:
        raise ConnectionError("no server")
        yield

    def stop() -> None:
        endless.control.wait_for("poll", timeout=300)
        monkeypatch.setattr(_cancellation, "prefect_client", gone)
        os.kill(os.getpid(), signal.SIGINT)

    stopping = threading.Thread(target=stop)
    stopping.start()
    with pytest.raises(KeyboardInterrupt):
        in_a_flow(credentials)
    stopping.join()
    assert [job["state"] for job in endless.control.jobs()] == ["cancelled"]


def in_no_run(credentials: NoukaiCredentials) -> None:
    NoukaiJob(credentials=credentials, flow=FLOW, message="a").trigger().wait_for_completion()


@flow
def in_a_flow(credentials: NoukaiCredentials) -> None:
    run_noukai_job(credentials, FLOW, "a")


@flow
def of_a_batch(credentials: NoukaiCredentials) -> None:
    run_noukai_jobs(credentials, FLOW, ["a"])


@pytest.mark.usefixtures("prefect_server")
@pytest.mark.parametrize("called", [in_no_run, in_a_flow, of_a_batch])
def test_an_interrupted_notebook(credentials: NoukaiCredentials, endless: Emulator, called: Any) -> None:
    """Stopping a cell cancels its job: the event loop of a notebook leaves Ctrl-C to Python's own handler."""

    async def cell() -> None:
        called(credentials)

    def stop() -> None:
        wait_until(lambda: any(endless.control.counts()[kind] for kind in ("poll", "session")), "a poll")
        os.kill(os.getpid(), signal.SIGINT)

    stopping = threading.Thread(target=stop)
    stopping.start()
    loop = asyncio.new_event_loop()
    with pytest.raises(KeyboardInterrupt):
        loop.run_until_complete(cell())
    stopping.join()
    loop.close()
    assert [job["state"] for job in endless.control.jobs()] == ["cancelled"]


@pytest.mark.usefixtures("prefect_server")
@pytest.mark.parametrize("fails", [False, True], ids=["returns", "fails"])
def test_a_flow_that_does_not_wait(credentials: NoukaiCredentials, endless: Emulator, fails: bool) -> None:
    """A flow that ends before a task in a thread lets it run to its end."""
    futures: list[Any] = []

    def finish() -> None:
        (job,) = endless.control.jobs()
        polls = endless.control.counts(job["id"])["poll"]
        endless.control.wait_for("poll", polls + 2, job_id=job["id"], timeout=300)
        endless.control.finish(job["id"], result="in time")

    finishing = threading.Thread(target=finish)

    @flow
    def ends_early() -> None:
        futures.append(run_noukai_job.submit(credentials, FLOW, "a", poll_interval=1))
        endless.control.wait_for("poll", timeout=300)
        finishing.start()
        if fails:
            raise ValueError("something else")

    with pytest.raises(ValueError, match="something else") if fails else nullcontext():
        ends_early()
    finishing.join()
    assert futures[0].result() == "in time"


async def test_a_blocking_call_in_async_code_names_its_twin(
    credentials: NoukaiCredentials, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """A blocking call that holds up an event loop says so, once per process and function."""
    monkeypatch.setattr(_sync, "_named", set())
    monkeypatch.setattr(RunContext, "logger", lambda _: logging.getLogger("of-a-test"))
    job = NoukaiJob(credentials=credentials, flow=FLOW, message="hello")
    for _ in range(2):
        assert run_noukai_job.fn(credentials, FLOW, "hello") == {"message": "hello"}
        run = job.trigger()
        assert run.fetch_result() == {"message": "hello"}
    named = [record.args for record in caplog.records if "blocks the event loop" in record.message]
    assert named == [("arun_noukai_job",), ("atrigger",), ("afetch_result",)]


async def test_async_code_and_hooks_are_not_warned(
    credentials: NoukaiCredentials, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Nothing is said of awaited functions, of threads without a loop, or of what the package itself runs."""
    monkeypatch.setattr(_sync, "_named", set())
    monkeypatch.setattr(RunContext, "logger", lambda _: logging.getLogger("of-a-test"))
    await arun_noukai_job.fn(credentials, FLOW, "hello")
    await asyncio.to_thread(run_noukai_job.fn, credentials, FLOW, "hello")
    run_blocking(asyncio.sleep(0))
    assert "blocks the event loop" not in caplog.text
