"""Retries that take Noukai's errors into account: after a rate limit, wait as long as the server asks.

For Airflow 3.3 and later.
"""

from __future__ import annotations

from datetime import timedelta

from airflow.sdk import dag

from noukai_airflow.operators.noukai import NoukaiRunJobOperator

try:
    from noukai_airflow.retry_policy import NoukaiRetryPolicy
except ImportError:  # before Airflow 3.3, the task's own delay applies
    policy = {}
else:
    policy = {"retry_policy": NoukaiRetryPolicy()}


@dag(schedule=None, tags=["noukai"])
def noukai_retry_policy() -> None:
    NoukaiRunJobOperator(
        task_id="classify",
        flow="acme/mail/classify",
        message="Where is my parcel?",
        deferrable=True,
        retries=3,
        retry_delay=timedelta(minutes=5),
        **policy,
    )


noukai_retry_policy()
