"""A deferral that Airflow itself ends soon after the job's deadline, to save time."""

from __future__ import annotations

from airflow.sdk import DAG

from noukai_airflow.operators.noukai import NoukaiRunJobOperator
from noukai_airflow.triggers import noukai

noukai.BACKSTOP_SECONDS = 2.0

with DAG("deferred_short_backstop", schedule=None):
    NoukaiRunJobOperator(
        task_id="job",
        flow="acme/tests/{{ dag_run.conf['flow'] }}",
        message="Hello",
        deferrable=True,
        inline_wait=0,
        poll_interval=0.5,
        timeout=4,
    )
