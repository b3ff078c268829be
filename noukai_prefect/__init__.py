"""Run Noukai jobs from Prefect: submitted once, polled cheaply, cancelled only by people or timeouts."""

from __future__ import annotations

from noukai_core import JobOutcome
from noukai_prefect._task_decorator import is_retryable
from noukai_prefect.batch_tasks import arun_noukai_jobs, run_noukai_jobs, stream_noukai_jobs
from noukai_prefect.credentials import NoukaiCredentials
from noukai_prefect.hooks import cancel_noukai_jobs, log_resumable_noukai_jobs
from noukai_prefect.jobs import NoukaiJob, NoukaiJobRun
from noukai_prefect.suspending import asuspend_until_noukai_job, suspend_until_noukai_job
from noukai_prefect.tasks import (
    arun_noukai_job,
    asubmit_noukai_job,
    await_for_noukai_job,
    run_noukai_job,
    submit_noukai_job,
    wait_for_noukai_job,
)

__all__ = [
    "JobOutcome",
    "NoukaiCredentials",
    "NoukaiJob",
    "NoukaiJobRun",
    "arun_noukai_job",
    "arun_noukai_jobs",
    "asubmit_noukai_job",
    "asuspend_until_noukai_job",
    "await_for_noukai_job",
    "cancel_noukai_jobs",
    "is_retryable",
    "log_resumable_noukai_jobs",
    "run_noukai_job",
    "run_noukai_jobs",
    "stream_noukai_jobs",
    "submit_noukai_job",
    "suspend_until_noukai_job",
    "wait_for_noukai_job",
]
