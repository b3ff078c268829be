"""How a running task waits for its job, on a worker and across a deferral, and what becomes of the task."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

from airflow.providers.common.compat.sdk import AirflowSkipException

import noukai_core as core
from noukai_airflow import _xcoms
from noukai_airflow._kill_policy import left_running
from noukai_airflow._submit import cancel_if_possible
from noukai_airflow._trigger_event import JobEvent, Reason
from noukai_airflow._xcoms import task_instance_of
from noukai_airflow.exceptions import (
    NoukaiException,
    NoukaiJobCancelledException,
    NoukaiJobTimeoutException,
    airflow_errors,
)
from noukai_airflow.links.noukai import NoukaiJobLink
from noukai_airflow.triggers.noukai import NoukaiJobTrigger, backstop

if TYPE_CHECKING:
    from airflow.sdk import Context

    from noukai_airflow._connection import ConnectionSettings
    from noukai_airflow._job_store import JobStore
    from noukai_airflow.operators.noukai import NoukaiRunJobOperator
    from noukai_core import Job, JobStatus


class JobWait:
    """One segment of a task: from the start to the end or the deferral, or from there to the end.

    Args:
        task: The operator, which says how to wait.
        context: The task's context.
        settings: The connection.
        book: Where the task remembers its job.
        job: The job.
    """

    def __init__(
        self,
        task: NoukaiRunJobOperator,
        context: Context,
        settings: ConnectionSettings,
        store: JobStore,
        job: Job,
    ) -> None:
        self._task = task
        self._context = context
        self._settings = settings
        self._store = store
        self._job = job

    def announce(self) -> None:
        """Tell the id and the page of the job as soon as they are known."""
        url = self._settings.run_url(self._job.flow, self._job.id)
        if url is not None:
            self._task.log.info("Noukai job %s has its page at %s", self._job.id, url)
        if not self._task.do_xcom_push:
            return
        task_instance = task_instance_of(self._context)
        task_instance.xcom_push(_xcoms.JOB_ID, self._job.id)
        if url is not None:
            task_instance.xcom_push(_xcoms.JOB_URL, url)
            # Airflow itself would only do this at the end of the task, or when it defers.
            task_instance.xcom_push(NoukaiJobLink().xcom_key, url)

    def deadline(self, started: float) -> float | None:
        """Return the moment at which the wait is over, in seconds since the epoch.

        Args:
            started: When this try began.
        """
        task, ends = self._task, list[float]()
        if task.timeout is not None:
            record = self._store.read()
            again = record is not None and record.wait_again
            submitted = self._job.submitted_at
            ends.append((started if again or submitted is None else submitted.timestamp()) + task.timeout)
        if task.deferrable and task.execution_timeout is not None:
            ends.append(started + task.execution_timeout.total_seconds())
        return min(ends, default=None)

    def wait(self, deadline: float | None) -> Any:
        """Wait for the end of the job, on the worker or, after a short look there, in the triggerer."""
        left = None if deadline is None else max(deadline - time.time(), 0.001)
        if self._task.deferrable:
            if self._task.inline_wait == 0:
                return self.defer(deadline)
            left = self._task.inline_wait if left is None else min(left, self._task.inline_wait)
        last: JobStatus | None = None
        try:
            for status in self._job.watch(timeout=left, poll_interval=self._task.poll_interval):
                last = status
        except core.JobTimeoutError as timeout:
            if self._task.deferrable and (deadline is None or time.time() < deadline):
                return self.defer(deadline)
            return self.time_out(str(timeout))
        return None if last is None else self._finish(last)

    def defer(self, deadline: float | None) -> Any:
        """Go on waiting in the triggerer. This ends the segment."""
        job, task = self._job, self._task
        submitted_at = job.submitted_at.isoformat() if job.submitted_at else None
        task.log.info("Noukai job %s of %s: waiting for it in the triggerer", job.id, job.flow)
        task.defer(
            trigger=NoukaiJobTrigger.of_deferral(
                job,
                noukai_conn_id=task.noukai_conn_id,
                deadline=deadline,
                poll_interval=task.poll_interval,
                cancel_on_kill=task.cancel_on_kill,
            ),
            method_name="execute_complete",
            kwargs={"job_id": job.id, "flow": job.flow, "submitted_at": submitted_at, "deadline": deadline},
            timeout=None if deadline is None else backstop(deadline),
        )

    def resolve(self, event: JobEvent | None, deadline: float | None) -> Any:
        """Decide, after the triggerer's part, by what the server now says about the job."""
        try:
            status = self._seen(event, deadline)
        except core.JobTimeoutError as timeout:
            return self.time_out(str(timeout))
        if status.finished:
            return self._finish(status)
        if deadline is not None and time.time() >= deadline:
            return self.time_out(f"Noukai job {self._job.id} did not end in time: it is {status.state}.")
        if event is not None and event.reason is Reason.UNAVAILABLE:
            self._task.log.info("Noukai job %s is %s after all; waiting on", self._job.id, status.state)
            return self.defer(deadline)
        raise NoukaiException(
            f"The trigger stopped waiting for Noukai job {self._job.id} "
            f"({event.reason if event else 'with an unknown event'}), but the job is {status.state}. "
            f"{left_running(durable=self._task.durable)}",
            job_id=self._job.id,
        )

    def _seen(self, event: JobEvent | None, deadline: float | None) -> JobStatus:
        """Look at the job, and wait out faults that pass, unless the trigger has done so in vain."""
        if event is not None and event.reason is Reason.UNAVAILABLE:
            return self._job.status()
        # A job that has ended keeps its result, however late or slowly the task gets to fetch it.
        ended = event is not None and event.reason is Reason.FINISHED
        left = None if deadline is None or ended else max(deadline - time.time(), 0.001)
        return next(self._job.watch(timeout=left, poll_interval=self._task.poll_interval))

    def time_out(self, message: str) -> Any:
        """End the task because its job did not end in time."""
        job_id = self._job.id
        if not self._task.cancel_on_timeout:
            self._store.change(wait_again=True)
            raise NoukaiJobTimeoutException(
                f"{message} {left_running(durable=self._task.durable)}", job_id=job_id
            )
        self._store.change(abandoned=True)
        cancelled = cancel_if_possible(self._job, "since it did not end in time")
        outcome = "It was cancelled." if cancelled else "It could not be cancelled, and may run on."
        raise NoukaiJobTimeoutException(f"{message} {outcome}", job_id=job_id)

    def _finish(self, status: JobStatus) -> Any:
        if self._task.do_xcom_push:
            reported = _xcoms.reported(status) | (_xcoms.costs(self._job) if self._task.trace else {})
            task_instance_of(self._context).xcom_push(_xcoms.JOB_STATUS, reported)
        try:
            with airflow_errors():
                return status.result_or_raise().output
        except NoukaiJobCancelledException as error:
            if self._task.on_cancelled == "skip":
                raise AirflowSkipException(str(error)) from error
            raise
