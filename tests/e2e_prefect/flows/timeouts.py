"""Tasks with Prefect's own time limit, and one with a deadline for its job."""

from __future__ import annotations

from typing import Any

from prefect import flow, task

from noukai_prefect import NoukaiCredentials, NoukaiJob, arun_noukai_job, run_noukai_job

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


@task(timeout_seconds=SECONDS)
def use_block(flow: str) -> Any:
    credentials = NoukaiCredentials.load("default")
    return NoukaiJob(credentials=credentials, flow=flow, message="a").trigger().fetch_result()


@flow
def limited_block(flow: str) -> Any:
    return use_block.submit(flow).result()


@flow
async def deadline(flow: str) -> Any:
    credentials = await NoukaiCredentials.aload("default")
    return await arun_noukai_job(credentials, flow, "a", timeout=SECONDS)


@flow(timeout_seconds=SECONDS)
async def limited_flow(flow: str) -> Any:
    return await arun_noukai_job(await NoukaiCredentials.aload("default"), flow, "a")


@flow(timeout_seconds=SECONDS)
def limited_flow_submitted(flow: str) -> Any:
    return run_noukai_job.submit(NoukaiCredentials.load("default"), flow, "a").result()
