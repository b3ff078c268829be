"""Run a Noukai job as a task, and use its output in the next one."""

from __future__ import annotations

from typing import Any

from airflow.sdk import dag, task

from noukai_airflow.operators.noukai import NoukaiRunJobOperator


@dag(schedule=None, tags=["noukai"])
def noukai_run_job() -> None:
    correct = NoukaiRunJobOperator(
        task_id="correct",
        flow="acme/spelling/grade-3",
        message="Helo wrld",
    )

    @task
    def show(output: Any) -> str:
        return f"The flow says: {output}"

    show(correct.output)


noukai_run_job()
