"""What happens when a signal kills a task on a worker: there are five seconds, in the middle of any work."""

from __future__ import annotations

import logging
import os
import signal
import threading
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from noukai_airflow import _kill_policy
from noukai_airflow._compat import CLEAR_DISCARDS_STATE

if TYPE_CHECKING:
    from airflow.sdk.types import RuntimeTaskInstanceProtocol

    from noukai_airflow._connection import ConnectionSettings
    from noukai_airflow._job_store import JobStore
    from noukai_core import CancelOutcome, Job

log = logging.getLogger(__name__)

# Airflow's supervisor sends SIGKILL five seconds after SIGTERM. No setting changes that before Airflow 3.4.
ACT_SECONDS = 4.0


class TaskKilled(BaseException):
    """Interrupts what the task was doing when the signal came.

    Attributes:
        job: The task's job.
        by_user: Whether a user ended the task.
        phrase: What happens to the job.
    """

    def __init__(self, job: Job, phrase: str, *, by_user: bool) -> None:
        super().__init__()
        self.job = job
        self.phrase = phrase
        self.by_user = by_user


@dataclass(frozen=True)
class KillOptions:
    """What may happen to the job of a task that is killed.

    Attributes:
        cancel_on_kill: Whether to cancel it when a user ended or cleared the task.
        cancel_left_behind: Whether to cancel it when no retry attaches to it.
        durable: Whether a retry attaches to it.
        retry_left: Whether the task has a retry left.
    """

    cancel_on_kill: bool
    cancel_left_behind: bool
    durable: bool
    retry_left: bool

    def cancels(self, decision: _kill_policy.KillDecision) -> bool:
        """Return whether to cancel the job, given whether a user ended the task."""
        if decision is _kill_policy.KillDecision.CANCEL:
            return self.cancel_on_kill
        return self.cancel_left_behind and not (self.durable and self.retry_left)

    def left_running(self, reason: str) -> str:
        """Return the phrase for a job that is not cancelled."""
        return _kill_policy.left_running(reason, durable=self.durable, retry_left=self.retry_left)


@dataclass
class _Outcome:
    state_known: bool = False
    state: str | None = None
    kept: bool = False
    replaced: bool = False
    decision: _kill_policy.KillDecision = _kill_policy.KillDecision.KEEP
    cancel: CancelOutcome | None = None
    error: str | None = None


def end_job(
    job: Job,
    settings: ConnectionSettings,
    task_instance: RuntimeTaskInstanceProtocol,
    store: JobStore,
    options: KillOptions,
) -> TaskKilled:
    """Cancel the job if a user ended the task, and return what to raise.

    A thread does the work: the signal may have come while the main thread held the lock of the connection to
    the supervisor, or one of the HTTP client.
    """
    outcome = _Outcome()
    worker = threading.Thread(
        target=_act, args=(outcome, job, settings, task_instance, store, options), daemon=True
    )
    worker.start()
    worker.join(ACT_SECONDS)
    level, phrase = _describe(outcome, options)
    if level == logging.WARNING:
        log.warning("Noukai job %s of %s: %s", job.id, job.flow, phrase)
    else:
        log.info("Noukai job %s of %s: %s", job.id, job.flow, phrase)
    by_user = outcome.decision is _kill_policy.KillDecision.CANCEL
    if outcome.kept or (by_user and outcome.state != "failed"):
        # The task has succeeded, or is about to run again: anything that this process still reported would be
        # wrong, and no callback should run. The supervisor would kill it after 5 s, since Airflow 3.4 after
        # `[core] killed_task_cleanup_time`, and a cleared task runs again only then.
        kill_own_process()
    return TaskKilled(job, phrase, by_user=by_user)


def _act(
    outcome: _Outcome,
    job: Job,
    settings: ConnectionSettings,
    task_instance: RuntimeTaskInstanceProtocol,
    store: JobStore,
    options: KillOptions,
) -> None:
    try:
        outcome.state = _kill_policy.state_of(
            _task_states(task_instance),
            task_instance.run_id,
            task_instance.task_id,
            -1 if task_instance.map_index is None else task_instance.map_index,
        )
        cleared = outcome.state == "restarting"
        outcome.kept = CLEAR_DISCARDS_STATE and cleared and store.is_durable and store.read() is not None
        outcome.replaced = outcome.state == "failed" and store.is_replaced()
        outcome.state_known = True
        outcome.decision = _kill_policy.decide_on_worker(
            outcome.state, known=True, kept=outcome.kept, replaced=outcome.replaced
        )
        if not outcome.kept and not outcome.replaced and options.cancels(outcome.decision):
            outcome.cancel = _cancel(job, settings)
    except Exception as error:
        outcome.error = str(error)


def _task_states(task_instance: RuntimeTaskInstanceProtocol) -> dict[str, Any]:
    """Ask Airflow for the state of the task."""

    def request() -> dict[str, Any]:
        return task_instance.get_task_states(
            dag_id=task_instance.dag_id, task_ids=[task_instance.task_id], run_ids=[task_instance.run_id]
        )

    try:
        return request()
    except AttributeError:
        # Airflow 3.1 has no lock around its requests: this responds to one that the signal interrupted.
        return request()


def _cancel(job: Job, settings: ConnectionSettings) -> CancelOutcome:
    from noukai_core import Noukai, cancel_job

    arguments: dict[str, Any] = settings.client_arguments() | {"timeout": ACT_SECONDS}
    with Noukai(**arguments) as client:
        own = client.flow(job.flow).attach(job.id, submitted_at=job.submitted_at)
        return cancel_job(own, confirm=False)  # there is no time for a poll


def kill_own_process() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def _describe(outcome: _Outcome, options: KillOptions) -> tuple[int, str]:
    """Return what happened to the job, and the level to log it at."""
    by_user = outcome.decision is _kill_policy.KillDecision.CANCEL
    if not outcome.state_known:
        reason = f"who ended its task is not known: {outcome.error or 'no response from Airflow in time'}"
        return logging.WARNING, options.left_running(reason)
    if outcome.kept:
        return logging.INFO, "left running (its task was cleared with its state kept)"
    if outcome.replaced:
        return logging.WARNING, "left running (its task has failed in a later try)"
    if options.cancels(outcome.decision):
        if outcome.cancel is None:
            return logging.WARNING, _failed_cancel(outcome.error or "no response in time")
        if outcome.cancel.not_needed:
            return logging.INFO, f"not cancelled ({outcome.cancel.not_needed})"
        if outcome.cancel.error is not None:
            return logging.WARNING, _failed_cancel(outcome.cancel.error)
        return (
            logging.INFO,
            f"cancelled ({_kill_policy.USER_ENDED if by_user else 'no retry attaches to it'})",
        )
    if by_user:
        return logging.INFO, "left running (cancel_on_kill is off)"
    level = logging.INFO if options.durable and options.retry_left else logging.WARNING
    return level, options.left_running("only the worker is stopping")


def _failed_cancel(reason: object) -> str:
    return f"cancel failed ({reason}; may still be running)"
