"""What becomes of the job of a task that is killed on a worker, and which line of the log says it."""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING, Any

import pytest

from noukai_airflow import _client_cache, _worker_kill
from noukai_airflow._job_store import JobRecord, JobStore
from noukai_airflow._worker_kill import KillOptions, TaskKilled, end_job
from tests.airflow.conftest import FakeTask, MemoryStore

if TYPE_CHECKING:
    from noukai_airflow._connection import ConnectionSettings
    from noukai_core import Job
    from noukai_core.emulator import Emulator

FLOW = "acme/demo/flow"


class AirflowIsDown(FakeTask):
    """A task instance whose requests to Airflow fail."""

    def get_task_states(self, **_: Any) -> dict[str, Any]:
        raise RuntimeError("the API server is down")


class AirflowIsSilent(FakeTask):
    """A task instance whose requests to Airflow get no response."""

    def get_task_states(self, **_: Any) -> dict[str, Any]:
        threading.Event().wait()
        raise AssertionError


@pytest.fixture
def job(settings: ConnectionSettings, emulator: Emulator) -> Job:
    """A job that is running."""
    emulator.control.script("flow", outcome="never")
    return _client_cache.shared_client(settings).flow(FLOW).job("Hello")


@pytest.fixture
def killed_processes(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """An entry for each time that the task would have killed its own process."""
    found: list[str] = []
    monkeypatch.setattr(_worker_kill, "kill_own_process", lambda: found.append("this one"))
    return found


def in_state(state: str) -> FakeTask:
    """A task instance that has a state in the database."""
    task_instance = FakeTask()
    task_instance.states = {task_instance.run_id: {task_instance.task_id: state}}
    return task_instance


def kill(
    job: Job,
    settings: ConnectionSettings,
    task_instance: FakeTask,
    store: MemoryStore | None = None,
    **changes: bool,
) -> TaskKilled:
    if store is None:
        store = MemoryStore()
        JobStore(store).write(JobRecord.new(0, "submission", FLOW))
    options = {"cancel_on_kill": True, "cancel_left_behind": False, "durable": True, "retry_left": True}
    return end_job(job, settings, task_instance, JobStore(store), KillOptions(**options | changes))


def test_a_kill_in_the_middle_of_a_request_to_airflow(
    job: Job, settings: ConnectionSettings, emulator: Emulator, monkeypatch: pytest.MonkeyPatch
) -> None:
    """If Airflow responds to the request that the signal interrupted, the state is asked for again."""
    task_instance = in_state("failed")
    ask, asked = task_instance.get_task_states, list[object]()

    def respond(**arguments: Any) -> Any:
        asked.append(arguments)
        if len(asked) == 1:
            raise AttributeError("'XComResult' object has no attribute 'task_states'")
        return ask(**arguments)

    monkeypatch.setattr(task_instance, "get_task_states", respond)
    assert kill(job, settings, task_instance).by_user
    assert emulator.control.counts(job.id)["cancel"] == 1


def test_a_try_that_airflow_has_replaced(job: Job, settings: ConnectionSettings, emulator: Emulator) -> None:
    """When a later try has failed, no user ended this one: its worker, presumed dead, leaves the job."""
    killed = kill(job, settings, in_state("failed"), MemoryStore())
    assert not killed.by_user
    assert killed.phrase == "left running (its task has failed in a later try)"
    assert emulator.control.counts(job.id)["cancel"] == 0


@pytest.mark.parametrize(
    ("task_instance", "reason"),
    [(AirflowIsDown(), "the API server is down"), (AirflowIsSilent(), "no response from Airflow in time")],
    ids=["down", "silent"],
)
def test_a_kill_whose_cause_is_not_known(
    task_instance: FakeTask,
    reason: str,
    job: Job,
    settings: ConnectionSettings,
    emulator: Emulator,
    killed_processes: list[str],
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """A job is left running, with a warning, unless it is known that a user ended its task."""
    if isinstance(task_instance, AirflowIsSilent):
        monkeypatch.setattr(_worker_kill, "ACT_SECONDS", 0.1)
    killed = kill(job, settings, task_instance)
    assert not killed.by_user
    assert "left running" in killed.phrase
    assert f"who ended its task is not known: {reason}" in caplog.text
    assert (emulator.control.counts(job.id)["cancel"], killed_processes) == (0, [])


def test_a_state_store_that_is_silent(
    job: Job, settings: ConnectionSettings, emulator: Emulator, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A worker that is not told in time whether another try runs does not say that only it is stopping."""
    monkeypatch.setattr(_worker_kill, "ACT_SECONDS", 0.1)
    store, asked = MemoryStore(), threading.Event()
    monkeypatch.setattr(store, "get", lambda key: asked.wait(10))
    killed = kill(job, settings, in_state("failed"), store, cancel_on_kill=False)
    asked.set()
    assert "who ended its task is not known: no response from Airflow in time" in killed.phrase


def test_a_cancel_that_is_rejected(
    job: Job,
    settings: ConnectionSettings,
    emulator: Emulator,
    killed_processes: list[str],
    caplog: pytest.LogCaptureFixture,
) -> None:
    """A warning says that a job whose cancel was rejected may still be running."""
    emulator.control.fault("status", on="cancel", times=None, status=403)
    assert kill(job, settings, in_state("failed")).phrase.startswith("cancel failed (")
    assert f"Noukai job {job.id} of {FLOW}: cancel failed (" in caplog.text
    assert "; may still be running)" in caplog.text


def test_a_cancel_without_a_response(
    job: Job,
    settings: ConnectionSettings,
    killed_processes: list[str],
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """The task ends in time even if the server does not respond to the cancel, and the log says so."""
    monkeypatch.setattr(_worker_kill, "ACT_SECONDS", 0.5)
    monkeypatch.setattr(_worker_kill, "_cancel", lambda job, settings: threading.Event().wait())
    kill(job, settings, in_state("failed"))
    assert f"Noukai job {job.id} of {FLOW}: cancel failed (no response in time; may still" in caplog.text


def test_a_job_that_the_server_forgot(settings: ConnectionSettings, killed_processes: list[str]) -> None:
    """A job that the server does not know is not called cancelled, and raises no alarm."""
    forgotten = (
        _client_cache.shared_client(settings).flow(FLOW).attach("job_00000000000000000000000000000000")
    )
    assert kill(forgotten, settings, in_state("failed")).phrase == "not cancelled (unknown to the server)"


def test_a_user_who_keeps_the_job(
    job: Job, settings: ConnectionSettings, emulator: Emulator, killed_processes: list[str]
) -> None:
    """With `cancel_on_kill` off, a user's act ends the task and leaves the job running."""
    killed = kill(job, settings, in_state("failed"), cancel_on_kill=False)
    assert (killed.by_user, killed.phrase) == (True, "left running (cancel_on_kill is off)")
    assert emulator.control.counts(job.id)["cancel"] == 0


@pytest.mark.parametrize(("state", "kills"), [("success", 1), ("restarting", 1), ("failed", 0)])
def test_nothing_is_reported_of_a_task_that_goes_on_elsewhere(
    state: str, kills: int, job: Job, settings: ConnectionSettings, killed_processes: list[str]
) -> None:
    """A process whose task was marked as successful or cleared ends at once, before it reports a failure."""
    emptied = MemoryStore() if state == "restarting" else None  # by the clear, from Airflow 3.4 on
    killed = kill(job, settings, in_state(state), emptied)
    assert killed.phrase.startswith("cancelled (a user ended its task")
    assert len(killed_processes) == kills


def test_a_clear_that_keeps_the_state(
    job: Job,
    settings: ConnectionSettings,
    emulator: Emulator,
    store: MemoryStore,
    killed_processes: list[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """From Airflow 3.4 on, a clear that keeps the task's state leaves its job to the next try."""
    monkeypatch.setattr(_worker_kill, "CLEAR_DISCARDS_STATE", True)
    JobStore(store).write(JobRecord.new(1, "00000000-0000-4000-8000-000000000001", FLOW))
    killed = kill(job, settings, in_state("restarting"), store)
    assert (killed.by_user, killed.phrase) == (
        False,
        "left running (its task was cleared with its state kept)",
    )
    assert (emulator.control.counts(job.id)["cancel"], len(killed_processes)) == (0, 1)


def test_a_job_that_no_retry_attaches_to(
    job: Job, settings: ConnectionSettings, emulator: Emulator, killed_processes: list[str]
) -> None:
    """With `on_final_failure="cancel"`, a worker that stops cancels the job of a task without a retry."""
    killed = kill(job, settings, in_state("running"), cancel_left_behind=True, retry_left=False)
    assert (killed.by_user, killed.phrase) == (False, "cancelled (no retry attaches to it)")
    assert emulator.control.counts(job.id)["cancel"] == 1
