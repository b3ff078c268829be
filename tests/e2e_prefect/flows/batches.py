"""Many jobs in one task."""

from __future__ import annotations

import asyncio
from typing import Any, Literal

from prefect import flow
from prefect.filesystems import LocalFileSystem

from noukai_prefect import (
    JobOutcome,
    NoukaiCredentials,
    arun_noukai_jobs,
    run_noukai_jobs,
    stream_noukai_jobs,
)


def summaries(outcomes: list[JobOutcome]) -> list[dict[str, Any]]:
    return [
        {
            "job_id": outcome.job_id,
            "state": outcome.state,
            "output": outcome.output,
            "error": str(outcome.error or ""),
        }
        for outcome in outcomes
    ]


def job(message: str, **script: Any) -> dict[str, Any]:
    return {"message": message, "parameters": {"_emulator": script}}


@flow
async def batch_of_four(flow: str, raise_on: Literal["first", "any", "none"]) -> list[dict[str, Any]]:
    """The last input ends first."""
    inputs = [
        job("slow", after_seconds=3),
        job("fails", after_seconds=2, outcome="failed", error="no luck"),
        job("is cancelled", after_seconds=1, outcome="cancelled"),
        job("quick", after_seconds=0),
    ]
    credentials = await NoukaiCredentials.aload("default")
    return summaries(await arun_noukai_jobs(credentials, flow, inputs, raise_on=raise_on))


@flow(retries=1)
def batch_retried(flow: str) -> list[dict[str, Any]]:
    credentials = NoukaiCredentials.load("default")
    return summaries(run_noukai_jobs(credentials, flow, ["the same", "the same", "the same", "another"]))


@flow
async def batch_max_concurrency(flow: str) -> list[dict[str, Any]]:
    credentials = await NoukaiCredentials.aload("default")
    return summaries(await arun_noukai_jobs(credentials, flow, ["a", "b", "c", "d", "e"], max_concurrency=2))


@flow
async def batch_too_slow(flow: str) -> list[dict[str, Any]]:
    inputs = [job("quick", after_seconds=0), job("endless", outcome="never")]
    credentials = await NoukaiCredentials.aload("default")
    return summaries(await arun_noukai_jobs(credentials, flow, inputs, timeout=2, raise_on="none"))


@flow
async def batch_timed_out(flow: str, seconds: float) -> Any:
    credentials = await NoukaiCredentials.aload("default")
    return await arun_noukai_jobs.with_options(timeout_seconds=seconds)(credentials, flow, ["a", "b", "c"])


@flow
def batch_submitted(flow: str) -> Any:
    credentials = NoukaiCredentials.load("default")
    return run_noukai_jobs.submit(credentials, flow, ["a", "b", "c"]).result()


@flow
async def batch_capped(flow: str) -> list[dict[str, Any]]:
    credentials = await NoukaiCredentials.aload("default")
    outcomes = await arun_noukai_jobs(
        credentials,
        flow,
        [f"m{number}" for number in range(20)],
        trace=True,
        max_cost_usd=1,
        max_concurrency=2,
        raise_on="none",
    )
    return summaries(outcomes)


@flow
def batch_of_many(flow: str, size: int) -> list[dict[str, Any]]:
    credentials = NoukaiCredentials.load("default")
    return summaries(run_noukai_jobs(credentials, flow, [f"m{number}" for number in range(size)]))


@flow
async def batch_stored(flow: str, size: int, folder: str) -> Any:
    credentials = await NoukaiCredentials.aload("default")
    storage = LocalFileSystem(basepath=folder)
    inputs = (f"m{number}" for number in range(size))
    return await arun_noukai_jobs(credentials, flow, inputs, output_storage=storage)


@flow
async def batch_worked_on(flow: str, size: int) -> None:
    credentials = await NoukaiCredentials.aload("default")
    inputs = [f"m{number}" for number in range(size)]
    async for _ in stream_noukai_jobs(credentials, flow, inputs):
        await asyncio.sleep(3600)


@flow
async def batch_streamed(flow: str, size: int) -> list[dict[str, Any]]:
    credentials = await NoukaiCredentials.aload("default")
    inputs = [f"m{number}" for number in range(size)]
    return summaries([outcome async for outcome in stream_noukai_jobs(credentials, flow, inputs)])
