"""Why a task is killed: by a user, or because its process is shut down. Only a user's act cancels a job."""

from __future__ import annotations

from enum import Enum
from typing import Any

# A task whose worker is shut down, evicted or presumed dead is in one of these states. The task continues,
# in this try or in the next.
_ALIVE_ON_WORKER = frozenset(
    {"running", "up_for_retry", "up_for_reschedule", "scheduled", "queued", "deferred"}
)

# A trigger that is handed over to another triggerer finds its task in one of these states. A cleared task may
# be in them too, but then it has another job.
_ALIVE_IN_TRIGGERER = frozenset({"deferred", "running", "up_for_retry"})

_ENDED = frozenset({"failed", "success", "skipped", "upstream_failed", "removed"})

# The task is on its way to a worker: either another triggerer has resumed it, or a user has cleared it. Only
# once it runs do its XComs show which, since a new try starts without those of the try before.
_ON_ITS_WAY = frozenset({"scheduled", "queued"})


USER_ENDED = "a user ended its task"
"""Why a job is cancelled, as log lines say it."""


class KillDecision(Enum):
    """What to do with the job of a task that is killed."""

    CANCEL = "cancel"
    KEEP = "keep"
    UNDECIDED = "undecided"
    """The reason for the kill is not known yet."""


def decide_on_worker(
    state: str | None, *, known: bool, kept: bool = False, replaced: bool = False
) -> KillDecision:
    """Decide about a SIGTERM on a worker, given the state that the task has in the database by then.

    Args:
        state: The state; `None` for a task that is not in the database.
        known: Whether Airflow returned the state.
        kept: Whether the user who cleared the task keeps its state store.
        replaced: Whether the state is that of a later try.
    """
    if not known or replaced or state in _ALIVE_ON_WORKER or (state == "restarting" and kept):
        return KillDecision.KEEP
    return KillDecision.CANCEL


def decide_in_triggerer(state: str | None, job_of_task: str | None, job_id: str) -> KillDecision:
    """Decide about a call of a trigger's `on_kill`.

    Airflow 3.3.0 to 3.3.2 also calls it when a trigger moves to another triggerer (apache/airflow#73454). The
    task then still waits for the same job.

    Args:
        state: The state of the task in the database.
        job_of_task: The job in the task's XCom, if there is one.
        job_id: The trigger's job.
    """
    if state == "deferred" and job_of_task is None:
        return KillDecision.KEEP
    if job_of_task == job_id and state in _ALIVE_IN_TRIGGERER:
        return KillDecision.KEEP
    if job_of_task == job_id and state in _ON_ITS_WAY:
        return KillDecision.UNDECIDED
    return KillDecision.CANCEL


def decide_after_user_action(state: str | None, job_of_task: str | None, job_id: str) -> KillDecision:
    """Decide about a call of a trigger's `on_kill` that always means that a user ended or cleared the task.

    After a clear, the new try attaches to the job if the user keeps the task's state store.

    Args:
        state: The state of the task in the database.
        job_of_task: The job in the task's XCom, if there is one.
        job_id: The trigger's job.
    """
    if state in _ENDED:
        return KillDecision.CANCEL
    if job_of_task == job_id:
        return KillDecision.KEEP
    if job_of_task is not None:
        return KillDecision.CANCEL
    # A new try without XComs stops the job itself, or attaches to it, before it defers.
    return KillDecision.KEEP if state == "deferred" else KillDecision.UNDECIDED


ANOTHER_TRY = "Airflow has begun another try"
"""Why a worker leaves the jobs of its task alone, for example on a machine that was suspended."""


def has_ended(state: str | None) -> bool:
    """Return whether a task with this state runs no more, unless a user clears it."""
    return state in _ENDED


def left_running(reason: str | None = None, *, durable: bool, retry_left: bool = True) -> str:
    """Return the phrase for a job that is not cancelled, with what a retry of its task will do."""
    retry = "a retry attaches to it" if durable else "a retry submits a new job"
    if not retry_left:
        retry = "no retry is left"
    return f"left running ({reason}; {retry})" if reason else f"left running ({retry})"


def state_of(task_states: dict[str, Any], run_id: str, task_id: str, map_index: int) -> str | None:
    """Return the state of one task from Airflow's response to a request for task states."""
    states: dict[str, Any] = task_states.get(run_id) or {}
    key = task_id if map_index < 0 else f"{task_id}_{map_index}"
    state = states.get(key)
    return None if state is None else str(getattr(state, "value", state))
