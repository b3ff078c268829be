"""A stream: go on with each outcome as its job ends, while the other jobs run."""

from __future__ import annotations

from prefect import flow

from noukai_prefect import NoukaiCredentials, stream_noukai_jobs


@flow
async def noukai_stream(texts: list[str] | None = None) -> dict[str, int]:
    credentials = await NoukaiCredentials.aload("default")
    inputs = texts or [f"text {number}" for number in range(10)]
    words = failed = 0
    async for outcome in stream_noukai_jobs(credentials, "acme/spelling/grade-3", inputs):
        if outcome.error is None:
            words += len(outcome.output["message"].split())
        else:
            failed += 1
    return {"words": words, "failed": failed}
