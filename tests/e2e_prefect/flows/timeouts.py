"""Tasks and flows with a timeout of Prefect's, and one whose job has a timeout."""

from __future__ import annotations

from typing import Any

from prefect import flow, task

from noukai_prefect import NoukaiCredentials, NoukaiJob, arun_noukai_job, run_noukai_job


@flow
async def limited_awaited(flow: str, seconds: float) -> Any:
    credentials = await NoukaiCredentials.aload("default")
    return await arun_noukai_job.with_options(timeout_seconds=seconds)(credentials, flow, "a")


@flow
def limited_called(flow: str, seconds: float) -> Any:
    credentials = NoukaiCredentials.load("default")
    return run_noukai_job.with_options(timeout_seconds=seconds)(credentials, flow, "a")


@flow
def limited_submitted(flow: str, seconds: float) -> Any:
    credentials = NoukaiCredentials.load("default")
    return run_noukai_job.with_options(timeout_seconds=seconds).submit(credentials, flow, "a").result()


@flow
async def limited_async_submitted(flow: str, seconds: float) -> Any:
    credentials = await NoukaiCredentials.aload("default")
    return arun_noukai_job.with_options(timeout_seconds=seconds).submit(credentials, flow, "a").result()


@task
def use_block(flow: str) -> Any:
    credentials = NoukaiCredentials.load("default")
    return NoukaiJob(credentials=credentials, flow=flow, message="a").trigger().fetch_result()


@flow
def limited_block(flow: str, seconds: float) -> Any:
    return use_block.with_options(timeout_seconds=seconds).submit(flow).result()


@flow
async def deadline(flow: str, seconds: float) -> Any:
    credentials = await NoukaiCredentials.aload("default")
    return await arun_noukai_job(credentials, flow, "a", timeout=seconds)


@flow
async def inner(flow: str) -> Any:
    return await arun_noukai_job(await NoukaiCredentials.aload("default"), flow, "a")


@flow
async def limited_flow(flow: str, seconds: float) -> Any:
    return await inner.with_options(timeout_seconds=seconds)(flow)


@flow
def inner_submitted(flow: str) -> Any:
    return run_noukai_job.submit(NoukaiCredentials.load("default"), flow, "a").result()


@flow
def limited_flow_submitted(flow: str, seconds: float) -> Any:
    return inner_submitted.with_options(timeout_seconds=seconds)(flow)
