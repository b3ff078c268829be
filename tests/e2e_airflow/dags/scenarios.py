"""DAGs of one task each, one for each way to run a Noukai job.

The run's configuration names the flow.
"""

from __future__ import annotations

import logging
from datetime import timedelta
from typing import Any

from airflow.sdk import DAG, task
from pydantic import BaseModel

from noukai_airflow.operators.batch import NoukaiRunJobsOperator
from noukai_airflow.operators.noukai import NoukaiRunJobOperator
from noukai_airflow.sensors.noukai import NoukaiJobSensor

try:
    from noukai_airflow.retry_policy import NoukaiRetryPolicy
except ImportError:  # before Airflow 3.3
    POLICY: dict[str, Any] = {}
else:
    POLICY = {"retry_policy": NoukaiRetryPolicy()}


def log_exception(context: Any) -> None:
    """Log what a failure callback gets."""
    error = context.get("exception")
    logging.getLogger(__name__).info(
        "callback: %s of %s", type(error).__name__, getattr(error, "job_id", None)
    )


def wait_long_in_a_retry(context: Any) -> None:
    """Give a retry more time than any test takes."""
    if context["ti"].try_number > 1:
        context["task"].timeout = 3600


class Grade(BaseModel):
    """What the flow of `typed_retry` is expected to return."""

    points: int


FLOW = "acme/tests/{{ dag_run.conf['flow'] }}"
RETRY = {"retries": 1, "retry_delay": timedelta(seconds=1)}
# A busy scheduler may fail a task that is resumed sooner after its deferral: see test_states.py.
UNHURRIED = 8
# Usually long enough for a busy machine to submit a job.
AMPLE = timedelta(seconds=20)
PROMPT = {"inline_wait": 0, "poll_interval": 0.5}

TASKS: dict[str, dict[str, Any]] = {
    "deferred": {"deferrable": True, "on_failure_callback": log_exception, **PROMPT},
    "deferred_retry": {"deferrable": True, **PROMPT, **RETRY},
    "deferred_many_retries": {"deferrable": True, **PROMPT, **RETRY, "retries": 50},
    "deferred_paused": {"deferrable": True, **PROMPT},
    "deferred_inline": {"deferrable": True, "inline_wait": 30},
    "deferred_inline_retry": {"deferrable": True, "inline_wait": 60, "poll_interval": 0.5, **RETRY},
    "deferred_deadline": {"deferrable": True, "timeout": UNHURRIED, **PROMPT, **RETRY},
    "deferred_deadline_keep": {
        "deferrable": True,
        "timeout": UNHURRIED,
        "cancel_on_timeout": False,
        "pre_execute": wait_long_in_a_retry,
        **PROMPT,
        **RETRY,
    },
    "deferred_execution_timeout": {
        "deferrable": True,
        "execution_timeout": AMPLE,
        **PROMPT,
    },
    "deferred_keep": {"deferrable": True, "cancel_on_kill": False, **PROMPT},
    "deferred_not_durable": {"deferrable": True, "durable": False, **PROMPT},
    "deferred_policy": {
        "deferrable": True,
        "retries": 1,
        "retry_delay": timedelta(hours=1),
        **POLICY,
        **PROMPT,
    },
    "deferred_patient": {"deferrable": True, "noukai_conn_id": "noukai_patient", **PROMPT},
    "deferred_skip": {"deferrable": True, "on_cancelled": "skip", **PROMPT},
    "deferred_silent": {"deferrable": True, "do_xcom_push": False, **PROMPT},
    "waiting": {"deferrable": False, "poll_interval": 0.5},
    "waiting_retry": {"deferrable": False, "poll_interval": 0.5, **RETRY},
    "waiting_late_retry": {
        "deferrable": False,
        "poll_interval": 0.5,
        "retries": 1,
        "retry_delay": timedelta(hours=1),
    },
    "waiting_deadline": {"deferrable": False, "timeout": 3, "poll_interval": 0.5},
    "waiting_execution_timeout": {
        "deferrable": False,
        "poll_interval": 0.5,
        "execution_timeout": AMPLE,
    },
    "waiting_keep": {"deferrable": False, "cancel_on_kill": False, "poll_interval": 0.5},
    "waiting_not_durable": {"deferrable": False, "durable": False, "poll_interval": 0.5, **RETRY},
    "waiting_skip": {"deferrable": False, "on_cancelled": "skip", "poll_interval": 0.5},
    "followed": {"deferrable": True, "inline_wait": 3, "poll_interval": 0.5, "follow": "steps"},
    "followed_waiting": {"deferrable": False, "poll_interval": 0.5, "follow": "steps"},
    "followed_not": {"deferrable": True, "follow": None, **PROMPT},
    "with_openlineage": {"deferrable": True, **PROMPT},
    "traced": {"deferrable": False, "trace": True},
    "deferred_file": {"deferrable": True, "output_path": "{{ dag_run.conf['output'] }}", **PROMPT},
    "typed_retry": {"deferrable": False, "output_type": Grade, "poll_interval": 0.5, **RETRY},
}

for dag_id, arguments in TASKS.items():
    with DAG(dag_id, schedule=None) as dag:
        NoukaiRunJobOperator(task_id="job", flow=FLOW, message="Hello", **arguments)
    globals()[dag_id] = dag

with DAG("of_the_form", schedule=None) as of_the_form:
    NoukaiRunJobOperator(
        task_id="job",
        flow="{{ dag_run.conf['flow'] }}",
        message="Hello",
        noukai_conn_id="{{ dag_run.conf['flow'] }}",
        deferrable=True,
        **PROMPT,
    )

with DAG("multiple_outputs", schedule=None) as multiple_outputs:
    arguments = {"flow": FLOW, "message": "Hello", "deferrable": False, "poll_interval": 0.5}
    neighbour = NoukaiRunJobOperator(task_id="neighbour", **arguments)
    neighbour >> NoukaiRunJobOperator(task_id="job", multiple_outputs=True, **arguments)

with DAG("decorated_mapped", schedule=None) as decorated_mapped:

    @task.noukai(flow=FLOW, deferrable=True, map_index_template="{{ text }}", **PROMPT)
    def job(text: str, greeting: str) -> dict[str, Any]:
        return {"message": f"{greeting} {text}", "parameters": {"deep": [{"text": text}]}}

    job.partial(greeting="{{ dag.dag_id }}").expand(text=["a", "b"])

with DAG("mapped", schedule=None) as mapped:
    NoukaiRunJobOperator.partial(task_id="job", flow=FLOW, deferrable=True, **PROMPT).expand(
        message=["a", "b", "c"]
    )

with DAG("reduced", schedule=None) as reduced:

    @task
    def word(number: int) -> str:
        return f"word {number}"

    words = word.expand(number=[1, 2])
    NoukaiRunJobOperator(task_id="job", flow=FLOW, parameters={"words": words}, deferrable=False)
    NoukaiRunJobsOperator(task_id="batch", flow=FLOW, inputs=words, deferrable=False, durable=False)

SENSORS: dict[str, dict[str, Any]] = {
    "sensor_poke": {"poke_interval": 0.5},
    # If the next poke is due before Airflow's scheduler has seen the end of the last one, it takes that end
    # for a crash. On a machine with sixteen times as much to do as it can, nine seconds were too few.
    "sensor_reschedule": {"mode": "reschedule", "poke_interval": 30},
    "sensor_deferred": {"deferrable": True, "poke_interval": 0.5},
}

for dag_id, arguments in SENSORS.items():
    with DAG(dag_id, schedule=None) as dag:
        submit = NoukaiRunJobOperator(task_id="submit", flow=FLOW, message="Hello", wait_for_completion=False)
        for name, more in {
            "job": {},
            "soft": {"soft_fail": True},
            "any": {"allowed_states": ("completed", "failed")},
        }.items():
            NoukaiJobSensor(task_id=name, flow=FLOW, job_id=submit.output, **arguments, **more)
    globals()[dag_id] = dag

    with DAG(f"{dag_id}_timeout", schedule=None) as dag:
        submit = NoukaiRunJobOperator(task_id="submit", flow=FLOW, message="Hello", wait_for_completion=False)
        for name, soft_fail in {"job": False, "soft": True}.items():
            NoukaiJobSensor(
                task_id=name,
                flow=FLOW,
                job_id=submit.output,
                timeout=UNHURRIED,
                soft_fail=soft_fail,
                **arguments,
            )
    globals()[dag.dag_id] = dag
