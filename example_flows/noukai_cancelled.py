"""Let a job that somebody cancels on the Noukai side end the flow run as Cancelled, instead of Failed."""

from __future__ import annotations

from typing import Any

from prefect import flow

from noukai_prefect import NoukaiCredentials, run_noukai_job


@flow
def noukai_cancelled() -> Any:
    credentials = NoukaiCredentials.load("default")
    # Prefect hands a state to the caller of a task without raising: what is returned decides the flow run.
    return run_noukai_job(credentials, "acme/demo/is-cancelled", "stop me", on_cancelled="cancel")
