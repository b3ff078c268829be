"""Run several jobs at the same time in an async flow, in one process and one event loop."""

from __future__ import annotations

import asyncio

from prefect import flow

from noukai_prefect import NoukaiCredentials, arun_noukai_job


@flow
async def noukai_gather(texts: list[str] | None = None) -> list[str]:
    credentials = await NoukaiCredentials.aload("default")
    outputs = await asyncio.gather(
        *(
            arun_noukai_job(credentials, "acme/spelling/grade-3", text)
            for text in texts or ["one", "two", "three"]
        )
    )
    return [output["message"] for output in outputs]
