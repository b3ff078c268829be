"""Flows whose tasks run more than once, or make the same submission more than once."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any
from uuid import uuid4

from prefect import flow, runtime, task, unmapped
from prefect.cache_policies import RUN_ID, TASK_SOURCE

from noukai_prefect import (
    NoukaiCredentials,
    _batch_record,
    _job_store,
    arun_noukai_job,
    arun_noukai_jobs,
    run_noukai_job,
    run_noukai_jobs,
)


def credentials() -> NoukaiCredentials:
    return NoukaiCredentials.load("default", _sync=True)  # type: ignore[call-arg]


@flow(retries=1)
async def flow_retried(flow: str, timeout: float | None = None) -> Any:
    return await arun_noukai_job(credentials(), flow, "a", timeout=timeout, cancel_on_timeout=False)


@flow
def task_retried(flow: str, timeout: float | None = None) -> Any:
    task = run_noukai_job.with_options(retries=1)
    return task(credentials(), flow, "a", timeout=timeout, cancel_on_timeout=False)


@flow(retries=1)
async def both_retried(flow: str, timeout: float | None = None) -> Any:
    task = arun_noukai_job.with_options(retries=1)
    return await task(credentials(), flow, "a", timeout=timeout, cancel_on_timeout=False)


@flow
async def child(flow: str, timeout: float) -> Any:
    return await arun_noukai_job(credentials(), flow, "a", timeout=timeout, cancel_on_timeout=False)


@flow(retries=1)
async def parent_retried(flow: str, timeout: float) -> Any:
    return await child(flow, timeout)


@flow
async def three_the_same(flow: str) -> Any:
    return await asyncio.gather(*(arun_noukai_job(credentials(), flow, "the same") for _ in range(3)))


@flow
def three_the_same_mapped(flow: str) -> Any:
    return run_noukai_job.map(unmapped(credentials()), unmapped(flow), ["the same"] * 3).result()


@flow
def three_the_same_in_turn(flow: str) -> Any:
    return [run_noukai_job(credentials(), flow, "the same") for _ in range(3)]


@flow
async def two_credentials(flow: str) -> Any:
    other = await NoukaiCredentials.aload("other")
    return await asyncio.gather(
        arun_noukai_job(credentials(), flow, "the same"), arun_noukai_job(other, flow, "the same")
    )


@flow
async def cancelled_twice(flow: str) -> list[str]:
    states = [
        await arun_noukai_job(credentials(), flow, "the same", on_cancelled="cancel", return_state=True)
        for _ in range(2)
    ]
    return [state.name for state in states]


@task(persist_result=True, cache_policy=RUN_ID + TASK_SOURCE)
def prepare() -> str:
    return f"different each time: {uuid4()}"


def read_for_ever(module: Any, reading: str) -> None:
    """Let the next read of records touch a file and never end."""
    read = module.own_artifacts

    async def never_ends(*_: Any) -> None:
        module.own_artifacts = read
        Path(reading).touch()
        await asyncio.sleep(3600)

    module.own_artifacts = never_ends


@flow
async def reads_its_record(flow: str, reading: str) -> Any:
    """The rerun is slow to read the record of its job."""
    if runtime.flow_run.run_count > 1:
        read_for_ever(_job_store, reading)
    return await arun_noukai_job(credentials(), flow, "a")


@flow
async def batch_reads_its_record(flow: str, reading: str) -> Any:
    """The rerun is slow to read the record of its jobs."""
    if runtime.flow_run.run_count > 1:
        read_for_ever(_batch_record, reading)
    return len(await arun_noukai_jobs(credentials(), flow, ["a", "b"]))


@flow
async def first_times_out(flow: str, timeout: float) -> Any:
    """Only the first attempt has a deadline."""
    first = runtime.flow_run.run_count == 1
    return await arun_noukai_job(credentials(), flow, "a", timeout=timeout if first else None)


@flow
async def first_batch_times_out(flow: str, timeout: float) -> Any:
    """Only the jobs of the first attempt have a deadline."""
    first = runtime.flow_run.run_count == 1
    return len(await arun_noukai_jobs(credentials(), flow, ["a", "b"], timeout=timeout if first else None))


@flow
def every_style(flow: str, prepared: bool = False) -> Any:
    """A call, a submitted job and a submitted batch at the same time."""
    message = prepare() if prepared else "a"
    submitted = run_noukai_job.submit(credentials(), flow, "b")
    batch = run_noukai_jobs.submit(credentials(), flow, ["c", "d"])
    called = run_noukai_job(credentials(), flow, message)
    return [called, submitted.result(), *(outcome.output for outcome in batch.result())]
