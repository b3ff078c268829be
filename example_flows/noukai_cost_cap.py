"""Stop at a cost: nothing more is submitted once the jobs that have ended cost enough."""

from __future__ import annotations

from collections import Counter

from prefect import flow

from noukai_prefect import NoukaiCredentials, run_noukai_jobs


@flow
def noukai_cost_cap(texts: list[str] | None = None, most: float = 0.0004) -> dict[str, int]:
    outcomes = run_noukai_jobs(
        NoukaiCredentials.load("default"),
        "acme/spelling/grade-3",
        texts or [f"text {number}" for number in range(20)],
        trace=True,  # only the trace of a job tells what it cost
        max_cost_usd=most,
        max_concurrency=2,
        raise_on="none",
    )
    return dict(Counter(outcome.state.value for outcome in outcomes))
