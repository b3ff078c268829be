"""One job for each text of a list that a function returns. The outputs are the return value.

Before Airflow 3.3, a batch needs an output folder, unless it is not durable.
"""

from __future__ import annotations

from airflow.sdk import dag, task


@dag(schedule=None, tags=["noukai"])
def noukai_batch_decorated() -> None:
    @task.noukai_jobs(flow="acme/spelling/grade-3", deferrable=False)
    def correct() -> list[str]:
        return ["Helo", "wrld", "agian"]

    @task
    def show(outputs: list[dict[str, str]]) -> str:
        return " ".join(output["message"] for output in outputs)

    show(correct())


noukai_batch_decorated()
