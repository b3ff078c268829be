"""`@task.noukai`: the function returns what to submit, and the task returns the flow's output."""

from __future__ import annotations

from typing import Any

from airflow.sdk import dag, task


@dag(schedule=None, tags=["noukai"])
def noukai_decorated() -> None:
    @task
    def customer() -> dict[str, str]:
        return {"name": "Ada", "tone": "friendly"}

    @task.noukai(flow="acme/mail/greeting", deferrable=True)
    def greeting(person: dict[str, str]) -> dict[str, Any]:
        return {"message": f"Greet {person['name']}", "parameters": {"tone": person["tone"]}}

    greeting(customer())


noukai_decorated()
