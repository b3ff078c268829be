"""How a running task waits for its job, on a worker and across a deferral, and how the task ends."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from datetime import timedelta
from typing import TYPE_CHECKING, Any, Literal, NoReturn, TypeAlias

from airflow.providers.common.compat.sdk import AirflowSkipException

import noukai_core as core
from noukai_airflow import _xcoms
from noukai_airflow._history import duration, inline_seconds, last_duration
from noukai_airflow._kill_policy import ANOTHER_TRY, USER_ENDED, left_running
from noukai_airflow._outcome import JobOutcome, StatusUpdates, about_job, status_summary
from noukai_airflow._trigger_event import JobEvent, Reason
from noukai_airflow._xcoms import task_instance_of
from noukai_airflow.exceptions import (
    NoukaiException,
    NoukaiJobCancelledException,
    NoukaiJobTimeoutException,
)
from noukai_airflow.links.noukai import push_page
from noukai_airflow.triggers.noukai import LAST_POLL_SECONDS, NoukaiJobTrigger, backstop
from noukai_core.following import StepCount

if TYPE_CHECKING:
    from airflow.sdk import Context

    from noukai_airflow._connection import ConnectionSettings
    from noukai_airflow._job_store import JobStore
    from noukai_airflow._task_output import TaskOutput
    from noukai_core import Job, JobStatus
    from noukai_core.following import Follow

log = logging.getLogger(__name__)

OnCancelled: TypeAlias = Literal["fail", "skip"]
OnFinalFailure: TypeAlias = Literal["keep", "cancel"]

_REPLACED = f"left running ({ANOTHER_TRY})"


def execution_deadline(started: float, execution_timeout: timedelta | None) -> float | None:
    """Return when a task ends by its `execution_timeout`, which Airflow ignores while the task is deferred.

    Args:
        started: When this try started, in seconds since the epoch, like the result.
        execution_timeout: Airflow's own limit for the task.
    """
    return None if execution_timeout is None else started + execution_timeout.total_seconds()


@dataclass(frozen=True)
class WaitOptions:
    """How a task waits for its job. For the options that are not described here see `NoukaiRunJobOperator`.

    Attributes:
        timeout: In seconds.
        execution_timeout: Airflow's own limit for the task.
        poll_interval: In seconds.
        inline_wait: In seconds; `None` for one that depends on the task's previous job.
        durable: Whether a retry attaches to the job.
        retry_left: Whether the task has a retry left.
        push_xcoms: Whether the task pushes XComs.
        session_id: The user's own session, in which a job cannot be told from others.
    """

    noukai_conn_id: str
    timeout: float | None
    execution_timeout: timedelta | None
    poll_interval: float | None
    inline_wait: float | None
    deferrable: bool
    durable: bool
    retry_left: bool
    trace: bool
    on_cancelled: OnCancelled
    on_final_failure: OnFinalFailure
    cancel_on_kill: bool
    cancel_on_timeout: bool
    push_xcoms: bool
    follow: Follow
    session_id: str | None


class JobWait:
    """One segment of a task: from its start to its end or deferral, or from its resumption to its end.

    Args:
        options: How to wait.
        defer: The operator's `defer`.
        context: The task's context.
        settings: The connection.
        store: Where the task records its job.
        job: The job.
        output: How the output is delivered.

    Attributes:
        outcome: How the job ended, once the task has reported it.
        settled: Whether it is known how the job ended, or has been said what becomes of it.
    """

    def __init__(
        self,
        options: WaitOptions,
        defer: Callable[..., NoReturn],
        context: Context,
        settings: ConnectionSettings,
        store: JobStore,
        job: Job,
        output: TaskOutput,
    ) -> None:
        self._output = output
        self._options = options
        self._defer = defer
        self._context = context
        self._settings = settings
        self._store = store
        self._job = job
        self._updates = StatusUpdates()
        self._steps = StepCount()
        self._ended_in_time: JobStatus | None = None  # before a cancel
        self.outcome: JobOutcome | None = None
        self.settled = False

    def publish_job(self) -> None:
        """Publish the id and the page of the job as soon as they are known."""
        job = self._job
        url = self._url()
        if url is not None:
            log.info("Noukai job %s of %s: page %s", job.id, job.flow, url)
        if not self._options.push_xcoms:
            return
        task_instance = task_instance_of(self._context)
        task_instance.xcom_push(_xcoms.JOB_ID, job.id)
        if url is not None:
            push_page(task_instance, url)

    def deadline(self, started: float) -> float | None:
        """Return when the wait ends, in seconds since the epoch.

        Args:
            started: When this try started.
        """
        options, ends = self._options, list[float]()
        if options.timeout is not None:
            record = self._store.read()
            restarted = record is not None and record.wait_again
            submitted = self._job.submitted_at
            ends.append(
                (started if restarted or submitted is None else submitted.timestamp()) + options.timeout
            )
        limit = execution_deadline(started, options.execution_timeout)
        if options.deferrable and limit is not None:
            ends.append(limit)
        return min(ends, default=None)

    def wait(self, deadline: float | None) -> Any:
        """Wait until the job ends: on the worker, or after the inline wait in the triggerer."""
        options, last = self._options, self._job.last_status
        if last is not None and last.finished:
            return self._watch(deadline, None, can_defer=False)
        timeout = None if deadline is None else max(deadline - time.time(), LAST_POLL_SECONDS)
        if options.deferrable:
            inline_wait = self._inline_wait()
            if inline_wait <= 0:
                return self.defer(deadline)
            timeout = inline_wait if timeout is None else min(timeout, inline_wait)
        return self._watch(deadline, timeout, can_defer=options.deferrable)

    def _wait_on_worker(self, deadline: float | None) -> Any:
        """Wait on the worker to the end: the responses are too large for a triggerer."""
        log.info(
            "Noukai job %s of %s: waiting on the worker (responses too large for the triggerer)",
            self._job.id,
            self._job.flow,
        )
        timeout = None if deadline is None else max(deadline - time.time(), LAST_POLL_SECONDS)
        return self._watch(deadline, timeout, can_defer=False)

    def _watch(self, deadline: float | None, timeout: float | None, *, can_defer: bool) -> Any:
        last: JobStatus | None = None
        try:
            with self._following():
                for status in self._statuses(timeout):
                    last = status
                    self._publish_status(status)
        except core.JobTimeoutError:
            if can_defer and (deadline is None or time.time() < deadline):
                return self.defer(deadline)
            return self.time_out()
        return None if last is None else self._finish(last)

    def _statuses(self, timeout: float | None) -> Iterator[JobStatus]:
        options = self._options
        return self._job.watch(
            timeout=timeout, poll_interval=options.poll_interval, log_changes=options.follow is not None
        )

    def _following(self) -> AbstractContextManager[None]:
        if self._options.follow != "steps":
            return nullcontext()
        from noukai_airflow._steps import steps_beside

        return steps_beside(self._settings, self._job, self._steps)

    def _inline_wait(self) -> float:
        if self._options.inline_wait is not None:
            return self._options.inline_wait
        submitted = self._job.submitted_at
        age = 0.0 if submitted is None else time.time() - submitted.timestamp()
        return inline_seconds(last_duration(self._context)) - max(age, 0.0)

    def defer(self, deadline: float | None) -> NoReturn:
        """Continue to wait in the triggerer. This ends the segment."""
        job, options = self._job, self._options
        submitted_at = job.submitted_at.isoformat() if job.submitted_at else None
        log.info("Noukai job %s of %s: deferred (waiting in the triggerer)", job.id, job.flow)
        self._defer(
            trigger=NoukaiJobTrigger.for_job(
                job,
                noukai_conn_id=options.noukai_conn_id,
                deadline=deadline,
                poll_interval=options.poll_interval,
                cancel_on_kill=options.cancel_on_kill,
                push_status=options.push_xcoms,
                follow=options.follow,
                logged_steps=self._steps.logged,
            ),
            method_name="execute_complete",
            kwargs={
                "job_id": job.id,
                "flow": job.flow,
                "submitted_at": submitted_at,
                "deadline": deadline,
                "noukai_conn_id": options.noukai_conn_id,
                "session_id": options.session_id,
            },
            timeout=None if deadline is None else backstop(deadline),
        )

    def resolve(self, event: JobEvent | None, deadline: float | None) -> Any:
        """End or defer the task after the trigger's event, by what the server says about the job now."""
        if event is not None:
            self._steps.logged = event.logged_steps
        try:
            status = self._poll(event, deadline)
        except core.JobTimeoutError:
            return self.time_out()
        if status.finished:
            return self._finish(status, event)
        reason = event.reason if event else "unknown event"
        # The clock of the triggerer may be ahead of this one.
        if reason is Reason.TIMED_OUT or (deadline is not None and time.time() >= deadline):
            return self.time_out()
        # This poll may have reached a replica that lags behind the one that the trigger polled last.
        if reason in (Reason.TRANSIENT_ERROR, Reason.FINISHED):
            return self.defer(deadline)
        if reason is Reason.RESPONSE_TOO_LARGE:
            return self._wait_on_worker(deadline)
        raise NoukaiException(
            f"Noukai job {self._job.id} of {self._job.flow}: trigger failed: {reason}, but the job is "
            f"{status.state}; {self.leave(retry_left=self._options.retry_left)}",
            job_id=self._job.id,
        )

    def _poll(self, event: JobEvent | None, deadline: float | None) -> JobStatus:
        """Poll the job. Transient errors are retried, unless the trigger has already done so."""
        if event is not None and event.reason is Reason.TRANSIENT_ERROR:
            return self._job.status()
        # A job that has ended keeps its result, no matter how late the task fetches it.
        ended = event is not None and event.reason is Reason.FINISHED
        timeout = None if deadline is None or ended else max(deadline - time.time(), LAST_POLL_SECONDS)
        return next(self._statuses(timeout))

    def interrupt(self) -> None:
        """Cancel the job because a person has interrupted the task, or name it."""
        if self.settled:
            return
        self.settled = True
        if self._options.cancel_on_kill:
            core.cancel_job(self._job).log(USER_ENDED, log)
            return
        job = self._job
        log.warning("Noukai job %s of %s: left running (cancel_on_kill is off)", job.id, job.flow)

    def time_out(self, *, deliver: bool = True) -> Any:
        """End the task because its job did not end in time: with the result, if it has just completed.

        Args:
            deliver: Whether there is time to deliver the result. If not, a retry takes it.
        """
        job = self._job
        submitted = job.submitted_at
        after = "" if submitted is None else f" after {time.time() - submitted.timestamp():.0f} s"
        phrase = f"timed out{after}; {self._cancel_or_keep()}"
        ended = self._ended_in_time
        if ended is not None and ended.state == core.JobState.COMPLETED and deliver:
            return self._finish(ended)
        if ended is not None:
            self._report(ended)
        raise NoukaiJobTimeoutException(about_job(phrase, job, self._url()), job_id=job.id)

    def _cancel_or_keep(self) -> str:
        self.settled = True
        if self._store.is_replaced():
            return _REPLACED
        if not self._options.cancel_on_timeout:
            self._record(lambda: self._store.change(wait_again=True))
            return self.leave(retry_left=self._options.retry_left)
        self._record(lambda: self._store.change(abandoned=True))
        if self._store.is_replaced():  # perhaps while that was recorded
            return _REPLACED
        outcome = core.cancel_job(self._job)
        if outcome.log("timed out", log):
            last = self._job.last_status or core.JobStatus(id=self._job.id, state=core.JobState.PENDING)
            self._report(last.model_copy(update={"state": core.JobState.CANCELLED, "error": "timed out"}))
            return "cancelled"
        if outcome.not_needed:
            # If it is not known how the job ended, an earlier request of this cancel may have ended it.
            if outcome.status is not None and outcome.status.finished:
                self._record(lambda: self._store.change(abandoned=False))
                self._ended_in_time = outcome.status
            return f"not cancelled ({outcome.not_needed})"
        return "cancel failed (may still be running)"

    def _record(self, change: Callable[[], None]) -> None:
        """Store something in Airflow, which must not cost a job or its result if that fails."""
        try:
            change()
        except Exception as error:
            log.warning("Noukai job %s of %s: not recorded (%s)", self._job.id, self._job.flow, error)

    def leave(self, *, retry_left: bool) -> str:
        """Leave a job that may be running to a retry, or else treat it as `on_final_failure` says.

        Args:
            retry_left: Whether the task runs again.

        Returns:
            What happens to the job.
        """
        job, options = self._job, self._options
        self.settled = True
        phrase = left_running(durable=options.durable, retry_left=retry_left)
        if options.durable and retry_left:
            return phrase
        if options.on_final_failure == "cancel" and not self._store.is_replaced():
            outcome = core.cancel_job(job)
            outcome.log("no retry attaches to it", log)
            if outcome.not_needed:
                return outcome.not_needed
            return "cancelled" if outcome.cancelled else "cancel failed (may still be running)"
        log.warning("Noukai job %s of %s: %s", job.id, job.flow, phrase)
        return phrase

    def _finish(self, status: JobStatus, event: JobEvent | None = None) -> Any:
        seen = event.seen_at if event is not None and event.reason is Reason.FINISHED else None
        seen = time.time() if seen is None else seen
        took = duration(status.created_at, status.completed_at, self._job.submitted_at, seen)
        error = self._report(status, took).exception()
        if error is None:
            delivered = self._output.deliver(self._job, status)
            self._record(self._store.mark_delivered)
            return delivered
        if isinstance(error, NoukaiJobCancelledException) and self._options.on_cancelled == "skip":
            raise AirflowSkipException(str(error))
        raise error

    def _report(self, status: JobStatus, took: float | None = None) -> JobOutcome:
        """Report the end of the job: in its XCom, and with its cost in the log."""
        self.settled = True
        outcome = JobOutcome.read(self._job, status, url=self._url(), traced=self._options.trace)
        self._push_status(outcome.summary() | ({} if took is None else {"duration": took}))
        outcome.describe_assets(self._context)
        self.outcome = outcome
        return outcome

    def _publish_status(self, status: JobStatus) -> None:
        if self._updates.is_due(status):
            self._push_status(status_summary(status))

    def _push_status(self, summary: dict[str, Any]) -> None:
        if self._options.push_xcoms:
            push = task_instance_of(self._context).xcom_push
            self._record(lambda: push(_xcoms.JOB_STATUS, summary))

    def _url(self) -> str | None:
        return self._settings.run_url(self._job.flow, self._job.id)
