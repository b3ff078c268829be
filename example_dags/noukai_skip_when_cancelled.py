"""If the job is cancelled on the Noukai side, skip the task instead of failing it."""

from __future__ import annotations

from airflow.sdk import dag

from noukai_airflow.operators.noukai import NoukaiRunJobOperator


@dag(schedule=None, tags=["noukai"])
def noukai_skip_when_cancelled() -> None:
    NoukaiRunJobOperator(
        task_id="optional",
        flow="acme/reports/optional",
        message="Nice to have",
        deferrable=True,
        on_cancelled="skip",
    )


noukai_skip_when_cancelled()
