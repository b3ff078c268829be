"""The core as a user writes against it; read by type checkers, never run."""

from __future__ import annotations

from collections.abc import AsyncIterator, Generator
from datetime import datetime
from typing import Any, assert_type

import httpx

from noukai_core import (
    AsyncFlow,
    AsyncJob,
    AsyncNoukai,
    ExecuteResult,
    Flow,
    Job,
    JobAccepted,
    JobFailedError,
    JobRequest,
    JobState,
    JobStatus,
    JobTimeoutError,
    KeyInfo,
    Noukai,
    NoukaiError,
    RunTrace,
    Submission,
)


def blocking(transport: httpx.BaseTransport) -> None:
    """Everything that the blocking client gives has its own type, and nothing is `Any` but the output."""
    with Noukai("nk_key", org="acme", project="spelling", timeout=5, transport=transport) as client:
        assert_type(client, Noukai)
        assert_type(client.verify_key(), KeyInfo)
        flow = client.flow("a/b/c")
        assert_type(flow, Flow)
        job = flow.job(
            message="x", parameters={"a": [1, None]}, version=3, trace=True, submission=Submission.new()
        )
        assert_type(job, Job)
        assert_type(flow.submit(JobRequest("a/b/c", "x"), submission=Submission.new()), Job)
        assert_type(job.id, str)
        assert_type(job.accepted, JobAccepted | None)
        assert_type(job.submitted_at, datetime | None)
        assert_type(job.status(), JobStatus)
        assert_type(job.status().state == JobState.RUNNING, bool)
        assert_type(job.wait(timeout_ms=60_000), ExecuteResult)
        assert_type(job.wait().output, Any)
        assert_type(job.watch(poll_interval=1.5), Generator[JobStatus, None, JobStatus])
        assert_type(job.trace(), RunTrace)
        assert_type(flow.attach("job-1"), Job)


async def asynchronous(transport: httpx.AsyncBaseTransport) -> None:
    """The async client gives the same types, to be awaited where a request is made."""
    async with AsyncNoukai(transport=transport) as client:
        assert_type(client, AsyncNoukai)
        assert_type(await client.verify_key(), KeyInfo)
        flow = client.flow("a/b/c")
        assert_type(flow, AsyncFlow)
        job = await flow.job("x", version="draft")
        assert_type(job, AsyncJob)
        assert_type(await flow.submit(JobRequest("a/b/c", "x")), AsyncJob)
        assert_type(flow.attach("job-1"), AsyncJob)
        assert_type(await job.status(), JobStatus)
        assert_type(await job.wait(timeout_ms=60_000), ExecuteResult)
        seen: AsyncIterator[JobStatus] = job.watch()
        async for status in seen:
            assert_type(status.finished, bool)
        await job.cancel()


def errors(job: Job) -> None:
    """An error tells its job; a timeout can be caught as the builtin."""
    try:
        job.wait(timeout_ms=1)
    except JobTimeoutError as error:
        builtin: TimeoutError = error
        raise builtin from error
    except JobFailedError as error:
        assert_type(error.job_id, str)
        assert_type(error.status, JobStatus | None)
        base: NoukaiError = error
        raise base from error


def misuse(client: Noukai, asynchronous_client: AsyncNoukai) -> None:
    """What a checker must find: an ignore that is not needed is an error here."""
    Noukai(looks_per_second=5)  # type: ignore[call-arg]
    AsyncNoukai(max_polls_per_second="5")  # type: ignore[arg-type]
    client.flow("a/b/c").job(b"bytes")  # type: ignore[arg-type]
    client.flow("a/b/c").job("x", {"a": 1})  # type: ignore[call-arg]
    client.flow("a/b/c").job("x").wait(60_000)  # type: ignore[call-arg]
    client.flow("a/b/c").job("x").nothing()  # type: ignore[attr-defined]
    print(asynchronous_client.flow("a/b/c").job("x").id)  # type: ignore[attr-defined]
