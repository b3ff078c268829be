"""The job of one task: found or submitted, so that no task pays twice for one job."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import replace
from functools import cached_property
from typing import TYPE_CHECKING

import noukai_core as core
from noukai_airflow._client_cache import shared_client
from noukai_airflow._compat import CLEAR_DISCARDS_STATE
from noukai_airflow._job_store import JobRecord, JobStore, TaskKey
from noukai_airflow.exceptions import NoukaiException

if TYPE_CHECKING:
    from airflow.sdk.types import RuntimeTaskInstanceProtocol

    from noukai_airflow._connection import ConnectionSettings
    from noukai_core import Flow, Job, JobRequest, JobStatus, Submission

log = logging.getLogger(__name__)

# The jobs whose results tasks of this process have returned, each with the task's try.
_returned: set[tuple[str, int]] = set()


def note_returned(job_id: str, try_number: int) -> None:
    """Take note that a task has returned the result of its job.

    If the same try asks for a job once more, another task or a subclass calls the operator in a loop, and
    means a new one.
    """
    _returned.add((job_id, try_number))


def log_unsought(store: JobStore, flow: str, ran_before: bool) -> None:
    """Name the job of an earlier part of a task that has failed before it asked for that job.

    Args:
        store: Where the task records its job.
        flow: The flow, as the task names it.
        ran_before: Whether there may be an earlier part.
    """
    reason = "the task failed before it asked for its job"
    try:
        record = store.read()
    except Exception as error:
        if ran_before:
            log.warning("Noukai jobs of %s: may be left running (record not read: %s)", flow, error)
        return
    if record is None or record.delivered:
        return
    if record.job_id is not None:
        log.warning("Noukai job %s of %s: may be left running (%s)", record.job_id, record.flow, reason)
    else:
        log.warning(
            "Noukai submission %s to %s: may be left running (%s)", record.submission_id, record.flow, reason
        )


class TaskJob:
    """Finds or submits the job of a running task.

    Args:
        settings: The connection.
        flow: The flow, as the task names it.
        request: Returns what to submit, if there is no job to attach to. It is called once, when that is
            needed.
        store: Where the task records its job.
        key: The identity of the task.
        task_instance: The running task.
        retries: The task's number of retries.
        durable: Whether to attach to the job of an earlier try.
        cancel_on_kill: Whether to cancel the old job of a task that a user has cleared.
        rescheduled: Whether Airflow has begun this try before: a task whose DAG is missing is rescheduled.
        clear_discards_state: Whether a record that outlived a clear is one that the user kept.
        accepts: Whether a job of an earlier try can give a result that the task can return.
        is_killed: Whether the task was told to end before its job was known.

    Attributes:
        polled: The job of an earlier try, while a poll decides whether to attach to it.
        record_read: Whether it is known what an earlier try has recorded.
    """

    def __init__(
        self,
        settings: ConnectionSettings,
        flow: str,
        request: Callable[[], JobRequest],
        store: JobStore,
        key: TaskKey,
        task_instance: RuntimeTaskInstanceProtocol,
        *,
        retries: int,
        durable: bool,
        cancel_on_kill: bool,
        rescheduled: bool = False,
        clear_discards_state: bool = CLEAR_DISCARDS_STATE,
        accepts: Callable[[Job, JobStatus], bool] = lambda job, status: True,
        is_killed: Callable[[], bool] = lambda: False,
    ) -> None:
        self._is_killed = is_killed
        self._accepts = accepts
        self._settings = settings
        self._named_flow = flow
        self._make_request = request
        self._store = store
        self._key = key
        self._task = task_instance
        self._retries = retries
        self._durable = durable
        self._cancel_on_kill = cancel_on_kill
        self._rescheduled = rescheduled
        self._clear_discards_state = clear_discards_state
        self._client = shared_client(settings)
        self.polled: Job | None = None
        self.record_read = False
        self._in_flight: Submission | None = None
        self._unsettled: tuple[Job, str] | None = None
        self._sought: list[str] = []

    def log_in_flight(self) -> None:
        """Name what may be left running: the task is killed, maybe in the middle of a request or a write."""
        if self._in_flight is not None:
            log.warning(
                "Noukai submission %s to %s: may be left running (interrupted before the response)",
                self._in_flight.id,
                self._flow().path,
            )
        if self._unsettled is not None:
            job, reason = self._unsettled
            log.warning("Noukai job %s of %s: left running (%s)", job.id, job.flow, reason)
        for submission_id in self._sought:
            log.warning(
                "Noukai submission %s to %s: may be left running (interrupted before its job was found)",
                submission_id,
                self._flow().path,
            )

    def obtain(self) -> Job:
        """Return the job that this try waits for."""
        stored = self._store.read()
        self.record_read = True
        if stored is None:
            return self._submit_without_record()
        if (stored.job_id, self._task.try_number) in _returned:
            # Which job of several the record is about, a retry could not know.
            return self._submit(stored, abandoned=True)
        cleared = stored.max_tries != self._task.max_tries
        kept = self._clear_discards_state and not stored.delivered
        if stored.abandoned or (cleared and not kept):
            return self._replace(stored)
        record = self._store.with_options(replace(stored, max_tries=self._task.max_tries))
        if record.job_id is None:
            return self._submit_again(record)
        job = self._attach(record, record.job_id, cleared=cleared)
        if job is None:
            return self._submit(record)
        if record != stored:
            self._update(record)
        return job

    def _attach(self, record: JobRecord, job_id: str, *, cleared: bool) -> Job | None:
        """Attach to the job of an earlier try, unless it can no longer give a result."""
        flow = self._client.flow(record.flow)
        job = self.polled = flow.attach(job_id, submitted_at=record.last_sent_at)
        try:
            status = job.status()
        except core.JobNotFoundError:
            submission = record.submission
            if self._can_ask_server() and (listed := flow.find(submission)) is not None:
                log.info(
                    "Noukai job %s of %s: found by its submission %s", listed.id, listed.flow, submission.id
                )
                return listed
            log.warning("Noukai job %s of %s: replaced (unknown to the server)", job.id, job.flow)
            self.polled = None
            return None
        except core.TransientError as error:
            log.info("Noukai job %s of %s: attached (%s)", job.id, job.flow, error)
            return job
        # A cancelled job is replaced only if a user cleared the task afterwards.
        state = status.state
        accepted = self._accepts(job, status)
        if state == core.JobState.FAILED or (cleared and state == core.JobState.CANCELLED) or not accepted:
            reason = state if accepted else "its output is not of the output_type"
            log.info("Noukai job %s of %s: replaced (%s)", job.id, job.flow, reason)
            self.polled = None
            return None
        log.info("Noukai job %s of %s: attached (%s)", job.id, job.flow, state)
        return job

    def _replace(self, record: JobRecord) -> Job:
        """Stop the job of a task that was cleared, or that abandoned its job, and submit a new one."""
        old = self._job_of(record)
        if old is not None:
            if record.abandoned or self._cancel_on_kill:
                self._stop(old)
            else:
                log.info("Noukai job %s of %s: left running (cancel_on_kill is off)", old.id, old.flow)
            return self._submit(record)
        if self._can_ask_server():
            return self._submit_again(replace(record, max_tries=self._task.max_tries, abandoned=False))
        log.warning(
            "Noukai submission %s to %s: may be left running (the task was cleared)",
            record.submission_id,
            record.flow,
        )
        return self._submit(record)

    def _job_of(self, record: JobRecord) -> Job | None:
        if record.job_id is not None:
            flow = self._client.flow(record.flow)
            return flow.attach(record.job_id, submitted_at=record.last_sent_at)
        return self._find(record.flow, record.submission_id) if self._can_ask_server() else None

    def _submit_without_record(self) -> Job:
        """Submit without a record of earlier tries, whose jobs are found by their submissions."""
        first = max(1, self._task.max_tries - self._retries + 1)
        tries = range(1, self._task.try_number + self._rescheduled)
        self._sought = [self._own_id(number) for number in tries]
        if self._can_ask_server():
            if self._cancel_on_kill:
                self._stop_job_before(first)
            # The id of a submission is stored before it is sent, so with an empty store there is no job.
            if not self._store.is_durable:
                job = self._job_since(first if self._durable else self._task.try_number)
                if job is not None:
                    return job
        self._sought = []
        return self._submit(None)

    def _stop_job_before(self, first: int) -> None:
        """Stop the last job from before the task was cleared. Later tries have stopped any older one."""
        for number in range(first - 1, 0, -1):
            job, resubmission = self._find_own(number, 0), 0
            while job is not None:
                resubmission += 1
                later = self._find_own(number, resubmission)
                if later is None:
                    return self._stop(job)
                job = later

    def _job_since(self, first: int) -> Job | None:
        """Return the job of a try from the first one on, unless it has failed.

        A try that was rescheduled returns its own job, however that has ended.
        """
        for number in range(first, self._task.try_number + self._rescheduled):
            # When it was sent is not recorded. With the current time, the server gets the complete recovery
            # time to list the job.
            submission_id = self._own_id(number)
            request = self._request
            record = JobRecord.new(self._task.max_tries, submission_id, self._flow().path)
            self._store.write(record)
            job = self._send(request, record.submission)
            self._store.write(record.with_job(job))
            if number == self._task.try_number:
                return job
            self.polled = job
            try:
                status = job.status()
            except core.TransientError:
                return job
            # The task itself abandoned a cancelled job: one that a user cancels leads to no further try.
            ended = status.state in (core.JobState.FAILED, core.JobState.CANCELLED)
            if not ended and self._accepts(job, status):
                return job
            self.polled = None
        return None

    def _find_own(self, try_number: int, resubmission: int) -> Job | None:
        return self._find(self._flow().path, self._own_id(try_number, resubmission))

    def _own_id(self, try_number: int, resubmission: int = 0) -> str:
        return self._key.submission_id(self._settings.api_key, try_number, resubmission)

    def _find(self, flow: str, submission_id: str) -> Job | None:
        try:
            return self._client.flow(flow).find(core.Submission(submission_id))
        except core.NoukaiError as error:
            log.warning("Noukai submission %s to %s: lookup failed: %s", submission_id, flow, error)
            return None

    def _submit(self, previous: JobRecord | None, *, abandoned: bool = False) -> Job:
        """Submit for the first time.

        Args:
            previous: The task's previous submission.
            abandoned: Whether the next try must not attach to the job.
        """
        request, task = self._request, self._task
        if self._is_killed():
            raise NoukaiException(f"{request.flow}: interrupted before anything was submitted")
        again = previous.resubmission + 1 if previous and previous.try_number == task.try_number else 0
        record = JobRecord.new(
            task.max_tries,
            self._own_id(task.try_number, again),
            self._flow().path,
            try_number=task.try_number,
            resubmission=again,
            abandoned=abandoned,
        )
        self._store.write(record)
        return self._send_recorded(request, record, core.Submission(record.submission_id))

    def _submit_again(self, record: JobRecord) -> Job:
        """Repeat a submission that may have been sent already: the server is asked first."""
        request = self._request
        try:
            self._store.write(record.sent_now())
        except Exception:
            # Without its time in the store, a second request could not be told from one of long ago.
            if (job := self._find_recorded(record)) is not None:
                return job
            raise
        return self._send_recorded(request, record, record.submission)

    def _find_recorded(self, record: JobRecord) -> Job | None:
        """Return the job of a submission that cannot be repeated now."""
        job = self._find(record.flow, record.submission_id) if self._can_ask_server() else None
        if job is None:
            log.warning(
                "Noukai submission %s to %s: may be left running (not recorded)",
                record.submission_id,
                record.flow,
            )
        return job

    def _update(self, record: JobRecord) -> None:
        """Update a record. A store that fails must not lose a job that the record before leads to."""
        try:
            self._store.write(record)
        except Exception as error:
            log.warning(
                "Noukai submission %s to %s: not recorded (%s)", record.submission_id, record.flow, error
            )

    def _send_recorded(self, request: JobRequest, record: JobRecord, submission: Submission) -> Job:
        try:
            job = self._send(request, submission)
        except core.SubmissionUnknownError:
            raise
        except core.NoukaiError as error:
            # The job client rejects invalid input without a request, so there may be an earlier job.
            if submission.last_sent_at is None or not isinstance(error, core.InvalidInputError):
                self._store.forget()
            raise
        self._unsettled = job, "interrupted before it was recorded"
        try:
            self._store.write(record.with_job(job))
        except Exception as error:  # the submission is recorded, and leads to the job
            log.warning("Noukai job %s of %s: not recorded (%s)", job.id, job.flow, error)
        self._unsettled = None
        return job

    def _send(self, request: JobRequest, submission: Submission) -> Job:
        self._in_flight = submission
        try:
            job = self._flow().submit(request, submission=submission)
        except Exception:
            self._in_flight = None
            raise
        # Airflow's own timeout is no Exception: what it has interrupted stays in flight.
        self._in_flight = None
        return job

    def _stop(self, job: Job) -> None:
        """Cancel a job that a new one replaces, unless it has ended."""
        self._unsettled = job, "interrupted while it was replaced"
        try:
            finished = job.status().finished
        except core.NoukaiError:
            finished = False
        if not finished:
            core.cancel_job(job).log("replaced by a new job", log)
        self._unsettled = None

    @cached_property
    def _request(self) -> JobRequest:
        """What to submit. If this raises, no record may say already that a request is on its way."""
        return self._make_request()

    def _can_ask_server(self) -> bool:
        return can_ask_server(self._settings, self._request.session_id)

    def _flow(self) -> Flow:
        return self._client.flow(self._named_flow)


def can_ask_server(settings: ConnectionSettings, session_id: object) -> bool:
    """Return whether the server tells what became of a submission.

    Args:
        settings: The connection.
        session_id: The user's own session, in which a job cannot be told from others, or `None`.
    """
    return session_id is None and settings.recovers_submissions
