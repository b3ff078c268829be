"""Cancels the job of a task that a user marks, where neither its worker nor its trigger does.

Airflow calls these hooks in the API server when a user marks a task or a DAG run, and elsewhere when one ends
by itself. Only a user's act counts.

A task on a worker gets a signal, and has a few seconds to cancel its job. Since Airflow 3.3, a trigger learns
that its task was marked, and cancels the job. Both may fail: the process is killed too soon or has no
response in time, the trigger has not started yet, its triggerer is dead. And a task that waits for a retry or
for a free worker has no process at all. So, some time after each mark, it is checked whether the job is still
running.
"""

from __future__ import annotations

import asyncio
import logging
import threading
from contextlib import suppress
from dataclasses import dataclass
from datetime import datetime, timedelta
from functools import cache
from typing import TYPE_CHECKING, Any

from airflow.providers.common.compat.sdk import conf, hookimpl

from noukai_airflow._compat import NOTIFIES_TRIGGERS
from noukai_airflow._kill_policy import USER_ENDED

if TYPE_CHECKING:
    from noukai_airflow._job_store import JobRecord
    from noukai_core import AsyncJob, AsyncNoukai, Submission

log = logging.getLogger(__name__)

_TRIGGER = "noukai_airflow.triggers.noukai.NoukaiJobTrigger"
_BATCH_TRIGGER = "noukai_airflow.triggers.batch.NoukaiBatchTrigger"
_TASK_INSTANCE = ("airflow.models.taskinstance", "TaskInstance")

# How the error begins that Airflow passes on when a user, and not the task, has ended it.
_BY_A_USER = "TaskInstance's state was manually set"

# What is in the message that Airflow passes on when a user ends a run. Before 3.3 the message is empty then.
_RUN_BY_A_USER = "manually set"

# A trigger that is alive has cancelled the job a few seconds after the mark.
_TRIGGER_SECONDS = 15.0 if NOTIFIES_TRIGGERS else 1.0

# A worker learns of the mark with its next heartbeat, and then has five seconds. A busy one needs more.
_WORKER_SECONDS = 25.0

# Airflow stores the mark only after it has called the hooks, and later if it is busy.
_CHECKS = 60
_CHECK_SECONDS = 1.0


# How long the cancels of a batch may take.
_BATCH_SECONDS = 60.0

# A mark stores when the task has ended, unless that is stored already, and the row with it.
_SAME_MOMENT = timedelta(seconds=5)


@dataclass(frozen=True)
class _JobToCancel:
    """The job that a marked task waited for; without an id, the one that its submission may have led to."""

    job_id: str | None
    flow: str
    noukai_conn_id: str
    submitted_at: datetime | None
    submission: Submission | None = None


@dataclass(frozen=True)
class _BatchToCancel:
    """The jobs that a marked task waited for: how many each of their sessions has, if that is known."""

    sessions: dict[str, int | None]
    flow: str
    noukai_conn_id: str


@dataclass(frozen=True)
class _Marked:
    """A task that a user has marked, and its job or jobs if they are known already."""

    task_instance_id: Any
    name: str
    job: _JobToCancel | _BatchToCancel | None


@hookimpl
def on_task_instance_success(task_instance: Any) -> None:
    """Act on a task that a user has marked as successful."""
    if _is_stored(task_instance):
        _cancel_later(task_instance)


@hookimpl
def on_task_instance_failed(task_instance: Any, error: Any) -> None:
    """Act on a task that a user has marked as failed."""
    if _is_stored(task_instance) and isinstance(error, str) and error.startswith(_BY_A_USER):
        _cancel_later(task_instance)


@hookimpl
def on_task_instance_skipped(task_instance: Any) -> None:
    """Act on a task that a user has marked as skipped."""
    if _is_stored(task_instance):
        _cancel_later(task_instance)


@hookimpl
def on_dag_run_success(dag_run: Any, msg: str) -> None:
    """Act on a DAG run that a user has marked as successful."""
    _act_on_run(dag_run, msg)


@hookimpl
def on_dag_run_failed(dag_run: Any, msg: str) -> None:
    """Act on a DAG run that a user has marked as failed."""
    _act_on_run(dag_run, msg)


def _is_stored(task_instance: Any) -> bool:
    """Tell the API server's kind of task instance from the one that a worker passes."""
    kind = type(task_instance)  # pyright: ignore[reportUnknownVariableType]
    return (kind.__module__, kind.__name__) == _TASK_INSTANCE


def _act_on_run(dag_run: Any, msg: str) -> None:
    """Act on the tasks of a run for which Airflow calls no hook.

    Those that were not running are skipped. Before Airflow 3.3, no hook is called for the others either.
    """
    from sqlalchemy.orm import object_session

    from noukai_airflow._stored_records import tasks_with_jobs

    session = object_session(dag_run)
    if session is None or (msg and _RUN_BY_A_USER not in msg):
        return
    for task_instance in tasks_with_jobs(session, dag_run):
        skipped = str(task_instance.state) == "skipped"
        if skipped or (not NOTIFIES_TRIGGERS and _had_not_ended(task_instance)):
            _cancel_later(task_instance)


def _cancel_later(task_instance: Any) -> None:
    """Have the job of a task cancelled soon, without holding up the user's request."""
    job: _JobToCancel | _BatchToCancel | None = None
    trigger = task_instance.trigger
    if trigger is not None:
        # The row of the trigger is deleted soon.
        job = _job_of(trigger)
        if job is None:
            return
    elif not _had_not_ended(task_instance) and task_instance.try_number > task_instance.max_tries:
        return  # it had ended, and no retry waited for its job
    marked = _Marked(task_instance.id, str(task_instance.key), job)
    asyncio.run_coroutine_threadsafe(_cancel(marked), _event_loop())


def _had_not_ended(task_instance: Any) -> bool:
    """Return whether the mark has ended the latest try of a task."""
    ended_at, stored_at = task_instance.end_date, task_instance.updated_at
    return ended_at is None or stored_at is None or stored_at - ended_at < _SAME_MOMENT


def _job_of(trigger: Any) -> _JobToCancel | _BatchToCancel | None:
    """Return the job or jobs that a deferred task waited for, if they may be cancelled."""
    arguments: dict[str, Any] = trigger.kwargs
    if trigger.classpath not in (_TRIGGER, _BATCH_TRIGGER) or not arguments.get("cancel_on_kill"):
        return None
    if trigger.classpath == _BATCH_TRIGGER:
        return _BatchToCancel(arguments["sessions"], arguments["flow"], arguments["noukai_conn_id"])
    submitted_at = arguments.get("submitted_at")
    return _JobToCancel(
        arguments["job_id"],
        arguments["flow"],
        arguments["noukai_conn_id"],
        datetime.fromisoformat(submitted_at) if submitted_at else None,
    )


@cache
def _event_loop() -> asyncio.AbstractEventLoop:
    """Return a loop that runs in a thread of its own. It ends with the process."""
    loop = asyncio.new_event_loop()
    threading.Thread(target=loop.run_forever, name="noukai-marks", daemon=True).start()
    return loop


async def _cancel(marked: _Marked) -> None:
    from noukai_airflow._batch_sessions import log_failed_cancel
    from noukai_airflow._client_cache import shared_async_client
    from noukai_airflow.hooks.noukai import NoukaiHook
    from noukai_core import CancelOutcome

    await asyncio.sleep(_delay(marked))
    job = marked.job
    try:
        job = await _job_to_cancel(marked)
        if job is None:
            return
        settings = await asyncio.to_thread(getattr, NoukaiHook(job.noukai_conn_id), "settings")
        async with shared_async_client(settings) as client:
            if isinstance(job, _BatchToCancel):
                await _cancel_batch(client, job)
            else:
                await _cancel_if_running(client, job)
    except Exception as error:
        if job is None:
            log.warning(
                "Airflow task %s: record not read (its Noukai job may be left running): %s",
                marked.name,
                error,
            )
        elif isinstance(job, _BatchToCancel):
            log_failed_cancel(job.flow, job.sessions, str(error) or "no response in time", log)
        elif job.job_id is None:
            _log_unknown(job)
        else:
            CancelOutcome(job.job_id, job.flow, error=str(error)).log(USER_ENDED, log)


def _delay(marked: _Marked) -> float:
    if marked.job is not None:
        return _TRIGGER_SECONDS
    return _WORKER_SECONDS + float(conf.get("workers", "min_heartbeat_interval", fallback=5.0))


async def _job_to_cancel(marked: _Marked) -> _JobToCancel | _BatchToCancel | None:
    """Return the job or jobs of a task that a user has ended.

    If it was cleared in the meantime, its new try stops the job, or attaches to it.
    """
    from noukai_airflow._kill_policy import has_ended
    from noukai_airflow._stored_records import stored_task

    for left in reversed(range(_CHECKS)):
        try:
            task = await asyncio.to_thread(
                stored_task, marked.task_instance_id, with_record=marked.job is None
            )
        except Exception:  # the database may be busy
            if not left:
                raise
        else:
            if task is None:
                return None
            if has_ended(task.state):
                return marked.job or _recorded_job(task.record) or _recorded_batch(task.batch)
        await asyncio.sleep(_CHECK_SECONDS)
    return None


def _recorded_job(record: JobRecord | None) -> _JobToCancel | None:
    if record is None or record.cancel_with is None or record.delivered:
        return None
    return _JobToCancel(
        record.job_id, record.flow, record.cancel_with, record.last_sent_at, record.submission
    )


def _recorded_batch(published: Any) -> _BatchToCancel | None:
    match published:
        case {"sessions": [str(), *_] as sessions, "flow": str(flow), "cancel_with": str(connection)}:
            return _BatchToCancel(dict.fromkeys(sessions), flow, connection)
        case _:
            return None


async def _cancel_if_running(client: AsyncNoukai, found: _JobToCancel) -> None:
    from noukai_core import NoukaiError, acancel_job

    job: AsyncJob | None = None
    if found.job_id is not None:
        job = client.flow(found.flow).attach(found.job_id, submitted_at=found.submitted_at)
    elif found.submission is not None:
        job = await client.flow(found.flow).find(found.submission)
    if job is None:
        return _log_unknown(found)
    with suppress(NoukaiError):
        if (await job.status()).finished:
            return
    (await acancel_job(job)).log(USER_ENDED, log)


async def _cancel_batch(client: AsyncNoukai, batch: _BatchToCancel) -> None:
    from noukai_airflow._batch_sessions import cancel_sessions, log_cancelled_sessions
    from noukai_core.time_limit import time_limit

    async with time_limit(_BATCH_SECONDS):
        cancelled = await cancel_sessions(client.flow(batch.flow), batch.sessions, log)
    if cancelled:
        log_cancelled_sessions(batch.flow, cancelled, log)


def _log_unknown(job: _JobToCancel) -> None:
    submission_id = job.submission.id if job.submission else None
    log.warning("Noukai submission %s to %s: may be left running (%s)", submission_id, job.flow, USER_ENDED)
