"""How a batch ends when a person, a worker or a limit ends its task, and what its next try finds."""

from __future__ import annotations

import asyncio
import threading
import time
from contextlib import suppress
from datetime import timedelta
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any
from uuid import UUID

import pytest
from airflow.providers.common.compat.sdk import AirflowTaskTimeout, TaskDeferred
from airflow.sdk.io import fs, store
from fsspec import AbstractFileSystem
from fsspec.implementations.memory import MemoryFileSystem

from noukai_airflow import _batch_kill, _batch_run
from noukai_airflow._batch_log import FolderLog, StateStoreLog
from noukai_airflow._batch_run import BatchRun
from noukai_airflow._batch_thread import BatchThread
from noukai_airflow._compat import AirflowTaskTerminated
from noukai_airflow._storage import storage_path
from noukai_airflow.exceptions import (
    NoukaiException,
    NoukaiJobTimeoutException,
    NoukaiPermanentException,
)
from noukai_airflow.operators.batch import NoukaiRunJobsOperator
from noukai_core.batch_record import BatchRecord

if TYPE_CHECKING:
    from noukai_core.emulator import Emulator
    from tests.airflow.conftest import MemoryStore

FLOW = "acme/demo/flow"
TEXTS = ["one", "two", "three"]

# What Airflow resumes a task with when its own limit for a deferral has passed.
DEFERRAL_TIMEOUT: Any = ("__fail__", {"error": "Trigger timeout"})


pytestmark = pytest.mark.usefixtures("connected")


@pytest.fixture
def running(emulator: Emulator) -> None:
    """Let the jobs run until they are ended."""
    emulator.control.script("flow", outcome="never")


def operator(inputs: Any = TEXTS, **arguments: Any) -> NoukaiRunJobsOperator:
    return NoukaiRunJobsOperator(
        task_id="task", flow=FLOW, inputs=inputs, **{"poll_interval": 0.05, "deferrable": False} | arguments
    )


def states(emulator: Emulator) -> set[str]:
    return {job["state"] for job in emulator.control.jobs()}


def once_all_run(monkeypatch: pytest.MonkeyPatch, emulator: Emulator, act: Any) -> None:
    """Do something to a task on its worker, as soon as it has submitted all jobs."""

    def report(*_: object) -> None:
        if len(emulator.control.jobs()) == len(TEXTS):
            act()

    monkeypatch.setattr(BatchRun, "_report_progress", report)


def once(monkeypatch: pytest.MonkeyPatch, emulator: Emulator, act: Any) -> None:
    """Do something a single time, as soon as a task on its worker has submitted all jobs."""
    left = [act]
    once_all_run(monkeypatch, emulator, lambda: left.pop()() if left else None)


def named_as_running(caplog: pytest.LogCaptureFixture, reason: str, emulator: Emulator) -> bool:
    """Return whether one line says why all jobs are left running, and in which sessions."""
    sessions = ", ".join(sorted({job["session_id"] for job in emulator.control.jobs()}))
    line = f"Noukai batch of {FLOW}: left running (3 jobs; {reason}; sessions {sessions})"
    return caplog.messages.count(line) == 1


def change_header(task: NoukaiRunJobsOperator, try_number: int) -> None:
    """Write the header of a task's batch as another try does."""
    assert task._run is not None
    header = task._run._log.header()
    assert header is not None
    task._run._log.write_header({**header, **of_try(try_number)})


def of_try(number: int) -> dict[str, Any]:
    """Return what a header has of a try."""
    return {"try_number": number, "try_id": str(UUID(int=number))}


def time_out() -> None:
    raise AirflowTaskTimeout("Timeout, PID: 1")


@pytest.mark.usefixtures("running")
def test_a_user_who_keeps_the_jobs(
    context: Any, emulator: Emulator, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """With `cancel_on_kill` off, a user's act ends the task, and the log says how many jobs go on."""
    context["ti"].states = {context["ti"].run_id: {"task": "failed"}}
    task = operator(cancel_on_kill=False)
    once_all_run(monkeypatch, emulator, task.on_kill)
    with pytest.raises(AirflowTaskTerminated):
        task.execute(context)
    assert named_as_running(caplog, "cancel_on_kill is off", emulator)
    assert "cancelled" not in states(emulator)


@pytest.mark.usefixtures("running")
def test_a_kill_whose_cause_is_not_known(
    context: Any, emulator: Emulator, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """While Airflow does not say who ended the task, the jobs are left running, and named."""

    def fail(**_: Any) -> dict[str, Any]:
        raise RuntimeError("the API server is down")

    monkeypatch.setattr(context["ti"], "get_task_states", fail)
    task = operator()
    once_all_run(monkeypatch, emulator, task.on_kill)
    with pytest.raises(NoukaiException, match="who ended its task is not known: the API server is down"):
        task.execute(context)
    assert "cancelled" not in states(emulator)
    assert named_as_running(caplog, "who ended its task is not known: the API server is down", emulator)


@pytest.mark.usefixtures("running")
@pytest.mark.parametrize(
    ("retries", "durable", "reason"),
    [(0, True, "no retry is left"), (1, False, "a retry submits new jobs")],
)
def test_a_store_that_fails(
    retries: int,
    durable: bool,
    reason: str,
    context: Any,
    emulator: Emulator,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """When the record of a job cannot be written, and no retry attaches to those that run, they are named."""
    context["ti"].max_tries = retries
    write = context["task_state_store"].set

    def fail(key: str, value: Any, **arguments: Any) -> None:
        if emulator.control.jobs():
            raise RuntimeError("the database is down")
        write(key, value, **arguments)

    context["task_state_store"].set = fail
    with pytest.raises(RuntimeError, match="the database is down"):
        operator(retries=retries, durable=durable).execute(context)
    (line,) = [one.message for one in caplog.records if f"jobs; {reason}; sessions " in one.message]
    assert line.startswith(f"Noukai batch of {FLOW}: left running (")
    assert all(job["session_id"] in line for job in emulator.control.jobs())


@pytest.mark.usefixtures("running")
def test_a_mark_as_successful(context: Any, emulator: Emulator, monkeypatch: pytest.MonkeyPatch) -> None:
    """The process of a task that a user marked as successful cancels the jobs and reports no failure."""
    context["ti"].states = {context["ti"].run_id: {"task": "success"}}
    ended: list[set[str]] = []
    monkeypatch.setattr(_batch_kill, "kill_own_process", lambda: ended.append(states(emulator)))
    task = operator()
    once_all_run(monkeypatch, emulator, task.on_kill)
    with pytest.raises(AirflowTaskTerminated):
        task.execute(context)
    assert ended == [{"cancelled"}]


@pytest.mark.usefixtures("running")
def test_a_cancel_that_fails(
    context: Any, emulator: Emulator, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Each job that may still be running after a kill is named."""
    context["ti"].states = {context["ti"].run_id: {"task": "failed"}}
    emulator.control.fault("status", on="cancel", times=None, status=403)
    task = operator()
    once_all_run(monkeypatch, emulator, task.on_kill)
    with pytest.raises(AirflowTaskTerminated):
        task.execute(context)
    (line,) = [one.message for one in caplog.records if "cancel failed (may still" in one.message]
    assert all(job["id"] in line for job in emulator.control.jobs())


@pytest.mark.parametrize("moment", ["before the task", "while its record is read"])
def test_a_kill_before_the_batch_has_begun(moment: str, context: Any, emulator: Emulator) -> None:
    """A task that is killed before it has submitted anything submits nothing."""
    task = operator()
    if moment == "before the task":
        task.on_kill()
    else:
        store = context["task_state_store"]
        read = store.get

        def killed(key: str) -> Any:
            task.on_kill()
            return read(key)

        store.get = killed
    with pytest.raises(NoukaiException, match="nothing was submitted"):
        task.execute(context)
    assert emulator.control.jobs() == []


@pytest.mark.usefixtures("running")
@pytest.mark.parametrize("moment", ["while its record is read", "as its thread starts"])
def test_a_users_mark_while_a_try_resumes(
    moment: str, context: Any, emulator: Emulator, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A user who ends the task as it resumes cancels the jobs of the time before its deferral."""
    with pytest.raises(TaskDeferred):
        operator(deferrable=True).execute(context)
    context["ti"].states = {context["ti"].run_id: {"task": "failed"}}
    task = operator(deferrable=True)
    if moment == "while its record is read":
        read = context["task_state_store"].get

        def killed(key: str) -> Any:
            if not task._kill_requested:
                task.on_kill()
            return read(key)

        context["task_state_store"].get = killed
    else:
        start = BatchThread.start

        def interrupted(thread: BatchThread) -> None:
            monkeypatch.setattr(BatchThread, "start", start)
            task.on_kill()

        monkeypatch.setattr(BatchThread, "start", interrupted)
    with pytest.raises(AirflowTaskTerminated):
        task.execute_complete(context)
    assert states(emulator) == {"cancelled"}


@pytest.mark.usefixtures("running")
@pytest.mark.parametrize("cancels", [True, False])
def test_airflows_limit_on_a_worker(
    cancels: bool,
    context: Any,
    emulator: Emulator,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """At the `execution_timeout` the jobs are cancelled, or named as left running, and only once."""
    task = operator(cancel_on_timeout=cancels)
    once_all_run(monkeypatch, emulator, time_out)
    with pytest.raises(AirflowTaskTimeout):
        task.execute(context)
    task.on_kill()  # Airflow calls it next
    assert ("cancelled" in states(emulator)) is cancels
    phrase = "cancelled (timed out; 3 jobs)" if cancels else "left running (3 jobs; timed out; sessions "
    assert caplog.text.count(f"Noukai batch of {FLOW}: {phrase}") == 1


@pytest.mark.usefixtures("running")
@pytest.mark.parametrize("cancels", [True, False])
def test_airflows_limit_in_the_triggerer(
    cancels: bool, context: Any, emulator: Emulator, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A deferred task whose `execution_timeout` has passed ends, and the jobs are cancelled unless kept."""
    task = operator(deferrable=True, cancel_on_timeout=cancels, execution_timeout=timedelta(hours=1))
    with pytest.raises(TaskDeferred):
        task.execute(context)
    later = SimpleNamespace(time=lambda: time.time() + 3600, monotonic=time.monotonic)
    monkeypatch.setattr(_batch_run, "time", later)
    phrase = "3 jobs cancelled" if cancels else "3 jobs left running"
    with pytest.raises(NoukaiJobTimeoutException, match=f"timed out; {phrase}"):
        task.resume_execution(*DEFERRAL_TIMEOUT, context)
    assert ("cancelled" in states(emulator)) is cancels


@pytest.mark.usefixtures("running")
@pytest.mark.parametrize("end", ["a job's timeout", "Airflow's limit", "a later try failed"])
@pytest.mark.parametrize("kept_in", ["state store", "folder"])
def test_a_worker_that_airflow_has_replaced(
    end: str, kept_in: str, context: Any, emulator: Emulator, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """A worker beside which Airflow has begun another try leaves the jobs to that one, however it ends."""
    folder = f"file://{tmp_path}" if kept_in == "folder" else None
    task = operator(output_path=folder, timeout=0.1 if end == "a job's timeout" else None)

    def replace() -> None:
        if kept_in == "folder":
            change_header(task, 2)
        else:  # the id of an earlier try leads to nothing
            context["task_state_store"].delete("noukai_batch")
        if end == "Airflow's limit":
            time_out()
        if end == "a later try failed":
            context["ti"].states = {context["ti"].run_id: {"task": "failed"}}
            task.on_kill()

    start = BatchThread.start

    def start_replaced(thread: BatchThread) -> None:
        replace()
        start(thread)

    if end == "a job's timeout":
        monkeypatch.setattr(BatchThread, "start", start_replaced)
    else:
        once_all_run(monkeypatch, emulator, replace)
    with pytest.raises((NoukaiException, AirflowTaskTimeout)):
        task.execute(context)
    assert "cancelled" not in states(emulator)


@pytest.mark.usefixtures("running")
@pytest.mark.parametrize("moment", ["while its jobs run", "after its last row is stored"])
def test_the_failures_of_another_try(
    moment: str, context: Any, emulator: Emulator, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """A worker that Airflow has replaced leaves the file of the failures as the other try wrote it."""
    task = operator(output_path=f"file://{tmp_path}")
    store = BatchRecord.store

    def replace() -> None:
        change_header(task, 2)
        (tmp_path / "failed.jsonl").write_text("of the other try")

    async def replaced_after_the_last_row(record: BatchRecord) -> None:
        await store(record)
        if len(record.failures) == len(TEXTS):
            replace()

    def fail_jobs() -> None:
        if moment == "while its jobs run":
            replace()
        else:
            monkeypatch.setattr(BatchRecord, "store", replaced_after_the_last_row)
        for job in emulator.control.jobs():
            emulator.control.finish(job["id"], "failed")

    once(monkeypatch, emulator, fail_jobs)
    with pytest.raises(NoukaiException):
        task.execute(context)
    assert (tmp_path / "failed.jsonl").read_text() == "of the other try"


@pytest.mark.usefixtures("running")
def test_a_limit_that_has_passed_at_the_end_of_a_segment(
    context: Any, emulator: Emulator, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """A replaced worker that would defer after `execution_timeout` leaves the jobs to the next try."""
    task = operator(
        output_path=f"file://{tmp_path}", deferrable=True, execution_timeout=timedelta(hours=1), timeout=None
    )
    wait = BatchRun._wait_in_triggerer

    def replaced(self: Any, thread: Any, record: Any, header: Any) -> Any:
        change_header(task, 2)
        assert self._is_replaced()
        return wait(self, thread, record, {**header, "until": time.time() - 1})

    monkeypatch.setattr(BatchRun, "_wait_in_triggerer", replaced)
    with suppress(NoukaiException, TaskDeferred):
        task.execute(context)
    assert "cancelled" not in states(emulator)


@pytest.mark.usefixtures("running")
def test_a_response_that_airflow_takes_for_that_of_the_next_request(
    context: Any, emulator: Emulator, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The response to a request in which Airflow's limit struck does not look like another try."""
    task = operator()

    def strike() -> None:
        store = context["task_state_store"]
        read, foreign = store.get, iter([["a row"]])
        monkeypatch.setattr(store, "get", lambda key: next(foreign, None) or read(key))
        time_out()

    once_all_run(monkeypatch, emulator, strike)
    with pytest.raises(AirflowTaskTimeout):
        task.execute(context)
    assert states(emulator) == {"cancelled"}


@pytest.mark.usefixtures("running")
def test_the_log_shows_the_progress(
    context: Any, emulator: Emulator, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """While a task waits on its worker, its log and its XCom say how far it is."""
    monkeypatch.setattr(_batch_run, "PROGRESS_SECONDS", 0.0)
    report = BatchRun._report_progress

    def then_finish(run: BatchRun, record: Any, count: int) -> None:
        report(run, record, count)
        if "progress" in caplog.text and len(emulator.control.jobs()) == len(TEXTS):
            for job in emulator.control.jobs():
                if job["state"] != "completed":
                    emulator.control.finish(job["id"], result=1)

    monkeypatch.setattr(BatchRun, "_report_progress", then_finish)
    assert operator().execute(context) == [1, 1, 1]
    assert f"Noukai batch of {FLOW}: progress " in caplog.text


@pytest.mark.usefixtures("running")
def test_a_clear_that_keeps_the_state(
    context: Any, emulator: Emulator, monkeypatch: pytest.MonkeyPatch
) -> None:
    """From Airflow 3.4 on, a clear that keeps the task's state continues with the jobs of the earlier try."""
    monkeypatch.setattr(_batch_run, "CLEAR_DISCARDS_STATE", True)
    with pytest.raises(TaskDeferred):
        operator(deferrable=True).execute(context)
    for job in emulator.control.jobs():
        emulator.control.finish(job["id"], result=1)
    context["ti"].try_number, context["ti"].max_tries = 2, 1
    assert operator().execute(context) == [1, 1, 1]
    assert len(emulator.control.jobs()) == len(TEXTS)


@pytest.mark.usefixtures("running")
def test_a_clear_whose_jobs_are_kept(
    context: Any, emulator: Emulator, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """With `cancel_on_kill` off, a clear submits new jobs, and the log says how many old ones go on."""
    monkeypatch.setattr(_batch_run, "CLEAR_DISCARDS_STATE", False)
    with pytest.raises(TaskDeferred):
        operator(deferrable=True).execute(context)
    old = {job["id"] for job in emulator.control.jobs()}
    context["ti"].try_number, context["ti"].max_tries = 2, 1
    emulator.control.script("flow", after_seconds=0.1)
    operator(cancel_on_kill=False).execute(context)
    assert f"Noukai batch of {FLOW}: left running (3 jobs; replaced by new jobs; sessions " in caplog.text
    left = {job["state"] for job in emulator.control.jobs() if job["id"] in old}
    assert left <= {"pending", "running"}


def test_outcomes_that_no_task_wrote(context: Any, emulator: Emulator, tmp_path: Path) -> None:
    """A folder with outcomes of unknown origin is refused before anything is sent, and stays as it is."""
    (tmp_path / "part-00001.jsonl").write_text('{"index": 0}\n')
    with pytest.raises(NoukaiPermanentException, match="has outcomes that are not from this task"):
        operator(output_path=f"file://{tmp_path}").execute(context)
    assert (tmp_path / "part-00001.jsonl").read_text() == '{"index": 0}\n'
    assert emulator.control.jobs() == []


def test_a_folder_on_an_object_store(
    context: Any, emulator: Emulator, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Outcomes and record can be on storage with objects instead of files, where a retry reads them."""
    monkeypatch.setitem(fs._register_filesystems(), "memory", lambda conn_id, options: MemoryFileSystem())
    path = f"memory://bucket/{context['ti'].run_id}"
    emulator.control.script("flow", outcome="failed", error="MODEL_OVERLOADED", after_seconds=0.1)
    with pytest.raises(NoukaiException, match="3 failed of 3 jobs"):
        operator(output_path=path).execute(context)
    assert (storage_path(path, None, "output_path") / "failed.jsonl").exists()
    context["ti"].try_number = 2
    emulator.control.script("flow", after_seconds=0.1)
    manifest = operator(output_path=path).execute(context)
    assert manifest["counts"] == {"completed": 3}
    folder = storage_path(path, None, "output_path")
    assert sum((folder / part).read_text().count("\n") for part in manifest["parts"]) == 3
    assert not (folder / "failed.jsonl").exists()


def crash(*_: Any) -> None:
    """End like a process that is killed here."""
    raise RuntimeError("killed")


@pytest.mark.parametrize("written", [True, False])
def test_a_crash_while_a_part_is_written(
    context: Any, emulator: Emulator, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, *, written: bool
) -> None:
    """A retry lets a part count that is written, or else writes its jobs again: each is there once."""
    emulator.control.script("flow", after_seconds=0)
    with monkeypatch.context() as patch:
        patch.setattr(BatchRecord, "end_part", crash)
        with pytest.raises(RuntimeError, match="killed"):
            operator(output_path=f"file://{tmp_path}").execute(context)
    (part,) = tmp_path.glob("part-*.jsonl")
    polled = emulator.control.counts()["poll"]
    if not written:
        part.unlink()
    context["ti"].try_number = 2
    manifest = operator(output_path=f"file://{tmp_path}").execute(context)
    assert manifest["counts"] == {"completed": 3}
    assert [file.name for file in tmp_path.glob("part-*.jsonl")] == manifest["parts"]
    assert (tmp_path / manifest["parts"][0]).read_text().count("\n") == 3
    counts = emulator.control.counts()
    assert counts["submit"] == 3
    assert (counts["poll"] == polled) == written


@pytest.mark.usefixtures("running")
def test_a_rescheduled_try_without_durable(context: Any, emulator: Emulator, tmp_path: Path) -> None:
    """A try that Airflow runs once more, as when its DAG file was missing, goes on with its own jobs."""
    given: Any = {"deferrable": True, "durable": False, "output_path": f"file://{tmp_path}/out"}
    with pytest.raises(TaskDeferred):
        operator(**given).execute(context)
    for job in emulator.control.jobs():
        emulator.control.finish(job["id"], result=1)
    assert operator(**given).execute(context)["counts"] == {"completed": 3}
    assert emulator.control.counts()["submit"] == 3
    context["ti"].try_number = 2
    with pytest.raises(TaskDeferred):
        operator(**given).execute(context)
    assert emulator.control.counts()["submit"] == 6


class FaultyStorage(MemoryFileSystem):
    """An object storage that cannot be read for a while, and takes what it cannot read for absent.

    Attributes:
        faulty: What the paths contain that cannot be read.
    """

    faulty: str | None = None

    def info(self, path: str, **arguments: Any) -> Any:
        self._check(path)
        return super().info(path, **arguments)

    def exists(self, path: str, **arguments: Any) -> bool:
        return AbstractFileSystem.exists(self, path, **arguments)

    def isdir(self, path: str) -> bool:
        return AbstractFileSystem.isdir(self, path)

    def ls(self, path: str, *arguments: Any, **options: Any) -> Any:
        self._check(path)
        return super().ls(path, *arguments, **options)

    def _open(self, path: str, mode: str = "rb", *arguments: Any, **options: Any) -> Any:
        if mode == "rb":
            self._check(path)
        return super()._open(path, mode, *arguments, **options)

    def cat_file(self, path: str, *arguments: Any, **options: Any) -> Any:
        self._check(path)
        return super().cat_file(path, *arguments, **options)

    def _check(self, path: str) -> None:
        if self.faulty is not None and self.faulty in path:
            raise OSError(f"{path}: slow down")


@pytest.mark.parametrize("unreadable", ["part-", "batch.json", "_noukai", "bucket"])
def test_a_storage_that_cannot_be_read_for_a_while(
    context: Any, emulator: Emulator, monkeypatch: pytest.MonkeyPatch, unreadable: str
) -> None:
    """A try that cannot read it ends, and the next one neither submits nor writes anything again."""
    storage = FaultyStorage(skip_instance_cache=True)
    monkeypatch.setattr(store, "_STORE_CACHE", {})
    monkeypatch.setitem(fs._register_filesystems(), "memory", lambda conn_id, options: storage)
    path = f"memory://bucket/{context['ti'].run_id}"
    given: Any = {"output_path": path, "storage_conn_id": "storage"}
    emulator.control.script("flow", after_seconds=0)
    with monkeypatch.context() as patch:
        patch.setattr(BatchRecord, "end_part", crash)
        with pytest.raises(RuntimeError, match="killed"):
            operator(**given).execute(context)
    context["ti"].try_number = 2
    storage.faulty = unreadable
    with pytest.raises(NoukaiException, match=r"output_path memory://.* cannot be read: .*slow down"):
        operator(**given).execute(context)
    storage.faulty = None
    manifest = operator(**given).execute(context)
    assert manifest["counts"] == {"completed": 3}
    folder = storage_path(path, "storage", "output_path")
    assert [file.name for file in folder.glob("part-*.jsonl")] == manifest["parts"]
    assert emulator.control.counts()["submit"] == 3


def test_two_tries_without_a_folder(store: MemoryStore) -> None:
    """Two tries that are alive at the same time replace no row of each other, and the next reads all."""
    first = StateStoreLog(store, 3)
    first.write_header({"first_try": 3})
    first.append([{"index": 0}])
    second = StateStoreLog(store, 4)
    assert list(second.rows()) == [{"index": 0}]
    second.append([{"index": 1}])
    first.append([{"index": 2}])
    second.append([{"index": 3}])
    third = StateStoreLog(store, 5)
    assert list(third.rows()) == [{"index": 0}, {"index": 2}, {"index": 1}, {"index": 3}]
    third.append([{"index": 4}])
    assert list(StateStoreLog(store, 5).rows())[-1] == {"index": 4}


def test_a_try_from_before_a_clear(store: MemoryStore) -> None:
    """What a try still writes whose batch was cleared is not read as a row of the new batch."""
    first = StateStoreLog(store, 1)
    first.write_header({"first_try": 1})
    first.append([{"index": 0}])
    second = StateStoreLog(store, 2)
    second.clear()
    second.write_header({"first_try": 2})
    first.append([{"index": 1}])
    second.append([{"index": 2}])
    assert list(StateStoreLog(store, 3).rows()) == [{"index": 2}]


def test_a_try_from_before_a_clear_in_a_folder(tmp_path: Path) -> None:
    """What a suspended try still writes into a folder that was cleared is no row of the new batch."""
    path = storage_path(f"file://{tmp_path}", None, "output_path")
    suspended = FolderLog(path)
    suspended.write_header({"batch_id": "old"})
    suspended.append([{"index": 0}])
    cleared = FolderLog(path)
    cleared.header()
    cleared.clear()
    cleared.write_header({"batch_id": "new"})
    suspended.append([{"index": 1}])
    cleared.append([{"index": 2}])
    following = FolderLog(path)
    following.header()
    assert list(following.rows()) == [{"index": 2}]


def test_a_suspended_try_that_begins_after_a_clear(
    context: Any, emulator: Emulator, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """A try that was suspended before it forgot an old batch leaves the one that another try has begun."""
    folder = f"file://{tmp_path}"
    emulator.control.script("flow", after_seconds=0.1)
    operator(output_path=folder).execute(context)
    context["ti"].try_number, context["ti"].max_tries = 2, 1
    begin = BatchRun._end_earlier

    def suspended(run: BatchRun, header: dict[str, Any]) -> None:
        run._log.write_header({**header, "batch_id": "of the other try", **of_try(3)})
        begin(run, header)

    monkeypatch.setattr(BatchRun, "_end_earlier", suspended)
    with pytest.raises(NoukaiException, match="Airflow has begun another try"):
        operator(output_path=folder).execute(context)
    assert list(tmp_path.glob("part-*.jsonl"))


@pytest.mark.usefixtures("running")
def test_a_header_that_a_suspended_try_replaces(
    context: Any, emulator: Emulator, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """A try whose header an earlier one has replaced writes it once more, so that the earlier one stops."""
    context["ti"].try_number = 2
    task = operator(output_path=f"file://{tmp_path}")

    def replace() -> None:
        change_header(task, 1)
        for job in emulator.control.jobs():
            emulator.control.finish(job["id"], "failed")

    once(monkeypatch, emulator, replace)
    with pytest.raises(NoukaiException, match="3 failed of 3 jobs"):
        task.execute(context)
    header = FolderLog(storage_path(f"file://{tmp_path}", None, "output_path")).header()
    assert header is not None
    assert header["try_number"] == 2


@pytest.mark.parametrize("act", ["a clear", "a retry"])
def test_a_suspended_try_that_begins_late(act: str, context: Any, emulator: Emulator, tmp_path: Path) -> None:
    """A try that wakes up before it has read anything leaves the batch to the later try that runs it."""
    folder = f"file://{tmp_path}"
    emulator.control.script("flow", after_seconds=0.1)
    context["ti"].try_number, context["ti"].max_tries = 3, 1 if act == "a clear" else 2
    operator(output_path=folder).execute(context)
    before = {file.name: file.read_bytes() for file in tmp_path.rglob("*.json*")}
    context["ti"].try_number, context["ti"].max_tries = 2, 2
    with pytest.raises(NoukaiException, match="Airflow has begun another try"):
        operator(output_path=folder).execute(context)
    assert {file.name: file.read_bytes() for file in tmp_path.rglob("*.json*")} == before
    assert emulator.control.counts()["submit"] == 3


def test_a_run_that_was_deleted_and_made_again(context: Any, emulator: Emulator, tmp_path: Path) -> None:
    """The first try of a run is no suspended one because a run of the same name had more tries."""
    folder = f"file://{tmp_path}"
    emulator.control.script("flow", after_seconds=0.1)
    context["ti"].try_number = 3
    operator(output_path=folder).execute(context)
    log = FolderLog(storage_path(folder, None, "output_path"))
    header = log.header()
    assert header is not None
    log.write_header({**header, "try_id": str(UUID(int=0)), "max_tries": 5})
    context["ti"].try_number = 1
    operator(output_path=folder).execute(context)
    assert emulator.control.counts()["submit"] == 6


def test_a_header_that_is_lost(context: Any, emulator: Emulator, tmp_path: Path) -> None:
    """A retry that finds no header attaches to the jobs of the rows that are there."""
    folder = f"file://{tmp_path}"
    emulator.control.script("flow", outcome="never")
    context["ti"].max_tries = 1
    with pytest.raises(TaskDeferred):
        operator(output_path=folder, deferrable=True).execute(context)
    (tmp_path / "_noukai" / "batch.json").unlink()
    for job in emulator.control.jobs():
        emulator.control.finish(job["id"], result=1)
    context["ti"].try_number = 2
    operator(output_path=folder).execute(context)
    assert emulator.control.counts()["submit"] == 3


def test_a_record_that_a_crash_cut_off(tmp_path: Path) -> None:
    """Rows that were written completely are read, and what a crash cut off is left out."""
    path = storage_path(f"file://{tmp_path}", None, "output_path")
    FolderLog(path).append([{"index": 0}, {"index": 1}])
    FolderLog(path).write_header({"batch_id": "b"})
    (rows,) = tmp_path.glob("**/*.jsonl")
    rows.write_text(rows.read_text()[:-4])
    (header,) = tmp_path.glob("**/batch.json")
    header.write_text(header.read_text()[:-4])
    log = FolderLog(path)
    assert (list(log.rows()), log.header()) == ([{"index": 0}], None)
    log.append([{"index": 1}])
    assert list(FolderLog(path).rows()) == [{"index": 0}, {"index": 1}]


@pytest.mark.usefixtures("running")
@pytest.mark.parametrize("cancels", [True, False])
def test_a_person_who_interrupts_a_batch_in_the_foreground(
    cancels: bool,
    context: Any,
    emulator: Emulator,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """Ctrl-C in `airflow tasks test` cancels the jobs, or names them."""

    def interrupt() -> None:
        raise KeyboardInterrupt

    once_all_run(monkeypatch, emulator, interrupt)
    with pytest.raises(KeyboardInterrupt):
        operator(cancel_on_kill=cancels).execute(context)
    assert ("cancelled" in states(emulator)) is cancels
    if cancels:
        assert f"Noukai batch of {FLOW}: cancelled (a user ended its task; 3 jobs)" in caplog.text
    else:
        assert named_as_running(caplog, "cancel_on_kill is off", emulator)


def test_a_stop_that_comes_as_the_segment_ends(
    context: Any, emulator: Emulator, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nobody waits for what would run on the loop of a segment that has just ended."""
    cancel_tasks = asyncio.runners._cancel_all_tasks  # type: ignore[attr-defined]
    threads: list[BatchThread] = []
    stopping: list[threading.Thread] = []

    class Noted(BatchThread):
        def start(self) -> None:
            threads.append(self)
            super().start()

    def cancel_tasks_late(loop: asyncio.AbstractEventLoop) -> None:
        cancel_tasks(loop)
        if threading.current_thread().name == "noukai-batch":
            stopping.append(threading.Thread(target=threads[0].stop, args=(3600.0,), daemon=True))
            stopping[0].start()
            stopping[0].join(0.2)  # until it waits

    monkeypatch.setattr(_batch_run, "BatchThread", Noted)
    monkeypatch.setattr(asyncio.runners, "_cancel_all_tasks", cancel_tasks_late)
    emulator.control.script("flow", after_seconds=0.0)
    operator().execute(context)
    stopping[0].join(60)
    assert not stopping[0].is_alive()
