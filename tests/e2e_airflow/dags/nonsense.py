"""A job on a server whose connection is in the run's configuration."""

from __future__ import annotations

from airflow.sdk import DAG

from noukai_airflow.operators.noukai import NoukaiRunJobOperator

with DAG("nonsense", schedule=None):
    NoukaiRunJobOperator(
        task_id="job",
        flow="acme/tests/nonsense",
        noukai_conn_id="{{ dag_run.conf['connection'] }}",
        message="Hello",
        deferrable=True,
        inline_wait=0,
        poll_interval=0.5,
    )
