"""Run Noukai jobs from Prefect: submitted once, waited for cheaply, cancelled only by people."""

from __future__ import annotations

from .batch import JobOutcome
from .batch_tasks import arun_noukai_jobs, run_noukai_jobs
from .credentials import NoukaiCredentials
from .hooks import cancel_noukai_jobs, keep_noukai_jobs
from .jobs import NoukaiJob, NoukaiJobRun
from .tasks import (
    arun_noukai_job,
    asubmit_noukai_job,
    await_for_noukai_job,
    run_noukai_job,
    submit_noukai_job,
    wait_for_noukai_job,
    worth_retrying,
)

__all__ = [
    "JobOutcome",
    "NoukaiCredentials",
    "NoukaiJob",
    "NoukaiJobRun",
    "arun_noukai_job",
    "arun_noukai_jobs",
    "asubmit_noukai_job",
    "await_for_noukai_job",
    "cancel_noukai_jobs",
    "keep_noukai_jobs",
    "run_noukai_job",
    "run_noukai_jobs",
    "submit_noukai_job",
    "wait_for_noukai_job",
    "worth_retrying",
]
