"""One job for each text, side by side; each mapped task is named by its text."""

from __future__ import annotations

from airflow.sdk import dag, task

from noukai_airflow.operators.noukai import NoukaiRunJobOperator


@dag(schedule=None, tags=["noukai"])
def noukai_mapped() -> None:
    @task
    def texts() -> list[str]:
        return ["Helo", "wrld", "agian"]

    NoukaiRunJobOperator.partial(
        task_id="correct",
        flow="acme/spelling/grade-3",
        deferrable=True,
        map_index_template="{{ task.message }}",
    ).expand(message=texts())


noukai_mapped()
