"""What happens to the jobs of a batch when its task is killed on a worker, or when its time is over."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from noukai_airflow import _kill_policy
from noukai_airflow._worker_kill import ACT_SECONDS, kill_own_process

if TYPE_CHECKING:
    from airflow.sdk.types import RuntimeTaskInstanceProtocol

    from noukai_airflow._batch_thread import BatchThread

log = logging.getLogger(__name__)

_NAMES_PER_LINE = 50


class BatchKilled(BaseException):
    """Interrupts what the task was doing when the signal came.

    Attributes:
        by_user: Whether a user ended the task.
        phrase: What happens to the jobs.
    """

    def __init__(self, phrase: str, *, by_user: bool) -> None:
        super().__init__()
        self.phrase = phrase
        self.by_user = by_user


@dataclass
class _Outcome:
    known: bool = False
    state: str | None = None
    replaced: bool = False
    error: str = "no response from Airflow in time"


def kill(
    thread: BatchThread,
    task_instance: RuntimeTaskInstanceProtocol,
    *,
    flow: str,
    cancel_on_kill: bool,
    durable: bool,
    retry_left: bool,
    is_replaced: Callable[[], bool],
) -> BatchKilled:
    """Cancel the jobs if a user ended the task, as many as five seconds allow, and return what to raise.

    The rest is named in the log. After a clear, the next try cancels it.
    """
    act_until = time.monotonic() + ACT_SECONDS
    outcome = _Outcome()
    # A separate thread asks, since the signal may have come while this one held the lock of the connection to
    # the supervisor.
    asking = threading.Thread(target=_ask, args=(outcome, task_instance, is_replaced), daemon=True)
    asking.start()
    asking.join(ACT_SECONDS)
    decision = _kill_policy.decide_on_worker(outcome.state, known=outcome.known, replaced=outcome.replaced)
    by_user = decision is _kill_policy.KillDecision.CANCEL
    if by_user and cancel_on_kill:
        seconds = max(act_until - time.monotonic(), 0.5)
        phrase = cancel_and_log(thread, _kill_policy.USER_ENDED, flow, seconds)
    else:
        if by_user:
            reason = "cancel_on_kill is off"
        elif outcome.replaced:
            reason = "its task has failed in a later try"
        elif outcome.known:
            reason = "only the worker is stopping"
        else:
            reason = f"who ended its task is not known: {outcome.error}"
        left = _kill_policy.left_running(reason, durable=durable, retry_left=retry_left)
        phrase = f"{left}; {thread.running:,} jobs"
        log_left_running(thread, reason, flow)
        thread.stop(max(act_until - time.monotonic(), 0.5))
    if by_user and outcome.state != "failed":
        kill_own_process()
    return BatchKilled(phrase, by_user=by_user)


def cancel_and_log(thread: BatchThread, reason: str, flow: str, seconds: float) -> str:
    """Cancel the jobs that have not ended, name those that may still be running, and say what happened."""
    cancelled, left = thread.cancel_jobs(reason, seconds)
    log.info("Noukai batch of %s: cancelled (%s; %d jobs)", flow, reason, cancelled)
    for start in range(0, len(left), _NAMES_PER_LINE):
        names = ", ".join(left[start : start + _NAMES_PER_LINE])
        log.warning("Noukai batch of %s: cancel failed (may still be running: %s)", flow, names)
    return f"{cancelled:,} jobs cancelled" + (f", {len(left):,} may still be running" if left else "")


def log_left_running(thread: BatchThread, reason: str, flow: str) -> None:
    """Log why the jobs are left running. Their sessions are named, since there may be thousands of jobs."""
    jobs, sessions = f"{thread.running:,} jobs", ", ".join(sorted(thread.sessions))
    log.warning("Noukai batch of %s: left running (%s; %s; sessions %s)", flow, jobs, reason, sessions)


def log_unread(flow: str, reason: str) -> None:
    """Log that jobs of an earlier part of the task may be left running, which this part has not read."""
    log.warning("Noukai batch of %s: may be left running (%s)", flow, reason)


def _ask(outcome: _Outcome, task: RuntimeTaskInstanceProtocol, is_replaced: Callable[[], bool]) -> None:
    try:
        states = task.get_task_states(dag_id=task.dag_id, task_ids=[task.task_id], run_ids=[task.run_id])
        map_index = -1 if task.map_index is None else task.map_index
        outcome.state = _kill_policy.state_of(states, task.run_id, task.task_id, map_index)
        outcome.replaced = outcome.state == "failed" and is_replaced()
        outcome.known = True
    except Exception as error:
        outcome.error = str(error)
