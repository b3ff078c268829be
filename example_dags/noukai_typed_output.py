"""An output that is checked. If a field is missing, the task fails, and its retry submits a new job."""

from __future__ import annotations

from airflow.sdk import dag, task
from pydantic import BaseModel

from noukai_airflow.operators.noukai import NoukaiRunJobOperator


class Correction(BaseModel):
    """What the flow returns."""

    message: str
    comments: list[str] = []


@dag(schedule=None, tags=["noukai"])
def noukai_typed_output() -> None:
    correct = NoukaiRunJobOperator(
        task_id="correct",
        flow="acme/spelling/grade-3",
        message="Helo wrld",
        output_type=Correction,
        retries=1,
    )

    @task
    def show(output: dict[str, object]) -> str:
        correction = Correction.model_validate(output)
        return f"{correction.message} ({len(correction.comments)} comments)"

    show(correct.output)  # type: ignore[arg-type]


noukai_typed_output()
