"""A DAG author's module on the Airflow provider; read by type checkers, never run."""

from __future__ import annotations

from datetime import timedelta
from typing import assert_type

from airflow.sdk import DAG

from noukai_airflow.hooks.noukai import NoukaiHook
from noukai_airflow.operators.noukai import NoukaiRunJobOperator
from noukai_airflow.sensors.noukai import NoukaiJobSensor
from noukai_core import Job, Noukai

with DAG("spelling", schedule=None):
    check = NoukaiRunJobOperator(
        task_id="check",
        flow="acme/spelling/grade-3",
        message="{{ params.text }}",
        parameters={"level": 3},
        timeout=timedelta(hours=1),
        poll_interval=5,
        on_cancelled="skip",
        deferrable=True,
    )
    submit = NoukaiRunJobOperator(
        task_id="submit", flow="acme/spelling/grade-3", message="x", wait_for_completion=False
    )
    wait = NoukaiJobSensor(
        task_id="wait",
        job_id="{{ ti.xcom_pull('submit') }}",
        flow="acme/spelling/grade-3",
        allowed_states=["completed", "failed"],
    )


def with_the_hook(hook: NoukaiHook) -> None:
    """The hook gives the core's client."""
    assert_type(hook.get_conn(), Noukai)
    assert_type(hook.get_conn().flow("a/b/c").job("x"), Job)


def misuse() -> None:
    """What a checker must find: an ignore that is not needed is an error here."""
    NoukaiRunJobOperator(task_id="a", message="x")  # type: ignore[call-arg]
    NoukaiRunJobOperator(task_id="b", flow="a/b/c", message=b"x")  # type: ignore[arg-type]
    NoukaiRunJobOperator(task_id="c", flow="a/b/c", on_cancelled="ignore")  # type: ignore[arg-type]
    NoukaiJobSensor(task_id="d", flow="a/b/c")  # type: ignore[call-arg]
