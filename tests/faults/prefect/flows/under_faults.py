"""Many jobs in one task, on a Noukai with many faults."""

from __future__ import annotations

from typing import Any

from prefect import flow

from noukai_prefect import NoukaiCredentials, run_noukai_jobs


@flow
def under_faults(flow: str, inputs: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Run the jobs, and then again those whose submission was lost several times in a row."""
    credentials = NoukaiCredentials.load("default")
    outcomes = run_noukai_jobs(credentials, flow, inputs, raise_on="none")
    lost = [index for index, outcome in enumerate(outcomes) if outcome.job_id is None]
    if lost:
        again = run_noukai_jobs(credentials, flow, [inputs[index] for index in lost], raise_on="none")
        for index, outcome in zip(lost, again, strict=True):
            outcomes[index] = outcome
    return [{"job_id": outcome.job_id, "state": outcome.state} for outcome in outcomes]
