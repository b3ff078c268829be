"""Map `run_noukai_job` over a list of inputs. Each job is a separate task run, in a thread."""

from __future__ import annotations

from prefect import flow, unmapped

from noukai_prefect import NoukaiCredentials, run_noukai_job


@flow
def noukai_mapped(texts: list[str] | None = None) -> list[str]:
    credentials = NoukaiCredentials.load("default")
    runs = run_noukai_job.map(
        unmapped(credentials), unmapped("acme/spelling/grade-3"), texts or ["one", "two", "three"]
    )
    return [output["message"] for output in runs.result()]
