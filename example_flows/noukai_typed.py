"""Typed outputs: each one is an instance of a pydantic model, or its job counts as one that failed."""

from __future__ import annotations

from prefect import flow
from pydantic import BaseModel

from noukai_prefect import NoukaiCredentials, run_noukai_jobs


class Echo(BaseModel):
    """What the flow returns."""

    message: str


@flow
def noukai_typed(texts: list[str] | None = None) -> list[str]:
    # A retry submits a new job where the output was no Echo.
    outcomes = run_noukai_jobs.with_options(retries=2)(
        NoukaiCredentials.load("default"),
        "acme/spelling/grade-3",
        texts or ["Helo", "wrold"],
        output_type=Echo,
    )
    return [outcome.output.message for outcome in outcomes]
