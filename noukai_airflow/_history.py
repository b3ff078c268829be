"""How long a task's job took the last time, and for how long it is worth waiting for on the worker."""

from __future__ import annotations

import logging
from datetime import datetime
from typing import TYPE_CHECKING, Any, cast

from noukai_airflow._compat import RESUMES_SAFELY
from noukai_airflow._xcoms import JOB_STATUS, task_instance_of

if TYPE_CHECKING:
    from airflow.sdk import Context

log = logging.getLogger(__name__)

INLINE_SECONDS = 3.0
"""How long a job is waited for on the worker when nothing is known of earlier ones."""

_LONGEST_INLINE_SECONDS = 15.0

# A job may take a little longer than the last one.
_ROOM_FACTOR = 1.25
_ROOM_SECONDS = 1.0

# With less room than that, a job would too often be deferred after all, and the time on the worker be wasted.
_LONGEST_JOB_SECONDS = 13.0


def inline_seconds(last_duration: float | None, *, resumes_safely: bool = RESUMES_SAFELY) -> float:
    """Return for how long a job is waited for on the worker, from its submission on.

    Before Airflow 3.4, a task that defers is not resumed for 15 seconds or more (see `wake_up_delay`).
    There, a job that takes longer than the last one is worth the whole wait.

    Args:
        last_duration: How long the last one took.
        resumes_safely: Whether a task can be resumed as soon as its job has ended.
    """
    if last_duration is None:
        return INLINE_SECONDS
    if last_duration > _LONGEST_JOB_SECONDS:
        return 0.0
    if not resumes_safely:
        return _LONGEST_INLINE_SECONDS
    return min(last_duration * _ROOM_FACTOR + _ROOM_SECONDS, _LONGEST_INLINE_SECONDS)


def last_duration(context: Context) -> float | None:
    """Return how long the job of the task's previous successful run took, in seconds.

    `None` when there is none, or Airflow does not say.
    """
    try:
        status = _last_status(context)
    except Exception as error:  # what is not known costs a few seconds, never the task
        log.debug("Airflow does not say how long the task's last job took: %s", error)
        return None
    duration = status.get("duration") if isinstance(status, dict) else None
    return float(duration) if isinstance(duration, int | float) and not isinstance(duration, bool) else None


def _last_status(context: Context) -> dict[str, Any] | None:
    task_instance: Any = task_instance_of(context)
    map_index = -1 if task_instance.map_index is None else task_instance.map_index
    if hasattr(task_instance, "get_previous_ti"):
        from airflow.sdk import TaskInstanceState

        previous = task_instance.get_previous_ti(state=TaskInstanceState.SUCCESS, map_index=map_index)
    else:  # before Airflow 3.2
        previous = task_instance.get_previous_dagrun(state="success")
    if previous is None:
        return None
    pulled = task_instance.xcom_pull(
        task_ids=task_instance.task_id, key=JOB_STATUS, map_indexes=map_index, run_id=previous.run_id
    )
    return cast("dict[str, Any] | None", pulled)


def duration(
    created_at: str | None, completed_at: str | None, submitted: datetime | None, seen: float
) -> float | None:
    """Return how long a job took, in seconds, by the server's word or else by what was seen.

    Args:
        created_at: When it was made, in ISO 8601, when the server says so.
        completed_at: When it ended, likewise.
        submitted: When it was submitted.
        seen: When its end was seen, in seconds since the epoch.
    """
    try:
        created, completed = (datetime.fromisoformat(text or "") for text in (created_at, completed_at))
        took = (completed - created).total_seconds()
    except (TypeError, ValueError):  # absent, malformed, or only one of them with a time zone
        if submitted is None:
            return None
        took = seen - submitted.timestamp()
    return round(max(took, 0.0), 3)
