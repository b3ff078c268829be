"""Two jobs: one that the picture shows while it waits, and one that fails."""

from __future__ import annotations

from airflow.sdk import dag

from noukai_airflow.operators.noukai import NoukaiRunJobOperator


@dag(schedule=None, tags=["noukai"])
def books() -> None:
    """Translate and summarise a book."""
    for task in ("translate", "summarise"):
        NoukaiRunJobOperator(task_id=task, flow=task, message="A long book", deferrable=True, trace=True)


books()
