"""Flows whose jobs' steps are logged."""

from __future__ import annotations

from typing import Any, Literal

from prefect import flow

from noukai_prefect import NoukaiCredentials, NoukaiJob, arun_noukai_job, run_noukai_job


@flow
async def followed(flow: str, follow: Literal["state", "steps"] | None = "steps") -> Any:
    credentials = await NoukaiCredentials.aload("default")
    return await arun_noukai_job(credentials, flow, "hello", poll_interval=0.5, follow=follow)


@flow
def followed_in_thread(flow: str) -> Any:
    return run_noukai_job(NoukaiCredentials.load("default"), flow, "hello", poll_interval=0.5, follow="steps")


@flow
def followed_block(flow: str) -> Any:
    credentials = NoukaiCredentials.load("default")
    return (
        NoukaiJob(credentials=credentials, flow=flow, message="hello", follow="steps")
        .trigger()
        .fetch_result()
    )
