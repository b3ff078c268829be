"""Flows that people pause or suspend, and resume."""

from __future__ import annotations

from typing import Any

from prefect import flow
from prefect.flow_runs import pause_flow_run, suspend_flow_run
from prefect.task_runners import ProcessPoolTaskRunner

from noukai_prefect import NoukaiCredentials, run_noukai_job


@flow
def paused(flow: str, timeout: float) -> Any:
    credentials = NoukaiCredentials.load("default", _sync=True)  # type: ignore[call-arg]
    pause_flow_run(timeout=3600, poll_interval=1)
    return run_noukai_job(credentials, flow, "a", timeout=timeout)


@flow(task_runner=ProcessPoolTaskRunner(max_workers=1), persist_result=True)
def suspended(flow: str) -> Any:
    credentials = NoukaiCredentials.load("default", _sync=True)  # type: ignore[call-arg]
    output = run_noukai_job.submit(credentials, flow, "a").result()
    suspend_flow_run(timeout=3600)
    return output
