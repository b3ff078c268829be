"""DAGs of one batch each. The run's configuration names the flow, the inputs and the folder."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

from airflow.sdk import DAG
from pydantic import BaseModel

from noukai_airflow.operators.batch import NoukaiRunJobsOperator


class Grade(BaseModel):
    """What a job is expected to return."""

    points: int
    comment: str = "none"


COMMON: dict[str, Any] = {
    "flow": "acme/tests/{{ dag_run.conf['flow'] }}",
    "inputs": "{{ dag_run.conf['inputs'] }}",
    "output_path": "{{ dag_run.conf['output'] }}",
    "poll_interval": 0.5,
}
RETRY = {"retries": 1, "retry_delay": timedelta(seconds=1)}

TASKS: dict[str, dict[str, Any]] = {
    "batch_waiting": {"deferrable": False},
    "batch_waiting_retry": {"deferrable": False, **RETRY},
    "batch_deferred": {"deferrable": True},
    "batch_deferred_retry": {"deferrable": True, **RETRY},
    "batch_typed_waiting_retry": {"deferrable": False, "output_type": Grade, **RETRY},
    "batch_typed_deferred_retry": {"deferrable": True, "output_type": Grade, **RETRY},
    "batch_waves": {"deferrable": True, "max_concurrency": 20},
    "batch_tolerant": {"deferrable": False, "fail_on": 0.5},
    "batch_patient": {"deferrable": False, "noukai_conn_id": "noukai_patient"},
    "batch_budget": {"deferrable": False, "trace": True, "max_cost_usd": "0.05", "max_concurrency": 2},
}

for dag_id, arguments in TASKS.items():
    with DAG(dag_id, schedule=None):
        NoukaiRunJobsOperator(task_id="job", **COMMON | arguments)
