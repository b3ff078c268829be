"""The job of one task: found or submitted, so that no task pays twice for one job."""

from __future__ import annotations

import logging
from dataclasses import replace
from typing import TYPE_CHECKING

import noukai_core as core
from noukai_airflow._client_cache import shared_client
from noukai_airflow._job_store import JobRecord, JobStore, derived_submission_id

if TYPE_CHECKING:
    from airflow.sdk.types import RuntimeTaskInstanceProtocol

    from noukai_airflow._connection import ConnectionSettings
    from noukai_core import Flow, Job, JobRequest, Submission

log = logging.getLogger(__name__)


class TaskJob:
    """Finds or submits the job of a running task.

    Args:
        settings: The connection.
        request: What to submit, if there is no job to attach to.
        store: Where the task records its job.
        task_instance: The running task.
        retries: The task's number of retries.
        durable: Whether to attach to the job of an earlier try.
        cancel_on_kill: Whether to cancel the old job of a task that a user has cleared.
    """

    def __init__(
        self,
        settings: ConnectionSettings,
        request: JobRequest,
        store: JobStore,
        task_instance: RuntimeTaskInstanceProtocol,
        *,
        retries: int,
        durable: bool,
        cancel_on_kill: bool,
    ) -> None:
        self._settings = settings
        self._request = request
        self._store = store
        self._task = task_instance
        self._retries = retries
        self._durable = durable
        self._cancel_on_kill = cancel_on_kill
        self._client = shared_client(settings)

    def obtain(self) -> Job:
        """Return the job that this try waits for."""
        record = self._store.read()
        if record is None:
            return self._submit_without_record()
        if record.max_tries != self._task.max_tries or record.abandoned:
            return self._replace(record)
        if record.job_id is None:
            return self._submit_again(record)
        return self._attach(record, record.job_id)

    def _attach(self, record: JobRecord, job_id: str) -> Job:
        """Attach to the job of an earlier try, unless it can no longer give a result."""
        flow = self._client.flow(record.flow)
        job = flow.attach(job_id, submitted_at=record.last_sent_at)
        try:
            state = job.status().state
        except core.JobNotFoundError:
            submission = record.submission()
            if self._can_ask_server() and (listed := flow.find(submission)) is not None:
                log.info(
                    "Noukai job %s of %s: found by its submission %s", listed.id, listed.flow, submission.id
                )
                return listed
            log.warning("Noukai job %s of %s: replaced (unknown to the server)", job.id, job.flow)
            return self._submit(core.Submission.new())
        except core.TransientError as error:
            log.info("Noukai job %s of %s: attached (%s)", job.id, job.flow, error)
            return job
        if state == core.JobState.FAILED:
            log.info("Noukai job %s of %s: replaced (failed)", job.id, job.flow)
            return self._submit(core.Submission.new())
        log.info("Noukai job %s of %s: attached (%s)", job.id, job.flow, state)
        return job

    def _replace(self, record: JobRecord) -> Job:
        """Stop the job of a task that was cleared, or that abandoned its job, and submit a new one."""
        old = self._job_of(record)
        if old is not None:
            if record.abandoned or self._cancel_on_kill:
                _stop(old)
            else:
                log.info("Noukai job %s of %s: left running (cancel_on_kill is off)", old.id, old.flow)
            return self._submit(core.Submission.new())
        if self._can_ask_server():
            return self._submit_again(replace(record, max_tries=self._task.max_tries, abandoned=False))
        log.warning(
            "Noukai submission %s to %s: may be left running (the task was cleared)",
            record.submission_id,
            record.flow,
        )
        return self._submit(core.Submission.new())

    def _job_of(self, record: JobRecord) -> Job | None:
        flow = self._client.flow(record.flow)
        if record.job_id is not None:
            return flow.attach(record.job_id, submitted_at=record.last_sent_at)
        if not self._can_ask_server():
            return None
        try:
            return flow.find(record.submission)
        except core.NoukaiError:
            return None

    def _submit_without_record(self) -> Job:
        """Submit; without a durable store, ask the server first what earlier tries submitted."""
        if not self._durable or self._store.is_durable or not self._can_ask_server():
            return self._submit(core.Submission.new())
        earlier = self._earlier_tries()
        for number in range(earlier):
            # When it was sent is not recorded. With the current time, the server gets the complete recovery
            # time to list the job.
            record = JobRecord.new(self._task.max_tries, self._derived(number), self._flow().path)
            job = self._send(record.submission)
            try:
                state = job.status().state
            except core.TransientError:
                return job
            # The task itself abandoned a cancelled job: one that a user cancels leads to no further try.
            if state not in (core.JobState.FAILED, core.JobState.CANCELLED):
                return job
        return self._submit(core.Submission(self._derived(earlier)))

    def _earlier_tries(self) -> int:
        """Count the tries since the task was last cleared, without this one."""
        return max(0, self._task.try_number - 1 - (self._task.max_tries - self._retries))

    def _derived(self, number: int) -> str:
        task = self._task
        return derived_submission_id(
            task.dag_id, task.run_id, task.task_id, task.map_index or 0, task.max_tries, number
        )

    def _submit(self, submission: Submission) -> Job:
        """Submit for the first time."""
        record = JobRecord.new(self._task.max_tries, submission.id, self._flow().path)
        return self._send_recorded(record, submission)

    def _submit_again(self, record: JobRecord) -> Job:
        """Repeat a submission that may have been sent already: the server is asked first."""
        return self._send_recorded(record.sent_now(), record.submission)

    def _send_recorded(self, record: JobRecord, submission: Submission) -> Job:
        self._store.write(record)
        try:
            job = self._send(submission)
        except core.SubmissionUnknownError:
            raise
        except core.NoukaiError as error:
            # The job client rejects invalid input without a request, so there may be an earlier job.
            if submission.last_sent_at is None or not isinstance(error, core.InvalidInputError):
                self._store.forget()
            raise
        try:
            self._store.write(record.with_job(job))
        except Exception as error:  # the submission is recorded, and leads to the job
            log.warning("Noukai job %s of %s: not recorded (%s)", job.id, job.flow, error)
        return job

    def _send(self, submission: Submission) -> Job:
        return self._flow().submit(self._request, submission=submission)

    def _flow(self) -> Flow:
        return self._client.flow(self._request.flow)

    def _can_ask_server(self) -> bool:
        return self._request.session_id is None and self._settings.recovers_submissions


def _stop(job: Job) -> None:
    """Cancel a job that a new one replaces, unless it has ended."""
    try:
        finished = job.status().finished
    except core.NoukaiError:
        finished = False
    if not finished:
        core.cancel_job(job).log("replaced by a new job", log)
