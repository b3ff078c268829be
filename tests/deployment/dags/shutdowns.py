"""One job each, which is waited for on a worker: to its end, or until the task defers."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

from airflow.sdk import DAG

from noukai_airflow.operators.noukai import NoukaiRunJobOperator

WAYS: dict[str, dict[str, Any]] = {
    "waiting": {"deferrable": False},
    "before_deferral": {"deferrable": True, "inline_wait": 600},
}

for dag_id, arguments in WAYS.items():
    with DAG(dag_id, schedule=None) as dag:
        NoukaiRunJobOperator(
            task_id="job",
            flow="acme/tests/{{ dag_run.conf['flow'] }}",
            message="Hello",
            poll_interval=0.5,
            retries=1,
            retry_delay=timedelta(seconds=1),
            **arguments,
        )
    globals()[dag_id] = dag
