"""Submit a job, and suspend the flow run while it runs, so that no process waits.

The flow `resume_noukai_runs` of the package, deployed with a schedule, polls the job and resumes the run when
the job has ended. The run starts again in a new process, attaches to the job that it submitted, and reads the
output.
"""

from __future__ import annotations

from typing import Any

from prefect import flow, serve

from noukai_prefect import (
    NoukaiCredentials,
    asubmit_noukai_job,
    asuspend_until_noukai_job,
    await_for_noukai_job,
)
from noukai_prefect.flows import resume_noukai_runs

TRANSLATE = "acme/books/translate"
ONE_DAY = 24 * 60 * 60


@flow
async def noukai_suspend(text: str = "A long book") -> Any:
    credentials = await NoukaiCredentials.aload("default")
    job_id = await asubmit_noukai_job(credentials, TRANSLATE, text)
    await asuspend_until_noukai_job(job_id, timeout=ONE_DAY)
    return await await_for_noukai_job(credentials, TRANSLATE, job_id)


if __name__ == "__main__":
    serve(
        noukai_suspend.to_deployment("suspending"),
        resume_noukai_runs.to_deployment("every-minute", interval=60),
    )
