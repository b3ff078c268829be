"""End the flow run as Cancelled instead of Failed when the job is cancelled on the Noukai side."""

from __future__ import annotations

from typing import Any

from prefect import flow

from noukai_prefect import NoukaiCredentials, run_noukai_job


@flow
def noukai_cancelled() -> Any:
    credentials = NoukaiCredentials.load("default")
    # The task returns a state and does not raise. The flow run gets that state only if the flow returns it.
    return run_noukai_job(credentials, "acme/demo/is-cancelled", "stop me", on_cancelled="cancel")
