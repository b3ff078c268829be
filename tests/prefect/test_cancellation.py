"""What an interruption does to a job, at each moment at which it can strike."""

from __future__ import annotations

import asyncio
import logging
import threading
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any
from uuid import UUID

import pytest
from prefect import flow, task
from prefect.client.orchestration import get_client
from prefect.states import Cancelling, Crashed, Paused, Running

from noukai_core import AsyncFlow, JobTimeoutError, Submission
from noukai_prefect import NoukaiCredentials, _cancellation, _prefect_client
from noukai_prefect._cancellation import (
    StoppedInThread,
    SubmissionState,
    as_cancelled_state,
    cancel_on_timeout,
    cancel_or_keep,
    cancel_reason,
    run_until_stopped,
    watch_for_stop,
)
from noukai_prefect._run import WaitOptions, wait
from noukai_prefect._run_context import RunContext

if TYPE_CHECKING:
    from noukai_core.emulator import Emulator

FLOW = "acme/spelling/grade-3"


@dataclass(frozen=True)
class LoggedRun(RunContext):
    """A run whose log is that of this process."""

    asks_server: bool = False

    def logger(self) -> Any:
        return logging.getLogger("noukai_prefect")

    @property
    def must_ask_server(self) -> bool:
        return self.asks_server


def run(flow_run_id: UUID | None = None, **changes: Any) -> LoggedRun:
    """Return a run that nothing has ended."""
    known: dict[str, Any] = {
        "task_run_id": None,
        "task_attempt": 1,
        "times_out_at": None,
        "cancel_event": None,
    }
    return LoggedRun(flow_run_id, **known | changes)


@pytest.fixture
async def noukai_flow(credentials: NoukaiCredentials, emulator: Emulator) -> AsyncIterator[AsyncFlow]:
    """A flow whose jobs run until they are cancelled."""
    emulator.control.script("*", outcome="never")
    async with credentials.get_client("async") as client:
        yield client.flow(FLOW)


@pytest.fixture
def quick_lookups(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_cancellation, "_LOOKUP_PAUSE", 0.01)


@pytest.fixture
def log(caplog: pytest.LogCaptureFixture) -> Iterator[pytest.LogCaptureFixture]:
    """What the run logs."""
    logger = logging.getLogger("noukai_prefect")
    logger.addHandler(caplog.handler)
    with caplog.at_level(logging.INFO, logger="noukai_prefect"):
        yield caplog
    logger.removeHandler(caplog.handler)


@pytest.mark.parametrize(
    ("interrupted", "interruption", "cancelled"),
    [
        (run(), KeyboardInterrupt(), True),
        (run(), asyncio.CancelledError(), False),
        (run(times_out_at=0.0), asyncio.CancelledError(), True),
    ],
    ids=["Ctrl-C", "shutdown", "timeout"],
)
async def test_an_interruption_during_a_wait(
    interrupted: RunContext,
    interruption: BaseException,
    cancelled: bool,
    noukai_flow: AsyncFlow,
    emulator: Emulator,
    log: pytest.LogCaptureFixture,
) -> None:
    """A person and a timeout cancel the job; a shutdown leaves it running, and the log names it."""
    job = await noukai_flow.job("hello")
    assert await cancel_or_keep(SubmissionState(job=job), interrupted, interruption) is cancelled
    counts = await asyncio.to_thread(emulator.control.counts, job.id)
    assert counts["cancel"] == int(cancelled)
    assert f"Noukai job {job.id} of {FLOW}: {'cancelled (' if cancelled else 'left running ('}" in log.text


@pytest.mark.parametrize(
    ("left", "promised"),
    [
        (run(UUID(int=1)), "a rerun of this flow run attaches to it"),
        (run(task_run_id=UUID(int=2)), "a retry of this task run attaches to it"),
        (run(), "outside a run, nothing attaches to it"),
    ],
    ids=["flow", "task", "no run"],
)
async def test_what_attaches_to_a_job(
    left: RunContext,
    promised: str,
    noukai_flow: AsyncFlow,
    monkeypatch: pytest.MonkeyPatch,
    log: pytest.LogCaptureFixture,
) -> None:
    """The line about a job that is left running promises no rerun where there is none."""

    async def nobody_ended_it(*_: object) -> None:
        return None

    monkeypatch.setattr(_cancellation, "cancel_reason", nobody_ended_it)
    job = await noukai_flow.job("hello")
    assert not await cancel_or_keep(SubmissionState(job=job), left, asyncio.CancelledError())
    assert f"Noukai job {job.id} of {FLOW}: left running ({promised})" in log.messages


async def test_an_interruption_before_the_response(
    noukai_flow: AsyncFlow, emulator: Emulator, log: pytest.LogCaptureFixture
) -> None:
    """The job of a submission whose response did not come any more is found and cancelled."""
    submission = Submission.new()
    job = await noukai_flow.job("hello", submission=submission)
    state = SubmissionState((noukai_flow, submission))
    assert await cancel_or_keep(state, run(), KeyboardInterrupt())
    assert state.job is not None
    assert state.job.id == job.id
    assert (await job.status()).state == "cancelled"


@pytest.mark.usefixtures("quick_lookups")
@pytest.mark.parametrize("fails", [False, True], ids=["not found", "lookup fails"])
async def test_a_submission_whose_job_is_not_found(
    fails: bool, noukai_flow: AsyncFlow, emulator: Emulator, log: pytest.LogCaptureFixture
) -> None:
    """A submission whose job cannot be found when a person interrupts it is named as possibly running."""
    if fails:
        await asyncio.to_thread(emulator.control.fault, "status", on="session", times=None, status=403)
    submission = Submission.new()
    assert not await cancel_or_keep(SubmissionState((noukai_flow, submission)), run(), KeyboardInterrupt())
    name = f"Noukai submission {submission.id} to {FLOW}"
    assert f"{name}: may be left running (interrupted before the response)" in log.text
    assert (f"{name}: lookup failed: " in log.text) is fails


async def test_a_shutdown_before_the_response(
    noukai_flow: AsyncFlow, emulator: Emulator, log: pytest.LogCaptureFixture
) -> None:
    """A shutdown during a submission asks for nothing, and names the submission."""
    submission = Submission.new()
    state = SubmissionState((noukai_flow, submission))
    assert not await cancel_or_keep(state, run(), asyncio.CancelledError())
    assert f"Noukai submission {submission.id} to {FLOW}: may be left running" in log.text
    assert (await asyncio.to_thread(emulator.control.counts))["session"] == 0


@pytest.mark.parametrize("known", [True, False], ids=["job", "submission"])
async def test_a_server_that_does_not_respond_to_a_cancel(
    known: bool,
    noukai_flow: AsyncFlow,
    emulator: Emulator,
    monkeypatch: pytest.MonkeyPatch,
    log: pytest.LogCaptureFixture,
) -> None:
    """The cleanup ends in time, before Prefect kills the process, and names what may be running."""
    submission = Submission.new()
    job = await noukai_flow.job("hello", submission=submission)
    for kind in ("cancel", "session"):
        await asyncio.to_thread(emulator.control.fault, "slow", on=kind, times=None, seconds=60)
    monkeypatch.setattr(_cancellation, "CLEANUP_SECONDS", 0.2)
    state = SubmissionState(job=job) if known else SubmissionState((noukai_flow, submission))
    assert not await cancel_or_keep(state, run(), KeyboardInterrupt())
    name = (
        f"Noukai job {job.id} of {FLOW}: cancel failed (" if known else f"Noukai submission {submission.id}"
    )
    assert name in log.text
    assert "no confirmation within 0.2 s" in log.text


async def test_a_record_of_a_cancelled_job_that_takes_too_long(
    noukai_flow: AsyncFlow, monkeypatch: pytest.MonkeyPatch, log: pytest.LogCaptureFixture
) -> None:
    """A job that was cancelled is not said to be running because Prefect's server does not record that."""

    async def hang(*_: object) -> None:
        await asyncio.Event().wait()

    monkeypatch.setattr(_cancellation._job_store, "record_end", hang)
    monkeypatch.setattr(_cancellation, "CLEANUP_SECONDS", 3.0)
    job = await noukai_flow.job("hello")
    assert await cancel_or_keep(SubmissionState(job=job), run(), KeyboardInterrupt())
    assert "cancel failed" not in log.text
    assert f"Noukai job {job.id} of {FLOW}: not recorded (no confirmation within 3 s)" in log.messages


async def test_a_server_of_prefect_that_is_away(
    monkeypatch: pytest.MonkeyPatch, log: pytest.LogCaptureFixture
) -> None:
    """While Prefect does not say whether a run was cancelled, only Ctrl-C on a local run cancels its jobs."""

    def fail() -> Any:
        raise ConnectionError("no server")

    monkeypatch.setattr(_prefect_client, "get_client", fail)
    flow_run_id = UUID(int=1)
    local = run(flow_run_id, local=True)
    assert await cancel_reason(local, KeyboardInterrupt()) == "interrupted"
    assert log.messages == []
    assert await cancel_reason(local, asyncio.CancelledError()) is None
    assert await cancel_reason(run(flow_run_id), KeyboardInterrupt()) is None
    assert f"Prefect flow run {flow_run_id}: cancellation unknown (Noukai jobs are left running)" in log.text


@flow
def of_a_person() -> None:
    """Stand for any flow."""


@task
def of_a_flow() -> None:
    """Stand for the task run that a subflow has in its parent."""


@pytest.mark.usefixtures("prefect_server")
async def test_who_ended_a_subflow() -> None:
    """A cancel of a flow run reaches the jobs of its subflows, and so does Ctrl-C on a local run."""
    async with get_client() as client:
        parent = await client.create_flow_run(of_a_person, state=Running())
        called = await client.create_task_run(of_a_flow, parent.id, dynamic_key="0")
        child = await client.create_flow_run(of_a_person, parent_task_run_id=called.id, state=Running())
        assert await cancel_reason(run(child.id), asyncio.CancelledError()) is None
        assert await cancel_reason(run(child.id), KeyboardInterrupt()) == "interrupted"
        await client.set_flow_run_state(parent.id, Cancelling(), force=True)
        reason = await cancel_reason(run(child.id), asyncio.CancelledError())
    assert reason == "the flow run was cancelled"


@pytest.mark.usefixtures("prefect_server")
async def test_an_attempt_beside_which_prefect_has_begun_another(
    noukai_flow: AsyncFlow, emulator: Emulator, log: pytest.LogCaptureFixture
) -> None:
    """The deadlines of an attempt that Prefect took for dead do not end the job of the next one."""
    job = await noukai_flow.job("hello")
    timed_out = JobTimeoutError("it took too long", job_id=job.id)
    async with get_client() as client:
        flow_run = await client.create_flow_run(of_a_person, state=Running())
        await client.set_flow_run_state(flow_run.id, Crashed(), force=True)
        await client.set_flow_run_state(flow_run.id, Running(), force=True)
    first, second = (
        run(flow_run.id, times_out_at=0.0, flow_runs=((flow_run.id, run_count),)) for run_count in (1, 2)
    )
    assert await cancel_reason(first, asyncio.CancelledError()) is None
    assert await cancel_on_timeout(job, timed_out, 1, first) is timed_out
    line = f"Noukai job {job.id} of {FLOW}: left running (Prefect has begun another attempt of this flow run)"
    assert line in log.text
    assert await cancel_reason(second, asyncio.CancelledError()) == "the task or flow timed out"
    assert await cancel_on_timeout(job, timed_out, 1, second) is not timed_out
    assert (await job.status()).state == "cancelled"


@pytest.mark.usefixtures("prefect_server")
async def test_a_deadline_after_a_pause() -> None:
    """A flow run that was paused and resumed keeps its deadlines, until Prefect begins another attempt."""
    async with get_client() as client:
        flow_run = await client.create_flow_run(of_a_person, state=Running())
        first = run(flow_run.id, times_out_at=0.0, flow_runs=((flow_run.id, 1),))
        for resumed in range(2):
            await client.set_flow_run_state(flow_run.id, Paused(timeout_seconds=300, pause_key=str(resumed)))
            await client.resume_flow_run(flow_run.id)
            assert await cancel_reason(first, asyncio.CancelledError()) == "the task or flow timed out"
        await client.set_flow_run_state(flow_run.id, Crashed(), force=True)
        await client.set_flow_run_state(flow_run.id, Running(), force=True)
        assert await cancel_reason(first, asyncio.CancelledError()) is None
        await client.set_flow_run_state(flow_run.id, Paused(timeout_seconds=300, pause_key="2"))
        await client.resume_flow_run(flow_run.id)
    assert await cancel_reason(first, asyncio.CancelledError()) is None


async def test_a_deadline_while_the_server_of_prefect_is_away(
    noukai_flow: AsyncFlow, monkeypatch: pytest.MonkeyPatch, log: pytest.LogCaptureFixture
) -> None:
    """A deadline cancels the job if Prefect does not say whether another attempt has begun."""

    def fail() -> Any:
        raise ConnectionError("no server")

    monkeypatch.setattr(_prefect_client, "get_client", fail)
    job, flow_run_id = await noukai_flow.job("hello"), UUID(int=1)
    timed_out = JobTimeoutError("it took too long", job_id=job.id)
    attempt = run(flow_run_id, flow_runs=((flow_run_id, 1),))
    assert await cancel_on_timeout(job, timed_out, 1, attempt) is not timed_out
    assert f"Prefect flow run {flow_run_id}: attempts unknown: no server" in log.text


async def test_a_timeout_while_the_server_of_prefect_does_not_respond(
    noukai_flow: AsyncFlow, monkeypatch: pytest.MonkeyPatch, log: pytest.LogCaptureFixture
) -> None:
    """A timeout cancels the job even if Prefect's server takes a request and does not respond."""

    @asynccontextmanager
    async def hang() -> AsyncIterator[Any]:
        await asyncio.Event().wait()
        yield

    monkeypatch.setattr(_cancellation, "prefect_client", hang)
    job, flow_run_id = await noukai_flow.job("hello"), UUID(int=1)
    attempt = run(flow_run_id, times_out_at=0.0, flow_runs=((flow_run_id, 1),))
    await cancel_or_keep(SubmissionState(job=job), attempt, asyncio.CancelledError())
    assert (await job.status()).state == "cancelled"
    assert f"Prefect flow run {flow_run_id}: attempts unknown: no response within 2 s" in log.text


async def test_a_shutdown_before_the_record_was_read(
    noukai_flow: AsyncFlow, monkeypatch: pytest.MonkeyPatch, log: pytest.LogCaptureFixture
) -> None:
    """Where nobody knows what an earlier attempt has left running, the log says so."""

    async def nobody_ended_it(*_: object) -> None:
        return None

    async def read() -> Any:
        raise AssertionError("nothing is cancelled, so nothing is read")

    monkeypatch.setattr(_cancellation, "cancel_reason", nobody_ended_it)
    state = SubmissionState(earlier=(noukai_flow, read))
    assert not await cancel_or_keep(state, run(), asyncio.CancelledError())
    line = f"Noukai jobs of {FLOW}: may be left running (record not read: the attempt ended first)"
    assert line in log.text


@pytest.mark.parametrize("interruption", [KeyboardInterrupt(), asyncio.CancelledError()])
async def test_an_interruption_before_the_submission(
    interruption: BaseException, log: pytest.LogCaptureFixture
) -> None:
    """An interruption before anything was sent neither cancels nor names a job."""
    assert not await cancel_or_keep(SubmissionState(), run(), interruption)
    assert log.messages == []


async def test_a_cancel_that_is_rejected(
    noukai_flow: AsyncFlow, emulator: Emulator, log: pytest.LogCaptureFixture
) -> None:
    """A job that the server does not let be cancelled, after Ctrl-C or a timeout, may still be running."""
    job = await noukai_flow.job("hello")
    await asyncio.to_thread(emulator.control.fault, "status", on="cancel", times=None, status=403)
    assert not await cancel_or_keep(SubmissionState(job=job), run(), KeyboardInterrupt())
    timed_out = JobTimeoutError("it took too long", job_id=job.id)
    assert await cancel_on_timeout(job, timed_out, 1, run()) is timed_out
    failed = {line for line in log.messages if f"Noukai job {job.id} of {FLOW}: cancel failed (" in line}
    assert len(failed) == 2


async def test_a_thread_that_has_to_stop() -> None:
    """An operation in a thread is stopped when its run has to stop, and the task ends as cancelled."""
    stopped = threading.Event()
    stopped.set()
    ended = run(times_out_at=time.monotonic() - 1, cancel_event=stopped)
    state: Any = await as_cancelled_state(run_until_stopped(asyncio.sleep(3600), ended, "it waited"))
    assert state.is_cancelled()
    assert state.message == "The flow run was stopped while it waited"
    with pytest.raises(StoppedInThread):
        await run_until_stopped(asyncio.sleep(3600), ended, "it waited")


async def test_a_lost_timeout_is_a_timeout(monkeypatch: pytest.MonkeyPatch) -> None:
    """In the main thread, a task whose timeout was lost times out; the flow gets no state as its output."""
    monkeypatch.setattr(RunContext, "timed_out", True)
    overdue = run(times_out_at=time.monotonic() - 3600)
    with pytest.raises(TimeoutError):
        await as_cancelled_state(run_until_stopped(asyncio.sleep(3600), overdue, "it waited"))


async def test_a_thread_that_nothing_else_notifies(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where only Prefect's server knows that a run was cancelled, it is asked until it says so."""
    monkeypatch.setattr(_cancellation, "STOP_CHECK_SECONDS", 0.01)
    monkeypatch.setattr(_cancellation, "SERVER_CHECK_SECONDS", 0.0)
    reasons = iter([None, None, "the flow run was cancelled"])

    async def next_reason(*_: object) -> str | None:
        return next(reasons)

    monkeypatch.setattr(_cancellation, "cancel_reason", next_reason)
    await watch_for_stop(run(asks_server=True))
    assert next(reasons, "asked to the end") == "asked to the end"


async def test_a_thread_that_timed_out_and_cancels_no_job(
    monkeypatch: pytest.MonkeyPatch,
    credentials: NoukaiCredentials,
    noukai_flow: AsyncFlow,
    emulator: Emulator,
) -> None:
    """With `cancel_on_timeout=False`, a thread that only a timeout stops leaves its job running."""
    monkeypatch.setattr(_cancellation, "SERVER_CHECK_SECONDS", 0.0)
    job = await noukai_flow.job("hello")
    timed_out = run(times_out_at=0.0, asks_server=True)
    with pytest.raises(StoppedInThread):
        await wait(credentials, job, WaitOptions(cancel_on_timeout=False), timed_out)
    assert (await asyncio.to_thread(emulator.control.counts, job.id))["cancel"] == 0


async def test_what_the_server_has_said_is_not_asked_again(
    monkeypatch: pytest.MonkeyPatch, noukai_flow: AsyncFlow, log: pytest.LogCaptureFixture
) -> None:
    """A cancel that Prefect's server has reported reaches the job, even if the server then goes away."""
    monkeypatch.setattr(_cancellation, "SERVER_CHECK_SECONDS", 0.0)
    in_thread = run(asks_server=True)
    job = await noukai_flow.job("hello")

    async def cancelled(*_: object) -> str | None:
        return "the flow run was cancelled"

    with monkeypatch.context() as while_it_answers:
        while_it_answers.setattr(_cancellation, "cancel_reason", cancelled)
        with pytest.raises(StoppedInThread) as stopped:
            await run_until_stopped(asyncio.sleep(3600), in_thread, "it waited")
    assert await cancel_or_keep(SubmissionState(job=job), in_thread, stopped.value)
    assert f"Noukai job {job.id} of {FLOW}: cancelled (the flow run was cancelled)" in log.text
