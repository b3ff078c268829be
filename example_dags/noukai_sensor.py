"""Submit a job in one task, and wait for it in another. Other tasks can run in between."""

from __future__ import annotations

from airflow.sdk import dag

from noukai_airflow.operators.noukai import NoukaiRunJobOperator
from noukai_airflow.sensors.noukai import NoukaiJobSensor

FLOW = "acme/reports/translate"


@dag(schedule=None, tags=["noukai"])
def noukai_sensor() -> None:
    submit = NoukaiRunJobOperator(
        task_id="submit",
        flow=FLOW,
        message="Guten Morgen",
        wait_for_completion=False,
    )
    NoukaiJobSensor(
        task_id="wait",
        flow=FLOW,
        job_id=submit.output,
        deferrable=True,
    )


noukai_sensor()
