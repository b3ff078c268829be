"""Handle the jobs of a run whose process no longer exists: cancel them, or log which a retry attaches to."""

from __future__ import annotations

from typing import Any

from prefect import flow

from noukai_prefect import NoukaiCredentials, cancel_noukai_jobs, log_resumable_noukai_jobs, run_noukai_job


@flow(on_cancellation=[cancel_noukai_jobs], on_crashed=[log_resumable_noukai_jobs])
def noukai_hooks(text: str = "Helo wrld") -> Any:
    return run_noukai_job(NoukaiCredentials.load("default"), "acme/spelling/grade-3", text)
