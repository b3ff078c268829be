"""Cancels the job of a deferred task that a user marks, where no trigger does.

Airflow calls these hooks in the API server when a user marks a task or a DAG run, and elsewhere when one ends
by itself. Only a user's act counts.

Before Airflow 3.3 no trigger learns that its task was marked. Since then it cancels the job itself, unless it
has not started yet or its triggerer is dead.
"""

from __future__ import annotations

import asyncio
import logging
import threading
from contextlib import suppress
from dataclasses import dataclass
from datetime import datetime
from functools import cache
from typing import TYPE_CHECKING, Any

from airflow.providers.common.compat.sdk import hookimpl

from noukai_airflow._compat import NOTIFIES_TRIGGERS

if TYPE_CHECKING:
    from collections.abc import Sequence

log = logging.getLogger(__name__)

_TRIGGER = "noukai_airflow.triggers.noukai.NoukaiJobTrigger"
_TASK_INSTANCE = ("airflow.models.taskinstance", "TaskInstance")

# How the error begins that Airflow passes on when a user, and not the task, has ended it.
_BY_A_USER = "TaskInstance's state was manually set"

# Airflow stores the mark only after it has called the hooks. A trigger that is alive has cancelled the job a
# few seconds later.
_DELAY_SECONDS = 15.0 if NOTIFIES_TRIGGERS else 1.0


@dataclass(frozen=True)
class _Marked:
    """A task that a user has marked, and the job that it waited for."""

    task_instance_id: Any
    state: str
    job_id: str
    flow: str
    noukai_conn_id: str
    submitted_at: datetime | None


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
    """Act on each task of a run, where Airflow calls no hook for them.

    The scheduler passes a message, the API server does not.
    """
    if NOTIFIES_TRIGGERS or msg:
        return
    for task_instance in _deferred_tasks(dag_run):
        _cancel_later(task_instance)


def _deferred_tasks(dag_run: Any) -> Sequence[Any]:
    from airflow.models.taskinstance import TaskInstance
    from sqlalchemy import select
    from sqlalchemy.orm import object_session

    session: Any = object_session(dag_run)
    query = select(TaskInstance).where(
        TaskInstance.dag_id == dag_run.dag_id,
        TaskInstance.run_id == dag_run.run_id,
        TaskInstance.trigger_id.is_not(None),
    )
    return session.scalars(query).all() if session is not None else ()


def _cancel_later(task_instance: Any) -> None:
    """Have the job of a task cancelled soon, without holding up the user's request."""
    marked = _read(task_instance)
    if marked is not None:
        asyncio.run_coroutine_threadsafe(_cancel(marked), _event_loop())


def _read(task_instance: Any) -> _Marked | None:
    """Return the job that a deferred task waited for, by its trigger, which is still stored."""
    trigger = task_instance.trigger
    if trigger is None or trigger.classpath != _TRIGGER:
        return None
    arguments: dict[str, Any] = trigger.kwargs
    if not arguments.get("cancel_on_kill"):
        return None
    submitted_at = arguments.get("submitted_at")
    return _Marked(
        task_instance.id,
        str(task_instance.state),
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
    from noukai_airflow._client_cache import shared_async_client
    from noukai_airflow.hooks.noukai import NoukaiHook
    from noukai_core import CancelOutcome, NoukaiError, acancel_job

    await asyncio.sleep(_DELAY_SECONDS)
    try:
        if not await asyncio.to_thread(_is_still_marked, marked):
            return  # cleared in the meantime: the new try stops the job, or attaches to it
        settings = await asyncio.to_thread(getattr, NoukaiHook(marked.noukai_conn_id), "settings")
        async with shared_async_client(settings) as client:
            job = client.flow(marked.flow).attach(marked.job_id, submitted_at=marked.submitted_at)
            with suppress(NoukaiError):
                if NOTIFIES_TRIGGERS and (await job.status()).finished:
                    return
            outcome = await acancel_job(job)
    except Exception as error:
        outcome = CancelOutcome(marked.job_id, marked.flow, error=str(error))
    outcome.log("a user ended its task", log)


def _is_still_marked(marked: _Marked) -> bool:
    from airflow.models.taskinstance import TaskInstance
    from airflow.utils.session import create_session

    with create_session() as session:
        task_instance: Any = session.get(TaskInstance, marked.task_instance_id)
        return task_instance is not None and str(task_instance.state) == marked.state
