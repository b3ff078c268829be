"""Whether a person wanted a task to end, or only its process does. Only a person's act cancels a job."""

from __future__ import annotations

from enum import Enum
from typing import Any

# A task whose worker is shut down, evicted or taken for dead is in one of these; it lives on, here or in its
# next try.
_ALIVE_ON_WORKER = frozenset(
    {"running", "up_for_retry", "up_for_reschedule", "scheduled", "queued", "deferred"}
)

# A trigger that loses its place to another triggerer finds its task in one of these. After a clear the task
# may be in them too, but then it has another job.
_ALIVE_IN_TRIGGERER = frozenset({"deferred", "running", "up_for_retry"})

# On its way to a worker: either another triggerer has woken the task, or a person has cleared it. Once it is
# there it can be told, since only a new try begins without the XComs of the last.
_UNDER_WAY = frozenset({"scheduled", "queued"})


class KillDecision(Enum):
    """What to do with the job of a task that is ended."""

    CANCEL = "cancel"
    KEEP = "keep"
    UNDECIDED = "later"
    """It cannot be told yet."""


def on_worker(state: str | None, *, known: bool) -> KillDecision:
    """Judge a SIGTERM on a worker by the state that the task then has in the database.

    Args:
        state: The state.
        known: Whether the state could be asked for.
    """
    if not known or state in _ALIVE_ON_WORKER:
        return KillDecision.KEEP
    return KillDecision.CANCEL


def in_triggerer(state: str | None, job_of_task: str | None, job_id: str) -> KillDecision:
    """Judge a call of a trigger's `on_kill`.

    Airflow 3.3.0 to 3.3.2 also calls it when a trigger moves to another triggerer (apache/airflow#73454):
    then the task still waits, for the same job.

    Args:
        state: The state of the task in the database.
        job_of_task: The job that the task now has, by its XCom, if there is one.
        job_id: The trigger's job.
    """
    if state == "deferred" and job_of_task is None:
        return KillDecision.KEEP
    if job_of_task == job_id and state in _ALIVE_IN_TRIGGERER:
        return KillDecision.KEEP
    if job_of_task == job_id and state in _UNDER_WAY:
        return KillDecision.UNDECIDED
    return KillDecision.CANCEL


def left_running(*, durable: bool) -> str:
    """Say what follows for a job that is left alone."""
    return "It goes on, and a retry attaches to it." if durable else "It goes on."


def state_of(task_states: dict[str, Any], run_id: str, task_id: str, map_index: int) -> str | None:
    """Find one task in what Airflow answers to a question for task states."""
    states: dict[str, Any] = task_states.get(run_id) or {}
    key = task_id if map_index < 0 else f"{task_id}_{map_index}"
    state = states.get(key)
    return None if state is None else str(getattr(state, "value", state))
