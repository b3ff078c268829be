"""Save a job and its inputs as a block, which can be edited on Prefect's web page, and trigger it."""

from __future__ import annotations

from typing import Any

from prefect import flow

from noukai_prefect import NoukaiCredentials, NoukaiJob


@flow
def noukai_job_block(text: str = "Helo wrld") -> Any:
    NoukaiJob(
        credentials=NoukaiCredentials.load("default"), flow="acme/spelling/grade-3", message=text, timeout=900
    ).save("spelling", overwrite=True)

    run = NoukaiJob.load("spelling").trigger()
    run.wait_for_completion()
    return run.fetch_result()
