"""One DAG with a task for each thing that can happen to a Noukai job.

A flow is named after its task and the text that must appear wherever messages do. The exception of a failed
task is saved with the local variables of each frame, as in some error reports.
"""

from __future__ import annotations

import os
import traceback
from datetime import timedelta
from pathlib import Path
from typing import Any

from airflow.sdk import DAG, task

from noukai_airflow.hooks.noukai import NoukaiHook
from noukai_airflow.operators.noukai import NoukaiRunJobOperator
from noukai_airflow.sensors.noukai import NoukaiJobSensor

try:
    from noukai_airflow.retry_policy import NoukaiRetryPolicy
except ImportError:  # before Airflow 3.3
    POLICY: dict[str, Any] = {}
else:
    POLICY = {"retry_policy": NoukaiRetryPolicy()}

SIGN = os.environ["SECRETS_SIGN"]


def flow_of(task_id: str) -> str:
    return f"acme/tests/{task_id.replace('_', '-')}-{SIGN}"


def save_error(context: Any) -> None:
    """Save the error of a failed task."""
    error = context.get("exception")
    if not isinstance(error, BaseException):
        return
    reported = traceback.TracebackException.from_exception(error, capture_locals=True)
    folder = Path(os.environ["AIRFLOW_HOME"]) / "frames"
    folder.mkdir(exist_ok=True)
    (folder / f"{context['ti'].task_id}.txt").write_text("".join(reported.format()))


DEFERRED: dict[str, Any] = {"deferrable": True, "inline_wait": 0, "poll_interval": 0.5}
WAITING: dict[str, Any] = {"deferrable": False, "poll_interval": 0.5}
WITH_POLICY: dict[str, Any] = {"retries": 1, "retry_delay": timedelta(seconds=1), **POLICY}

JOBS: dict[str, dict[str, Any]] = {
    "deferred_completed": DEFERRED,
    "waiting_completed": WAITING | {"trace": True},
    "deferred_failed": DEFERRED,
    "waiting_failed": WAITING,
    "deferred_cancelled": DEFERRED,
    "rejected_key": WAITING | WITH_POLICY,
    "rejected_key_later": DEFERRED,
    "rejected_model_key": WAITING,
    "rate_limited": DEFERRED | WITH_POLICY,
    "web_page_later": DEFERRED,
    "redirected": WAITING,
    "redirected_later": DEFERRED,
    "deadline": DEFERRED | {"timeout": 3},
    "killed_deferred": DEFERRED,
    "killed_waiting": WAITING,
    "bad_key": WAITING | {"noukai_conn_id": "bad_key"},
    "cut_key": DEFERRED | {"noukai_conn_id": "cut_key"},
    "bad_extra": WAITING | {"noukai_conn_id": "bad_extra"},
    "bad_org": WAITING | {"noukai_conn_id": "bad_org"},
    "unreachable": WAITING | {"noukai_conn_id": "unreachable"},
    "echo_rejected": WAITING | {"noukai_conn_id": "echo"},
    "echo_html": WAITING | {"noukai_conn_id": "echo"},
    "echo_failed": DEFERRED | {"noukai_conn_id": "echo"},
    "echo_completed": WAITING | {"noukai_conn_id": "echo", "trace": True},
}

with DAG("everything", schedule=None, max_active_tasks=64, default_args={"on_failure_callback": save_error}):
    for task_id, arguments in JOBS.items():
        NoukaiRunJobOperator(task_id=task_id, flow=flow_of(task_id), message=SIGN, **arguments)

    @task.noukai(flow=flow_of("decorated"), **WAITING)
    def decorated() -> dict[str, Any]:
        return {"message": SIGN, "parameters": {"tone": "friendly"}}

    decorated()

    submit = NoukaiRunJobOperator(
        task_id="submitted", flow=flow_of("submitted"), message=SIGN, wait_for_completion=False
    )
    for name, mode in {"sensed": {"poke_interval": 0.5}, "sensed_deferred": {"deferrable": True}}.items():
        NoukaiJobSensor(task_id=name, flow=flow_of("submitted"), job_id=submit.output, **mode)

    @task(**WITH_POLICY)
    def hooked() -> None:
        client = NoukaiHook().get_conn()
        client.flow(flow_of("hooked")).job(message=SIGN).wait(timeout_ms=300_000)

    hooked()

with DAG("tried_out", schedule=None, default_args={"on_failure_callback": save_error}):
    for task_id in ("tried_completed", "tried_failed"):
        NoukaiRunJobOperator(task_id=task_id, flow=flow_of(task_id), message=SIGN, **DEFERRED)
