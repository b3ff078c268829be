"""A signal, or Airflow's own timeout, that comes while a task finds or submits its job."""

from __future__ import annotations

import os
import re
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from types import FrameType
from typing import Any, NoReturn

import pytest
from airflow.providers.common.compat.sdk import AirflowTaskTimeout

from noukai_airflow._compat import AirflowTaskTerminated
from noukai_airflow._connection import ConnectionSettings
from noukai_airflow._job_store import JobRecord, JobStore, TaskKey
from noukai_airflow.exceptions import NoukaiException
from noukai_airflow.hooks.noukai import NoukaiHook
from noukai_airflow.operators.noukai import NoukaiRunJobOperator
from tests.airflow.conftest import KEY, FakeTask, MemoryStore
from tests.core.raw_service import ACCEPTED, COMPLETED, RUNNING, RawService, http, listed
from tests.fuzz.raw_server import Chunks

FLOW = "acme/demo/flow"
SUBMISSION = "00000000-0000-4000-8000-000000000001"


@pytest.fixture
def service(monkeypatch: pytest.MonkeyPatch) -> Iterator[RawService]:
    with RawService() as service:
        settings = ConnectionSettings.of("noukai_default", password=KEY, host=service.base_url, extra={})
        monkeypatch.setattr(NoukaiHook, "settings", settings)
        yield service


@pytest.fixture
def last_try(store: MemoryStore) -> Any:
    """The context of the last try of a task."""
    task = FakeTask(try_number=2, max_tries=1)
    task.states = {task.run_id: {"task": "running"}}
    return {"ti": task, "task_state_store": store}


def operator(**arguments: Any) -> NoukaiRunJobOperator:
    return NoukaiRunJobOperator(task_id="task", flow=FLOW, message="Hello", retries=1, **arguments)


def job_of_an_earlier_try(store: MemoryStore, **changes: Any) -> None:
    """Record a job, as the try before has done."""
    record = JobRecord.new(1, SUBMISSION, FLOW, try_number=1)
    JobStore(store).write(replace(record, job_id="job-1", **changes))


_handled = threading.Event()


def interrupting(then: bytes) -> Callable[[], Chunks]:
    """Respond only after a signal has come while the main thread waits for the response."""

    def reaction() -> Chunks:
        _handled.clear()
        os.kill(os.getpid(), signal.SIGTERM)
        assert _handled.wait(60)
        return (then,)

    return reaction


@contextmanager
def signalled(handler: Callable[[], object]) -> Iterator[None]:
    """Handle SIGTERM as Airflow does."""

    def handle(number: int, frame: FrameType | None) -> None:
        try:
            handler()
        finally:
            _handled.set()

    before = signal.signal(signal.SIGTERM, handle)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def time_out() -> NoReturn:
    raise AirflowTaskTimeout("Timeout, PID: 1")


def run_until_timeout(task: NoukaiRunJobOperator, context: Any) -> None:
    """Run a task whose `execution_timeout` passes, as Airflow runs it."""
    with signalled(time_out):
        with pytest.raises(AirflowTaskTimeout):
            task.execute(context)
        task.on_kill()


def test_a_kill_while_the_last_try_attaches(
    service: RawService, last_try: Any, store: MemoryStore, caplog: pytest.LogCaptureFixture
) -> None:
    """A worker that stops while its task polls the job that it attaches to names the job at once."""
    job_of_an_earlier_try(store)
    service.on("poll", interrupting(RUNNING))
    task = operator()
    named = list[str]()

    def on_kill() -> None:
        try:
            task.on_kill()
        finally:
            named.append(caplog.text)

    with signalled(on_kill), pytest.raises(NoukaiException, match="left running"):
        task.execute(last_try)
    assert re.search(r"Noukai job job-1 of .*: left running \(.*no retry is left\)", named[0])
    assert service.count("cancel") == 0


def test_a_users_mark_while_a_task_attaches(
    service: RawService, last_try: Any, store: MemoryStore, caplog: pytest.LogCaptureFixture
) -> None:
    """A user who ends a task while it polls the job that it attaches to ends the job."""
    job_of_an_earlier_try(store)
    task_instance = last_try["ti"]
    task_instance.states = {task_instance.run_id: {"task": "failed"}}
    service.on("poll", interrupting(RUNNING)).on("cancel", http(202, {"executionId": "job-1"}))
    task = operator()
    cancels = list[int]()

    def on_kill() -> None:
        try:
            task.on_kill()
        finally:
            cancels.append(service.count("cancel"))

    with signalled(on_kill), pytest.raises(AirflowTaskTerminated):
        task.execute(last_try)
    assert cancels[0] == 1
    assert "Noukai job job-1 of acme/demo/flow: cancelled (a user ended its task)" in caplog.text


def test_a_kill_while_an_old_job_is_replaced(
    service: RawService, last_try: Any, store: MemoryStore, caplog: pytest.LogCaptureFixture
) -> None:
    """A task that is killed while it stops the job that it replaces names that job."""
    job_of_an_earlier_try(store, abandoned=True)
    service.on("poll", RUNNING).on("cancel", interrupting(http(202, {"executionId": "job-1"})))
    task = operator(wait_for_completion=False)
    named = list[str]()

    def on_kill() -> None:
        task.on_kill()
        named.append(caplog.text)

    with signalled(on_kill), pytest.raises(NoukaiException):
        task.execute(last_try)
    assert "job-1 of acme/demo/flow: left running (interrupted while it was replaced)" in named[0]


@pytest.mark.parametrize("cancels", [True, False])
def test_a_person_who_interrupts_a_task_in_the_foreground(
    cancels: bool, service: RawService, last_try: Any, caplog: pytest.LogCaptureFixture
) -> None:
    """Ctrl-C in `airflow tasks test` cancels the job, or names it."""
    service.on("submit", ACCEPTED).on("poll", interrupting(RUNNING), RUNNING)
    service.on("cancel", http(202, {"executionId": "job-1"}))

    def interrupt() -> NoReturn:
        raise KeyboardInterrupt

    with signalled(interrupt), pytest.raises(KeyboardInterrupt):
        operator(cancel_on_kill=cancels).execute(last_try)
    assert service.count("cancel") == cancels
    said = "cancelled (a user ended its task)" if cancels else "left running (cancel_on_kill is off)"
    assert f"Noukai job job-1 of acme/demo/flow: {said}" in caplog.text


def test_a_kill_before_a_job_is_recorded(
    service: RawService, last_try: Any, store: MemoryStore, caplog: pytest.LogCaptureFixture
) -> None:
    """A task that is killed while Airflow's store is slow names the job that it has submitted."""
    service.on("submit", ACCEPTED)
    task = operator()
    named = list[str]()
    write = store.set

    def slow(key: str, value: Any, *, retention: Any = None) -> None:
        if value.get("job_id") and not named:
            task.on_kill()
            named.append(caplog.text)
        write(key, value, retention=retention)

    store.set = slow  # type: ignore[method-assign]
    with pytest.raises(NoukaiException):
        task.execute(last_try)
    assert "job-1 of acme/demo/flow: left running (interrupted before it was recorded)" in named[0]


def test_airflows_timeout_while_a_task_attaches(
    service: RawService, last_try: Any, store: MemoryStore, caplog: pytest.LogCaptureFixture
) -> None:
    """An `execution_timeout` that passes while a task attaches to its job cancels the job."""
    job_of_an_earlier_try(store)
    service.on("poll", interrupting(RUNNING), RUNNING).on("cancel", http(202, {"executionId": "job-1"}))
    run_until_timeout(operator(), last_try)
    assert service.count("cancel") == 1
    assert "Noukai job job-1 of acme/demo/flow: cancelled (timed out)" in caplog.text


def test_airflows_timeout_during_a_submission(
    service: RawService, last_try: Any, caplog: pytest.LogCaptureFixture
) -> None:
    """An `execution_timeout` that passes before the response to a submission names the submission."""
    service.on("submit", interrupting(ACCEPTED))
    run_until_timeout(operator(), last_try)
    assert re.search(r"Noukai submission \S+ to acme/demo/flow: may be left running", caplog.text)


@pytest.fixture
def failing_store(store: MemoryStore, monkeypatch: pytest.MonkeyPatch) -> None:
    """The record of an earlier submission, in a store that has become read-only."""

    def fail(key: str, value: Any, *, retention: Any = None) -> None:
        raise RuntimeError("database is locked")

    JobStore(store).write(JobRecord.new(1, SUBMISSION, FLOW, try_number=1))
    monkeypatch.setattr(store, "set", fail)


@pytest.mark.usefixtures("failing_store")
def test_a_store_that_fails_on_the_last_try(service: RawService, last_try: Any) -> None:
    """A task whose store fails still finds the job of an earlier submission, which its record leads to."""
    service.on("session", listed({"executionId": "job-1", "status": "running"})).on("poll", COMPLETED)
    assert operator().execute(last_try) == "done"
    assert service.count("submit") == 0


@pytest.mark.usefixtures("failing_store")
def test_nothing_is_sent_that_the_store_does_not_know(
    service: RawService, last_try: Any, caplog: pytest.LogCaptureFixture
) -> None:
    """A submission is not repeated when its time cannot be recorded: a crash would lead to a second job."""
    service.on("session", listed()).on("submit", ACCEPTED).on("poll", COMPLETED)
    with pytest.raises(RuntimeError, match="database is locked"):
        operator().execute(last_try)
    assert service.count("submit") == 0
    assert f"Noukai submission {SUBMISSION} to {FLOW}: may be left running (not recorded)" in caplog.text


def test_a_kill_while_earlier_jobs_are_looked_for(
    service: RawService, caplog: pytest.LogCaptureFixture
) -> None:
    """Without a store, a task that is killed while it asks for earlier jobs names their submissions."""
    service.on("session", interrupting(listed()), listed())
    cleared = FakeTask(try_number=3, max_tries=3)
    cleared.states = {cleared.run_id: {"task": "running"}}
    context: Any = {"ti": cleared}
    task = operator()
    named = list[str]()

    def on_kill() -> None:
        task.on_kill()
        named.append(caplog.text)

    with signalled(on_kill), pytest.raises(NoukaiException):
        task.execute(context)
    earlier = TaskKey.of(context).submission_id(KEY, 1)
    assert f"Noukai submission {earlier} to {FLOW}: may be left running" in named[0]
