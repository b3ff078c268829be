"""Wait for a long job in the triggerer, without a worker slot."""

from __future__ import annotations

from datetime import timedelta

from airflow.sdk import dag

from noukai_airflow.operators.noukai import NoukaiRunJobOperator


@dag(schedule=None, tags=["noukai"])
def noukai_deferrable() -> None:
    NoukaiRunJobOperator(
        task_id="summarise",
        flow="acme/reports/summarise",
        parameters={"quarter": "2026-Q3", "language": "en"},
        deferrable=True,
        timeout=timedelta(hours=2),
    )


noukai_deferrable()
