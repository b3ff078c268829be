"""One job for each text, in parallel. Each mapped task is named after its text."""

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
