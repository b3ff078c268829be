"""The end of a task on a worker, by a signal: five seconds, in the middle of whatever the task was doing."""

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
    from noukai_core import Job

log = logging.getLogger(__name__)

# Airflow's supervisor sends SIGKILL five seconds after SIGTERM, whatever its configuration says.
_ACT_SECONDS = 4.0
_LAST_SECONDS = 10.0


class TaskKilled(BaseException):
    """Ends what the task was doing when the signal came.

    Attributes:
        by_user: Whether a person ended the task.
        job_id: The task's job.
    """

    def __init__(self, job_id: str, *, by_user: bool) -> None:
        super().__init__()
        self.job_id = job_id
        self.by_user = by_user


@dataclass
class _Finding:
    known: bool = False
    state: str | None = None
    decision: _kill_policy.KillDecision = _kill_policy.KillDecision.KEEP
    cancelled: bool = False
    error_seen: str | None = None


def end_job(
    job: Job,
    settings: ConnectionSettings,
    task_instance: RuntimeTaskInstanceProtocol,
    *,
    cancel_on_kill: bool,
    durable: bool,
) -> TaskKilled:
    """Cancel the job if a person ended the task, and return what to raise.

    The work is done in a thread: the signal may have come while the main thread held the lock of the line to
    the supervisor, or one of the HTTP client.
    """
    finding = _Finding()
    worker = threading.Thread(
        target=_act, args=(finding, job, settings, task_instance, cancel_on_kill), daemon=True
    )
    worker.start()
    worker.join(_ACT_SECONDS)
    _report(finding, job, cancel_on_kill, durable)
    by_user = finding.decision is _kill_policy.KillDecision.CANCEL
    if by_user and finding.state != "failed":
        # The task has succeeded, or is about to run again: nothing that this process could still report would
        # be right, and no callback should run. The supervisor ends it in a moment.
        time.sleep(_LAST_SECONDS)
    return TaskKilled(job.id, by_user=by_user)


def _act(
    finding: _Finding,
    job: Job,
    settings: ConnectionSettings,
    task_instance: RuntimeTaskInstanceProtocol,
    cancel_on_kill: bool,
) -> None:
    try:
        states = task_instance.get_task_states(
            dag_id=task_instance.dag_id, task_ids=[task_instance.task_id], run_ids=[task_instance.run_id]
        )
        finding.state = _kill_policy.state_of(
            states,
            task_instance.run_id,
            task_instance.task_id,
            -1 if task_instance.map_index is None else task_instance.map_index,
        )
        finding.known = True
        finding.decision = _kill_policy.on_worker(finding.state, known=True)
        if finding.decision is _kill_policy.KillDecision.CANCEL and cancel_on_kill:
            _cancel(job, settings)
            finding.cancelled = True
    except Exception as error:
        finding.error_seen = str(error)


def _cancel(job: Job, settings: ConnectionSettings) -> None:
    from noukai_core import Noukai

    arguments: dict[str, Any] = settings.client_arguments() | {"timeout": _ACT_SECONDS}
    with Noukai(**arguments) as client:
        client.flow(job.flow).attach(job.id, submitted_at=job.submitted_at).cancel()


def _report(finding: _Finding, job: Job, cancel_on_kill: bool, durable: bool) -> None:
    if not finding.known:
        reason = finding.error_seen or "Airflow did not answer in time"
        log.warning("Noukai job %s goes on: it is not known who ends this task: %s", job.id, reason)
    elif finding.decision is _kill_policy.KillDecision.KEEP:
        log.info(
            "Noukai job %s: only the worker is ending. %s", job.id, _kill_policy.left_running(durable=durable)
        )
    elif not cancel_on_kill:
        log.info("Noukai job %s goes on: cancel_on_kill is off", job.id)
    elif finding.cancelled:
        log.info("Noukai job %s: cancelled, since a user ended its task", job.id)
    else:
        reason = finding.error_seen or "the server did not answer in time"
        log.warning("Noukai job %s of %s may run on: cancelling it failed: %s", job.id, job.flow, reason)
