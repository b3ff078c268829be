"""Run a Noukai job as a task, and use its output in the next task."""

from __future__ import annotations

from typing import Any

from prefect import flow, task

from noukai_prefect import NoukaiCredentials, run_noukai_job


@task
def show(output: Any) -> str:
    return f"The flow says: {output['message']}"


@flow
def noukai_run_job(text: str = "Helo wrld") -> str:
    credentials = NoukaiCredentials.load("default")
    output = run_noukai_job(credentials, "acme/spelling/grade-3", text)
    return show(output)
