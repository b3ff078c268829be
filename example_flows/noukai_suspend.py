"""Submit a job, and suspend the flow run while it runs, so that no process waits.

When the job has ended, one call resumes the run. It can come from a relay that receives Noukai's webhook, as
Prefect's server cannot receive webhooks itself:

    POST {PREFECT_API_URL}/flow_runs/{flow_run_id}/resume
    {"run_input": {"job_id": "job_…"}}

The run starts again in a new process, attaches to the job that it submitted, and reads the output.
"""

from __future__ import annotations

from typing import Any

from prefect import flow
from prefect.flow_runs import asuspend_flow_run
from prefect.input import RunInput

from noukai_prefect import NoukaiCredentials, asubmit_noukai_job, await_for_noukai_job

TRANSLATE = "acme/books/translate"
ONE_DAY = 24 * 60 * 60


class JobDone(RunInput):
    """The input of the call that resumes the run."""

    job_id: str


@flow
async def noukai_suspend(text: str = "A long book") -> Any:
    credentials = await NoukaiCredentials.aload("default")
    job_id = await asubmit_noukai_job(credentials, TRANSLATE, text)

    # With the same key, Prefect does not suspend the resumed run again.
    await asuspend_flow_run(wait_for_input=JobDone, key="translate", timeout=ONE_DAY)

    # The call that resumes a run proves nothing about the job, so the job itself is polled.
    return await await_for_noukai_job(credentials, TRANSLATE, job_id)
