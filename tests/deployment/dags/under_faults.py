"""As many jobs as the run's configuration has, one part waited for in the triggerers, one on the workers."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

from airflow.sdk import DAG, task

from noukai_airflow.operators.noukai import NoukaiRunJobOperator

# A try that dies with its worker counts as one, so there have to be as many as processes are killed.
SHARED: dict[str, Any] = {
    "flow": "acme/faults/run",
    "retries": 30,
    "retry_delay": timedelta(seconds=1),
    "poll_interval": 1,
}


@task
def wanted(part: str, **context: Any) -> list[dict[str, Any]]:
    return context["dag_run"].conf[part]


with DAG("under_faults", schedule=None):
    for part in ("deferred", "waiting"):
        NoukaiRunJobOperator.partial(
            task_id=part, deferrable=part == "deferred", inline_wait=1, **SHARED
        ).expand_kwargs(wanted.override(task_id=f"wanted_{part}")(part))
