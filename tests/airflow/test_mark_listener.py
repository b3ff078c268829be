"""What the API server does when a user marks a task: it cancels the job, unless somebody else has."""

from __future__ import annotations

import asyncio
import threading
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import pytest

from noukai_airflow import _client_cache, _mark_listener
from noukai_airflow.hooks.noukai import NoukaiHook

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
    monkeypatch.setattr(_mark_listener, "_DELAY_SECONDS", 0)
    monkeypatch.setattr(_mark_listener, "_is_still_marked", lambda marked: True)
    return settings


@pytest.fixture
def acts(monkeypatch: pytest.MonkeyPatch) -> list[Coroutine[Any, Any, None]]:
    """What would be done in the background."""
    found: list[Coroutine[Any, Any, None]] = []
    monkeypatch.setattr(_mark_listener, "_event_loop", lambda: None)
    monkeypatch.setattr(asyncio, "run_coroutine_threadsafe", lambda act, loop: found.append(act))
    return found


def marked(settings: ConnectionSettings, *, classpath: str = _mark_listener._TRIGGER, **kwargs: Any) -> Any:
    """A deferred task that waits for a new job, and that a user has just marked."""
    job = _client_cache.shared_client(settings).flow(FLOW).job("Hello")
    arguments = {"job_id": job.id, "flow": FLOW, "noukai_conn_id": "noukai_default", "cancel_on_kill": True}
    trigger = SimpleNamespace(classpath=classpath, kwargs=arguments | kwargs)
    return TaskInstance(id="ti", state="failed", trigger=trigger, job_id=job.id)


@pytest.mark.parametrize("hook", ["failed", "success"])
def test_a_marked_task(
    hook: str, connected: ConnectionSettings, emulator: Emulator, acts: list[Coroutine[Any, Any, None]]
) -> None:
    """The job of a deferred task that a user has marked is cancelled."""
    emulator.control.script("flow", outcome="never")
    task_instance = marked(connected)
    if hook == "failed":
        _mark_listener.on_task_instance_failed(task_instance, MANUALLY)
    else:
        _mark_listener.on_task_instance_success(task_instance)
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
    """Other triggers, sensors, `cancel_on_kill=False` and tasks that are not deferred are left alone."""
    for task_instance in (
        marked(connected, classpath="airflow.triggers.temporal.TimeDeltaTrigger"),
        marked(connected, cancel_on_kill=False),
        TaskInstance(id="ti", state="failed", trigger=None),
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
    monkeypatch.setattr(_mark_listener, "_is_still_marked", lambda marked: False)
    _mark_listener.on_task_instance_failed(marked(connected), MANUALLY)
    asyncio.run(acts[0])
    assert emulator.control.counts().get("cancel", 0) == 0


def test_a_job_that_the_trigger_has_cancelled(
    connected: ConnectionSettings,
    emulator: Emulator,
    acts: list[Coroutine[Any, Any, None]],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Where triggers learn of it, a job that has ended is not cancelled once more."""
    emulator.control.script("flow", outcome="never")
    monkeypatch.setattr(_mark_listener, "NOTIFIES_TRIGGERS", True)
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
