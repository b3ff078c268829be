"""Submit a job, and suspend the flow run while it runs: no process waits.

Whoever hears that the job is done resumes the run with one call, for instance a relay that receives Noukai's
webhook (Prefect's server has none of its own):

    POST {PREFECT_API_URL}/flow_runs/{flow_run_id}/resume
    {"run_input": {"job_id": "job_…"}}

The run starts again in a new process, finds the job that it has submitted, and reads the output.
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
    """What the call that resumes the run brings along."""

    job_id: str


@flow
async def noukai_suspend(text: str = "A long book") -> Any:
    credentials = await NoukaiCredentials.aload("default")
    job_id = await asubmit_noukai_job(credentials, TRANSLATE, text)

    # The key tells Prefect that it is the same suspension when the resumed run comes here again.
    await asuspend_flow_run(wait_for_input=JobDone, key="translate", timeout=ONE_DAY)

    # The call that resumes a run proves nothing: the job itself is asked.
    return await await_for_noukai_job(credentials, TRANSLATE, job_id)
