"""Submit a job, do something else while it runs, then wait for it.

A retry of the flow does not submit the job again, but attaches to it.
"""

from __future__ import annotations

from typing import Any

from prefect import flow, task

from noukai_prefect import NoukaiCredentials, submit_noukai_job, wait_for_noukai_job

SUMMARISE = "acme/reports/summarise"


@task
def fetch_title() -> str:
    return "Quarterly report"


@flow(retries=2, retry_delay_seconds=5)
def noukai_submit_and_wait(text: str = "A long report") -> dict[str, Any]:
    credentials = NoukaiCredentials.load("default")
    job_id = submit_noukai_job(credentials, SUMMARISE, text)
    title = fetch_title()
    output = wait_for_noukai_job(credentials, SUMMARISE, job_id, timeout=15 * 60)
    return {"title": title, "summary": output}
