"""What happens when a signal kills a task on a worker: there are five seconds, in the middle of any work."""

from __future__ import annotations

import logging
import threading
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from noukai_airflow import _kill_policy

if TYPE_CHECKING:
    from airflow.sdk.types import RuntimeTaskInstanceProtocol

    from noukai_airflow._connection import ConnectionSettings
    from noukai_core import CancelOutcome, Job

log = logging.getLogger(__name__)

# Airflow's supervisor sends SIGKILL five seconds after SIGTERM. No setting changes that.
_ACT_SECONDS = 4.0
_LAST_SECONDS = 10.0


class TaskKilled(BaseException):
    """Interrupts what the task was doing when the signal came.

    Attributes:
        job: The task's job.
        by_user: Whether a user ended the task.
    """

    def __init__(self, job: Job, *, by_user: bool) -> None:
        super().__init__()
        self.job = job
        self.by_user = by_user


@dataclass
class _Outcome:
    state_known: bool = False
    state: str | None = None
    decision: _kill_policy.KillDecision = _kill_policy.KillDecision.KEEP
    cancel: CancelOutcome | None = None
    error: str | None = None


def end_job(
    job: Job,
    settings: ConnectionSettings,
    task_instance: RuntimeTaskInstanceProtocol,
    *,
    cancel_on_kill: bool,
    durable: bool,
) -> TaskKilled:
    """Cancel the job if a user ended the task, and return what to raise.

    A thread does the work: the signal may have come while the main thread held the lock of the connection to
    the supervisor, or one of the HTTP client.
    """
    outcome = _Outcome()
    worker = threading.Thread(
        target=_act, args=(outcome, job, settings, task_instance, cancel_on_kill), daemon=True
    )
    worker.start()
    worker.join(_ACT_SECONDS)
    _report(outcome, job, cancel_on_kill, durable)
    by_user = outcome.decision is _kill_policy.KillDecision.CANCEL
    if by_user and outcome.state != "failed":
        # The task has succeeded, or is about to run again: anything that this process still reported would be
        # wrong, and no callback should run. The supervisor kills the process shortly.
        time.sleep(_LAST_SECONDS)
    return TaskKilled(job, by_user=by_user)


def _act(
    outcome: _Outcome,
    job: Job,
    settings: ConnectionSettings,
    task_instance: RuntimeTaskInstanceProtocol,
    cancel_on_kill: bool,
) -> None:
    try:
        states = task_instance.get_task_states(
            dag_id=task_instance.dag_id, task_ids=[task_instance.task_id], run_ids=[task_instance.run_id]
        )
        outcome.state = _kill_policy.state_of(
            states,
            task_instance.run_id,
            task_instance.task_id,
            -1 if task_instance.map_index is None else task_instance.map_index,
        )
        outcome.state_known = True
        outcome.decision = _kill_policy.decide_on_worker(outcome.state, known=True)
        if outcome.decision is _kill_policy.KillDecision.CANCEL and cancel_on_kill:
            outcome.cancel = _cancel(job, settings)
    except Exception as error:
        outcome.error = str(error)


def _cancel(job: Job, settings: ConnectionSettings) -> CancelOutcome:
    from noukai_core import Noukai, cancel_job

    arguments: dict[str, Any] = settings.client_arguments() | {"timeout": _ACT_SECONDS}
    with Noukai(**arguments) as client:
        own = client.flow(job.flow).attach(job.id, submitted_at=job.submitted_at)
        return cancel_job(own, confirm=False)  # there is no time for a poll


def _report(outcome: _Outcome, job: Job, cancel_on_kill: bool, durable: bool) -> None:
    if not outcome.state_known:
        reason = f"who ended its task is not known: {outcome.error or 'no response from Airflow in time'}"
        log.warning(
            "Noukai job %s of %s: %s", job.id, job.flow, _kill_policy.left_running(reason, durable=durable)
        )
    elif outcome.decision is _kill_policy.KillDecision.KEEP:
        phrase = _kill_policy.left_running("only the worker is stopping", durable=durable)
        log.info("Noukai job %s of %s: %s", job.id, job.flow, phrase)
    elif not cancel_on_kill:
        log.info("Noukai job %s of %s: left running (cancel_on_kill is off)", job.id, job.flow)
    else:
        from noukai_core import CancelOutcome

        unknown = CancelOutcome(job.id, job.flow, error=outcome.error or "no response in time")
        (outcome.cancel or unknown).log("a user ended its task", log)
