"""Three jobs in parallel, one for each way a job can end. `make demo` runs this on a local Noukai."""

from __future__ import annotations

from airflow.sdk import dag

from noukai_airflow.operators.noukai import NoukaiRunJobOperator


@dag(schedule=None, tags=["noukai"])
def noukai_three_endings() -> None:
    for ending in ("completes", "fails", "is-cancelled"):
        NoukaiRunJobOperator(
            task_id=ending,
            flow=f"acme/demo/{ending}",
            message="from Airflow",
            deferrable=True,
        )


noukai_three_endings()
