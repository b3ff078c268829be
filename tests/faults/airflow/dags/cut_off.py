"""Three jobs over a connection with a short retry window."""

from __future__ import annotations

from datetime import timedelta

from airflow.sdk import DAG

from noukai_airflow.operators.noukai import NoukaiRunJobOperator

with DAG("cut_off", schedule=None):
    NoukaiRunJobOperator.partial(
        task_id="job",
        flow="acme/tests/{{ dag_run.conf['flow'] }}",
        noukai_conn_id="noukai_short_retry",
        deferrable=True,
        inline_wait=0,
        poll_interval=0.5,
        retries=20,  # a try that ends before the network is restored is used up
        retry_delay=timedelta(seconds=1),
    ).expand(message=["a", "b", "c"])
