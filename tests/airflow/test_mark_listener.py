"""What the API server does when a user marks a task: it cancels the job, unless a worker or a trigger has."""

from __future__ import annotations

import asyncio
import threading
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import pytest

from noukai_airflow import _batch_sessions, _client_cache, _mark_listener, _stored_records
from noukai_airflow._job_store import JobRecord
from noukai_airflow._stored_records import StoredTask
from noukai_airflow.hooks.noukai import NoukaiHook
from noukai_core import JobRequest, Submission

if TYPE_CHECKING:
    from collections.abc import Coroutine

    from noukai_airflow._connection import ConnectionSettings
    from noukai_core.emulator import Emulator

FLOW = "acme/demo/flow"
MANUALLY = "TaskInstance's state was manually set to `failed`."


class TaskInstance(SimpleNamespace):
    """Passes for the API server's kind."""


TaskInstance.__module__ = "airflow.models.taskinstance"


@pytest.fixture
def connected(settings: ConnectionSettings, monkeypatch: pytest.MonkeyPatch) -> ConnectionSettings:
    monkeypatch.setattr(NoukaiHook, "settings", settings)
    monkeypatch.setattr(_mark_listener, "_delay", lambda marked: 0)
    monkeypatch.setattr(_mark_listener, "_CHECK_SECONDS", 0)
    store(monkeypatch, "failed", None)
    return settings


@pytest.fixture
def acts(monkeypatch: pytest.MonkeyPatch) -> list[Coroutine[Any, Any, None]]:
    """What would be done in the background."""
    found: list[Coroutine[Any, Any, None]] = []
    monkeypatch.setattr(_mark_listener, "_event_loop", lambda: None)
    monkeypatch.setattr(asyncio, "run_coroutine_threadsafe", lambda act, loop: found.append(act))
    return found


def store(
    monkeypatch: pytest.MonkeyPatch, state: str | None, record: JobRecord | None, batch: Any = None
) -> None:
    """Let the database contain a task in a state, or none."""
    task = None if state is None else StoredTask(state, record, batch)
    monkeypatch.setattr(_stored_records, "stored_task", lambda task_instance_id, with_record: task)


def marked(settings: ConnectionSettings, *, classpath: str = _mark_listener._TRIGGER, **kwargs: Any) -> Any:
    """A deferred task that waits for a new job, and that a user has just marked."""
    job = _client_cache.shared_client(settings).flow(FLOW).job("Hello")
    arguments = {"job_id": job.id, "flow": FLOW, "noukai_conn_id": "noukai_default", "cancel_on_kill": True}
    trigger = SimpleNamespace(classpath=classpath, kwargs=arguments | kwargs)
    return TaskInstance(id="ti", key="key", state="failed", trigger=trigger, job_id=job.id)


def on_a_worker(**fields: Any) -> Any:
    """A task that was running on a worker, and that a user has just marked."""
    now = datetime.now(UTC)
    known: dict[str, Any] = {
        "id": "ti",
        "key": "key",
        "state": "failed",
        "trigger": None,
        "end_date": now,
        "updated_at": now + timedelta(milliseconds=3),
        "try_number": 1,
        "max_tries": 0,
    }
    return TaskInstance(**known | fields)


def submitted(settings: ConnectionSettings, **fields: Any) -> JobRecord:
    """The record of a task with a new job."""
    record = JobRecord.new(0, Submission.new().id, FLOW, cancel_with="noukai_default")
    flow = _client_cache.shared_client(settings).flow(FLOW)
    job = flow.submit(JobRequest(FLOW, "Hello"), submission=Submission(record.submission_id))
    return replace(record.with_job(job), **fields)


@pytest.mark.parametrize("hook", ["failed", "success", "skipped"])
def test_a_marked_task(
    hook: str, connected: ConnectionSettings, emulator: Emulator, acts: list[Coroutine[Any, Any, None]]
) -> None:
    """The job of a deferred task that a user has marked is cancelled."""
    emulator.control.script("flow", outcome="never")
    task_instance = marked(connected)
    if hook == "failed":
        _mark_listener.on_task_instance_failed(task_instance, MANUALLY)
    elif hook == "success":
        _mark_listener.on_task_instance_success(task_instance)
    else:
        _mark_listener.on_task_instance_skipped(task_instance)
    (act,) = acts
    asyncio.run(act)
    assert emulator.control.jobs()[0]["state"] == "cancelled"


def test_a_task_that_failed_by_itself(
    connected: ConnectionSettings, acts: list[Coroutine[Any, Any, None]]
) -> None:
    """The scheduler calls the same hook for a task that failed by itself: only a user's act counts."""
    _mark_listener.on_task_instance_failed(marked(connected), "Task did not emit heartbeat")
    _mark_listener.on_task_instance_failed(marked(connected), ValueError("no"))
    assert acts == []


def test_a_task_that_ends_on_a_worker(acts: list[Coroutine[Any, Any, None]]) -> None:
    """A worker calls the same hooks for tasks of its own kind, which are none of the API server's."""
    _mark_listener.on_task_instance_success(SimpleNamespace(trigger=None))
    assert acts == []


def test_tasks_without_a_job_of_ours(
    connected: ConnectionSettings, acts: list[Coroutine[Any, Any, None]]
) -> None:
    """Other triggers, sensors and `cancel_on_kill=False` are left alone."""
    for task_instance in (
        marked(connected, classpath="airflow.triggers.temporal.TimeDeltaTrigger"),
        marked(connected, cancel_on_kill=False),
    ):
        _mark_listener.on_task_instance_failed(task_instance, MANUALLY)
    assert acts == []


def test_a_task_that_was_cleared_meanwhile(
    connected: ConnectionSettings,
    emulator: Emulator,
    acts: list[Coroutine[Any, Any, None]],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A task that no longer is as the user marked it has a new try, whose business the job is."""
    emulator.control.script("flow", outcome="never")
    store(monkeypatch, "running", None)
    _mark_listener.on_task_instance_failed(marked(connected), MANUALLY)
    asyncio.run(acts[0])
    assert emulator.control.counts().get("cancel", 0) == 0


@pytest.mark.parametrize("with_id", [True, False])
def test_a_marked_task_on_a_worker(
    with_id: bool,
    connected: ConnectionSettings,
    emulator: Emulator,
    acts: list[Coroutine[Any, Any, None]],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The job of a task on a worker is cancelled, even if only its submission is recorded."""
    emulator.control.script("flow", outcome="never")
    record = submitted(connected)
    store(monkeypatch, "failed", record if with_id else replace(record, job_id=None))
    _mark_listener.on_task_instance_failed(on_a_worker(), MANUALLY)
    asyncio.run(acts[0])
    assert emulator.control.jobs()[0]["state"] == "cancelled"


@pytest.mark.parametrize("why", ["cancel_on_kill is off", "delivered", "no record", "cleared"])
def test_a_job_that_must_not_be_cancelled(
    why: str,
    connected: ConnectionSettings,
    emulator: Emulator,
    acts: list[Coroutine[Any, Any, None]],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A job is left alone if `cancel_on_kill` is off, if it outlives its task, or if a new try runs."""
    emulator.control.script("flow", outcome="never")
    record: JobRecord | None = submitted(connected)
    assert record is not None
    if why == "cancel_on_kill is off":
        record = replace(record, cancel_with=None)
    elif why == "delivered":
        record = replace(record, delivered=True)
    elif why == "no record":
        record = None
    store(monkeypatch, None if why == "cleared" else "failed", record)
    _mark_listener.on_task_instance_failed(on_a_worker(), MANUALLY)
    asyncio.run(acts[0])
    assert emulator.control.counts().get("cancel", 0) == 0


@pytest.mark.parametrize(("max_tries", "watched"), [(0, 0), (1, 1)])
def test_a_task_that_had_ended(max_tries: int, watched: int, acts: list[Coroutine[Any, Any, None]]) -> None:
    """A mark of a task that had ended before concerns its job only if a retry may wait for it."""
    ended_at = datetime.now(UTC) - timedelta(minutes=1)
    _mark_listener.on_task_instance_success(on_a_worker(end_date=ended_at, max_tries=max_tries))
    assert len(acts) == watched
    for act in acts:
        act.close()


def test_a_mark_that_is_stored_late(
    connected: ConnectionSettings,
    emulator: Emulator,
    acts: list[Coroutine[Any, Any, None]],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The job is cancelled even if a busy Airflow stores the mark late, or a user marks the task again."""
    emulator.control.script("flow", outcome="never")
    found = iter([RuntimeError("busy"), StoredTask("deferred", None), StoredTask("success", None)])

    def stored_task(task_instance_id: object, with_record: bool) -> StoredTask:
        task = next(found)
        if isinstance(task, Exception):
            raise task
        return task

    monkeypatch.setattr(_stored_records, "stored_task", stored_task)
    _mark_listener.on_task_instance_failed(marked(connected), MANUALLY)
    asyncio.run(acts[0])
    assert emulator.control.jobs()[0]["state"] == "cancelled"


def test_a_submission_without_a_job(
    connected: ConnectionSettings,
    acts: list[Coroutine[Any, Any, None]],
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """A warning names the submission if its job is not found."""
    record = JobRecord.new(0, Submission.new().id, FLOW, cancel_with="noukai_default")
    store(monkeypatch, "failed", record)
    _mark_listener.on_task_instance_failed(on_a_worker(), MANUALLY)
    asyncio.run(acts[0])
    assert f"Noukai submission {record.submission_id} to {FLOW}: may be left running" in caplog.text


def test_a_record_that_cannot_be_read(
    connected: ConnectionSettings,
    acts: list[Coroutine[Any, Any, None]],
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """A warning names the task if the database does not respond."""

    def fail(task_instance_id: object, with_record: bool) -> None:
        raise RuntimeError("no database")

    monkeypatch.setattr(_stored_records, "stored_task", fail)
    _mark_listener.on_task_instance_failed(on_a_worker(), MANUALLY)
    asyncio.run(acts[0])
    assert "record not read (its Noukai job may be left running): no database" in caplog.text


def test_the_worker_comes_first() -> None:
    """The API server waits longer than a worker needs: a heartbeat, and five seconds."""
    marked_task = _mark_listener._Marked("ti", "key", None)
    assert _mark_listener._delay(marked_task) == 30


def test_a_job_that_the_trigger_has_cancelled(
    connected: ConnectionSettings,
    emulator: Emulator,
    acts: list[Coroutine[Any, Any, None]],
) -> None:
    """A job that has ended is not cancelled once more."""
    emulator.control.script("flow", outcome="never")
    task_instance = marked(connected)
    emulator.control.finish(task_instance.job_id, outcome="cancelled")
    _mark_listener.on_task_instance_failed(task_instance, MANUALLY)
    asyncio.run(acts[0])
    assert emulator.control.counts().get("cancel", 0) == 0


def test_a_cancel_that_fails(
    connected: ConnectionSettings,
    emulator: Emulator,
    acts: list[Coroutine[Any, Any, None]],
    caplog: pytest.LogCaptureFixture,
) -> None:
    """A warning names the job that may still be running."""
    emulator.control.script("flow", outcome="never")
    emulator.control.fault("status", on="cancel", times=None, status=403)
    task_instance = marked(connected)
    _mark_listener.on_task_instance_failed(task_instance, MANUALLY)
    asyncio.run(acts[0])
    assert f"Noukai job {task_instance.job_id} of {FLOW}: cancel failed" in caplog.text


def test_the_loop_is_one_of_its_own() -> None:
    """The background work of a process shares one thread, which does not keep the process alive."""
    loop = _mark_listener._event_loop()
    assert _mark_listener._event_loop() is loop
    done = asyncio.run_coroutine_threadsafe(asyncio.sleep(0, "done"), loop)
    assert done.result(30) == "done"
    (thread,) = [thread for thread in threading.enumerate() if thread.name == "noukai-marks"]
    assert thread.daemon
    loop.call_soon_threadsafe(loop.stop)
    thread.join(60)
    loop.close()
    _mark_listener._event_loop.cache_clear()


async def test_a_deferred_batch(
    connected: ConnectionSettings, acts: list[Coroutine[Any, Any, None]], emulator: Emulator
) -> None:
    """All jobs of a deferred batch are cancelled by their sessions, and those of others are not."""
    emulator.control.script("flow", outcome="never")
    flow = _client_cache.shared_client(connected).flow(FLOW)
    session_id = Submission.new().id
    jobs = [flow.job(str(place), session_id=session_id) for place in range(3)]
    other = flow.job("other")
    arguments = {"sessions": {session_id: 3}, "flow": FLOW, "noukai_conn_id": "noukai_default"}
    trigger = SimpleNamespace(
        classpath=_mark_listener._BATCH_TRIGGER, kwargs=arguments | {"cancel_on_kill": True}
    )
    task = TaskInstance(id="ti", key="key", state="failed", trigger=trigger)
    _mark_listener.on_task_instance_failed(task, MANUALLY)
    (act,) = acts
    await act
    assert {(await asyncio.to_thread(job.status)).state for job in jobs} == {"cancelled"}
    assert (await asyncio.to_thread(other.status)).state != "cancelled"


async def test_a_batch_on_a_worker(
    connected: ConnectionSettings,
    acts: list[Coroutine[Any, Any, None]],
    emulator: Emulator,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The jobs of a batch on a worker are cancelled by the sessions that its task has published."""
    monkeypatch.setattr(_batch_sessions, "_LISTING_PAUSE", 0.01)
    emulator.control.script("flow", outcome="never")
    flow = _client_cache.shared_client(connected).flow(FLOW)
    session_id = Submission.new().id
    jobs = [flow.job(str(place), session_id=session_id) for place in range(3)]
    store(
        monkeypatch,
        "failed",
        None,
        {"sessions": [session_id], "flow": FLOW, "cancel_with": "noukai_default"},
    )
    _mark_listener.on_task_instance_failed(on_a_worker(), MANUALLY)
    await acts[0]
    assert {(await asyncio.to_thread(job.status)).state for job in jobs} == {"cancelled"}


@pytest.mark.parametrize("published", [None, {}, {"sessions": []}, {"sessions": [1]}, [1]])
async def test_a_batch_that_has_published_nothing(
    published: Any,
    connected: ConnectionSettings,
    acts: list[Coroutine[Any, Any, None]],
    emulator: Emulator,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Without the sessions of running jobs, nothing is sent."""
    store(monkeypatch, "failed", None, published)
    _mark_listener.on_task_instance_failed(on_a_worker(), MANUALLY)
    await acts[0]
    assert sum(emulator.control.counts().values()) == 0


async def test_a_batch_whose_sessions_cannot_be_read(
    connected: ConnectionSettings,
    acts: list[Coroutine[Any, Any, None]],
    emulator: Emulator,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """A warning names the sessions in which jobs may still be running."""
    session_id = Submission.new().id
    published = {"sessions": [session_id], "flow": FLOW, "cancel_with": "noukai_default"}
    store(monkeypatch, "failed", None, published)
    await asyncio.to_thread(emulator.control.fault, "status", on="session", times=None, status=403)
    _mark_listener.on_task_instance_failed(on_a_worker(), MANUALLY)
    await acts[0]
    assert "cancel failed" in caplog.text
    assert session_id in caplog.text


@pytest.mark.parametrize("with_id", [True, False])
def test_a_connection_that_is_gone(
    with_id: bool,
    connected: ConnectionSettings,
    acts: list[Coroutine[Any, Any, None]],
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """A warning names the job, or the submission, of a task whose connection cannot be read any more."""
    record = submitted(connected)
    store(monkeypatch, "failed", record if with_id else replace(record, job_id=None))

    def fail(_: NoukaiHook) -> None:
        raise RuntimeError("the connection is gone")

    monkeypatch.setattr(NoukaiHook, "settings", property(fail))
    _mark_listener.on_task_instance_failed(on_a_worker(), MANUALLY)
    asyncio.run(acts[0])
    if with_id:
        assert f"Noukai job {record.job_id} of {FLOW}: cancel failed (the connection is gone" in caplog.text
    else:
        assert f"Noukai submission {record.submission_id} to {FLOW}: may be left running" in caplog.text
