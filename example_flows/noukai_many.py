"""Run many jobs in one task: one event loop, one client, results in the order of the inputs."""

from __future__ import annotations

from typing import Any

from prefect import flow

from noukai_prefect import NoukaiCredentials, arun_noukai_jobs


@flow
async def noukai_many(texts: list[str] | None = None) -> dict[str, Any]:
    outcomes = await arun_noukai_jobs(
        await NoukaiCredentials.aload("default"),
        "acme/spelling/grade-3",
        texts or [f"text {number}" for number in range(50)],
        trace=True,
        raise_on="none",
    )
    return {
        "outputs": [outcome.output for outcome in outcomes],
        "failed": [str(outcome.error) for outcome in outcomes if outcome.error is not None],
    }
