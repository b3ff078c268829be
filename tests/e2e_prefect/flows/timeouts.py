"""Tasks with Prefect's own time limit."""

from __future__ import annotations

from typing import Any

from prefect import flow

from noukai_prefect import NoukaiCredentials, arun_noukai_job, run_noukai_job

SECONDS = 3


@flow
async def limited_awaited(flow: str) -> Any:
    credentials = await NoukaiCredentials.aload("default")
    return await arun_noukai_job.with_options(timeout_seconds=SECONDS)(credentials, flow, "a")


@flow
def limited_called(flow: str) -> Any:
    credentials = NoukaiCredentials.load("default")
    return run_noukai_job.with_options(timeout_seconds=SECONDS)(credentials, flow, "a")


@flow
def limited_submitted(flow: str) -> Any:
    credentials = NoukaiCredentials.load("default")
    return run_noukai_job.with_options(timeout_seconds=SECONDS).submit(credentials, flow, "a").result()


@flow
async def limited_async_submitted(flow: str) -> Any:
    credentials = await NoukaiCredentials.aload("default")
    return arun_noukai_job.with_options(timeout_seconds=SECONDS).submit(credentials, flow, "a").result()
