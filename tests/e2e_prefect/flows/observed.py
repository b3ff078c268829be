"""Flows whose artifacts, events, logs and hooks are tested."""

from __future__ import annotations

import asyncio
import time
from typing import Any

from prefect import flow

from noukai_prefect import (
    NoukaiCredentials,
    _run,
    _run_context,
    arun_noukai_job,
    arun_noukai_jobs,
    cancel_noukai_jobs,
    log_resumable_noukai_jobs,
    run_noukai_job,
)


@flow
async def observed(flow: str) -> Any:
    return await arun_noukai_job(
        await NoukaiCredentials.aload("default"), flow, "hello", trace=True, poll_interval=0.5
    )


@flow
async def observed_with_block(credentials: NoukaiCredentials, flow: str) -> Any:
    return await arun_noukai_job(credentials, flow, "hello")


@flow
def without_event(flow: str) -> Any:
    _run_context._cancel_event = lambda flow, task_run_id: None  # as in a Prefect that has none
    return run_noukai_job.submit(NoukaiCredentials.load("default"), flow, "hello").result()


@flow
async def struck_in_between(flow: str) -> Any:
    # Between the submission and the wait.
    _run.emit_job_event = lambda run, what, *job: time.sleep(25 if what == "submitted" else 0)
    return await arun_noukai_job(await NoukaiCredentials.aload("default"), flow, "hello")


@flow
async def struck_in_one_of_three(flow: str) -> Any:
    submitted = list[str]()

    def wait_with_the_last(run: Any, what: str, noukai_flow: str, job_id: str, *_: Any) -> None:
        submitted.append(job_id)
        time.sleep(25 if len(submitted) == 3 else 0)

    _run.emit_job_event = wait_with_the_last
    credentials = await NoukaiCredentials.aload("default")
    return await asyncio.gather(*(arun_noukai_job(credentials, flow, text) for text in "abc"))


@flow
async def with_other_credentials(flow: str) -> Any:
    return await arun_noukai_job(await NoukaiCredentials.aload("other"), flow, "in a subflow")


@flow(on_cancellation=[cancel_noukai_jobs], on_crashed=[log_resumable_noukai_jobs])
async def hooked(flow: str) -> Any:
    credentials = await NoukaiCredentials.aload("default")
    return await asyncio.gather(
        arun_noukai_job(credentials, flow, "hello"),
        arun_noukai_jobs(credentials, flow, ["a", "b"]),
        with_other_credentials(flow),
    )
