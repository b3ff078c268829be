"""All inputs are templated, even in nested parameters, so the run's parameters decide what is submitted."""

from __future__ import annotations

from airflow.sdk import dag

from noukai_airflow.operators.noukai import NoukaiRunJobOperator


@dag(schedule=None, tags=["noukai"], params={"grade": 3, "text": "Helo wrld"})
def noukai_templated() -> None:
    NoukaiRunJobOperator(
        task_id="correct",
        flow="acme/spelling/grade-{{ params.grade }}",
        message="{{ params.text }}",
        parameters={"source": {"dag": "{{ dag.dag_id }}", "run": "{{ run_id }}"}},
    )


noukai_templated()
