"""Three jobs side by side, one for each way in which a job can end. `make demo` runs them locally."""

from __future__ import annotations

import asyncio
from typing import Any

from prefect import flow
from prefect.client.schemas.objects import State

from noukai_prefect import NoukaiCredentials, arun_noukai_job


@flow
async def noukai_three_endings() -> list[State[Any]]:
    credentials = await NoukaiCredentials.aload("default")
    jobs = {
        ending: arun_noukai_job.with_options(task_run_name=ending)
        for ending in ("completes", "fails", "is-cancelled")
    }
    # The flow run takes its state from the returned ones: it fails if a job did, after all have ended.
    return await asyncio.gather(
        *(
            job(credentials, f"acme/demo/{ending}", "from Prefect", return_state=True)
            for ending, job in jobs.items()
        )
    )
