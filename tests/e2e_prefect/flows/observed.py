"""Flows whose artifacts, events and hooks are looked at."""

from __future__ import annotations

from typing import Any

from prefect import flow

from noukai_prefect import (
    NoukaiCredentials,
    arun_noukai_job,
    cancel_noukai_jobs,
    context,
    keep_noukai_jobs,
    run_noukai_job,
)


@flow
async def observed(flow: str) -> Any:
    return await arun_noukai_job(await NoukaiCredentials.aload("default"), flow, "hello", poll_interval=0.5)


@flow
async def observed_with_block(credentials: NoukaiCredentials, flow: str) -> Any:
    return await arun_noukai_job(credentials, flow, "hello")


@flow
def without_event(flow: str) -> Any:
    context._cancel_event = lambda flow, task_run_id: None  # as in a Prefect that has none
    return run_noukai_job.submit(NoukaiCredentials.load("default"), flow, "hello").result()


@flow(on_cancellation=[cancel_noukai_jobs], on_crashed=[keep_noukai_jobs])
async def hooked(flow: str) -> Any:
    return await arun_noukai_job(await NoukaiCredentials.aload("default"), flow, "hello")
