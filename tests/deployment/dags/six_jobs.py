"""More jobs than the first triggerer may hold."""

from __future__ import annotations

from airflow.sdk import DAG

from noukai_airflow.operators.noukai import NoukaiRunJobOperator

with DAG("six_jobs", schedule=None):
    NoukaiRunJobOperator.partial(
        task_id="job",
        flow="acme/tests/{{ dag_run.conf['flow'] }}",
        deferrable=True,
        inline_wait=0,
        poll_interval=0.5,
    ).expand(message=[f"message {index}" for index in range(6)])
